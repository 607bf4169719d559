"""The content blocks of a message: dictionaries, as AgentScope's are, told apart by `type`.

Keys that a block does not name (a provider's extras) are kept.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue
from typing_extensions import TypedDict  # pydantic takes the standard one from Python 3.12 on

_OPEN = ConfigDict(extra="allow")


class TextBlock(TypedDict):
    """Text for people and models."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["text"]
    text: str


class ThinkingBlock(TypedDict):
    """A model's reasoning; never shown to other agents."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["thinking"]
    thinking: str


class Base64Source(TypedDict):
    """Media in the message itself."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["base64"]
    media_type: str
    data: str


class URLSource(TypedDict):
    """Media at an address."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["url"]
    url: str


Source = Annotated[Base64Source | URLSource, Field(discriminator="type")]


class ImageBlock(TypedDict):
    """A picture."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["image"]
    source: Source


class AudioBlock(TypedDict):
    """Sound."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["audio"]
    source: Source


class VideoBlock(TypedDict):
    """A film."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["video"]
    source: Source


class ToolUseBlock(TypedDict):
    """A model's call of a tool."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, JsonValue]


class ToolResultBlock(TypedDict):
    """What a tool gave back to the call of the same `id`."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    type: Literal["tool_result"]
    id: str
    name: str
    output: str | list[Annotated[TextBlock | ImageBlock | AudioBlock | VideoBlock, Field(discriminator="type")]]


ContentBlock = Annotated[
    TextBlock | ThinkingBlock | ImageBlock | AudioBlock | VideoBlock | ToolUseBlock | ToolResultBlock,
    Field(discriminator="type"),
]

BlockType = Literal["text", "thinking", "image", "audio", "video", "tool_use", "tool_result"]
