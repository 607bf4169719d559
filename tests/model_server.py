"""A real server that plays a model's endpoint, good or bad, one answer or one stream at a time."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from callsheet.resources import refusals
from callsheet.settings import Settings, use_settings
from tests.services import free_port

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ASK = [{"role": "user", "content": "Say hello"}]
USAGE = {"prompt_tokens": 7, "completion_tokens": 2}


@asynccontextmanager
async def serving(handler: Handler, name: str = "openai", *, redis_url: str | None = None,
                  key_prefix: str | None = None, **endpoint: Any) -> AsyncIterator[str]:
    """`handler` at every address behind the endpoint `name`, where nothing is tried again; gives the address."""
    endpoint.setdefault("retry", {"attempts": 1})
    more: dict[str, Any] = {"redis_url": redis_url, "key_prefix": key_prefix} if redis_url else {}
    refusals._known.clear()  # of another server at the same port
    async def handle(request: web.Request) -> web.StreamResponse:
        return await handler(request)

    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    with use_settings(Settings.load(endpoints={name: {"base_url": url, **endpoint}}, **more)):
        try:
            yield url
        finally:
            await runner.cleanup()


def says(body: bytes | str, status: int = 200, content_type: str = "application/json", **headers: str) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        await request.read()
        data = body.encode() if isinstance(body, str) else body
        return web.Response(body=data, status=status, content_type=content_type,
                            headers={name.replace("_", "-"): value for name, value in headers.items()})

    return handler


def streams(*events: Any, done: bool = True, cut: bool = False, piece: int = 0) -> Handler:
    """Sends events; `cut` drops the connection at the end, `piece` cuts the bytes into pieces of that size."""

    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        text = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)
        data = (text + ("data: [DONE]\n\n" if done else "")).encode()
        for start in range(0, len(data), piece or len(data)):
            await response.write(data[start:start + (piece or len(data))])
        if cut:
            assert request.transport is not None
            request.transport.abort()
        return response

    return handler


def whole(message: dict[str, Any], finish: str = "stop") -> str:
    return json.dumps({"id": "c1", "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                       "usage": USAGE})


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"id": "c1", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def narrow_and_gone(base_url: str) -> dict[str, str]:
    """Variables for two endpoints: `narrow` takes a request a minute, `gone` is left alone once it did not answer."""
    narrow, gone = "CALLSHEET_ENDPOINTS__NARROW__", "CALLSHEET_ENDPOINTS__GONE__"
    return {f"{narrow}BASE_URL": base_url, f"{narrow}RPM": "1", f"{gone}RETRY__ATTEMPTS": "1",
            f"{gone}BASE_URL": f"http://127.0.0.1:{free_port()}/v1", f"{gone}BREAKER__MINIMUM": "1",
            f"{gone}BREAKER__COOLDOWN": "3000"}
