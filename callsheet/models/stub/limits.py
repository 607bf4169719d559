"""The limits that a provider sets: requests and tokens in any window of time, and calls at once."""

import math
import time
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """A call over a limit.

    Attributes:
        what: the limit: "requests", "tokens" or "concurrent requests".
        wait: seconds after which such a call would pass.
    """

    what: str
    wait: float


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
