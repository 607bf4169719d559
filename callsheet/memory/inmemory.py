"""InMemoryMemory: an agent's messages in a list; on workers they are kept under the agent's id."""

from collections.abc import Awaitable, Callable, Iterable
from copy import deepcopy
from typing import Any, Self

from callsheet.errors import StateMissing, UsageError
from callsheet.memory.base import MemoryBase, mark_of, marks_of, messages_of
from callsheet.memory.compaction import Budget, Policy
from callsheet.memory.journal import Change, Content, added, original, read, written
from callsheet.messages import Msg


class InMemoryMemory(MemoryBase):
    """Messages in a list.

    In an agent that runs as a job the content is kept under the agent's id: each turn finds what the turns before it
    left, on whichever worker, and stores what it changed. Elsewhere it lives as long as the object.

    Args:
        compaction: says what is summarised when there is too much; by default nothing is. Of an agent that runs as a
            job it is asked after each reply; a ReActAgent asks it before each prompt, and again where the model refuses
            its length; elsewhere call `compact`.

    Attributes:
        content: messages with their marks, in order. Change it through the methods.
    """

    content: Content
    compaction: Policy | None = None

    def __init__(self, compaction: Policy | None = None) -> None:
        if compaction is not None and not callable(compaction):
            raise UsageError(f"InMemoryMemory(compaction={compaction!r}): KeepLast, Summarize or an async function is "
                             "needed.")
        self.compaction = compaction

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Begin empty, and note no changes until someone wants to know them."""
        self = super().__new__(cls, *args, **kwargs)
        self.content = []
        self._changes = None
        self._length = 0  # of the content, as the changes have it
        self._ids_of, self._ids, self._counted = self.content, set(), 0
        self._dropped, self._log = [], None
        return self

    _changes: list[Change] | None
    _length: int
    _ids_of: Content
    _ids: set[str]
    _counted: int
    _dropped: Content  # what was summarised, where no log knows it
    _log: Callable[[], Awaitable[list[Change]]] | None

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
        given, marked = [] if memories is None else messages_of(memories), marks_of(marks)
        known = self._known()
        for msg in given:
            if msg.id in known and not allow_duplicates:
                continue
            kept, own = deepcopy(msg), list(marked)
            self.content.append((kept, own))
            known.add(msg.id)
            self._counted = len(self.content)
            self._note(added(kept, own), 1)

    def _known(self) -> set[str]:
        """The ids in the content; gathered anew only after a change other than `add`."""
        if self._ids_of is not self.content or self._counted != len(self.content):
            self._ids_of, self._counted = self.content, len(self.content)
            self._ids = {msg.id for msg, _ in self.content}
        return self._ids

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
                if not -len(self.content) <= item < len(self.content):
                    raise IndexError(f"delete({item}): the memory has {len(self.content)} messages.")
                positions.add(item % len(self.content))
            else:
                raise UsageError(f"delete({item!r}): an id or a position is needed.")
        positions |= {position for position, (msg, _) in enumerate(self.content) if msg.id in ids}
        return self._forget(positions)

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
                         prepend_summary: bool = True, *, original: bool = False, **kwargs: Any) -> list[Msg]:
        """The messages in order.

        Args:
            mark: only those that have it.
            exclude_mark: only those that have it not.
            prepend_summary: whether a summary of what was forgotten comes first, as a user's message, if there is one.
            original: all of them, also those that were summarised, and no summary.

        Raises:
            UsageError: a mark that is no text (a TypeError).
        """
        mark_of(mark, "mark")
        mark_of(exclude_mark, "exclude_mark")
        content = await self._all() if original else self.content
        found = [msg for msg, marks in content
                 if (mark is None or mark in marks) and (exclude_mark is None or exclude_mark not in marks)]
        if original:
            return found
        if prepend_summary and self._compressed_summary:
            return [Msg("user", self._compressed_summary, "user"), *found]
        return found

    async def _all(self) -> Content:
        if self._log is None:
            return [*self._dropped, *self.content]
        return original([*await self._log(), *(self._changes or ())])

    async def compact(self, *, refused: bool = False) -> bool:
        """Have the policy look, and summarise what it says; whether it did.

        Args:
            refused: whether the model has refused the length of what is there.

        Raises:
            UsageError: what the policy gave is no summary and number of messages.
        """
        if self.compaction is None:
            return False
        pressed = refused and isinstance(self.compaction, Budget)
        policy = self.compaction.halved if pressed else self.compaction  # type: ignore[attr-defined]
        found = await policy([msg for msg, _ in self.content], self._compressed_summary)
        if found is None:
            return False
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], str)
                and isinstance(found[1], int) and 0 <= found[1] <= len(self.content)):
            raise UsageError(f"The compaction {self.compaction!r} gave {found!r:.200}: a summary and how many of the "
                             f"last messages stay are needed, 0 to {len(self.content)}, or None.")
        gone = len(self.content) - found[1]
        self._dropped, self.content = [*self._dropped, *self.content[:gone]], self.content[gone:]
        self._note({"compact": written(self.content), "drop": list(range(gone))}, -gone)
        await self.update_compressed_summary(found[0])
        return True

    async def size(self) -> int:
        """How many messages there are."""
        return len(self.content)

    async def clear(self) -> None:
        """Forget all messages."""
        self.content, self._dropped, self._compressed_summary = [], [], ""
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

    def note_changes(self, log: Callable[[], Awaitable[list[Change]]] | None = None) -> None:
        """Note changes from now on; `log` gives those before."""
        self._changes, self._length, self._log, self._dropped = [], len(self.content), log, []

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
