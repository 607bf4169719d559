"""The innermost wrapper: reads the usage that providers report out of the bytes that pass by.

It looks for the key under which OpenAI, Anthropic (`usage`) and Gemini (`usageMetadata`) report, and for Ollama's
counts, in JSON bodies and event streams alike, keeps no more than that, and alters nothing.
"""

import json
import re
import time
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx

from callsheet.resources.record import CallRecord, header, record_of

MOST = 16 * 1024
"""Bytes of a usage object at most."""

_KEY = re.compile(rb'"usage(?:Metadata)?"\s*:\s*(?=\{)')
_SIGN = b'"usage'
_LONGEST_KEY = 64  # bytes of a key and the blanks after it
_COUNTS = re.compile(rb'(?<!\\)"((?:prompt_)?eval_count)"\s*:\s*(\d{1,12})(?=\s*[,}])')
_INPUT = ("prompt_tokens", "input_tokens", "promptTokenCount", "prompt_eval_count")
_OUTPUT = ("completion_tokens", "output_tokens", "candidatesTokenCount", "eval_count")
# Anthropic counts what it read from its cache, or wrote to it, apart from the input.
_BESIDE_INPUT = ("cache_read_input_tokens", "cache_creation_input_tokens")
_CACHED = ("cached_tokens", "cache_read_input_tokens", "cachedContentTokenCount")


class UsageReader:
    """Finds the usage in the pieces of one body. What is reported later wins, number by number.

    Attributes:
        input_tokens: reported so far, cached ones included, or None.
        output_tokens: likewise, reasoning included.
        cached_tokens: likewise.
    """

    def __init__(self) -> None:
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.cached_tokens: int | None = None
        self._seen: dict[str, int] = {}
        self._rest = b""
        self._tail = b""

    def feed(self, piece: bytes) -> bool:
        """Look at the next piece; True when it told something."""
        told = self._counts(piece)
        data, at = self._rest + piece, 0
        while (start := data.find(_SIGN, at)) >= 0:
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
        details = [value for name, value in usage.items() if isinstance(value, dict) and name.endswith("_details")]
        for part in (*details, usage):
            self._seen.update((name, value) for name, value in part.items()
                              if isinstance(value, int) and not isinstance(value, bool) and value >= 0)
        tokens, out = self._first(_INPUT), self._first(_OUTPUT)
        if tokens is not None:
            self.input_tokens = tokens + sum(self._seen.get(name, 0) for name in _BESIDE_INPUT)
        if out is not None:
            self.output_tokens = out + self._seen.get("thoughtsTokenCount", 0)
        self.cached_tokens = self._first(_CACHED)
        return tokens is not None or out is not None

    def _first(self, names: tuple[str, ...]) -> int | None:
        return next((self._seen[name] for name in names if name in self._seen), None)


def _object(data: bytes) -> dict[str, Any] | None:
    """The JSON object at the beginning of `data`; None where it is not complete."""
    try:
        found, _ = json.JSONDecoder().raw_decode(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class Inflated:
    """The plain bytes of a gzip or deflate body, piece by piece, a bounded part at a time."""

    def __init__(self, encoding: str) -> None:
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32 if encoding == "gzip" else zlib.MAX_WBITS)

    def parts(self, piece: bytes) -> list[bytes]:
        """What the piece holds."""
        found = []
        while piece:
            found.append(self._inflate.decompress(piece, 64 * 1024))
            piece = self._inflate.unconsumed_tail
        return found


class Sniffing(httpx.AsyncBaseTransport):
    """Counts what is sent and writes what is reported into the request's record.

    Args:
        inner: the pooled transport.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

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
        record.status = response.status_code
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Body(response.stream, record, response.headers)
        return response

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, record: CallRecord, headers: httpx.Headers) -> None:
        self._stream = stream
        self._pieces: AsyncIterator[bytes] | None = None
        self._record = record
        kind = header(headers, b"content-type")
        encoding = header(headers, b"content-encoding").decode("latin-1").lower() or "identity"
        self._inflated = Inflated(encoding) if encoding in ("gzip", "deflate") else None
        readable = encoding == "identity" or self._inflated is not None
        self._reader = UsageReader() if readable and (b"json" in kind or b"event-stream" in kind) else None
        # Usage of tries before this one stays counted.
        self._before = record.input_tokens, record.output_tokens, record.cached_tokens

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._pieces = aiter(self._stream)
        return self

    async def __anext__(self) -> bytes:
        assert self._pieces is not None
        chunk = await anext(self._pieces)
        if self._record.first_byte is None:
            self._record.first_byte = time.time()
        if self._reader is not None:
            self._look(chunk)
        return chunk

    def _look(self, chunk: bytes) -> None:
        assert self._reader is not None
        try:
            parts = self._inflated.parts(chunk) if self._inflated is not None else (chunk,)
        except zlib.error:  # the client will say so
            self._reader = None
            return
        for part in parts:
            if self._reader.feed(part):
                reader, before, record = self._reader, self._before, self._record
                record.input_tokens = _sum(before[0], reader.input_tokens)
                record.output_tokens = _sum(before[1], reader.output_tokens)
                record.cached_tokens = _sum(before[2], reader.cached_tokens)

    async def aclose(self) -> None:
        await self._stream.aclose()


def _sum(before: int | None, now: int | None) -> int | None:
    return before if now is None else (before or 0) + now
