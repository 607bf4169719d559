"""Messages of a server, piece by piece, none of them larger than allowed.

One that is too large is thrown away while it comes in, and an error in its place says so: a JSON-RPC error with the
message's id, which stands at its beginning or at its end.
"""

import json
import re
from collections.abc import Iterator

TOO_LARGE = -32099
"""Code of the error that stands in for a message that was too large."""

_KEPT = 4096  # bytes of its beginning and of its end
_ID = rb'"id"\s*:\s*("(?:[^"\\]|\\.){0,256}"|-?\d{1,18})'
_FIRST = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?' + _ID)
_LAST = re.compile(_ID + rb'\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$')
_BLANK = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_EDGE = 3  # bytes at the end of a piece, in which a blank line may have begun


def too_large(limit: int) -> str:
    """What stands in for a message over the limit, in words."""
    return (f"the answer is over {limit:,} bytes, and was not read. Ask for less at once, or set "
            "CALLSHEET_MCP__ANSWER_MAX higher (the transport \"sse\" takes no more than a megabyte)")


def error_for(head: bytes, tail: bytes, limit: int) -> bytes:
    """The error in place of a message, as JSON; b"" where its id is not found.

    Args:
        head: how it begins.
        tail: how it ends.
        limit: that it is over.
    """
    found = _FIRST.match(head) or _LAST.search(tail)
    if found is None:
        return b""
    return json.dumps({"jsonrpc": "2.0", "id": json.loads(found[1]),
                       "error": {"code": TOO_LARGE, "message": too_large(limit)}}).encode()


class _Growing:
    """What there is of a message so far; of one that is too large, its beginning and its end."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._clear()

    def _clear(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._head = self._tail = b""

    def add(self, piece: bytes) -> None:
        """One more piece."""
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > self.limit:
            pieces = self._pieces
            if not self._head:
                self._head = b"".join(pieces)[:_KEPT]
            self._tail = b"".join([self._tail, *pieces])[-_KEPT:]
            self._pieces = []

    def end(self) -> bytes:
        """The message, or the error in its place."""
        whole = error_for(self._head, self._tail, self.limit) if self._size > self.limit else b"".join(self._pieces)
        self._clear()
        return whole


class Lines:
    """Lines of a server's standard output, without empty ones.

    Args:
        limit: bytes of a line.
    """

    def __init__(self, limit: int) -> None:
        self._line = _Growing(limit)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that are complete with this piece."""
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._line.add(piece)
            line = self._line.end()
            if line:
                yield line
        self._line.add(rest)


class Events:
    """Server-sent events.

    Args:
        limit: bytes of an event.
    """

    def __init__(self, limit: int) -> None:
        self._event = _GrowingEvent(limit)
        self._edge = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The events that are complete with this piece."""
        data = self._edge + data
        at = 0
        # Most of a large event has no line's end in it, and looking for one byte is much faster.
        for blank in _BLANK.finditer(data) if b"\n" in data or b"\r" in data else ():
            self._event.add(data[at:blank.end()])
            at = blank.end()
            event = self._event.end()
            if event:
                yield event
        keep = max(at, len(data) - _EDGE)
        self._event.add(data[at:keep])
        self._edge = data[keep:]

    def rest(self) -> bytes:
        """What there is of an event without an end."""
        self._event.add(self._edge)
        self._edge = b""
        return self._event.end()


class _GrowingEvent(_Growing):
    def end(self) -> bytes:
        large, self._head = self._size > self.limit, self._head.partition(b"data:")[2]
        event = super().end()
        return b"event: message\ndata: " + event + b"\n\n" if large and event else event
