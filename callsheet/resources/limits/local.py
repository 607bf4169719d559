"""The limiter of one process, for inline runs: what exchange.lua does, step by step the same, on plain objects."""

import bisect
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from callsheet.resources.limits.messages import Answer, Message

BUCKETS, SPARE = 200, 3
STALE, LEASE = 3.0, 15.0
LEARNED = 600.0
EPS = 1e-6
INF = math.inf


def _six(value: float) -> float:
    return float(f"{value:.6f}")  # what Redis keeps of a number


class _Level:
    """How far the limits are used up."""

    def __init__(self, tat_r: float = 0.0, tat_t: float = 0.0, sum_r: int = 0, sum_t: int = 0, held: int = 0) -> None:
        self.tat_r, self.tat_t, self.sum_r, self.sum_t, self.held = tat_r, tat_t, sum_r, sum_t, held

    def copy(self) -> "_Level":
        return _Level(self.tat_r, self.tat_t, self.sum_r, self.sum_t, self.held)


class _Entry:
    """A waiting call."""

    def __init__(self, score: float, member: str, gate: str, call: int, tokens: int) -> None:
        self.score, self.member, self.gate, self.call, self.tokens = score, member, gate, call, tokens

    def __lt__(self, other: "_Entry") -> bool:
        return (self.score, self.member) < (other.score, other.member)


class LocalLimiter:
    """The state of one endpoint's limits. Not safe across threads: its store sees to that."""

    def __init__(self) -> None:
        self.level = _Level()
        self.buckets: dict[int, list[int]] = {}
        self.first = 0
        self.seq = self.grants = self.fixed = 0
        self.pause = 0.0
        self.learned = [0, 0]
        self.learned_at = [0.0, 0.0]
        self.queue: list[_Entry] = []
        self.seen: dict[str, float] = {}
        self.held: dict[str, int] = {}
        self.woken: dict[str, float] = {}
        self.shares: dict[str, float] = {}
        self.place: dict[int, float] = {}

    def exchange(self, message: Message, now: float) -> "_Exchange":
        """One exchange at this time."""
        done = _Exchange(self, message, now)
        done.run()
        return done


