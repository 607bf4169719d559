"""Chat models."""

from callsheet.models.base import ChatModelBase, ChatResponse, ChatUsage, Content
from callsheet.models.errors import EndpointError
from callsheet.models.openai import OpenAIChatModel

__all__ = ["ChatModelBase", "ChatResponse", "ChatUsage", "Content", "EndpointError", "OpenAIChatModel"]
