"""The stub model's server: its limits, its routes in each provider's form, and a thread of its own for tests."""

import asyncio
import hashlib
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self

from aiohttp import web

from callsheet.models.stub.anthropic_wire import AnthropicWire
from callsheet.models.stub.gemini_wire import GeminiWire
from callsheet.models.stub.ollama_wire import OllamaWire
from callsheet.models.stub.openai_wire import OpenAIWire
from callsheet.models.stub.planned import ERRORS, Behaviour, Chance, Lot, Received, Reply
from callsheet.models.stub.wire import BadRequest, Completion, Exchange, Wire, complete

LONG = 4000
"""Bytes of a request from which its text is worked on in a thread, so that other calls keep their time."""

PACE = 0.1
"""Seconds between two events of a paced stream: a thousand streams are then ten thousand events a second."""

MAX_REQUEST = 64 * 1024 * 1024
KEPT = 1000
"""Calls that are kept for tests to look at."""

MODEL = "stub-extractive"
WIRES: tuple[Wire, ...] = (OpenAIWire(), AnthropicWire(), GeminiWire(), OllamaWire())
Handler = Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]


@dataclass(frozen=True)
class Refusal:
    """A call over a limit."""

    what: str  # the limit: "requests", "tokens" or "concurrent requests"
    wait: float  # seconds after which such a call would pass


class RateLimit:
    """Counts what was let pass in the last `window` seconds.

    Args:
        rpm: requests a minute; 0: any number.
        tpm: tokens a minute, of prompts and answers together; 0: any number.
        window: seconds over which both are counted, in proportion: 60 at rpm=60 let 60 calls pass in any minute, a
            window of 1 lets one pass in any second.
    """

    def __init__(self, rpm: int, tpm: int, window: float) -> None:
        self.window = window
        self.requests = rpm * window / 60
        self.tokens = tpm * window / 60
        self._passed: deque[tuple[float, int]] = deque()
        self._used = 0

    def take(self, tokens: int) -> Refusal | None:
        """Let a call of so many tokens pass, or say why not."""
        now = time.monotonic()
        self._forget(now)
        if self.requests and len(self._passed) + 1 > max(self.requests, 1):
            return Refusal("requests", self._passed[0][0] + self.window - now)
        if self.tokens and self._used + tokens > self.tokens and self._passed:
            over, waits = self._used + tokens - self.tokens, 0.0
            for at, used in self._passed:
                waits, over = at + self.window - now, over - used
                if over <= 0:
                    break
            return Refusal("tokens", waits)
        self._passed.append((now, tokens))
        self._used += tokens
        return None

    def headers(self) -> dict[str, str]:
        """What is left, as OpenAI tells it."""
        now = time.monotonic()
        self._forget(now)
        reset = f"{max(self._passed[-1][0] + self.window - now, 0):.3f}s" if self._passed else "0s"
        told: dict[str, str] = {}
        for name, limit, used in (("requests", self.requests, len(self._passed)), ("tokens", self.tokens, self._used)):
            if limit:
                told |= {f"x-ratelimit-limit-{name}": str(math.floor(limit)), f"x-ratelimit-reset-{name}": reset,
                         f"x-ratelimit-remaining-{name}": str(max(math.floor(limit - used), 0))}
        return told

    def _forget(self, now: float) -> None:
        while self._passed and self._passed[0][0] <= now - self.window:
            self._used -= self._passed.popleft()[1]


