"""Formatters turn messages into what a provider's API takes: mended where no provider takes them as they are, and cut
to a number of tokens if asked to."""

import json
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from callsheet.errors import MessageError, UsageError
from callsheet.messages import Msg, Recorded
from callsheet.messages.pairing import NO_RESULT, calls_in, paired, tool_name

NO_TEXT = "(no text)"
Formatted = list[dict[str, Any]]


class TokenCounterBase(Recorded):
    """Base of token counters. A counter travels as its constructor's arguments."""

    @abstractmethod
    async def count(self, messages: list[dict[str, Any]], **kwargs: Any) -> int:
        """The tokens that formatted messages take."""


class CharTokenCounter(TokenCounterBase):
    """Counts characters, which is more than any tokenizer finds in a text of Latin letters."""

    async def count(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None,
                    **kwargs: Any) -> int:
        """Characters of the messages, and of the tools' schemas, as Python shows them."""
        texts = [str(message) for message in messages]
        if tools:
            texts.append(str(tools))
        return len("\n".join(texts))


class FormatterBase(Recorded):
    """Base of formatters. A formatter holds settings only and travels as its constructor's arguments."""

    @abstractmethod
    async def format(self, *args: Any, **kwargs: Any) -> Formatted:
        """The messages as the API takes them."""

    @staticmethod
    def assert_list_of_msgs(msgs: list[Msg]) -> None:
        """Refuse what is not a list of messages.

        Raises:
            TypeError: says what is there instead.
        """
        if not isinstance(msgs, list):
            raise UsageError(f"A formatter takes a list of messages, not {type(msgs).__name__}.")
        for number, msg in enumerate(msgs):
            if not isinstance(msg, Msg):
                raise UsageError(f"A formatter takes messages; number {number} of the list is {type(msg).__name__}.")

    @staticmethod
    def convert_tool_result_to_string(output: Any) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
        """A tool's result as text, for APIs that take nothing else, and its media.

        Args:
            output: text, or blocks of text and media.

        Returns:
            The text; each medium with its address, or its number among its like where it is data.
        """
        if output is None or isinstance(output, str):
            return output or "", []
        texts: list[str] = []
        media: list[tuple[str, dict[str, Any]]] = []
        for block in output:
            if block["type"] == "text":
                texts.append(block["text"])
                continue
            source = block["source"]
            if source["type"] == "url":
                label = source["url"]
                texts.append(f"({block['type']} {label})")
            else:
                label = f"{sum(block['type'] == other['type'] for _, other in media) + 1}"
                texts.append(f"({block['type']} {label}, {source['media_type']})")
            media.append((label, block))
        return texts[0] if len(texts) == 1 else "\n".join(f"- {text}" for text in texts), media


class TruncatedFormatterBase(FormatterBase):
    """Base of formatters that leave out the oldest messages where there are too many tokens.

    Args:
        token_counter: counts the tokens of formatted messages; nothing is left out without.
        max_tokens: that the messages may take; nothing is left out without.

    Raises:
        UsageError: `max_tokens` is not positive.
    """

    #: What the API can do.
    support_tools_api: ClassVar[bool] = True
    support_multiagent: ClassVar[bool] = False
    support_vision: ClassVar[bool] = True
    #: Ids of tool calls that it takes; others are replaced.
    call_ids: ClassVar[re.Pattern[str]] = re.compile(r"\S{1,40}")
    #: The blocks that it takes; others are left out.
    supported_blocks: ClassVar[Sequence[type]] = ()

    def __init__(self, token_counter: TokenCounterBase | None = None, max_tokens: int | None = None) -> None:
        if max_tokens is not None and max_tokens <= 0:
            raise UsageError(f"max_tokens is {max_tokens}: a positive number is needed.")
        self.token_counter = token_counter
        self.max_tokens = max_tokens

    async def format(self, msgs: list[Msg], **kwargs: Any) -> Formatted:
        """The messages as the API takes them.

        Args:
            msgs: of the conversation, the oldest first; a system prompt is the first one. Blank texts, calls without
                result and the like are mended.
            kwargs: taken and left alone, as in AgentScope.

        Raises:
            TypeError: `msgs` is not a list of messages.
            ValueError: the system prompt alone has too many tokens, or a message holds what the API does not take.
        """
        self.assert_list_of_msgs(msgs)
        left = mended(msgs, self.call_ids)
        while True:
            formatted = await self._format(left)
            tokens = await self._count(formatted)
            if tokens is None or self.max_tokens is None or tokens <= self.max_tokens:
                return formatted
            left = await self._truncate(left)

    @abstractmethod
    async def _format(self, msgs: list[Msg]) -> Formatted:
        """All the messages, formatted."""

    async def _count(self, msgs: Formatted) -> int | None:
        return None if self.token_counter is None else await self.token_counter.count(msgs)

    async def _truncate(self, msgs: list[Msg]) -> list[Msg]:
        """The messages without the oldest one, or, if it calls tools, without it and their results."""
        start = 1 if msgs and msgs[0].role == "system" else 0
        if len(msgs) <= start:
            what = "The system prompt" if start else "What is always sent"
            raise MessageError(f"{what} alone has more than {self.max_tokens} tokens. Shorten it, or raise max_tokens.")
        cut, calls = start + 1, calls_in(msgs)
        while split := [call.result_at for call in calls if call.at < cut <= call.result_at]:
            cut = max(split) + 1
        return msgs[:start] + msgs[cut:]


def mended(msgs: list[Msg], ids: re.Pattern[str]) -> list[Msg]:
    """The messages without blank texts, each tool call followed by its result alone; themselves where that is so."""
    return paired([one for msg in msgs if (one := _filled(msg)) is not None], ids)


def _filled(msg: Msg) -> Msg | None:
    """The message without what is blank; None where an agent, or the system, said nothing else."""
    if isinstance(msg.content, str):
        return msg if msg.content.strip() else _with(msg, []) if msg.role == "user" else None
    after = [one for block in msg.content if (one := _block(block)) is not None]
    if any(block["type"] == "tool_use" for block in after) and msg.role != "assistant":
        msg = msg.model_copy(update={"role": "assistant"})  # nobody else can call
    if after == msg.content:
        return msg
    return _with(msg, after) if after or msg.role == "user" else None


def _with(msg: Msg, blocks: list[Any]) -> Msg:
    return msg.model_copy(update={"content": blocks or NO_TEXT})


def _block(block: Any) -> Any:
    kind = block["type"]
    if kind in ("text", "thinking"):  # others than these two keys: a signature, which is wanted back
        return block if block[kind].strip() or len(block) > 2 else None
    if kind in ("tool_use", "tool_result") and (name := tool_name(block["name"] or "unnamed")) != block["name"]:
        block = {**block, "name": name}  # one that a model made up
    if kind == "tool_use":
        try:
            json.dumps(block["input"], allow_nan=False)
        except ValueError:  # of a number that is none, or too large: Python reads these, and JSON has none
            block = {**block, "input": json.loads(json.dumps(block["input"]), parse_constant=str)}
    if kind == "tool_result":
        output = block["output"]
        full = output.strip() if isinstance(output, str) else [
            item for item in output if item["type"] != "text" or item["text"].strip()]
        if not full or (full != output and not isinstance(output, str)):
            return {**block, "output": full or NO_RESULT}
    return block
