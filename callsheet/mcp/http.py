"""A server behind an address: the SDK's transports over ours.

The SDK ends a session, with all its calls, when one request raises. So none does: a request that failed tells its
attempt why and is answered here, with an error for that one call.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx2
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from callsheet.errors import CallsheetError, McpError, McpUnavailable
from callsheet.mcp.bounds import Lines, too_large
from callsheet.mcp.lifecycle import Attempt, SessionLost, current_attempt
from callsheet.mcp.specs import HttpSpec
from callsheet.resources.endpoints import Signature
from callsheet.resources.httpx2 import Httpx2Transport
from callsheet.resources.stack import EndpointTransport
from callsheet.settings import Endpoint, Settings
from callsheet.settings.secrets import scrubbed

SDK_EVENT_MAX = 1_000_000
"""Bytes of an event that the SDK's older transport, "sse", takes at most."""

_ROOM = 64 * 1024  # bytes that an event may have beside its data
_ERROR_READ = 64 * 1024  # bytes of a refusal that are read
_CLOSE_WITHIN = 5.0  # seconds for a goodbye
_END_WITHIN = 0.1  # seconds in which a body ends, after the answer in it
_METHOD_WITHIN = 200  # bytes of a request in which its method stands
_JSON = {"content-type": "application/json"}


@contextlib.asynccontextmanager
async def connected(spec: HttpSpec, settings: Settings) -> AsyncIterator[Any]:
    """The SDK's streams to and from the server.

    Raises:
        CallsheetError: an endpoint that is not there, or is used wrongly.
    """
    name, endpoint, url = spec.target(settings)
    options, limit = dict(spec.options), settings.mcp.answer_max
    if spec.transport == "sse":
        limit = min(limit, SDK_EVENT_MAX)

    def client(headers: dict[str, str] | None = None, timeout: Any = None, auth: Any = None) -> httpx2.AsyncClient:
        through = Isolating(name, endpoint, settings, spec, limit)
        # `pool=None`: to wait for its turn under the endpoint's limits is not an error.
        patience = httpx2.Timeout(spec.timeout, read=spec.sse_read_timeout, pool=None)
        sent = {"User-Agent": "callsheet", "Accept-Encoding": "identity", **dict(spec.headers)}
        return httpx2.AsyncClient(transport=through, timeout=patience, auth=auth, trust_env=False, headers=sent)

    factory = options.pop("httpx_client_factory", None)
    own: dict[str, Any] = {"headers": dict(spec.headers),
                           "timeout": httpx2.Timeout(spec.timeout, read=spec.sse_read_timeout)}
    if spec.transport == "sse":
        async with sse_client(url, headers=own["headers"], timeout=spec.timeout,
                              sse_read_timeout=spec.sse_read_timeout, httpx_client_factory=factory or client,
                              **options) as streams:
            yield streams
        return
    auth = options.pop("auth", None)
    given = options.pop("http_client", None)
    options.setdefault("max_sse_event_size", limit + _ROOM)
    async with contextlib.AsyncExitStack() as stack:
        if given is None:
            made = factory(auth=auth, **own) if factory else client(auth=auth)
            given = await stack.enter_async_context(made)
        yield await stack.enter_async_context(streamable_http_client(url, http_client=given, **options))


