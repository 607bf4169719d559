"""Chat models."""

from callsheet.models.anthropic import AnthropicChatModel
from callsheet.models.base import ChatModelBase, ChatResponse, ChatUsage, Content
from callsheet.models.compatible import DashScopeChatModel, DeepSeekChatModel
from callsheet.models.errors import EndpointError
from callsheet.models.fallback import FallbackModel
from callsheet.models.gemini import GeminiChatModel
from callsheet.models.ollama import OllamaChatModel
from callsheet.models.openai import OpenAIChatModel

__all__ = [
    "AnthropicChatModel",
    "ChatModelBase",
    "ChatResponse",
    "ChatUsage",
    "Content",
    "DashScopeChatModel",
    "DeepSeekChatModel",
    "EndpointError",
    "FallbackModel",
    "GeminiChatModel",
    "OllamaChatModel",
    "OpenAIChatModel",
]
