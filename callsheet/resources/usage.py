"""The innermost wrapper: reads the usage that providers report out of the bytes that pass by.

It looks for the key under which OpenAI, Anthropic (`usage`) and Gemini (`usageMetadata`) report, and for Ollama's
counts, in JSON bodies and event streams alike, keeps no more than that, and alters nothing.
"""

import json
import re
import time
from typing import Any

import httpx

from callsheet.resources.inflate import plain
from callsheet.resources.record import CallRecord, Layer, WatchedBody, header, record_of
from callsheet.resources.tokens import Tokens, numbers_in, tokens_of

MOST = 16 * 1024
"""Bytes of a usage object at most."""

_MOST_TRIES = 32  # objects that are none, or too large, after which nothing is looked for

_KEY = re.compile(rb'"usage(?:Metadata)?"\s*:\s*(?=\{)')
_SIGN = b'"usage'
_LONGEST_KEY = 64  # bytes of a key and the blanks after it
_COUNTS = re.compile(rb'(?<!\\)"((?:prompt_)?eval_count)"\s*:\s*(\d{1,12})(?=\s*[,}])')


class UsageReader:
    """Finds the usage in the pieces of one body. What is reported later wins, number by number.

    Attributes:
        tokens: reported so far.
    """

    def __init__(self) -> None:
        self.tokens = Tokens()
        self._seen: dict[str, int] = {}
        self._tries = _MOST_TRIES
        self._rest = b""
        self._tail = b""

    def feed(self, piece: bytes) -> bool:
        """Look at the next piece; True when it told something."""
        if not self._tries:
            return False
        told = self._counts(piece)
        data, at = self._rest + piece, 0
        while self._tries and (start := data.find(_SIGN, at)) >= 0:
            at = start + 1
            if start and data[start - 1] == 0x5C:  # behind a backslash it is text in a JSON string
                continue
            key = _KEY.match(data, start)
            found = _object(data[key.end():key.end() + MOST]) if key else None
            if found is not None:
                told = self._take(found) or told
            elif len(data) - start < (MOST if key else _LONGEST_KEY):  # the rest may follow
                self._rest = data[start:]
                return told
            elif key:
                self._tries -= 1
        self._rest = data[max(at, len(data) - len(_SIGN) - 1):]
        return told

    def _counts(self, piece: bytes) -> bool:
        """Ollama's, which stand in its last event beside other things."""
        data = self._tail + piece
        self._tail = data[-_LONGEST_KEY:]
        if b'eval_count"' not in data:
            return False
        found = {name.decode(): int(number) for name, number in _COUNTS.findall(data)}
        return bool(found) and self._take(found)

    def _take(self, usage: dict[str, Any]) -> bool:
        self._seen.update(numbers_in(usage))
        self.tokens = tokens_of(self._seen)
        return self.tokens.input is not None or self.tokens.output is not None


def _object(data: bytes) -> dict[str, Any] | None:
    """The JSON object at the beginning of `data`; None where it is not complete."""
    try:
        found, _ = json.JSONDecoder().raw_decode(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class Sniffing(Layer):
    """Counts what is sent and writes what is reported into the request's record.

    Args:
        inner: the pooled transport.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request."""
        record = record_of(request)
        if record is None:
            return await self._inner.handle_async_request(request)
        accepted = header(request.headers, b"accept-encoding")
        if b"br" in accepted or b"zstd" in accepted:  # what the standard library cannot read
            request.headers["accept-encoding"] = "gzip, deflate"
        record.attempts += 1
        record.status = record.first_byte = None
        response = await self._inner.handle_async_request(request)
        if header(response.headers, b"content-encoding"):
            response = plain(response)
        record.status = response.status_code
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Body(response.stream, record, response.headers)
        return response


class _Body(WatchedBody):
    def __init__(self, stream: httpx.AsyncByteStream, record: CallRecord, headers: httpx.Headers) -> None:
        super().__init__(stream)
        self._record = record
        kind = header(headers, b"content-type")
        self._reader = UsageReader() if b"json" in kind or b"event-stream" in kind else None
        # Usage of tries before this one stays counted.
        self._before = record.tokens

    async def __anext__(self) -> bytes:
        chunk = await super().__anext__()
        if self._record.first_byte is None:
            self._record.first_byte = time.time()
        if self._reader is not None and self._reader.feed(chunk):
            self._record.tokens = Tokens(*map(_sum, self._before, self._reader.tokens))
        return chunk


def _sum(before: int | None, now: int | None) -> int | None:
    return before if now is None else (before or 0) + now