class Isolating(Httpx2Transport):
    """Sends requests over an endpoint's transports, signed with its key, and answers those that fail.

    Args:
        name: the endpoint's.
        endpoint: its settings.
        settings: of the process.
        spec: whose requests they are.
        limit: bytes of a message.
    """

    def __init__(self, name: str, endpoint: Endpoint, settings: Settings, spec: HttpSpec, limit: int) -> None:
        super().__init__(EndpointTransport(name, endpoint, settings))
        # A stream that stands open is no call under way: the endpoint's limits are for calls.
        free = endpoint.model_copy(update={"rpm": None, "tpm": None, "max_concurrency": None})
        self._standing = Httpx2Transport(EndpointTransport(name, free, settings))
        self._signature = Signature(endpoint)
        self._spec = spec
        self._limit = limit

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request; nothing is raised but for the stream that a session of transport "sse" is."""
        attempt = current_attempt.get() or Attempt()
        try:
            self._signature.mark(request.extensions)
            if request.method == "GET":
                return await self._stream(request, attempt)
            if request.method == "DELETE":
                attempt.abandon(_CLOSE_WITHIN)
            standing = request.method == "POST" and b'"subscriptions/listen"' in request.content[:_METHOD_WITHIN]
            send = self._standing.handle_async_request if standing else super().handle_async_request
            async with attempt.bounded():
                response = await send(request)
            return await self._read(request, response, attempt)
        except (httpx2.TransportError, httpx2.StreamError, CallsheetError, SessionLost, TimeoutError) as exc:
            if request.method == "GET" and self._spec.transport == "sse":
                attempt.fail(exc)
                raise
            return self._answer(request, exc, attempt)

    async def _stream(self, request: httpx2.Request, attempt: Attempt) -> httpx2.Response:
        response: httpx2.Response = await self._standing.handle_async_request(request)
        if response.status_code < 400:
            response.stream = _Events(response.stream, self._limit, attempt, quiet=self._spec.transport != "sse")
        return response

    async def _read(self, request: httpx2.Request, response: httpx2.Response, attempt: Attempt) -> httpx2.Response:
        kind = response.headers.get("content-type", "").lower()
        if response.status_code < 400 and kind.startswith("text/event-stream"):
            response.stream = _Events(response.stream, self._limit, attempt)
            return response
        if 300 <= response.status_code < 400:
            return response
        limit = self._limit if response.status_code < 400 else _ERROR_READ
        try:
            async with attempt.bounded():
                body, whole = await _bounded(response, limit)
        finally:
            await response.aclose()
        if response.status_code >= 400:
            self._refused(request, response.status_code, body, attempt)
        elif not whole:
            raise McpError(f"{self._spec.shown}: {too_large(limit)}.")
        headers = [(key, value) for key, value in response.headers.raw
                   if key.lower() not in (b"content-encoding", b"content-length", b"transfer-encoding")]
        return httpx2.Response(response.status_code, headers=headers, content=body)

    def _refused(self, request: httpx2.Request, status: int, body: bytes, attempt: Attempt) -> None:
        """A status of 400 or more.

        Raises:
            SessionLost: the server does not know the session.
            McpError: it refuses us; what a JSON-RPC error in the body says is left to the SDK.
        """
        held = "mcp-session-id" in request.headers
        if request.method == "DELETE":
            return
        if held and (status == 404 or (status == 400 and b"session" in body.lower())):
            raise SessionLost
        text = scrubbed(body.decode("utf-8", "replace").strip(), 300)
        if self._spec.transport == "streamable_http" and isinstance(_object(body).get("error"), dict):
            return
        remedy = {401: " Give the endpoint in the settings the key that it asks for.",
                  403: " See whether the endpoint's key may do this.",
                  404: " Is the path of the url right?", 405: " Is it the other transport that it speaks?"}
        failed = McpUnavailable if status >= 500 else McpError
        raise failed(f"{self._spec.shown} answers with status {status}{f': {text}' if text else ''}."
                     f"{remedy.get(status, '')}")

    def _answer(self, request: httpx2.Request, exc: Exception, attempt: Attempt) -> httpx2.Response:
        """The answer to a request that failed."""
        if request.method == "GET":
            return httpx2.Response(405)  # a server need not offer that stream
        if request.method == "DELETE":
            return httpx2.Response(200)
        if not {"id", "method"} <= _object(request.content).keys():  # nobody waits for an answer
            return httpx2.Response(202)
        attempt.fail(exc)
        if self._spec.transport == "sse":
            return httpx2.Response(202)
        error = {"jsonrpc": "2.0", "id": 0, "error": {"code": -32603, "message": type(exc).__name__}}
        return httpx2.Response(502, headers=_JSON, content=json.dumps(error).encode())


def _object(body: bytes) -> dict[str, Any]:
    """A JSON object; {} where it is none."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


async def _bounded(response: httpx2.Response, limit: int) -> tuple[bytes, bool]:
    """A body, decoded, and whether it is whole: no more of it is read than that."""
    pieces, size = [], 0
    async for piece in response.aiter_bytes():
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            return b"".join(pieces)[:limit], False
    return b"".join(pieces), True


@dataclass(eq=False)
class _Events(httpx2.AsyncByteStream):
    """The events of a body, no message in them too large, until nobody waits for them any more."""

    stream: Any  # the body
    limit: int  # bytes of a message
    attempt: Attempt  # whose it is
    quiet: bool = False  # whether silence that lasts too long is a plain end, after which the SDK opens it again
    pieces: AsyncIterator[bytes] | None = None  # of the body, until its end

    async def __aiter__(self) -> AsyncIterator[bytes]:
        lines, self.pieces = Lines(self.limit, b"data:"), aiter(self.stream)
        size = 0  # of an event, whose message may be many lines
        while True:
            try:
                async with self.attempt.bounded():
                    piece = await anext(self.pieces, None)
            except TimeoutError:  # by this class the SDK knows that it is not to ask for the rest
                raise httpx2.SSEError("nobody waits for it any more") from None
            except httpx2.ReadTimeout as exc:
                if self.quiet:
                    return
                self.attempt.fail(exc)  # the SDK would only tell that the stream has ended
                raise
            if piece is None:
                self.pieces = None
                break
            ended = list(lines.feed(piece))
            for line in ended:
                size = size + len(line) if line else 0
                if size > 2 * self.limit:
                    self.attempt.fail(large := httpx2.SSEError(too_large(self.limit)))
                    raise large
            if ended:
                yield b"\n".join([*ended, b""])
        if rest := lines.rest():
            yield rest

    async def aclose(self) -> None:
        """Close the body; one that is about to end is read to its end, so that its connection serves the next call."""
        pieces, self.pieces = self.pieces, None
        if pieces is not None and not self.quiet and not self.attempt.abandoned:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_END_WITHIN):
                    while await anext(pieces, None) is not None:
                        pass
        await self.stream.aclose()
