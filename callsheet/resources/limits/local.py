"""The limiter of one process, for inline runs: the rules of exchange.lua for one gate, on plain objects."""

import bisect
import math
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple

from callsheet.resources.limits.messages import Answer, Ask, Grant, Limits, Message

BUCKETS, SPARE = 200, 3
LEARNED = 600.0
EPS = 1e-6
INF = math.inf


class _Entry(NamedTuple):
    """A waiting call; in the order of the queue."""

    score: float
    member: str
    id: int
    tokens: int


class LocalLimiter:
    """One endpoint's limits, for one gate at a time: another one means that the last one's loop has ended.

    Args:
        limits: of the endpoint's settings.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits, self._width = limits, limits.window / BUCKETS
        self._gate = ""
        self._tat_r = self._tat_t = self._pause = 0.0
        self._sum_r = self._sum_t = self._held = 0
        self._buckets: dict[int, list[int]] = {}
        self._first = self._seq = self._number = self._fixed = 0
        self._learned, self._learned_at = [0, 0], [0.0, 0.0]
        self._queue: list[_Entry] = []
        self._shares: dict[str, float] = {}
        self._place: dict[int, float] = {}

    def exchange(self, message: Message, now: float) -> Answer:
        """One exchange at this time; see exchange.lua for why."""
        self._now, self._bucket = now, math.floor(now / self._width)
        self._grants: list[Grant] = []
        self._refused: list[tuple[int, str, float]] = []
        self._learn(message.learned or (0, 0))
        self._move_window()
        self._held = message.held
        self._settle(message)
        if message.gate != self._gate:
            self._gate = message.gate
            self._queue.clear()
        lost = not message.resync and len(self._queue) != message.queued
        if lost or message.resync:
            self._queue.clear()
        self._count_foreign(message.foreign)
        if message.pause > 0:
            self._pause = max(self._pause, now + message.pause)
            self._no_credit_before(self._pause)
        fresh = self._ask([] if lost else message.asks)
        self._serve()
        queued = self._told(fresh)
        turn, limit = self._turn(self._queue[0]) if self._queue else (None, "")
        self._keep()
        return Answer(grants=self._grants, queued=queued, refused=self._refused, turn=turn, limit=limit,
                      paused=max(0.0, self._pause - now), waiting=len(self._queue), resync=lost)

    def _learn(self, told: tuple[int, int]) -> None:
        learned, at, limits = self._learned, self._learned_at, self._limits
        for i in (0, 1):
            if at[i] + LEARNED < self._now:
                learned[i] = 0
            if told[i] > 0 and (learned[i] == 0 or told[i] <= learned[i]):
                learned[i], at[i] = told[i], _six(self._now)
        self._most_r = min(limits.requests or INF, learned[0] or INF)
        self._most_t = min(limits.tokens or INF, learned[1] or INF)
        self._most_c = limits.calls or INF
        self._rate_r, self._rate_t = self._most_r / limits.window, self._most_t / limits.window
        self._tol_r = max(0, math.floor(self._most_r * limits.burst) - 1) / self._rate_r if self._most_r < INF else 0.0
        self._tol_t = limits.window * limits.burst

    def _add(self, bucket: int, requests: int, tokens: int) -> None:
        if bucket >= self._first:
            self._sum_r += requests
            self._sum_t += tokens
            counted = self._buckets.setdefault(bucket, [0, 0])
            counted[0] += requests
            counted[1] += tokens

    def _move_window(self) -> None:
        oldest = self._bucket - BUCKETS - SPARE
        if self._first and self._bucket < self._first:  # the clock was set back by more than the window
            self._buckets.clear()
            self._sum_r = self._sum_t = 0
            self._pause = 0.0
            self._tat_r, self._tat_t = self._now + self._tol_r, self._now + self._tol_t
            self._first = oldest
        for old in [known for known in self._buckets if known < oldest]:
            requests, tokens = self._buckets.pop(old)
            self._sum_r -= requests
            self._sum_t -= tokens
        self._first = max(self._first, oldest) if self._first else oldest

    def _settle(self, message: Message) -> None:
        for bucket, requests, tokens in message.settles:
            self._add(bucket, requests, tokens)
            if self._most_r < INF:
                self._tat_r += requests / self._rate_r
            if self._most_t < INF:
                self._tat_t += tokens / self._rate_t
        if message.cancels:
            self._queue = [entry for entry in self._queue if entry.member not in message.cancels]

    def _count_foreign(self, foreign: tuple[int, int, int] | None) -> None:
        if foreign is None or foreign[0] < self._fixed:
            return
        (_, requests, tokens), parts = foreign, 20
        for i in range(parts):
            self._add(self._bucket - i * BUCKETS // parts, requests * (i + 1) // parts - requests * i // parts,
                      tokens * (i + 1) // parts - tokens * i // parts)
        self._fixed = self._number + 1

    def _no_credit_before(self, moment: float, limit: str = "") -> None:
        if self._most_r < INF and limit != "tpm":
            self._tat_r = max(self._tat_r, moment + self._tol_r)
        if self._most_t < INF and limit != "rpm":
            self._tat_t = max(self._tat_t, moment + self._tol_t)

    def _blocked(self, tokens: int) -> tuple[str, bool]:
        """What keeps a call from going, or "", and whether it is the window."""
        if self._pause > self._now + EPS:
            return "pause", False
        if self._held + 1 > self._most_c:
            return "max_concurrency", False
        if self._most_r < INF:
            if self._sum_r + 1 > self._most_r:
                return "rpm", True
            if self._tat_r > self._now + self._tol_r + EPS:
                return "rpm", False
        if self._most_t < INF:
            if self._sum_t + tokens > self._most_t:
                return "tpm", True
            if self._tat_t > self._now + self._tol_t + EPS:
                return "tpm", False
        return "", False

    def _grant(self, call: int, tokens: int) -> None:
        self._held += 1
        if self._most_r < INF:
            self._tat_r = max(self._tat_r, self._now) + 1 / self._rate_r
        if self._most_t < INF:
            self._tat_t = max(self._tat_t, self._now) + tokens / self._rate_t
        self._add(self._bucket, 1, tokens)
        self._number += 1
        self._grants.append(Grant(call, self._bucket, self._number, self._sum_r, self._sum_t))

    def _ask(self, asks: list[Ask]) -> list[tuple[Ask, _Entry]]:
        fresh = []
        for ask in asks:
            if ask.tokens > self._most_t:
                self._refused.append((ask.id, "size", self._most_t))
                continue
            if not self._queue and not self._blocked(ask.tokens)[0]:
                self._grant(ask.id, ask.tokens)
                continue
            if ask.place:
                score = float(ask.place)
            else:
                share = f"{ask.priority}:{ask.tenant}"
                start = max(self._shares.get(share, 0.0), self._place.get(ask.priority, 0.0))
                part = max(1 / self._most_r, ask.tokens / self._most_t) or 1e-4
                self._shares[share] = float(f"{start + part / ask.weight:.9f}")
                score = ask.priority * 1e7 + start
            self._seq += 1
            entry = _Entry(float(f"{score:.9f}"), f"{self._seq:012d}:{self._gate}:{ask.id}:{ask.tokens}", ask.id,
                           ask.tokens)
            bisect.insort(self._queue, entry)
            fresh.append((ask, entry))
        return fresh

    def _serve(self) -> None:
        while self._queue:
            entry = self._queue[0]
            if entry.tokens > self._most_t:
                self._refused.append((entry.id, "size", self._most_t))
            else:
                reason, by_window = self._blocked(entry.tokens)
                if reason:
                    if by_window:  # no credit for a time in which nothing was left either
                        self._no_credit_before(self._now, reason)
                    return
                self._grant(entry.id, entry.tokens)
                priority = math.floor(entry.score / 1e7)
                self._place[priority] = float(f"{entry.score - priority * 1e7:.9f}")
            del self._queue[0]

    def _told(self, fresh: list[tuple[Ask, _Entry]]) -> list[tuple[int, str, str]]:
        """What new calls are told that wait; those that cannot wait so long are refused."""
        queued = []
        for ask, entry in fresh:
            if not self._queue or entry < self._queue[0]:  # it was served
                continue
            if ask.longest >= 0:
                wait, limit = self._turn(entry)
                if wait > ask.longest:
                    self._queue.remove(entry)
                    self._refused.append((ask.id, limit, wait))
                    continue
            queued.append((ask.id, entry.member, f"{entry.score:.9f}"))
        return queued

    def _until_freed(self, which: int, need: float) -> float:
        if need <= 0:
            return 0.0
        for bucket in range(self._first, self._bucket + 1):
            need -= self._buckets.get(bucket, (0, 0))[which]
            if need <= 0:
                return (bucket + BUCKETS + SPARE + 1) * self._width - self._now
        return self._limits.window

    def _tokens_ahead(self, rank: int) -> float:
        if rank > 50:
            return rank * sum(entry.tokens for entry in self._queue) / len(self._queue)
        return sum(entry.tokens for entry in self._queue[:rank])

    def _turn(self, entry: _Entry) -> tuple[float, str]:
        """Seconds until a waiting call may go, as far as can be told, and what it waits for."""
        now, rank = self._now, bisect.bisect_left(self._queue, entry)
        wait, limit = max(0.0, self._pause - now), "pause"
        if self._most_r < INF:
            paced = self._tat_r - self._tol_r + rank / self._rate_r - now
            longest = max(paced, self._until_freed(0, self._sum_r + rank + 1 - self._most_r))
            if longest > wait:
                wait, limit = longest, "rpm"
        if self._most_t < INF:
            ahead = self._tokens_ahead(rank)
            paced = self._tat_t - self._tol_t + ahead / self._rate_t - now
            longest = max(paced, self._until_freed(1, self._sum_t + ahead + entry.tokens - self._most_t))
            if longest > wait:
                wait, limit = longest, "tpm"
        if wait <= 0 and self._held + 1 > self._most_c:
            limit = "max_concurrency"
        return wait, limit

    def _keep(self) -> None:
        if not self._queue:
            self._shares.clear()
            self._place.clear()
        self._tat_r, self._tat_t, self._pause = _six(self._tat_r), _six(self._tat_t), _six(self._pause)


def _six(value: float) -> float:
    return float(f"{value:.6f}")  # what Redis keeps of a number


class LocalStore:
    """The limits of one process, for the gates of all its loops.

    Args:
        clock: gives the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limiters: dict[Hashable, LocalLimiter] = {}

    async def exchange(self, message: Message) -> Answer:
        """One exchange."""
        key = message.name, message.limits
        limiter = self._limiters.get(key) or self._limiters.setdefault(key, LocalLimiter(message.limits))
        return limiter.exchange(message, self._clock())

    def attach(self, gate: str, wake: Callable[[bytes], None], paused: Callable[[str, float], None]) -> None:
        """Nobody else takes turns that a gate would have to hear of."""
