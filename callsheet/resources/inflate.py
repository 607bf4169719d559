"""Compressed answers as plain bytes, a bounded part at a time, for everyone above."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator

import httpx

MOST = 64 * 1024 * 1024
"""Bytes that a compressed answer may have, at each step of inflating it."""

_PART = 64 * 1024
_MOST_MEMBERS = 1000  # of a gzip file
_MOST_CODINGS = 3  # one within the other
_RESTS = 16  # parts after which the loop has its turn
_GZIP = ("gzip", "x-gzip")


class _Step:
    """One coding of a body."""

    def __init__(self, coding: str) -> None:
        self._gzip = coding in _GZIP
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 16 if self._gzip else zlib.MAX_WBITS)
        self._members, self._size, self._begun = 1, 0, False

    def parts(self, piece: bytes) -> Iterator[bytes]:
        part = b""
        while piece or len(part) == _PART:  # so large a part may have left more behind
            if self._inflate.eof:
                if not self._gzip or not piece.startswith(b"\x1f"):
                    return  # what stands behind the end means nothing
                self._inflate, self._members = zlib.decompressobj(zlib.MAX_WBITS | 16), self._members + 1
            try:
                part = self._inflate.decompress(piece, _PART)
            except zlib.error as exc:
                if self._gzip or self._begun:
                    raise httpx.DecodingError(f"the compressed answer is broken: {exc}") from exc
                self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)  # some servers' "deflate" has no head
                self._begun = True
                continue
            self._begun = True
            piece = self._inflate.unconsumed_tail or self._inflate.unused_data
            self._size += len(part)
            if self._size > MOST or self._members > _MOST_MEMBERS:
                raise httpx.DecodingError(f"the answer inflates to over {MOST} bytes")
            if part:
                yield part


class Inflated(httpx.AsyncByteStream):
    """The plain bytes of a compressed body. Of an error whose body cannot be read, what can.

    Args:
        stream: the body.
        codings: as the header Content-Encoding names them, the first one applied first.
        lenient: whether it is an error's body.
    """

    def __init__(self, stream: httpx.AsyncByteStream, codings: str, lenient: bool) -> None:
        self._stream = stream
        self._codings = named(codings)
        self._lenient = lenient

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The parts.

        Raises:
            httpx.DecodingError: it is broken, too large, or in a coding that was not asked for.
        """
        try:
            unknown = [name for name in self._codings if name not in (*_GZIP, "deflate")]
            if unknown or len(self._codings) > _MOST_CODINGS:
                raise httpx.DecodingError(f"the answer is compressed as {', '.join(self._codings)[:100]}; gzip and "
                                          "deflate were asked for")
            steps, count = [_Step(name) for name in reversed(self._codings)], 0
            async for chunk in self._stream:
                for part in _through(steps, chunk):
                    yield part
                    count += 1
                    if not count % _RESTS:
                        await asyncio.sleep(0)
        except httpx.DecodingError:
            if not self._lenient:
                raise

    async def aclose(self) -> None:
        """Close the body."""
        await self._stream.aclose()


def _through(steps: list[_Step], piece: bytes) -> Iterator[bytes]:
    if not steps:
        yield piece
        return
    for part in steps[0].parts(piece):
        yield from _through(steps[1:], part)


def named(codings: str) -> list[str]:
    """The codings of a header's value, without those that change nothing."""
    names = (name.strip().lower() for name in codings.split(","))
    return [name for name in names if name not in ("", "identity")]


def plain(response: httpx.Response) -> httpx.Response:
    """The response with its body as plain bytes, and no header that says otherwise."""
    codings = response.headers.get("content-encoding", "")  # several headers are one list
    if named(codings):
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = Inflated(response.stream, codings, lenient=response.status_code >= 400)
        response.headers.pop("content-length", None)
    response.headers.pop("content-encoding", None)
    return response
