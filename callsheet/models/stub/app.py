"""The stub model's routes, in each provider's form."""

import asyncio
import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import web

from callsheet.models.stub.anthropic_wire import AnthropicWire
from callsheet.models.stub.behaviour import ERRORS, Behaviour, Chance, Lot
from callsheet.models.stub.gemini_wire import GeminiWire
from callsheet.models.stub.limits import RateLimit
from callsheet.models.stub.ollama_wire import OllamaWire
from callsheet.models.stub.openai_wire import OpenAIWire
from callsheet.models.stub.planned import Received, Reply
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
