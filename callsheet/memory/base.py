"""MemoryBase: what every memory offers."""

from abc import abstractmethod
from collections.abc import Collection
from typing import Any, Self

from callsheet.errors import UsageError
from callsheet.messages import Msg, Recorded, StateModule


class MemoryBase(StateModule, Recorded):
    """Base of memories. A memory travels as its constructor's arguments; what is in it is its agent's state.

    Write your own on this to keep messages elsewhere; `_compressed_summary` and the attributes that you register are
    kept with the agent.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Register the summary here, so that a subclass need not call `super().__init__()`."""
        self = super().__new__(cls, *args, **kwargs)
        self._compressed_summary = ""
        self.register_state("_compressed_summary")
        return self

    _compressed_summary: str

    async def update_compressed_summary(self, summary: str) -> None:
        """Put `summary` before what `get_memory` gives; "" for none."""
        if not isinstance(summary, str):
            raise UsageError(f"A summary is a text, not {type(summary).__name__}.")
        self._compressed_summary = summary

    @abstractmethod
    async def add(self, memories: Msg | list[Msg] | None, marks: str | list[str] | None = None,
                  allow_duplicates: bool = False, **kwargs: Any) -> None:
        """Remember messages."""

    @abstractmethod
    async def delete(self, msg_ids: Any, **kwargs: Any) -> int:
        """Forget messages; says how many."""

    async def delete_by_mark(self, mark: str | list[str], **kwargs: Any) -> int:
        """Forget the messages that have a mark, or one of several; says how many."""
        raise NotImplementedError(f"{type(self).__name__} has no delete_by_mark.")

    @abstractmethod
    async def get_memory(self, mark: str | None = None, exclude_mark: str | None = None,
                         prepend_summary: bool = True, **kwargs: Any) -> list[Msg]:
        """The messages in order; those with a mark, or without one."""

    @abstractmethod
    async def size(self) -> int:
        """How many messages there are."""

    @abstractmethod
    async def clear(self) -> None:
        """Forget everything."""

    async def update_messages_mark(self, new_mark: str | None, old_mark: str | None = None,
                                   msg_ids: list[str] | None = None) -> int:
        """Set, change or (None) take away a mark; says of how many messages."""
        raise NotImplementedError(f"{type(self).__name__} has no update_messages_mark.")


def messages_of(given: Any, what: str = "A memory") -> list[Msg]:
    """One message or several as a list."""
    found = [given] if isinstance(given, Msg) else given
    if not isinstance(found, Collection) or isinstance(found, (str, bytes, dict)):
        raise UsageError(f"{what} takes a Msg or a list of them, not {_kind(given)}. Wrap the value: Msg(name, text, "
                         "role).")
    for number, item in enumerate(found):
        if not isinstance(item, Msg):
            raise UsageError(f"{what} takes messages; item {number + 1} of {len(found)} is {_kind(item)}. Wrap it: "
                             "Msg(name, text, role).")
    return list(found)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def marks_of(marks: Any, what: str = "marks") -> list[str]:
    """One mark, several or None as a list."""
    given = [] if marks is None else [marks] if isinstance(marks, str) else marks
    if not isinstance(given, list) or not all(isinstance(mark, str) for mark in given):
        raise UsageError(f"{what}={marks!r}: a text or a list of texts is needed.")
    return list(given)


def mark_of(mark: Any, what: str) -> str | None:
    """A mark or None."""
    if mark is not None and not isinstance(mark, str):
        raise UsageError(f"{what}={mark!r}: a text or None is needed.")
    return mark
