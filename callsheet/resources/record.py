"""What is known of one outbound request, gathered while it passes through the transports, and the base of these."""

import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import httpx

from callsheet.resources.context import CallContext, current_call
from callsheet.resources.tokens import NOTHING, Tokens

EXTENSION = "callsheet"
"""Where a request keeps its record: `request.extensions["callsheet"]`."""


@dataclass(slots=True, kw_only=True)
class CallRecord:
    """One request as its caller sees it, tries included.

    Attributes:
        endpoint: its name in the settings, or its address.
        model: the model asked for, or "".
        context: the agent's call that made it.
        attempts: how often it was sent.
        retries: how often it was sent again.
        queued: seconds that it waited for its turn under the limits, in all tries.
        paused: seconds between its tries.
        started: unix time at which it was made.
        first_byte: unix time of the first byte of the last answer's body, or None.
        finished: unix time of the end of the answer's body, or of the failure; None before.
        status: HTTP status of the last answer, or None.
        tokens: as reported, over all tries.
        estimate: tokens that the request was reckoned to take, or None where no limit asked.
        error: class of the exception that ended it, or None.
        fallback: the endpoint or model in whose place this one was asked, or "".
    """

    endpoint: str
    model: str = ""
    context: CallContext
    attempts: int = 0
    retries: int = 0
    queued: float = 0.0
    paused: float = 0.0
    started: float = field(default_factory=time.time)
    first_byte: float | None = None
    finished: float | None = None
    status: int | None = None
    tokens: Tokens = NOTHING
    estimate: int | None = None
    error: str | None = None
    fallback: str = ""

    @property
    def input_tokens(self) -> int | None:
        """Tokens of the prompt, cached ones included; None where nothing was reported."""
        return self.tokens.input

    @property
    def output_tokens(self) -> int | None:
        """Tokens of the answer; None where nothing was reported."""
        return self.tokens.output

    @property
    def cached_tokens(self) -> int | None:
        """Of the input tokens, those that the provider had in its cache; None where nothing was reported."""
        return self.tokens.cached

    @property
    def total_tokens(self) -> int | None:
        """Input and output together; None where nothing was reported."""
        if self.input_tokens is None and self.output_tokens is None:
            return None
        return (self.input_tokens or 0) + (self.output_tokens or 0)


in_place_of: ContextVar[str] = ContextVar("callsheet_in_place_of", default="")
"""The endpoint or model in whose place a request that is made here asks another."""

Listener = Callable[[CallRecord], None]
_listeners: list[Listener] = []


def on_finished(listener: Listener) -> None:
    """Have `listener` called with each record of this process when its request has ended, on its loop.

    It must be quick and raise nothing.
    """
    _listeners.append(listener)


def record_of(request: httpx.Request) -> CallRecord | None:
    """The request's record, or None where it does not pass through our transports."""
    found = request.extensions.get(EXTENSION)
    return found if isinstance(found, CallRecord) else None


def header(headers: httpx.Headers, name: bytes) -> bytes:
    """A header's first value, or b""; `name` in small letters. Ten times as fast as httpx's own look-up."""
    for key, value in headers.raw:
        if key.lower() == name:
            return value
    return b""


def json_body(request: httpx.Request) -> dict[str, Any] | None:
    """The request's body, if it is a JSON object that is at hand; never reads a stream."""
    if b"json" not in header(request.headers, b"content-type"):
        return None
    try:
        data = json.loads(request.content)
    except (httpx.RequestNotRead, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def model_in(path: str) -> str:
    """The model that an address names, as Gemini's do: `/v1beta/models/NAME:generateContent`; or ""."""
    return path.rpartition("/models/")[2].partition(":")[0] if "/models/" in path else ""


class WatchedBody(httpx.AsyncByteStream):
    """A response's body that tells when it has ended.

    Args:
        stream: the body.

    Attributes:
        ended: called in turn, once, with what went wrong or None, when it was read to its end, broke off or was closed.
    """

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream
        self._pieces: AsyncIterator[bytes] | None = None
        self.ended: list[Callable[[BaseException | None], None]] = []

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._pieces = aiter(self._stream)
        return self

    async def __anext__(self) -> bytes:
        assert self._pieces is not None
        try:
            return await anext(self._pieces)
        except StopAsyncIteration:
            self._end(None)
            raise
        except GeneratorExit:  # closed before its end: aclose() follows
            raise
        except BaseException as exc:
            self._end(exc)
            raise

    async def aclose(self) -> None:
        """Close the body."""
        try:
            await self._stream.aclose()
        finally:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        tell, self.ended = self.ended, []
        for ended in tell:
            ended(error)


def watch(response: httpx.Response, ended: Callable[[BaseException | None], None]) -> httpx.Response:
    """The response, with `ended` called when its body has ended."""
    stream = response.stream
    assert isinstance(stream, httpx.AsyncByteStream)
    if not isinstance(stream, WatchedBody):  # one is enough for all who watch
        response.stream = stream = WatchedBody(stream)
    stream.ended.append(ended)
    return response


class Layer(httpx.AsyncBaseTransport):
    """Base of the transports that a request passes through on its way to the connections.

    Args:
        inner: the next transport.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def aclose(self) -> None:
        """Close the transports under it."""
        await self._inner.aclose()


class Recording(Layer):
    """The outermost transport: gives each request its CallRecord, and ends it when the answer has ended.

    Args:
        inner: the next transport.
        name: the endpoint's.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport, name: str) -> None:
        super().__init__(inner)
        self._name = name

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request on, with its record."""
        record = CallRecord(endpoint=self._name, context=current_call(), fallback=in_place_of.get())
        body = json_body(request)
        if body is not None:
            model = body.get("model")
            record.model = model if isinstance(model, str) else model_in(request.url.path)
        request.extensions = {**request.extensions, EXTENSION: record}
        try:
            response = await self._inner.handle_async_request(request)
        except BaseException as exc:
            _finish(record, exc)
            raise
        return watch(response, lambda error: _finish(record, error))


def _finish(record: CallRecord, error: BaseException | None) -> None:
    record.finished = time.time()
    if error is not None:
        record.error = type(error).__name__
    for listener in _listeners:
        listener(record)


_TRACE = "Traceback (most recent call last)"
_ERROR = re.compile(r"(?m)^[A-Za-z_][\w.]*(?::|$)")
_MOST = 100_000  # characters that are looked through


def without_trace(text: str) -> str:
    """A text without the tracebacks in it: what stands before them, and the error at the end of the last one."""
    if _TRACE not in text:
        return text
    before, after = text[:text.index(_TRACE)], text[text.rindex(_TRACE) + len(_TRACE):][-_MOST:]
    found = [match.start() for match in _ERROR.finditer(after.replace("\r\n", "\n"))]
    error = after.replace("\r\n", "\n")[found[-1]:] if found else after
    return f"{before.strip()} {error.strip()}".strip()
