"""The stub model as an HTTP server."""

import asyncio
import hashlib
import json
import random
import threading
import time
from dataclasses import dataclass
from typing import Any, Self

from aiohttp import web

from callsheet.models.stub import wire
from callsheet.models.stub.wire import BadRequest, ChatRequest, Completion

LONG = 4000
"""Bytes of a request from which its text is worked on in a thread, so that other calls keep their time."""

PACE = 0.1
"""Seconds between two events of a paced stream: a thousand streams are then ten thousand events a second."""

MAX_REQUEST = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How the server behaves.

    Attributes:
        latency: seconds before the first token.
        jitter: seconds that the latency varies, up and down.
        error_rate: share of calls answered with 429, 500 or 503, 0 to 1.
        tokens_per_second: pace of an answer; 0: all at once.
        seed: of jitter and errors; the same seed and order of calls give the same ones.
    """

    latency: float = 0.0
    jitter: float = 0.0
    error_rate: float = 0.0
    tokens_per_second: float = 0.0
    seed: int = 0


class StubApp:
    """The routes, and counts of what they served."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.requests = 0
        self.errors = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self.peers: set[Any] = set()
        self._random = random.Random(behaviour.seed)  # noqa: S311 - errors by design, no secrets
        self._started = int(time.time())

    def app(self) -> web.Application:
        """An aiohttp application."""
        app = web.Application(client_max_size=MAX_REQUEST)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/healthz", self._health)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": wire.MODEL, "object": "model", "created": self._started, "owned_by": "callsheet"}
        return web.json_response({"object": "list", "data": [model]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({
            "status": "ok", "requests": self.requests, "errors": self.errors, "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight, "connections": len(self.peers)})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        if request.transport is not None:
            self.peers.add(request.transport.get_extra_info("peername"))
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            return await self._answer(request)
        except BadRequest as exc:
            return web.json_response(wire.error_body(exc.message, "invalid_request_error", exc.param), status=400)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        begun = time.monotonic()
        wait, error = self._draw()  # before the first await, so that the order of calls decides
        body = await request.read()
        chat = wire.parse(body)
        if error is not None:
            self.errors += 1
            await _until(begun + wait)
            return error
        done = wire.complete(chat) if len(body) < LONG else await asyncio.to_thread(wire.complete, chat)
        ident = hashlib.sha256(body).hexdigest()[:24]
        first = begun + wait
        if chat.stream:
            return await self._stream(request, chat, done, ident, first)
        pace = self.behaviour.tokens_per_second
        await _until(first + (len(done.tokens) / pace if pace else 0))
        return web.json_response(wire.whole_body(chat, done, ident, int(time.time())))

    async def _stream(self, request: web.Request, chat: ChatRequest, done: Completion, ident: str,
                      first: float) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        created = int(time.time())

        def events(index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
            return _event(wire.chunk_body(chat, ident, created, index, delta, finish))

        choices = range(chat.choices)
        pace = self.behaviour.tokens_per_second
        step = max(1, round(pace * PACE)) if pace else 16
        await _until(first)
        await response.write(b"".join(events(index, {"role": "assistant", "content": ""}) for index in choices))
        for start in range(0, len(done.tokens), step):
            if pace:
                await _until(first + min(start + step, len(done.tokens)) / pace)
            text = "".join(done.tokens[start:start + step])
            delta = wire.delta_of(done, ident, text, start == 0)
            await response.write(b"".join(events(index, delta) for index in choices))
        last = b"".join(events(index, {}, done.finish) for index in choices)
        if chat.include_usage:
            usage = wire.chunk_body(chat, ident, created, 0, {})
            last += _event({**usage, "choices": [], "usage": done.usage(chat.choices)})
        await response.write(last + b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _draw(self) -> tuple[float, web.Response | None]:
        """One call's seconds of latency, and its error if it gets one."""
        how = self.behaviour
        wait = max(0.0, how.latency + self._random.uniform(-how.jitter, how.jitter))
        if self._random.random() >= how.error_rate:
            return wait, None
        status = self._random.choice((429, 500, 503))
        message, kind = {429: ("Rate limit reached. Please try again later.", "rate_limit_exceeded"),
                         500: ("The server had an error while processing your request.", "server_error"),
                         503: ("The engine is currently overloaded.", "overloaded")}[status]
        headers = {} if status == 500 else {"Retry-After": str(self._random.randint(1, 3))}
        body = wire.error_body(f"{message} (injected by --error-rate)", kind, None, kind)
        return wait, web.json_response(body, status=status, headers=headers)


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

    Also an asynchronous context manager. The arguments are those of `Behaviour`, here without latency.

    Args:
        host: to listen on.
        port: 0 for any that is free.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, latency: float = 0.0, jitter: float = 0.0,
                 error_rate: float = 0.0, tokens_per_second: float = 0.0, seed: int = 0) -> None:
        self.stub = StubApp(Behaviour(latency=latency, jitter=jitter, error_rate=error_rate,
                                      tokens_per_second=tokens_per_second, seed=seed))
        self.host = host
        self.port = port
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        """For an endpoint's `base_url`."""
        return f"http://{self.host}:{self.port}/v1"

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
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="stub-model", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            self._thread.join()
            raise self._failed
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._loop is not None and self._stop is not None and self._thread is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self.__exit__, *exc)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            runner, self.port = await start(self.stub, self.host, self.port)
        except OSError as exc:
            self._failed = exc
            return
        finally:
            self._ready.set()
        await self._stop.wait()
        await runner.cleanup()


async def _until(moment: float) -> None:
    """Sleep until that `time.monotonic()`; the work done meanwhile counts."""
    left = moment - time.monotonic()
    if left > 0:
        await asyncio.sleep(left)


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"