class _Exchange:
    """One exchange; see exchange.lua for why."""

    def __init__(self, state: LocalLimiter, message: Message, now: float) -> None:
        self.s, self.m, self.now = state, message, now
        self.wakes: list[str] = []
        self.pauses: list[tuple[str, float]] = []
        self.answer: dict[str, Any] = {"grants": [], "queued": [], "refused": []}
        limits = message.limits
        self.window = limits.window
        self.width = limits.window / BUCKETS
        self.bucket = math.floor(now / self.width)
        self._learn(message.learned or (0, 0))
        self.most_r = min(limits.requests or INF, state.learned[0] or INF)
        self.most_t = min(limits.tokens or INF, state.learned[1] or INF)
        self.most_c = limits.calls or INF
        self.rate_r, self.rate_t = self.most_r / self.window, self.most_t / self.window
        self.tol_r = max(0, math.floor(self.most_r * limits.burst) - 1) / self.rate_r if self.most_r < INF else 0.0
        self.tol_t = self.window * limits.burst

    def _learn(self, told: tuple[int, int]) -> None:
        learned, at = self.s.learned, self.s.learned_at
        for i in (0, 1):
            if at[i] + LEARNED < self.now:
                learned[i] = 0
            if told[i] > 0 and (learned[i] == 0 or told[i] <= learned[i]):
                learned[i], at[i] = told[i], _six(self.now)

    def run(self) -> None:
        self._move_window()
        self._reap()
        self._settle()
        asks = self._resync()
        self._foreign()
        self._pause()
        fresh = self._ask(asks)
        gone = self._serve()
        self._tell(fresh, gone)
        self._keep()

    def _add(self, bucket: int, requests: int, tokens: int) -> None:
        if bucket < self.s.first:
            return
        level = self.s.level
        level.sum_r += requests
        level.sum_t += tokens
        counted = self.s.buckets.setdefault(bucket, [0, 0])
        counted[0] += requests
        counted[1] += tokens

    def _move_window(self) -> None:
        state, oldest = self.s, self.bucket - BUCKETS - SPARE
        if state.first == 0:
            state.first = oldest
        elif self.bucket < state.first:
            state.buckets.clear()
            state.first, state.pause = oldest, 0.0
            state.level.sum_r = state.level.sum_t = 0
            state.level.tat_r, state.level.tat_t = self.now + self.tol_r, self.now + self.tol_t
        elif state.first < oldest:
            for old in [known for known in state.buckets if known < oldest]:
                requests, tokens = state.buckets.pop(old)
                state.level.sum_r -= requests
                state.level.sum_t -= tokens
            state.first = oldest

    def _reap(self) -> None:
        state, gate = self.s, self.m.gate
        for silent in [name for name, at in state.seen.items() if at < _six(self.now - LEASE)]:
            state.level.held -= state.held.pop(silent, 0)
            state.woken.pop(silent, None)
            del state.seen[silent]
        self.others = state.level.held - state.held.get(gate, 0)
        state.level.held = self.others + self.m.held
        self.heard = {**state.seen, gate: self.now}

    def _settle(self) -> None:
        level = self.s.level
        for bucket, requests, tokens in self.m.settles:
            self._add(bucket, requests, tokens)
            if requests and self.most_r < INF:
                level.tat_r += requests / self.rate_r
            if tokens and self.most_t < INF:
                level.tat_t += tokens / self.rate_t
        for member in self.m.cancels:
            self._strike(member)

    def _strike(self, member: str) -> None:
        self.s.queue = [entry for entry in self.s.queue if entry.member != member]

    def _resync(self) -> list[Any]:
        mine = [entry for entry in self.s.queue if entry.gate == self.m.gate]
        if not self.m.resync and len(mine) == self.m.queued:
            return self.m.asks
        self.s.queue = [entry for entry in self.s.queue if entry.gate != self.m.gate]
        if self.m.resync:
            return self.m.asks
        self.answer["resync"] = True
        return []

    def _foreign(self) -> None:
        foreign, parts = self.m.foreign, 20
        if foreign is None or foreign[0] < self.s.fixed:
            return
        _, requests, tokens = foreign
        for i in range(parts):
            self._add(self.bucket - i * BUCKETS // parts, requests * (i + 1) // parts - requests * i // parts,
                      tokens * (i + 1) // parts - tokens * i // parts)
        self.s.fixed = self.s.grants + 1

    def _pause(self) -> None:
        state = self.s
        if self.m.pause <= 0:
            return
        until = self.now + self.m.pause
        if until > state.pause:
            state.pause = until
            self.pauses.append((self.m.name, self.m.pause))
        if self.most_r < INF:
            state.level.tat_r = max(state.level.tat_r, state.pause + self.tol_r)
        if self.most_t < INF:
            state.level.tat_t = max(state.level.tat_t, state.pause + self.tol_t)

    def _blocked(self, x: _Level, tokens: int) -> tuple[str, bool]:
        """What keeps a call from going, or "", and whether it is the window."""
        if self.s.pause > self.now + EPS:
            return "pause", False
        if x.held + 1 > self.most_c:
            return "max_concurrency", False
        if self.most_r < INF:
            if x.sum_r + 1 > self.most_r:
                return "rpm", True
            if x.tat_r > self.now + self.tol_r + EPS:
                return "rpm", False
        if self.most_t < INF:
            if x.sum_t + tokens > self.most_t:
                return "tpm", True
            if x.tat_t > self.now + self.tol_t + EPS:
                return "tpm", False
        return "", False

    def _charge(self, x: _Level, tokens: int, sums: bool) -> None:
        x.held += 1
        if self.most_r < INF:
            x.tat_r = max(x.tat_r, self.now) + 1 / self.rate_r
        if self.most_t < INF:
            x.tat_t = max(x.tat_t, self.now) + tokens / self.rate_t
        if sums:
            x.sum_r += 1
            x.sum_t += tokens

    def _grant(self, call: int, tokens: int) -> None:
        level = self.s.level
        self._charge(level, tokens, False)
        self._add(self.bucket, 1, tokens)
        self.s.grants += 1
        self.answer["grants"].append([call, self.bucket, self.s.grants, level.sum_r, level.sum_t])

    def _share(self, tokens: int) -> float:
        return max(1 / self.most_r, tokens / self.most_t) or 1e-4

    def _ask(self, asks: list[Any]) -> list[tuple[Any, _Entry]]:
        state, fresh = self.s, []
        for ask in asks:
            if ask.tokens > self.most_t:
                self.answer["refused"].append([ask.id, "size", self.most_t])
                continue
            if not state.queue and not self._blocked(state.level, ask.tokens)[0]:
                self._grant(ask.id, ask.tokens)
                continue
            if ask.place:
                score = float(ask.place)
            else:
                share = f"{ask.priority}:{ask.tenant}"
                start = max(state.shares.get(share, 0.0), state.place.get(ask.priority, 0.0))
                state.shares[share] = float(f"{start + self._share(ask.tokens) / ask.weight:.9f}")
                score = ask.priority * 1e7 + start
            state.seq += 1
            entry = _Entry(float(f"{score:.9f}"), f"{state.seq:012d}:{self.m.gate}:{ask.id}:{ask.tokens}",
                           self.m.gate, ask.id, ask.tokens)
            bisect.insort(state.queue, entry)
            fresh.append((ask, entry))
        return fresh

    def _serve(self) -> set[str]:
        state, x, gone, stay = self.s, self.s.level.copy(), set(), []
        wake, stopped, others = "", len(state.queue), 0
        for index, entry in enumerate(state.queue):
            if self.heard.get(entry.gate, 0.0) < self.now - STALE:
                continue
            if entry.tokens > self.most_t:
                if entry.gate == self.m.gate:
                    gone.add(entry.member)
                    self.answer["refused"].append([entry.call, "size", self.most_t])
                else:
                    stay.append(entry)
                    others += 1
                continue
            reason, by_window = self._blocked(x, entry.tokens)
            if reason:
                if by_window and not others:
                    self._no_credit(reason)
                stopped = index
                break
            self._charge(x, entry.tokens, True)
            if entry.gate == self.m.gate:
                gone.add(entry.member)
                self._grant(entry.call, entry.tokens)
                priority = math.floor(entry.score / 1e7)
                state.place[priority] = float(f"{entry.score - priority * 1e7:.9f}")
            else:
                wake = wake or entry.gate
                stay.append(entry)
                others += 1
        state.queue = stay + state.queue[stopped:]
        if wake and state.woken.get(wake, 0.0) + 0.05 < self.now:
            state.woken[wake] = _six(self.now)
            self.wakes.append(wake)
        return gone

    def _no_credit(self, reason: str) -> None:
        level = self.s.level
        if reason == "rpm":
            level.tat_r = max(level.tat_r, self.now + self.tol_r)
        else:
            level.tat_t = max(level.tat_t, self.now + self.tol_t)

    def _until_freed(self, which: int, need: float) -> float:
        if need <= 0:
            return 0.0
        for bucket in range(self.s.first, self.bucket + 1):
            need -= self.s.buckets.get(bucket, (0, 0))[which]
            if need <= 0:
                return (bucket + BUCKETS + SPARE + 1) * self.width - self.now
        return self.window

    def _tokens_ahead(self, rank: int) -> float:
        queue = self.s.queue
        if rank > 50:
            return rank * sum(entry.tokens for entry in queue) / max(1, len(queue))
        return sum(entry.tokens for entry in queue[:rank])

    def _turn(self, entry: _Entry) -> tuple[float, str]:
        level, now = self.s.level, self.now
        rank = bisect.bisect_left(self.s.queue, entry)
        wait, limit = max(0.0, self.s.pause - now), "pause"
        if self.most_r < INF:
            paced = level.tat_r - self.tol_r + rank / self.rate_r - now
            longest = max(paced, self._until_freed(0, level.sum_r + rank + 1 - self.most_r))
            if longest > wait:
                wait, limit = longest, "rpm"
        if self.most_t < INF:
            ahead = self._tokens_ahead(rank)
            paced = level.tat_t - self.tol_t + ahead / self.rate_t - now
            longest = max(paced, self._until_freed(1, level.sum_t + ahead + entry.tokens - self.most_t))
            if longest > wait:
                wait, limit = longest, "tpm"
        if wait <= 0 and level.held + 1 > self.most_c:
            limit = "max_concurrency"
        return wait, limit

    def _tell(self, fresh: list[tuple[Any, _Entry]], gone: set[str]) -> None:
        for ask, entry in fresh:
            if entry.member in gone:
                continue
            if ask.longest >= 0:
                wait, limit = self._turn(entry)
                if wait > ask.longest:
                    self._strike(entry.member)
                    self.answer["refused"].append([ask.id, limit, wait])
                    continue
            self.answer["queued"].append([ask.id, entry.member, f"{entry.score:.9f}"])
        mine = next((entry for entry in self.s.queue if entry.gate == self.m.gate), None)
        if mine is not None:
            self.answer["turn"], self.answer["limit"] = self._turn(mine)

    def _keep(self) -> None:
        state, gate = self.s, self.m.gate
        held = self.m.held + len(self.answer["grants"]) if self.most_c < INF else 0
        state.level.held = self.others + held
        if held or "turn" in self.answer:
            state.seen[gate], state.held[gate] = _six(self.now), held
        else:
            state.seen.pop(gate, None)
            state.held.pop(gate, None)
        if not state.queue:
            state.shares.clear()
            state.place.clear()
        state.level.tat_r, state.level.tat_t = _six(state.level.tat_r), _six(state.level.tat_t)
        state.pause = _six(state.pause)
        self.answer |= {"paused": max(0.0, state.pause - self.now), "waiting": len(state.queue),
                        "r": self.most_r if self.most_r < INF else -1, "t": self.most_t if self.most_t < INF else -1}


class LocalStore:
    """The limits of one process, for all its event loops.

    Args:
        clock: gives the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._limiters: dict[tuple[str, float], LocalLimiter] = {}
        self._gates: dict[str, tuple[Callable[[], None], Callable[[str, float], None]]] = {}

    async def exchange(self, message: Message) -> Answer:
        """One exchange."""
        with self._lock:
            key = message.name, message.limits.window
            limiter = self._limiters.setdefault(key, LocalLimiter())
            done = limiter.exchange(message, self._clock())
            gates = list(self._gates.items())
        for gate, (wake, paused) in gates:
            if gate in done.wakes:
                wake()
            for name, seconds in done.pauses:
                paused(name, seconds)
        return Answer.from_data(done.answer)

    def attach(self, gate: str, wake: Callable[[], None], paused: Callable[[str, float], None]) -> None:
        """Call `wake` when the gate's turn may have come, `paused` when an endpoint is paused; from any thread."""
        with self._lock:
            self._gates[gate] = wake, paused

    def detach(self, gate: str) -> None:
        """The gate is gone."""
        with self._lock:
            self._gates.pop(gate, None)
