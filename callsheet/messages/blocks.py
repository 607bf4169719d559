"""The content blocks of a message: dictionaries, as AgentScope's are, told apart by `type`.

Keys that a block does not name (a provider's extras) are kept.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue, with_config
from typing_extensions import TypedDict  # pydantic takes the standard one from Python 3.12 on

_OPEN = ConfigDict(extra="allow")


@with_config(_OPEN)
class TextBlock(TypedDict):
    """Text for people and models."""

    type: Literal["text"]
    text: str


@with_config(_OPEN)
class ThinkingBlock(TypedDict):
    """A model's reasoning; never shown to other agents."""

    type: Literal["thinking"]
    thinking: str


@with_config(_OPEN)
class Base64Source(TypedDict):
    """Media in the message itself."""

    type: Literal["base64"]
    media_type: str
    data: str


@with_config(_OPEN)
class URLSource(TypedDict):
    """Media at an address."""

    type: Literal["url"]
    url: str


Source = Annotated[Base64Source | URLSource, Field(discriminator="type")]


@with_config(_OPEN)
class ImageBlock(TypedDict):
    """A picture."""

    type: Literal["image"]
    source: Source


@with_config(_OPEN)
class AudioBlock(TypedDict):
    """Sound."""

    type: Literal["audio"]
    source: Source


@with_config(_OPEN)
class VideoBlock(TypedDict):
    """A film."""

    type: Literal["video"]
    source: Source


@with_config(_OPEN)
class ToolUseBlock(TypedDict):
    """A model's call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, JsonValue]


@with_config(_OPEN)
class ToolResultBlock(TypedDict):
    """What a tool gave back to the call of the same `id`."""

    type: Literal["tool_result"]
    id: str
    name: str
    output: str | list[Annotated[TextBlock | ImageBlock | AudioBlock | VideoBlock, Field(discriminator="type")]]


ContentBlock = Annotated[
    TextBlock | ThinkingBlock | ImageBlock | AudioBlock | VideoBlock | ToolUseBlock | ToolResultBlock,
    Field(discriminator="type"),
]

BlockType = Literal["text", "thinking", "image", "audio", "video", "tool_use", "tool_result"]
