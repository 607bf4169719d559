"""Messages, what they are made of, and how they travel."""

from callsheet.messages.blocks import (
    AudioBlock,
    Base64Source,
    ContentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    URLSource,
    VideoBlock,
)
from callsheet.messages.msg import Msg
from callsheet.messages.recorded import Recorded
from callsheet.messages.state import StateModule

__all__ = [
    "AudioBlock",
    "Base64Source",
    "ContentBlock",
    "ImageBlock",
    "Msg",
    "Recorded",
    "StateModule",
    "TextBlock",
    "ThinkingBlock",
    "ToolResultBlock",
    "ToolUseBlock",
    "URLSource",
    "VideoBlock",
]
