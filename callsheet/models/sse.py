"""Streams of events as they come off the wire: server-sent ones, and one JSON text a line."""

LIMIT = 16 * 1024 * 1024
"""Bytes of one event; a server that sends more without an end is cut off."""


class EventTooLong(ValueError):
    """One event grew over LIMIT."""


class EventStream:
    """Turns chunks of bytes, cut anywhere, into the data of each event.

    Lines end in LF, CRLF or CR. Not str.splitlines: that also splits at U+2028 and others, which JSON may hold.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[str]:
        """The events that `chunk` completes.

        Raises:
            EventTooLong: an event has more than LIMIT bytes.
        """
        text = self._tail + chunk
        # A CR at the very end may be the first half of CRLF: it waits.
        held = text[-1:] == b"\r"
        lines = (text[:-1] if held else text).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._tail = lines.pop() + (b"\r" if held else b"")
        events = [event for line in lines if (event := self._line(line)) is not None]
        if self._size + len(self._tail) > LIMIT:
            raise EventTooLong(f"one event has over {LIMIT} bytes")
        return events

    def close(self) -> list[str]:
        """What is left when the stream ends: servers forget the last blank line."""
        rest = self.feed(b"\n\n") if self._tail or self._data else []
        self._tail = b""
        return rest

    def _line(self, line: bytes) -> str | None:
        if not line:
            data, self._data, self._size = self._data, [], 0
            return b"\n".join(data).decode("utf-8", "replace") if data else None
        if line.startswith(b"data:"):
            value = line[5:].removeprefix(b" ")
            self._data.append(value)
            self._size += len(value)
        return None


class LineStream:
    """Turns chunks of bytes, cut anywhere, into lines that are not empty."""

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, chunk: bytes) -> list[str]:
        """The lines that `chunk` completes.

        Raises:
            EventTooLong: a line has more than LIMIT bytes.
        """
        *lines, self._tail = (self._tail + chunk).split(b"\n")
        if len(self._tail) > LIMIT:
            raise EventTooLong(f"one line has over {LIMIT} bytes")
        return [line.decode("utf-8", "replace") for line in lines if line.strip()]

    def close(self) -> list[str]:
        """What is left when the stream ends."""
        tail, self._tail = self._tail, b""
        return [tail.decode("utf-8", "replace")] if tail.strip() else []
