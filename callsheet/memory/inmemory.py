"""InMemoryMemory: an agent's messages in a list; on workers they are kept under the agent's id."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, Self

from callsheet.errors import StateMissing, UsageError
from callsheet.memory.base import MemoryBase, mark_of, marks_of, messages_of
from callsheet.memory.journal import Change, Content, added, read, written
from callsheet.messages import Msg


class InMemoryMemory(MemoryBase):
    """Messages in a list.

    In an agent that runs as a job the content is kept under the agent's id: each turn finds what the turns before it
    left, on whichever worker, and stores what it changed. Elsewhere it lives as long as the object.

    Attributes:
        content: messages with their marks, in order. Change it through the methods.
    """

    content: Content

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Begin empty, and note no changes until someone wants to know them."""
        self = super().__new__(cls, *args, **kwargs)
        self.content = []
        self._changes = None
        self._length = 0  # of the content, as the changes have it
        return self

    _changes: list[Change] | None
    _length: int

    async def add(self, memories: Msg | list[Msg] | None, marks: str | list[str] | None = None,
                  allow_duplicates: bool = False, **kwargs: Any) -> None:
        """Remember messages, as copies.

        Args:
            memories: one, several or None.
            marks: of them all.
            allow_duplicates: whether a message is added whose id is there already.

        Raises:
            UsageError: something that is no message, or no mark (a TypeError).
        """
        given, marked = messages_of(memories), marks_of(marks)
        known = set() if allow_duplicates else {msg.id for msg, _ in self.content}
        for msg in given:
            if msg.id in known:
                continue
            kept, own = deepcopy(msg), list(marked)
            self.content.append((kept, own))
            if not allow_duplicates:
                known.add(msg.id)
            self._note(added(kept, own), 1)

    async def delete(self, msg_ids: str | int | Iterable[str | int], **kwargs: Any) -> int:
        """Forget messages.

        Args:
            msg_ids: ids, or positions from 0 (negative ones from the end).

        Returns:
            How many were forgotten.

        Raises:
            IndexError: there is no such position.
            UsageError: neither an id nor a position (a TypeError).
        """
        given = [msg_ids] if isinstance(msg_ids, (str, int)) else list(msg_ids)
        ids, positions = set(), set()
        for item in given:
            if isinstance(item, str):
                ids.add(item)
            elif isinstance(item, int) and not isinstance(item, bool):
                positions.add(self._position(item))
            else:
                raise UsageError(f"delete({item!r}): an id or a position is needed.")
        positions |= {position for position, (msg, _) in enumerate(self.content) if msg.id in ids}
        return self._forget(positions)

    def _position(self, index: int) -> int:
        if not -len(self.content) <= index < len(self.content):
            raise IndexError(f"delete({index}): the memory has {len(self.content)} messages.")
        return index % len(self.content)

    def _forget(self, positions: set[int]) -> int:
        if positions:
            self.content = [entry for position, entry in enumerate(self.content) if position not in positions]
            self._note({"del": sorted(positions)}, -len(positions))
        return len(positions)

    async def delete_by_mark(self, mark: str | list[str], **kwargs: Any) -> int:
        """Forget the messages that have a mark, or one of several; says how many.

        Raises:
            UsageError: not a text or a list of texts (a TypeError).
        """
        wanted = set(marks_of(mark, "mark"))
        return self._forget({position for position, (_, marks) in enumerate(self.content) if wanted & set(marks)})

    async def get_memory(self, mark: str | None = None, exclude_mark: str | None = None,
                         prepend_summary: bool = True, **kwargs: Any) -> list[Msg]:
        """The messages in order.

        Args:
            mark: only those that have it.
            exclude_mark: only those that have it not.
            prepend_summary: whether a summary of what was forgotten comes first, as a user's message, if there is one.

        Raises:
            UsageError: a mark that is no text (a TypeError).
        """
        mark_of(mark, "mark")
        mark_of(exclude_mark, "exclude_mark")
        found = [msg for msg, marks in self.content
                 if (mark is None or mark in marks) and (exclude_mark is None or exclude_mark not in marks)]
        if prepend_summary and self._compressed_summary:
            return [Msg("user", self._compressed_summary, "user"), *found]
        return found

    async def size(self) -> int:
        """How many messages there are."""
        return len(self.content)

    async def clear(self) -> None:
        """Forget all messages."""
        self.content = []
        self._restart()

    async def update_messages_mark(self, new_mark: str | None, old_mark: str | None = None,
                                   msg_ids: list[str] | None = None) -> int:
        """Set, change or take away a mark.

        Args:
            new_mark: to set; None takes `old_mark` away.
            old_mark: only of messages that have it, and in its place.
            msg_ids: only of these.

        Returns:
            How many messages were changed.
        """
        mark_of(new_mark, "new_mark")
        mark_of(old_mark, "old_mark")
        changed = []
        for position, (msg, marks) in enumerate(self.content):
            if (msg_ids is not None and msg.id not in msg_ids) or (old_mark is not None and old_mark not in marks):
                continue
            now = [mark for mark in marks if mark != old_mark]
            if new_mark is not None and new_mark not in now:
                now.append(new_mark)
            if now != marks:
                self.content[position] = (msg, now)
                changed.append([position, now])
        if changed:
            self._note({"marks": changed}, 0)
        return len(changed)

    # State --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The content and the summary as JSON data."""
        return {**super().state_dict(), "content": written(self.content)}

    def load_state_dict(self, state_dict: Any, strict: bool = True) -> None:
        """Take what `state_dict` gave; the content may also be a list of messages' data without marks."""
        super().load_state_dict(state_dict, strict=False)
        if strict and "content" not in state_dict:
            raise StateMissing(f"The state of a {type(self).__name__} lacks content; it has "
                               f"{', '.join(map(str, state_dict)) or 'nothing'}.")
        self.content = read(state_dict.get("content", []))
        self._restart()

    def wire_extras(self) -> dict[str, Any]:
        """What is in it: the beginning of an agent that has no state yet where it runs."""
        return self.state_dict() if self.content or self._compressed_summary else {}

    def apply_wire_extras(self, extras: dict[str, Any]) -> None:
        """Take the beginning."""
        self.load_state_dict(extras)

    # The log ------------------------------------------------------------------------------------------

    def note_changes(self) -> None:
        """Note changes from now on."""
        self._changes, self._length = [], len(self.content)

    def take_changes(self) -> list[Change]:
        """The changes since the last time; none are noted any more."""
        changes, self._changes = self._changes or [], None
        if len(self.content) != self._length:  # someone changed the list itself
            return [{"set": written(self.content)}]
        return changes

    def _note(self, change: Change, growth: int) -> None:
        if self._changes is not None:
            self._changes.append(change)
            self._length += growth

    def _restart(self) -> None:
        """The content is another: what was noted before does not matter."""
        if self._changes is not None:
            self._changes, self._length = [{"set": written(self.content)}], len(self.content)
