"""When a memory has grown too long for the model: policies that say what is summarised, and how."""

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from copy import copy

from callsheet.errors import UsageError
from callsheet.formatters.base import FormatterBase, TokenCounterBase
from callsheet.messages import Msg, Recorded
from callsheet.messages.pairing import calls_in
from callsheet.models.base import ChatModelBase, ChatResponse
from callsheet.models.errors import EndpointError
from callsheet.resources.estimate import CHARACTERS, MEDIA

logger = logging.getLogger(__name__)

#: Gets the messages and the summary of what was before them, "" if there is none. Gives a summary and how many of the
#: last messages stay beside it; or None to leave all as it is.
Policy = Callable[[list[Msg], str], Awaitable[tuple[str, int] | None]]

_ASKED = "What was asked last: "

PROMPT = """\
Summarize the conversation below for the one who goes on with it and will not see it any more. Keep what was asked and
decided, names, numbers and dates, results of tools, promises made, and what is still open. Be brief; invent nothing.
Write in the conversation's language, without an introduction."""


class Budget(Recorded):
    """Base of policies that act when the messages take more tokens than a budget.

    Args:
        max_tokens: the budget.
        keep: how many of the last messages stay; fewer, where these take over half the budget.
        counter: counts tokens; without one, four characters count as one, an image or sound as 1,000.

    Raises:
        UsageError: a number that cannot be right.
    """

    def __init__(self, max_tokens: int, keep: int, counter: TokenCounterBase | None = None) -> None:
        for name, value in (("max_tokens", max_tokens), ("keep", keep)):
            if not isinstance(value, int) or isinstance(value, bool) or value < (name == "max_tokens"):
                raise UsageError(f"{type(self).__name__}({name}={value!r}): a whole number is needed.")
        self.max_tokens, self.keep, self.counter = max_tokens, keep, counter
        self._known: dict[str, int] = {}

    async def __call__(self, messages: list[Msg], summary: str) -> tuple[str, int] | None:
        """See Policy."""
        sizes = [await self._tokens(msg) for msg in messages]
        self._known = {msg.id: size for msg, size in zip(messages, sizes, strict=True)}
        if sum(sizes) + len(summary) // CHARACTERS <= self.max_tokens:
            return None
        keep = min(self.keep, len(messages))
        while keep and sum(sizes[len(sizes) - keep:]) > self.max_tokens // 2:
            keep -= 1
        keep = whole(messages, keep)
        gone, kept = messages[:len(messages) - keep], messages[len(messages) - keep:]
        if not gone:
            return None
        text = await self.summary(gone, summary.partition(_ASKED)[0].rstrip())
        return f"{text}{self._asked(gone, kept)}".strip(), keep

    async def halved(self, messages: list[Msg], summary: str) -> tuple[str, int] | None:
        """As called, but that the messages are to take half of what they do: the model has refused their length."""
        pressed = copy(self)
        total = sum([await self._tokens(msg) for msg in messages]) + len(summary) // CHARACTERS
        pressed.max_tokens = max(1, min(self.max_tokens, total // 2))
        return await pressed(messages, summary)

    def _asked(self, gone: list[Msg], kept: list[Msg]) -> str:
        """What was asked last, if the answer is not there yet and the question goes."""
        last = (kept or gone)[-1]
        if any(msg.role == "user" for msg in kept) or (
                last.role == "assistant" and not last.has_content_blocks("tool_use")):
            return ""
        asked = next((text for msg in reversed(gone) if msg.role == "user" and (text := msg.get_text_content())), "")
        return f"\n\n{_ASKED}{asked[:max(200, self.max_tokens * CHARACTERS // 4)]}" if asked else ""

    async def summary(self, messages: list[Msg], before: str) -> str:
        """What stands for messages that go, and for the summary of those before them."""
        return before

    async def _tokens(self, msg: Msg) -> int:
        known = self._known.get(msg.id)
        if known is not None:
            return known
        if self.counter is not None:
            return await self.counter.count([{"role": msg.role, "name": msg.name, "content": _text(msg)}])
        media = sum(block["type"] in ("image", "audio", "video") for block in msg.get_content_blocks())
        return -(-len(_text(msg)) // CHARACTERS) + media * MEDIA + 4


class KeepLast(Budget):
    """Forgets all but the last messages when there are more than the budget allows; no summary.

    Args:
        keep: how many stay.
        max_tokens: the budget.
        counter: see Budget.
    """

    def __init__(self, keep: int, max_tokens: int, counter: TokenCounterBase | None = None) -> None:
        super().__init__(max_tokens, keep, counter)


class Summarize(Budget):
    """Has a model summarise all but the last messages when there are more than the budget allows.

    Args:
        model: that writes the summary.
        max_tokens: the budget.
        keep: how many of the last messages stay.
        formatter: of the model's provider; not needed where it takes OpenAI's form of messages.
        prompt: what the model is asked.
        counter: see Budget.
    """

    def __init__(self, model: ChatModelBase, max_tokens: int, keep: int = 10,
                 formatter: FormatterBase | None = None, prompt: str = PROMPT,
                 counter: TokenCounterBase | None = None) -> None:
        super().__init__(max_tokens, keep, counter)
        self.model, self.formatter, self.prompt = model, formatter, prompt

    async def summary(self, messages: list[Msg], before: str) -> str:
        """The model's summary.

        Raises:
            UsageError: the model gave no text.
        """
        lines = [f"What was before: {before}"] if before else []
        most = max(200, self.max_tokens * CHARACTERS // len(messages))  # the model must be able to read them
        lines += [f"{msg.name}: {text if len(text := _text(msg)) <= most else text[:most] + '...'}" for msg in messages]
        asked = Msg("user", self.prompt + "\n\n" + "\n".join(lines), "user")
        if self.formatter is not None:
            prompt = await self.formatter.format([asked])
        else:
            prompt = [{"role": "user", "content": asked.content}]
        try:
            text = await _said(await self.model(prompt))
        except EndpointError as exc:
            if not exc.too_long:
                raise
            logger.warning("memory_not_summarised: what goes is too long for %r; it goes without a summary", self.model)
            return before
        if not text:
            raise UsageError(f"{self.model!r} gave no text for a summary.")
        return text


async def _said(answer: ChatResponse | AsyncGenerator[ChatResponse, None]) -> str:
    """The text of an answer, whole."""
    last: ChatResponse | None = None
    if isinstance(answer, ChatResponse):
        last = answer
    else:
        async for part in answer:  # each holds all that has come so far
            last = part
    blocks = last.content if last is not None else ()
    return "\n".join(block["text"] for block in blocks if block["type"] == "text").strip()


def _text(msg: Msg) -> str:
    """A message as text, also of what tools were asked and gave."""
    parts = []
    for block in msg.get_content_blocks():
        kind = block["type"]
        if kind in ("text", "thinking"):
            parts.append(block[kind])
        elif kind == "tool_use":
            parts.append(f"[calls {block['name']} with {json.dumps(block['input'], ensure_ascii=False)}]")
        elif kind == "tool_result":
            output = block["output"]
            shown = output if isinstance(output, str) else " ".join(
                part["text"] if part["type"] == "text" else f"[{part['type']}]" for part in output)
            parts.append(f"[{block['name']} gave: {shown}]")
        else:
            parts.append(f"[{kind}]")
    return "\n".join(parts)


def whole(messages: Sequence[Msg], keep: int) -> int:
    """How many of the last messages stay so that no tool's result stays without its call: `keep` or more."""
    calls = calls_in(messages)
    cut = len(messages) - keep
    while split := [call.at for call in calls if call.at < cut <= call.result_at]:
        cut = min(split)
    return len(messages) - cut
