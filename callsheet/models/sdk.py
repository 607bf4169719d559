"""What the models that call a provider's SDK share: its client over our transports, its errors in our words."""

import asyncio
import importlib
import json
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, ClassVar
from uuid import uuid4
from weakref import WeakValueDictionary

import httpx
from pydantic import BaseModel

from callsheet.errors import CallsheetError, UsageError
from callsheet.models.answer import MOST_CALLS, Draft, TooManyCalls
from callsheet.models.errors import EndpointError, Failures, error_in
from callsheet.models.exchange import MAX_BODY, finished
from callsheet.models.remote import Chunks, Messages, Options, RemoteChatModel
from callsheet.models.sse import EventStream, EventTooLong
from callsheet.models.structured import Misfit
from callsheet.resources import transport
from callsheet.resources.endpoints import STAND_IN, Signature
from callsheet.settings import Endpoint
from callsheet.settings.secrets import clean_cause

HEADER = "x-callsheet-call"
"""Tells our transport which call a request is of; never sent."""

KEPT = 4096
"""Bytes of an answer's beginning that are kept, to say what it was if the SDK cannot."""

_CLIENTS = 64
"""SDK clients that a process keeps."""


@dataclass(eq=False)
class Seen:
    """What came back for one call, as far as an error needs it."""

    answered: Callable[[], object] = lambda: None  # called when a response begins
    status: int | None = None  # of the last response
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    head: bytearray = field(default_factory=bytearray)  # the first bytes of its body
    body: httpx.AsyncByteStream | None = None

    async def aclose(self) -> None:
        """Close the answer's body: an SDK whose stream is dropped may leave it open."""
        body, self.body = self.body, None
        if body is not None:
            await body.aclose()


@dataclass
class SdkCall:
    """One call under way."""

    client: Any  # of the SDK
    arguments: dict[str, Any]  # of the SDK's method
    timeout: float  # seconds for the whole answer; in a stream, between two chunks
    failures: Failures
    structured: type[BaseModel] | None  # what the answer must be, if anything
    ident: str  # what its requests carry in HEADER
    seen: Seen = field(default_factory=Seen)
    started: float = field(default_factory=time.monotonic)  # of the monotonic clock


_seen: WeakValueDictionary[str, Seen] = WeakValueDictionary()
_clients: dict[Hashable, Any] = {}


