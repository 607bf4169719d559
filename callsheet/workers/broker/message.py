"""A message as our consumers get it."""

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable
from typing import Any

from kombu.exceptions import DecodeError

from callsheet.messages.quick import DEEPEST, deeper, loads, too_deep
from callsheet.workers.broker.reading import UNREADABLE, Unreadable
from callsheet.workers.broker.stock import virtual

_JSON = "application/json"
_LARGE = 1024 * 1024  # bytes of a body that is looked at first
_MOST_PARTS = 2_000_000  # lists and objects in a body: each takes 80 bytes, of 3 in the text
_MOST_INFLATED = 1 << 30  # bytes, where the transport has no other bound
_LZMA_MEMORY = 128 * 1024 * 1024  # bytes that a dictionary may take
_INFLATERS: dict[str, Callable[[], Any]] = {
    "gzip": zlib.decompressobj, "bz2": bz2.BZ2Decompressor,
    "lzma": lambda: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY),
}
_CODINGS = {name: kind for kind, names in {
    "gzip": ("application/x-gzip", "gzip", "zlib"), "bz2": ("application/x-bz2", "bzip2", "bzip"),
    "lzma": ("application/x-lzma", "lzma", "xz")}.items() for name in names}


def inflated(body: bytes, coding: str, most: int) -> bytes:
    """What was compressed, within bounds.

    Args:
        body: of the message.
        coding: as its header `compression` names it.
        most: bytes of it, inflated.

    Raises:
        Unreadable: it is larger, not what it is said to be, or of a coding that is not read.
    """
    if coding not in _CODINGS:
        raise Unreadable(f"its body is compressed as {coding[:50]!r}, and workers read gzip, bzip2 and lzma")
    inflater = _INFLATERS[_CODINGS[coding]]()
    try:
        found: bytes = inflater.decompress(body, most + 1)
    except (zlib.error, OSError, ValueError, EOFError, lzma.LZMAError) as exc:
        raise Unreadable(f"its body is not the {coding} that it is said to be ({exc})") from None
    if len(found) > most:
        raise Unreadable(f"its body is more than {most:,} bytes when it is inflated. Send a reference (a path, an "
                         "address) in place of the data, or raise CALLSHEET_PAYLOAD_MAX for the workers: they take "
                         "twice that")
    if not inflater.eof:
        raise Unreadable(f"its body is half of something compressed as {coding}")
    return found


class Message(virtual.Message):
    """Kombu's, of a payload that was read by `reading`; making one never raises.

    What is wrong with it is in `errors`, where kombu's consumers look for what was wrong. Plain JSON, which is nearly
    every body, is read without kombu's hook for types that JSON lacks.
    """

    body: Any

    def __init__(self, payload: dict[str, Any], channel: Any = None, **kwargs: Any) -> None:
        headers = payload["headers"]
        coding = headers.get("compression")
        given = {**payload, "headers": {}} if coding else payload
        try:
            if UNREADABLE in headers:
                raise Unreadable(str(headers[UNREADABLE])[:1000])
            super().__init__(given, channel=channel, **kwargs)
            if coding:
                self.body = inflated(self.body or b"", str(coding), channel.message_max or _MOST_INFLATED)
        except Exception as exc:
            super().__init__({**given, "body": None}, channel=channel, **kwargs)
            self.errors.append(sys.exc_info() if isinstance(exc, Unreadable) else _told(exc))
        self._raw, self.headers = payload, headers

    def _decode(self) -> Any:
        if self.content_type == _JSON and (self.accept is None or _JSON in self.accept):
            body = self.body or b""
            begins: Any = b"[{" if isinstance(body, bytes) else "[{"
            if len(body) > _LARGE and body.count(begins[:1]) + body.count(begins[1:]) > _MOST_PARTS:
                raise DecodeError(f"it is made of more than {_MOST_PARTS:,} lists and objects")
            try:
                found = loads(body)
            except ValueError as exc:
                raise DecodeError(str(exc)) from None
            if not (b'"__type__"' in body if isinstance(body, bytes) else '"__type__"' in body):
                return found
        found = super()._decode()
        if deeper(found, DEEPEST):
            raise DecodeError(str(too_deep()))
        return found


def _told(exc: Exception) -> Any:
    """As of `sys.exc_info`, of a body that is not in its transfer encoding."""
    try:
        raise Unreadable(f"its body cannot be read ({type(exc).__name__}: {exc})") from exc
    except Unreadable:
        return sys.exc_info()
