"""A model server that enforces limits as providers do: `python -m tests.provider PORT '{"requests": 60}'`.

It keeps a log of what arrived, and refuses what would make any window of `window` seconds hold more than `requests` or
`tokens`, or more than `calls` be under way. A request says in `user` what it takes: "<tokens> <seconds>".
"""

import asyncio
import json
import sys
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web


class Provider:
    """The server's state. `told`: in whose headers answers tell the limits, "openai" or "anthropic"; none without."""

    def __init__(self, window: float = 60.0, requests: int | None = None, tokens: int | None = None,
                 calls: int | None = None, told: str = "") -> None:
        self.window, self.requests, self.tokens, self.calls, self.told = window, requests, tokens, calls, told
        self.log: list[tuple[float, int, int, str]] = []  # time, status, tokens, who
        self.inside: deque[tuple[float, int]] = deque()
        self.used = self.under_way = self.most = 0
        self.refuse: dict[str, Any] | None = None

    def _refusal(self, now: float, tokens: int) -> float | None:
        """Seconds until the request would be let in; None: it is."""
        while self.inside and self.inside[0][0] <= now - self.window:
            self.used -= self.inside.popleft()[1]
        if self.requests is not None and len(self.inside) >= self.requests:
            return self.inside[0][0] + self.window - now
        if self.tokens is not None and self.used + tokens > self.tokens:
            return self.inside[0][0] + self.window - now if self.inside else self.window
        return 0.05 if self.calls is not None and self.under_way >= self.calls else None

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        took, seconds = body.get("user", "1 0").split()[:2]
        now, tokens, who = time.time(), int(took), request.headers.get("x-who", "")
        if self.refuse is not None:
            refuse, self.refuse = self.refuse, None
            self.log.append((now, refuse["status"], 0, who))
            return web.json_response({"error": {"message": "no"}}, status=refuse["status"], headers=refuse["headers"])
        again = self._refusal(now, tokens)
        if again is not None:
            self.log.append((now, 429, tokens, who))
            return web.json_response({"error": {"message": "slow down"}}, status=429,
                                     headers={"retry-after": f"{again:.3f}"})
        self.inside.append((now, tokens))
        self.used += tokens
        self.log.append((now, 200, tokens, who))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(float(seconds))
        finally:
            self.under_way -= 1
        usage = {"prompt_tokens": tokens // 2, "completion_tokens": tokens - tokens // 2, "total_tokens": tokens}
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": "ok"},
                                               "finish_reason": "stop"}], "usage": usage}, headers=self._headers())

    def _headers(self) -> dict[str, str]:
        headers = {}
        for name, limit, used in (("requests", self.requests, len(self.inside)), ("tokens", self.tokens, self.used)):
            if not self.told or limit is None:
                continue
            left, reset = max(0, limit - used), used / limit * self.window
            if self.told == "anthropic":
                at = datetime.now(UTC) + timedelta(seconds=reset)
                said = {"limit": str(limit), "remaining": str(left), "reset": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
                headers |= {f"anthropic-ratelimit-{name}-{part}": text for part, text in said.items()}
            else:
                said = {"limit": str(limit), "remaining": str(left), "reset": f"{reset:.3f}s"}
                headers |= {f"x-ratelimit-{part}-{name}": text for part, text in said.items()}
        return headers

    async def stats(self, request: web.Request) -> web.Response:
        return web.json_response({"log": self.log, "most": self.most, "now": time.time()})

    async def refuse_next(self, request: web.Request) -> web.Response:
        """`{"status": 429, "headers": {"retry-after": "5"}}` for the next request; others are taken as they come."""
        self.refuse = await request.json()
        return web.json_response({"now": time.time()})


def serve(port: int, **limits: Any) -> None:
    provider = Provider(**limits)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", provider.complete)
    app.router.add_get("/stats", provider.stats)
    app.router.add_post("/refuse", provider.refuse_next)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, backlog=4096)


if __name__ == "__main__":
    serve(int(sys.argv[1]), **json.loads(sys.argv[2]))