class SdkChatModel(RemoteChatModel):
    """Base of the chat models that call a provider's SDK."""

    #: The SDK's module, and the extra that installs it.
    sdk_module: ClassVar[str]
    extra: ClassVar[str]

    def sdk(self) -> Any:
        """The SDK.

        Raises:
            UsageError: it is not installed; names the extra.
        """
        try:
            return importlib.import_module(self.sdk_module)
        except ImportError as exc:
            raise UsageError(f"{type(self).__name__} needs {self.sdk_module}, which cannot be imported here ({exc}). "
                             f"Install it where the model is called: pip install 'callsheet[{self.extra}]'.") from exc

    @abstractmethod
    def _client(self, endpoint: Endpoint, headers: dict[str, str], through: httpx.AsyncBaseTransport) -> Any:
        """The SDK's client, without retries of its own.

        Args:
            endpoint: that it calls.
            headers: to send with each request: stand-ins for the endpoint's, so that the SDK has no secrets to tell.
            through: puts in what they stand for.
        """

    @abstractmethod
    def _draft(self, call: SdkCall) -> Draft:
        """What the SDK's events, or its whole answer, are added to."""

    def _why(self, call: SdkCall) -> str:
        """What the provider said of why the answer ended, beside its word for it."""
        return ""

    @abstractmethod
    async def _send(self, call: SdkCall) -> Any:
        """What the SDK answers: an answer, or a stream of events."""

    @abstractmethod
    def _status_error(self, exc: BaseException) -> int | None:
        """The status that an exception of the SDK stands for, if it stands for one."""

    def _begin(self, arguments: dict[str, Any], structured: type[BaseModel] | None, timeout: Any) -> SdkCall:
        """A call with everything but its messages."""
        sdk = self.sdk()
        failures = self._failures(timeout)
        failures.asked = arguments
        endpoint, own = failures.endpoint, failures.key if self._api_key else None
        through = transport(endpoint)
        identity = (sdk.__name__, id(through), own)
        client = _clients.get(identity)
        if client is None:
            if len(_clients) >= _CLIENTS:
                _clients.clear()
            # The tuple keeps the transport, so that its id stays its own.
            watching = _Watching(through, Signature(endpoint, "", own))
            headers = dict.fromkeys(endpoint.headers, STAND_IN)
            client = _clients[identity] = through, self._client(endpoint, headers, watching)
        call = SdkCall(client[1], arguments, failures.timeout, failures, structured, uuid4().hex)
        _seen[call.ident] = call.seen
        return call

    async def _attempt(self, messages: Messages, options: Options) -> Chunks:
        call = self._call(messages, options)
        async with self._in_our_words(call):
            async with _from_the_answer_on(call):
                answer = await self._send(call)
            yield None
            draft = self._draft(call)
            if self.stream:
                async with aclosing(_patiently(answer, call.timeout)) as events:
                    async for event in events:
                        if draft.add(event) and draft.due:
                            yield draft.response()
            else:
                draft.add(answer)
            if draft.finish is None and (self.stream or not draft.parts):
                raise call.failures.cut_off(call.seen.status) if draft.parts else unusable(call)
            yield finished(draft, call.structured, call.failures, call.seen.status, self._why(call))

    @asynccontextmanager
    async def _in_our_words(self, call: SdkCall) -> AsyncGenerator[None, None]:
        """Make what the SDK raises ours; close the answer in the end."""
        try:
            yield
        except Misfit:
            raise
        except Exception as exc:
            ours = self._translated(exc, call)
            if ours is exc:
                raise
            raise ours from clean_cause(exc)
        finally:
            await call.seen.aclose()

    def _translated(self, exc: Exception, call: SdkCall) -> Exception:
        for cause in _chain(exc):
            if isinstance(cause, CallsheetError):
                return cause
        for cause in _chain(exc):
            if isinstance(cause, httpx.HTTPError | TimeoutError):
                return call.failures.transport(cause, call.seen.status is not None)
        if isinstance(exc, TooManyCalls):
            return call.failures.broken(f"The answer has over {MOST_CALLS} parts", "Ask for less.", call.seen.status)
        status = self._status_error(exc)
        told = getattr(exc, "body", None) or getattr(exc, "details", None)
        if status is not None and isinstance(told, dict) and 200 <= (call.seen.status or 0) < 300:
            return call.failures.told(error_in(told) or told, call.seen.status or 0)  # within a stream
        if status is not None and not 200 <= status < 300:
            return call.failures.refused(status, bytes(call.seen.head), call.seen.headers)
        if call.seen.status is None:
            return _not_sent(exc, call)
        return unusable(call, exc)

    @abstractmethod
    def _call(self, messages: Messages, options: Options) -> SdkCall:
        """The call of these messages."""


def no_cookies() -> CookieJar:
    """A jar that takes none: it would carry one agent's cookies into another's calls."""
    return CookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))


