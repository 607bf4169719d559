"""Messages of a server, a line each, none of them larger than allowed.

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


class Lines:
    """Lines of a server's standard output, or of a stream of events, whose messages are a line each.

    Args:
        limit: bytes of a line.
        before: what stands before a message, e.g. b"data:".
    """

    def __init__(self, limit: int, before: bytes = b"") -> None:
        self._limit = limit
        self._before = before
        self._half = False  # whether it ended with half of a CR LF
        self._clear()

    def _clear(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._head = self._tail = b""  # of a line that is too large

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that are complete with this piece; events' may end with CR, LF or both."""
        if self._before:
            data, self._half = data.removeprefix(b"\n") if self._half else data, data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in data else data
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._add(piece)
            yield self.rest()
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > self._limit:
            if not self._head:
                self._head = b"".join(self._pieces)[:_KEPT]
            self._tail = b"".join([self._tail, *self._pieces])[-_KEPT:]
            self._pieces = []

    def rest(self) -> bytes:
        """What there is of a line without an end; the error in its place, or b"", where it is too large."""
        line = b"".join(self._pieces)
        if self._size > self._limit:
            error = error_for(self._head.removeprefix(self._before), self._tail, self._limit)
            line = self._before + error if error else b""
        self._clear()
        return line
