"""ToolResponse: what a tool gave, and how any value becomes one."""

import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, cast

from pydantic_core import to_json

from callsheet.messages import AudioBlock, ImageBlock, Msg, TextBlock, VideoBlock

Block = TextBlock | ImageBlock | AudioBlock | VideoBlock
_MEDIA = ("image", "audio", "video")
NOTHING = "(no result)"
INTERRUPTED = "<system-info>The user interrupted this tool call.</system-info>"


def _new_id() -> str:
    return f"{datetime.now().strftime('%Y-%m-%d %H:%M:%S.%f')[:-3]}_{secrets.token_hex(3)}"


@dataclass
class ToolResponse:
    """What a tool has given, or what has come of it so far.

    Attributes:
        content: blocks: text, image, audio, video.
        metadata: data for the agent that is not shown to the model.
        stream: whether more than one response of the call may come; each holds all that has come so far.
        is_last: whether it is the call's last response.
        is_interrupted: whether the call was interrupted.
        id: of this response.
    """

    content: list[Block]
    metadata: dict[str, Any] | None = None
    stream: bool = False
    is_last: bool = True
    is_interrupted: bool = False
    id: str = field(default_factory=_new_id)


def text_block(text: str) -> TextBlock:
    """A text as a block."""
    return {"type": "text", "text": text}


def text_response(text: str) -> ToolResponse:
    """A text as the whole answer."""
    return ToolResponse([text_block(text)])


def failed_response(text: str, so_far: ToolResponse | None) -> ToolResponse:
    """What is there of a call that failed, and why it did."""
    return text_response(text) if so_far is None else replace(
        so_far, content=[*so_far.content, text_block(text)], is_last=True)


def interrupted_response(so_far: ToolResponse | None) -> ToolResponse:
    """What is there of a call that was interrupted, and that it was."""
    if so_far is None:
        return ToolResponse([text_block(INTERRUPTED)], stream=True, is_interrupted=True)
    return replace(so_far, content=[*so_far.content, text_block(INTERRUPTED)], is_last=True, is_interrupted=True)


def response_of(value: Any) -> ToolResponse:
    """Any value that a tool returned as a response: blocks and messages by their content, the rest as text or JSON."""
    return value if isinstance(value, ToolResponse) else ToolResponse(blocks_of(value))


def blocks_of(value: Any) -> list[Block]:
    """A tool's value as content blocks."""
    if isinstance(value, ToolResponse):
        return value.content
    if isinstance(value, Msg):
        return [block for block in value.get_content_blocks() if block["type"] in ("text", *_MEDIA)]
    if _is_block(value):
        return [cast(Block, value)]
    if isinstance(value, (list, tuple)) and value and all(map(_is_block, value)):
        return list(value)
    return [text_block(_as_text(value))]


def _is_block(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    kind = value.get("type")
    return (kind == "text" and isinstance(value.get("text"), str)) or (kind in _MEDIA and "source" in value)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return NOTHING
    try:
        return to_json(value, fallback=str).decode()
    except Exception:  # an object that cannot be shown as JSON either way
        return f"a {type(value).__name__}"


class Grown:
    """What a generator has given so far.

    A generator of ToolResponses says itself what there is so far, in each of them. Any other values are added up.
    """

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._last: ToolResponse | None = None
        self._id = _new_id()

    def take(self, value: Any) -> ToolResponse:
        """The response after one more value."""
        if isinstance(value, ToolResponse):
            self._last = value
            return value
        self._last = None
        for block in blocks_of(value):
            before = self._blocks[-1] if self._blocks else None
            if block["type"] == "text" and before is not None and before["type"] == "text":
                self._blocks[-1] = text_block(before["text"] + block["text"])
            else:
                self._blocks.append(block)
        return ToolResponse(list(self._blocks), stream=True, is_last=False, id=self._id)

    def end(self) -> ToolResponse | None:
        """The last response, unless the generator gave that itself."""
        if self._last is not None:
            return None
        if not self._blocks:
            return text_response(NOTHING)
        return ToolResponse(list(self._blocks), stream=True, id=self._id)
