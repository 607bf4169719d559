"""Streams of events as they come off the wire: server-sent ones, and one JSON text a line.

What has no end yet is kept in pieces, so that a server that sends byte by byte costs no more than one that does not.
"""

from collections.abc import Iterator
from typing import NamedTuple

LIMIT = 16 * 1024 * 1024
"""Bytes of one event; a server that sends more without an end is cut off."""

_MARK = b"\xef\xbb\xbf"  # a byte order mark, which may stand at a stream's beginning and means nothing


class EventTooLong(ValueError):
    """One event grew over LIMIT."""


class Event(NamedTuple):
    """One event.

    Attributes:
        name: "" where it has none.
        data: never blank.
    """

    name: str
    data: str

    def written(self) -> bytes:
        """The event as a stream holds it, on as few lines as can be; its data being JSON."""
        name = f"event: {self.name}\n" if self.name else ""
        return f"{name}data: {self.data.replace(chr(10), ' ')}\n\n".encode()


class LineStream:
    """Turns chunks of bytes, cut anywhere, into lines that are not empty."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of a line that has no end yet
        self._size = 0
        self._begun = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The lines that `chunk` completes.

        Raises:
            EventTooLong: a line has more than LIMIT bytes.
        """
        return [Event("", line.decode("utf-8", "replace")) for line in self._lines(chunk) if line.strip()]

    def close(self) -> list[Event]:
        """What is left when the stream ends."""
        return self.feed(b"\n")

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            line, self._pieces, self._size = b"".join([*self._pieces, piece]), [], 0
            if not self._begun:
                line, self._begun = line.removeprefix(_MARK), True
            yield line
        if rest:
            self._pieces.append(rest)
            self._size = _bounded(self._size + len(rest))


class EventStream(LineStream):
    """Turns chunks of bytes, cut anywhere, into events, by the standard of server-sent events.

    Lines end in LF, CRLF or CR. Not str.splitlines: that also splits at U+2028 and others, which JSON may hold. An
    event without data, by which servers keep a connection open, is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._name = ""
        self._data: list[bytes] = []
        self._held = 0  # bytes of an event's lines so far
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes.

        Raises:
            EventTooLong: an event has more than LIMIT bytes.
        """
        if self._after_cr and chunk:
            chunk, self._after_cr = chunk.removeprefix(b"\n"), False  # the other half of CRLF
        self._after_cr = chunk[-1:] == b"\r" or (self._after_cr and not chunk)
        lines = self._lines(chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
        return [event for line in lines if (event := self._event(line)) is not None]

    def close(self) -> list[Event]:
        """What is left when the stream ends: servers forget the last blank line."""
        self._after_cr = False
        return self.feed(b"\n\n") if self._pieces or self._data else []

    def _event(self, line: bytes) -> Event | None:
        if not line:
            data, name = b"\n".join(self._data), self._name
            self._data, self._name, self._held = [], "", 0
            return Event(name, data.decode("utf-8", "replace")) if data.strip() else None
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
        elif field == b"event":
            self._name = value.removeprefix(b" ").decode("utf-8", "replace")
        self._held = _bounded(self._held + len(line))
        return None


def _bounded(size: int) -> int:
    if size > LIMIT:
        raise EventTooLong(f"one event has over {LIMIT} bytes")
    return size
