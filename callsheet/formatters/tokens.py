"""Counting the tokens of messages that are ready to be sent."""

from abc import abstractmethod
from typing import Any

from callsheet.messages import Recorded


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