class _Watching(httpx.AsyncBaseTransport):
    """Keeps the beginning of what comes back for a call, and has its requests signed. The transport under it is others'
    too, and stays open."""

    def __init__(self, inner: httpx.AsyncBaseTransport, signature: Signature) -> None:
        self._inner = inner
        self._signature = signature

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request."""
        seen = _seen.get(request.headers.pop(HEADER, ""))
        # To wait for a turn is not an error; the call's own deadline bounds it.
        request.extensions["timeout"] = {**(request.extensions.get("timeout") or {}), "pool": None}
        self._signature.mark(request.extensions)
        response = await self._inner.handle_async_request(request)
        if seen is not None:
            seen.answered()
            seen.status, seen.headers, seen.head = response.status_code, response.headers, bytearray()
            assert isinstance(response.stream, httpx.AsyncByteStream)
            response.stream = seen.body = _Body(response.stream, seen)
        return response


class _Body(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, seen: Seen) -> None:
        self._stream = stream
        self._seen = seen

    async def __aiter__(self) -> AsyncIterator[bytes]:
        # SDKs read a body of any size, and a stream anew with each piece of an event: they get whole events.
        events = EventStream() if "event-stream" in self._seen.headers.get("content-type", "") else None
        size = 0
        try:
            async for chunk in self._stream:
                left = KEPT - len(self._seen.head)
                if left > 0:
                    self._seen.head += chunk[:left]
                size += len(chunk)
                if size > MAX_BODY:
                    raise httpx.DecodingError(f"the answer has over {MAX_BODY} bytes")
                if events is None:
                    yield chunk
                elif found := b"".join(event.written() for event in events.feed(chunk)):
                    yield found
        except EventTooLong as exc:
            raise httpx.DecodingError(str(exc)) from exc
        if events is not None and (rest := events.close()):
            yield rest[0].written()

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def _from_the_answer_on(call: SdkCall) -> AsyncGenerator[None, None]:
    """Give an answer that has begun `call.timeout` seconds.

    Until then the connection's time limits hold, try by try; waits under limits and between tries are no part of it.
    """
    async with asyncio.timeout(None) as limit:
        call.seen.answered = lambda: limit.reschedule(asyncio.get_running_loop().time() + call.timeout)
        try:
            yield
        finally:
            call.seen.answered = lambda: None


async def _patiently(events: Any, timeout: float) -> AsyncGenerator[Any, None]:
    """The events, each within `timeout` seconds of the one before; closes the stream at its end."""
    iterator = aiter(events)
    try:
        while True:
            try:
                async with asyncio.timeout(timeout):
                    event = await anext(iterator)
            except StopAsyncIteration:
                return
            yield event
    finally:
        close = getattr(events, "close", None) or getattr(iterator, "aclose", None)
        if close is not None:
            await close()


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """The exception and what it came of."""
    found: BaseException | None = exc
    for _ in range(10):
        if found is None:
            return
        yield found
        found = found.__cause__ or found.__context__


def _not_sent(exc: Exception, call: SdkCall) -> Exception:
    """What the SDK would not even send."""
    try:
        json.dumps(call.arguments, allow_nan=False, default=_model)
    except (TypeError, ValueError) as wrong:
        return ValueError(f"The call of {call.failures.model!r} is not JSON: {wrong}. Give strings, numbers, lists and "
                          "dictionaries.")
    return UsageError(f"The SDK takes this call of {call.failures.model!r} amiss: {type(exc).__name__}: "
                      f"{call.failures.clean(str(exc))}. Correct its parameters and messages.")


def _model(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, bytes):
        return ""
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def unusable(call: SdkCall, exc: BaseException | None = None) -> EndpointError:
    """What is wrong with an answer that the SDK could not read, or that holds nothing."""
    status = call.seen.status
    text = call.seen.head.decode("utf-8", "replace").strip()
    for part in (text, *text.split("\n")):
        with suppress(ValueError, RecursionError):
            event = json.loads(part.removeprefix("data:"))
            if isinstance(event, dict) and (error := error_in(event)) is not None:
                return call.failures.told(error, status or 0)
    if text.startswith(("data:", "event:")):
        return call.failures.cut_off(status)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return call.failures.unreadable(text, status, f" ({type(exc).__name__}: {str(exc)[:200]})" if exc else "")
    return call.failures.broken(f"The answer is no chat completion: {text[:200]}",
                                "Check that the endpoint speaks this provider's API.", status)
