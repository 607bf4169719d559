"""ToolResponse: what a tool gave, how any value becomes one, and what a model is told of a tool that failed."""

import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import to_json

from callsheet.errors import CallsheetError, ToolFailed
from callsheet.messages import AudioBlock, ImageBlock, Msg, TextBlock, VideoBlock
from callsheet.resources.record import without_trace
from callsheet.settings.secrets import told

Block = TextBlock | ImageBlock | AudioBlock | VideoBlock
_MEDIA = ("image", "audio", "video")
_BLOCK: TypeAdapter[Any] = TypeAdapter(Annotated[Block, Field(discriminator="type")])
NOTHING = "(no result)"
INTERRUPTED = "<system-info>The user interrupted this tool call.</system-info>"
LONGEST = 2_000
"""Characters of an error's text that a model gets."""
LONGEST_TRACE = 20_000
"""Characters of a traceback that are logged."""


def _new_id() -> str:
    return f"{datetime.now().strftime('%Y-%m-%d %H:%M:%S.%f')[:-3]}_{secrets.token_hex(3)}"


@dataclass
class ToolResponse:
    """What a tool has given, or what has come of it so far."""

    content: list[Block]  # blocks: text, image, audio, video
    metadata: dict[str, Any] | None = None  # data for the agent that is not shown to the model
    stream: bool = False  # whether more than one response of the call may come; each holds all that has come so far
    is_last: bool = True  # whether it is the call's last response
    is_interrupted: bool = False  # whether the call was interrupted
    id: str = field(default_factory=_new_id)  # of this response


def text_block(text: str) -> TextBlock:
    """A text as a block; half a surrogate pair, which a message cannot hold, becomes a question mark."""
    return {"type": "text", "text": text if text.isascii() else text.encode("utf-8", "replace").decode()}


def text_response(text: str) -> ToolResponse:
    """A text as the whole answer."""
    return ToolResponse([text_block(text)])


def failed_response(text: str, so_far: list[ToolResponse]) -> ToolResponse:
    """What is there of a call that failed, and why it did."""
    last = so_far[-1] if so_far else ToolResponse([])
    return replace(last, content=[*last.content, text_block(text)], is_last=True)


def interrupted_response(so_far: list[ToolResponse]) -> ToolResponse:
    """What is there of a call that was interrupted, and that it was."""
    return replace(failed_response(INTERRUPTED, so_far), stream=True, is_interrupted=True)


def response_of(value: Any) -> ToolResponse:
    """Any value that a tool returned as a response: blocks and messages by their content, the rest as text or JSON.

    Raises:
        ToolFailed: a ToolResponse whose content is not what a message holds.
    """
    return checked(value) if isinstance(value, ToolResponse) else ToolResponse(blocks_of(value))


def checked(response: ToolResponse) -> ToolResponse:
    """A tool's own response, if a message can hold its content; a text alone becomes a block.

    Raises:
        ToolFailed: it cannot.
    """
    if isinstance(response.content, str):
        return replace(response, content=[text_block(response.content)])
    if not isinstance(response.content, list) or not all(map(_is_block, response.content)):
        raise ToolFailed("the tool gave a ToolResponse whose content is not a list of text, image, audio and video "
                         "blocks")
    content = list(map(_mended, response.content))
    return response if content == response.content else replace(response, content=content)


def _mended(block: Block) -> Block:
    return {**block, **text_block(block["text"])} if block["type"] == "text" else block


def blocks_of(value: Any) -> list[Block]:
    """A tool's value as content blocks."""
    if isinstance(value, ToolResponse):
        return checked(value).content
    if isinstance(value, Msg):
        return [block for block in value.get_content_blocks() if block["type"] in ("text", *_MEDIA)]
    blocks = list(value) if isinstance(value, (list, tuple)) else [value]
    if blocks and all(map(_is_block, blocks)):
        return list(map(_mended, blocks))
    return [text_block(_as_text(value))]


def _is_block(value: Any) -> bool:
    try:
        _BLOCK.validate_python(value)
    except ValidationError:
        return False
    return True


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return NOTHING
    try:
        return to_json(value, fallback=str).decode()
    except Exception:  # an object that cannot be shown as JSON either way
        return f"a {type(value).__name__}"


def cut(blocks: list[Block], most: int) -> list[Block]:
    """The blocks with no more than so many characters of text, and a mark where there were more."""
    whole, left = sum(len(block["text"]) for block in blocks if block["type"] == "text"), most
    if whole <= most:
        return blocks
    kept: list[Block] = []
    for block in blocks:
        if block["type"] != "text":
            kept.append(block)
        elif left > 0:
            kept.append(text_block(block["text"][:left]))
            left -= len(block["text"])
    return [*kept, text_block(f"[cut: the answer has {whole:,} characters of text, and you see the first {most:,}. "
                              "Ask for less at once.]")]


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
            self._last = checked(value)
            return self._last
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


class OutOfTime(Exception):
    """A call of a tool is over its time; never leaves the tools."""


def failure_text(exc: BaseException) -> str:
    """What the model is told of an error."""
    return f"Error: {failure_words(exc)}"


def failure_words(exc: BaseException) -> str:
    """An error's kind and text, and no traceback; of Callsheet's own errors the text alone."""
    text = safe(without_trace(exc.message if isinstance(exc, CallsheetError) else str(exc)))
    return text if text and isinstance(exc, CallsheetError) else f"{type(exc).__name__}: {text}".removesuffix(": ")


def safe(text: str, longest: int = LONGEST) -> str:
    """A text without the settings' secrets and without credentials in addresses; cut if it is long."""
    text = told(text)
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"
