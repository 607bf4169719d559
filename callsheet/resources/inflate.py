"""Compressed answers as plain bytes, a bounded part at a time, for everyone above."""

import asyncio
import zlib
from collections.abc import AsyncIterator

import httpx

MOST = 64 * 1024 * 1024
"""Bytes that a compressed answer may have, at each step of inflating it."""

_PART = 64 * 1024
_MOST_CODINGS = 3  # one within the other
_RESTS = 16  # parts after which the loop has its turn
_GZIP = ("gzip", "x-gzip")


async def _inflated(pieces: AsyncIterator[bytes], coding: str) -> AsyncIterator[bytes]:
    """The parts of a body without one of its codings."""
    gzip, size, count = coding in _GZIP, 0, 0
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 16 if gzip else zlib.MAX_WBITS)
    async for chunk in pieces:
        piece, part = chunk, b""
        while piece or len(part) == _PART:  # so large a part may have left more behind
            if inflate.eof:
                if not gzip or not piece.startswith(b"\x1f"):
                    break  # what stands behind the end means nothing
                inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)  # the next member of the file
                size += _PART
            try:
                part = inflate.decompress(piece, _PART)
            except zlib.error as exc:
                if gzip or count:
                    raise httpx.DecodingError(f"the compressed answer is broken: {exc}") from exc
                inflate, count = zlib.decompressobj(-zlib.MAX_WBITS), 1  # some servers' "deflate" has no head
                continue
            piece = inflate.unconsumed_tail or inflate.unused_data
            size, count = size + len(part), count + 1
            if size > MOST:
                raise httpx.DecodingError(f"the answer inflates to over {MOST} bytes")
            if part:
                yield part
            if not count % _RESTS:
                await asyncio.sleep(0)


class Inflated(httpx.AsyncByteStream):
    """The plain bytes of a compressed body. Of an error whose body cannot be read, what can.

    Args:
        stream: the body.
        codings: those that the header Content-Encoding names, the first one applied first.
        lenient: whether it is an error's body.
    """

    def __init__(self, stream: httpx.AsyncByteStream, codings: list[str], lenient: bool) -> None:
        self._stream = stream
        self._codings = codings
        self._lenient = lenient

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The parts.

        Raises:
            httpx.DecodingError: it is broken, too large, or in a coding that was not asked for.
        """
        try:
            if len(self._codings) > _MOST_CODINGS or not {*self._codings} <= {*_GZIP, "deflate"}:
                raise httpx.DecodingError(f"the answer is compressed as {', '.join(self._codings)[:100]}; gzip and "
                                          "deflate were asked for")
            parts = aiter(self._stream)
            for coding in reversed(self._codings):
                parts = _inflated(parts, coding)
            async for part in parts:
                yield part
        except httpx.DecodingError:
            if not self._lenient:
                raise

    async def aclose(self) -> None:
        """Close the body."""
        await self._stream.aclose()


def plain(response: httpx.Response) -> httpx.Response:
    """The response with its body as plain bytes, and no header that says otherwise."""
    names = response.headers.get("content-encoding", "").lower().split(",")  # several headers are one list
    codings = [name.strip() for name in names if name.strip() not in ("", "identity")]
    if codings:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = Inflated(response.stream, codings, lenient=response.status_code >= 400)
        response.headers.pop("content-length", None)
    response.headers.pop("content-encoding", None)
    return response
