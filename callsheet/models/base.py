"""What every chat model is, and what it answers."""

import secrets
from abc import abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from callsheet.messages import AudioBlock, Recorded, TextBlock, ThinkingBlock, ToolUseBlock

Content = TextBlock | ThinkingBlock | ToolUseBlock | AudioBlock

TOOL_CHOICES = ("auto", "none", "required")


def _now() -> str:
    return datetime.now().isoformat(sep=" ", timespec="milliseconds")


@dataclass
class ChatUsage:
    """What a call cost.

    Attributes:
        input_tokens: tokens of the prompt.
        output_tokens: tokens of the answer.
        time: seconds from the call until this was known.
        metadata: the endpoint's own account, e.g. of cached tokens.
    """

    input_tokens: int
    output_tokens: int
    time: float
    type: Literal["chat"] = "chat"
    metadata: dict[str, Any] | None = None


@dataclass
class ChatResponse:
    """An answer, or what has come of it so far.

    Attributes:
        content: blocks: text, thinking, tool_use, audio.
        id: the endpoint's id of the answer, or one of our own.
        created_at: local time.
        usage: None until the endpoint has told it.
        metadata: the data asked for with `structured_model`, once complete.
        finish_reason: why the model ended, once it has: "stop", "length" (cut at a limit of tokens), "tool_calls",
            "content_filter", or a word of the endpoint's own.
    """

    content: Sequence[Content]
    id: str = field(default_factory=lambda: f"{_now()}_{secrets.token_hex(3)}")
    created_at: str = field(default_factory=_now)
    type: Literal["chat"] = "chat"
    usage: ChatUsage | None = None
    metadata: dict[str, Any] | None = None
    finish_reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON data."""
        return asdict(self)


class ChatModelBase(Recorded):
    """Base of chat models.

    An instance holds settings only, no connection: it is cheap, travels as its constructor's arguments, and may be
    called any number of times at once.

    Args:
        model_name: as the endpoint knows it.
        stream: whether a call answers with a generator of growing responses.
    """

    model_name: str
    stream: bool

    def __init__(self, model_name: str, stream: bool) -> None:
        self.model_name = model_name
        self.stream = stream

    @abstractmethod
    async def __call__(self, *args: Any, **kwargs: Any) -> ChatResponse | AsyncGenerator[ChatResponse, None]:
        """Ask the model.

        Returns:
            One ChatResponse; with `stream`, a generator in which each ChatResponse holds all that has come so far.
        """

    def _validate_tool_choice(self, tool_choice: str, tools: list[dict[str, Any]] | None) -> None:
        """Refuse a choice that no tool answers to.

        Raises:
            TypeError: not a string.
            ValueError: neither a mode nor the name of one of `tools`; lists what would be.
        """
        if not isinstance(tool_choice, str):
            raise TypeError(f"tool_choice is {type(tool_choice).__name__}: a string is needed, one of "
                            f"{', '.join(TOOL_CHOICES)} or a tool's name.")
        names = [str(tool.get("function", {}).get("name")) for tool in tools or ()]
        if tool_choice not in TOOL_CHOICES and tool_choice not in names:
            options = ", ".join([*TOOL_CHOICES, *sorted(names)])
            raise ValueError(f"tool_choice is {tool_choice!r}, which is no tool here. Choose one of: {options}.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model_name!r})"