class StubApp:
    """The routes, and counts of what they served.

    Args:
        behaviour: how it behaves.
        keep: keep the calls, for tests to look at.
    """

    def __init__(self, behaviour: Behaviour, keep: bool = False) -> None:
        self.behaviour = behaviour
        self.keep = keep
        self.requests = 0
        self.errors = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self.peers: set[Any] = set()
        self.planned: deque[Reply] = deque()
        self.received: deque[Received] = deque(maxlen=KEPT)
        self._chance = Chance(behaviour)
        self._limit = RateLimit(behaviour.rpm, behaviour.tpm, behaviour.window)
        self._started = int(time.time())

    def app(self) -> web.Application:
        """An aiohttp application."""
        app = web.Application(client_max_size=MAX_REQUEST)
        for wire in WIRES:
            for path in wire.paths:
                app.router.add_post(path, self._handler(wire))
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/healthz", self._health)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": MODEL, "object": "model", "created": self._started, "owned_by": "callsheet"}
        return web.json_response({"object": "list", "data": [model]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({
            "status": "ok", "requests": self.requests, "errors": self.errors, "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight, "connections": len(self.peers)})

    def _handler(self, wire: Wire) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.requests += 1
            if request.transport is not None:
                self.peers.add(request.transport.get_extra_info("peername"))
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
            try:
                return await self._answer(request, wire)
            except BadRequest as exc:
                return web.json_response(wire.error(400, exc.message, exc.param), status=400)
            finally:
                self.in_flight -= 1

        return handle

    async def _answer(self, request: web.Request, wire: Wire) -> web.StreamResponse:
        begun = time.monotonic()
        # Before the first await, so that the order of calls decides.
        lot, reply = self._chance.draw(), self.planned.popleft() if self.planned else None
        body = await request.read()
        if self.keep:
            self.received.append(_received(request, body))
        refused = self._refused(request, wire)
        if refused is not None:
            return refused
        if reply is not None:  # chance has no say in what is planned
            lot = Lot(lot.wait, None, None, False)
        reply = reply or Reply()
        if reply.silent:
            await asyncio.Event().wait()
        begun += reply.delay
        if reply.body is not None or reply.status != 200:
            return await self._planned(wire, reply, begun + lot.wait)
        match = {**request.match_info, "stream": "1" if request.path.endswith(":streamGenerateContent") else ""}
        chat = wire.parse(body, match)
        if lot.status is not None:
            await _until(begun + lot.wait)
            return self._error(wire, lot.status, f"{ERRORS[lot.status]} (injected by --error-rate)", lot.retry_after)
        done = reply.completion(chat) or reply.adjusted(
            complete(chat) if len(body) < LONG else await asyncio.to_thread(complete, chat))
        over = self._limit.take(done.prompt_tokens + done.output_tokens)
        if over is not None:
            return self._error(wire, 429, f"Rate limit reached for {over.what}.", over.wait)
        exchange = Exchange(chat, done, hashlib.sha256(body).hexdigest()[:24], int(time.time()))
        return await self._send(request, wire, exchange, reply, lot, begun + lot.wait)

    async def _send(self, request: web.Request, wire: Wire, exchange: Exchange, reply: Reply, lot: Lot,
                    first: float) -> web.StreamResponse:
        headers = {**self._limit.headers(), **reply.headers}
        if exchange.request.stream:
            return await self._stream(request, wire, exchange, headers, _break(reply, lot, exchange.done), first)
        pace = self.behaviour.tokens_per_second
        await _until(first + (exchange.done.output_tokens / pace if pace else 0))
        body = json.dumps(wire.whole(exchange)).encode()
        cut = reply.break_after if reply.break_after is not None else len(body) // 2 if lot.breaks else None
        if cut is None:
            return web.Response(body=body, headers=headers, content_type="application/json")
        response = web.StreamResponse(headers={**headers, "Content-Type": "application/json",
                                               "Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[:cut])
        return _cut(request, response)

    async def _stream(self, request: web.Request, wire: Wire, exchange: Exchange, headers: dict[str, str],
                      cut: int | None, first: float) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": wire.content_type, "Cache-Control": "no-cache",
                                               **headers})
        await response.prepare(request)
        pace = self.behaviour.tokens_per_second
        step = max(1, round(pace * PACE)) if pace else 16
        await _until(first)
        for number, (tokens, data) in enumerate(wire.events(exchange, step)):
            if number == cut:
                return _cut(request, response)
            if pace and tokens:
                await _until(first + tokens / pace)
            await response.write(data)
        await response.write_eof()
        return response

    async def _planned(self, wire: Wire, reply: Reply, moment: float) -> web.Response:
        await _until(moment)
        if reply.body is None:
            return self._error(wire, reply.status, reply.message, None, reply)
        body = reply.body.encode() if isinstance(reply.body, str) else reply.body
        return web.Response(body=body, status=reply.status, headers=dict(reply.headers),
                            content_type=reply.content_type)

    def _refused(self, request: web.Request, wire: Wire) -> web.Response | None:
        how = self.behaviour
        keys = [request.headers.get("Authorization", "").removeprefix("Bearer "),
                *(request.headers.get(name) for name in wire.key_headers)]
        if how.api_key is not None and how.api_key not in keys:
            return self._error(wire, 401, "Incorrect API key provided.")
        if how.max_concurrent and self.in_flight > how.max_concurrent:
            return self._error(wire, 429, "Rate limit reached for concurrent requests.", 1)
        return None

    def _error(self, wire: Wire, status: int, message: str, wait: float | None = None,
               reply: Reply | None = None) -> web.Response:
        self.errors += 1
        headers = {**self._limit.headers(), **(reply.headers if reply else {})}
        if wait is not None:
            headers["Retry-After"] = str(math.ceil(wait)) if self.behaviour.window >= 60 else f"{wait:.3f}"
        return web.json_response(wire.error(status, message), status=status, headers=headers)


def _break(reply: Reply, lot: Lot, done: Completion) -> int | None:
    """Events of a stream after which it breaks off, or None."""
    if reply.break_after is not None:
        return reply.break_after
    return max(1, sum(1 for _ in done.pieces(16)) // 2) if lot.breaks else None


def _cut(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    if request.transport is not None:
        # What was written is sent first; a reset would overtake it.
        request.transport.close()
    return response


def _received(request: web.Request, body: bytes) -> Received:
    try:
        data: Any = json.loads(body)
    except (ValueError, RecursionError):
        data = body
    return Received(request.path_qs, {name.lower(): value for name, value in request.headers.items()}, data)


async def _until(moment: float) -> None:
    """Sleep until that `time.monotonic()`; the work done meanwhile counts."""
    left = moment - time.monotonic()
    if left > 0:
        await asyncio.sleep(left)


async def start(stub: StubApp, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Serve on the running loop; returns what to `cleanup()`, and the port.

    Raises:
        OSError: the address cannot be had.
    """
    # No access log: at thousands of calls a second it would be the slowest part.
    runner = web.AppRunner(stub.app(), access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=4096).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner, int(runner.addresses[0][1])


class StubModelServer:
    """A stub model server in a thread of its own, for tests.

    ```python
    with StubModelServer() as server:
        settings = Settings.load(endpoints={"openai": {"base_url": server.base_url}})
    ```

    It speaks the APIs of OpenAI (`base_url`), and of Anthropic, Gemini and Ollama (`url`). Also an asynchronous
    context manager.

    Args:
        host: to listen on.
        port: 0 for any that is free.
        behaviour: the fields of `Behaviour`: latency, jitter, error_rate, tokens_per_second, seed, rpm, tpm, window,
            max_concurrent, break_rate, api_key.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, **behaviour: Any) -> None:
        self.stub = StubApp(Behaviour(**behaviour), keep=True)
        self.host = host
        self.port = port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        """For the `base_url` of an endpoint that speaks OpenAI's API."""
        return f"{self.url}/v1"

    @property
    def url(self) -> str:
        """The server's address, for the `base_url` of an endpoint that speaks another API."""
        return f"http://{self.host}:{self.port}"

    def plan(self, *replies: Reply) -> None:
        """Have the next calls answered so, one reply a call, whatever chance would have had in store."""
        self.stub.planned.extend(replies)

    @property
    def calls(self) -> list[Received]:
        """The last thousand chat calls as they came, the oldest first."""
        return list(self.stub.received)

    @property
    def requests(self) -> int:
        """Chat calls that came, bad ones too."""
        return self.stub.requests

    @property
    def connections(self) -> int:
        """TCP connections on which chat calls came."""
        return len(self.stub.peers)

    @property
    def max_in_flight(self) -> int:
        """Chat calls that were under way at once, at most."""
        return self.stub.max_in_flight

    def __enter__(self) -> Self:
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), name="stub-model", daemon=True)
        self._thread.start()
        ready.result()
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._loop is not None and self._stop is not None and self._thread is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self.__exit__, *exc)

    async def _serve(self, ready: "Future[None]") -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            runner, self.port = await start(self.stub, self.host, self.port)
        except Exception as exc:
            ready.set_exception(exc)
            return
        ready.set_result(None)
        await self._stop.wait()
        await runner.cleanup()
