"""What this process holds of one broker's messages, and what it has yet to tell the broker about them.

It outlives connections: a call that runs on through a lost connection keeps its lease and is acknowledged over the
next one. A thread of its own renews the leases, so that a blocked consumer does not lose them.
"""

import contextlib
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from celery.worker import state
from redis import Redis
from redis.exceptions import ResponseError

from callsheet.resources import dead_letters
from callsheet.resources.epoch import epoch
from callsheet.resources.trouble import in_words, is_trouble
from callsheet.settings import get_settings
from callsheet.workers.broker.later import FAILURES, HORIZON, Later
from callsheet.workers.broker.layout import BEGIN, BEGUN, EXPIRED, GIVE_BACK, RENEW, Delivery, Layout, mark_lost
from callsheet.workers.broker.poller import break_off
from callsheet.workers.broker.reading import read_entry

logger = logging.getLogger(__name__)

CHUNK = 1000  # tags in one command
REGISTERED_AT_ONCE = 100
SWEPT_AT_ONCE = 50
SWEPT_BYTES = 16 * 1024 * 1024
SAY_AGAIN = 60.0  # seconds between two warnings that leases cannot be renewed
AFTER_TROUBLE = 3.0  # seconds at least that others have to renew their leases once the broker is back
STUCK = 60.0  # seconds without a turn of the loop after which its connections are broken off
GRACE = 3.0  # seconds after an outage in which it turns again
REVIEW = 0.5  # seconds that calls may take to begin or to end, once their connection is lost

#: Seconds on a clock that goes on while the machine is suspended, where there is one.
now: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") \
    else time.monotonic

Tag = str | bytes  # of ours, text
Return = tuple[str, Tag, str, str | bytes]  # list, tag, "next", "last" or "lost", text


class Ledger:
    """The deliveries of one broker to this process.

    Args:
        layout: where the broker keeps messages.
        lease: seconds after which the messages of a killed process are back on their queues.
        renew: seconds between two renewals, at most.
        pool: connections for what cannot wait for the consumer's connection.
        message_max: bytes of a message's body that are read.
        horizon: seconds from now up to which workers hold what is to start later.

    Attributes:
        held: messages delivered and not acknowledged, by tag.
        kept: those of them whose channel is closed; after a moment only those whose call runs.
        taken: messages whose calls run here and whose leases ran out, so that other workers have them by now.
        unseen: tags that may have been claimed over a connection that broke before the answer came, claim by claim.
        channels: that consume, of this process.
        later: what is to start later than that.
        turned: when Celery's loop last turned, if it does.
        collector: the one of them that sends the acknowledgements; None when they are sent one by one.
    """

    def __init__(self, layout: Layout, lease: float, renew: float, pool: Any, message_max: int | None = None,
                 horizon: float = HORIZON) -> None:
        self.layout = layout
        self.message_max = message_max
        # A killed worker is noticed when its leases end and somebody sweeps: together less than `lease`.
        self.term = 0.75 * lease
        self.interval = min(0.2 * lease, renew)
        self.client: Any = Redis(connection_pool=pool)
        self.held: dict[Tag, Delivery] = {}
        self.later = Later(self.client, layout, horizon, lambda tag: self.held.pop(tag, None))
        self.kept: set[Tag] = set()
        self.unseen: list[list[str]] = []
        self.channels: set[Any] = set()
        self.collector: Any = None
        self._acks: deque[Tag] = deque()
        self._returns: deque[Return] = deque()
        self._slipped: set[Tag] = set()
        self.taken: set[Tag] = set()
        self._review_at = 0.0
        self._renewed = self._tried = now()
        self._ticked = time.monotonic()
        self.turned, self._recovered, self._failed = math.inf, 0.0, False
        self._sweep_from = 0.0
        self._said = 0.0
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._lock = threading.RLock()  # a signal's handler may interrupt its holder

    # Consumers

    def attach(self, channel: Any) -> None:
        """A channel begins to consume."""
        with self._lock:
            self.channels.add(channel)
            if self._thread is None or not self._thread.is_alive():
                self._stop = threading.Event()
                self._sweep_after(1.5 * self.interval)
                self._thread = threading.Thread(target=self._keep, args=(self._stop,), name="callsheet-leases",
                                                daemon=True)
                self._thread.start()

    def detach(self, channel: Any) -> None:
        """A channel has ended; with the last one that leaves nothing behind, the thread ends."""
        with self._lock:
            self.channels.discard(channel)
            if self.collector is channel:
                self.collector = None
            if not self.channels and not (self.held or self._acks or self._returns):
                self._stop.set()
                self.later.wake.set()
                self._thread = None

    # Acknowledgements

    def ack(self, tag: Tag) -> None:
        """Acknowledge a message; any thread. Once its lease has slipped there is nothing to acknowledge."""
        self.held.pop(tag, None)
        self.kept.discard(tag)
        if tag in self._slipped:
            self._slipped.discard(tag)
            self.taken.discard(tag)
            return
        self._acks.append(tag)
        if self.collector is None or len(self._acks) >= CHUNK:
            self.flush()

    def set_apart(self, queue: str, text: bytes, why: Exception, tag: Tag | None = None) -> None:
        """Drop what is no message, and keep its text among the dead letters; any thread.

        Args:
            queue: or another key, where it was found.
            text: what it is.
            why: it cannot be taken.
            tag: under which it is registered.
        """
        logger.critical("Removed from %r what is no message (%s): %r (%d bytes). Something other than Celery or "
                        "Callsheet writes there: have it write elsewhere.", queue, why, text[:200], len(text))
        dead_letters.add(queue, text, str(why))
        if tag is not None:
            self.ack(tag)

    @property
    def has_acks(self) -> bool:
        """Whether acknowledgements wait to be sent."""
        return bool(self._acks)

    def take_acks(self) -> list[Tag]:
        """The acknowledgements to send now; the caller gives back what it could not send."""
        taken: list[Tag] = []
        with contextlib.suppress(IndexError):  # another thread took the rest
            while len(taken) < CHUNK:
                taken.append(self._acks.popleft())
        return taken

    def untake_acks(self, tags: Iterable[Tag]) -> None:
        """Acknowledgements whose fate is unknown: they will be sent again, which does no harm."""
        self._acks.extend(tags)

    def ack_commands(self, tags: list[Tag]) -> list[tuple[Tag, ...]]:
        """The commands that acknowledge."""
        unacked, index, leases = self.layout.registry
        return [("HDEL", unacked, *tags), ("ZREM", index, *tags), ("ZREM", leases, *tags)]

    def flush(self) -> None:
        """Send acknowledgements and returns now; where the broker cannot be reached, they wait."""
        try:
            while tags := self.take_acks():
                self._send_acks(tags)
            with self._lock:
                self._flush_returns()
            self.later.flush()
        except FAILURES as exc:
            logger.debug("The broker cannot be told of acknowledgements yet: %s", exc)

    def _send_acks(self, tags: list[Tag]) -> None:
        try:
            with self.client.pipeline(transaction=False) as pipe:
                for command in self.ack_commands(tags):
                    pipe.execute_command(*command)
                pipe.execute()
        except BaseException:
            self.untake_acks(tags)
            raise

    # Messages that go back

    def keep(self, tags: Iterable[str]) -> None:
        """Hold on to messages whose channel is lost, and look in a moment which of their calls run."""
        self.kept.update(tags)
        self._review_at = time.monotonic() + self.term / 2

    def resume(self) -> None:
        """The loop turns again, over a new connection."""
        self._review_at = min(self._review_at, time.monotonic() + REVIEW)

    def review(self) -> None:
        """Give back what was kept and, as is known by now, does not run: Celery has dropped it."""
        if self.kept and self._review_at and time.monotonic() > self._review_at:
            running = running_tags()
            if running is not None:
                self._review_at = 0.0
                self.give_back(self.kept - running)

    def give_back(self, tags: Iterable[Tag], place: str = "next") -> None:
        """Put messages back on their queues; where the broker is away, as soon as it is there again.

        Args:
            tags: of the deliveries, the one to be delivered next first.
            place: "next", before what is on the queue, or "last", behind it.
        """
        deliveries = [self.held.pop(tag) for tag in tags if tag in self.held]
        self.kept.difference_update(delivery.tag for delivery in deliveries)
        self.put_back([(self.layout.list_for(d.queue, d.payload), d.tag, place, d.text()) for d in deliveries])

    def put_back(self, returns: list[Return]) -> None:
        """As `give_back`, for texts."""
        self._returns.extend(reversed(returns) if returns and returns[0][2] != "last" else returns)
        self.flush()

    def _flush_returns(self) -> None:
        returns = self._returns
        while returns:
            batch: list[Return] = []
            size = 0
            while returns and size < SWEPT_BYTES and len(batch) < CHUNK:
                batch.append(returns.popleft())
                size += len(batch[-1][3])
            try:
                GIVE_BACK.run(self.client, [*self.layout.registry, *(item[0] for item in batch)],
                              [part for item in batch for part in item[1:]])
            except BaseException:
                returns.extendleft(reversed(batch))
                raise

    def mark_begun(self, tag: str, how: str) -> bool:
        """Note in Redis how the call of a message runs; False where it is not this worker's any more."""
        delivery = self.held.get(tag)
        if delivery is None:
            return False
        entry = self._entry(delivery, {**delivery.payload["headers"], BEGUN: how})
        return bool(BEGIN.run(self.client, [self.layout.unacked], [tag, entry]))

    # Leases

    def slipped(self) -> bool:
        """Whether leases have run out and calls that have not started are another worker's now; asks once.

        Looks for itself when the thread that renews is late, as after the process was suspended.
        """
        if self.held and now() - self._renewed > self.term:
            try:
                self.renew()
            except ResponseError as exc:  # the broker takes no writes: nobody else can have taken them either
                if not is_trouble(exc):
                    raise
        if not self._slipped:
            return False
        running = running_tags()
        if running is None:
            return False
        unstarted = self._slipped - running
        self._slipped &= running
        self.taken &= self._slipped
        return bool(unstarted)

    def doubtful(self) -> bool:
        """Whether a call that runs here may be another worker's by now."""
        return bool(self.taken) or (bool(self.held) and now() - self._tried > self.term)

    def look(self) -> None:
        """Renew, if that is late, so that `taken` is right; a broker that is away has given nothing to others."""
        with self._lock:
            started = now()
            if started - self._tried > self.term:
                with contextlib.suppress(*FAILURES):
                    self.renew()
                self._tried = started

    def renew(self) -> None:
        """Renew the leases of all that is held; notes those that are gone.

        Raises:
            RedisError, OSError: the broker cannot be reached.
        """
        started, tags, lost = now(), list(self.held), list[Tag]()
        for start in range(0, len(tags), CHUNK):
            gone = RENEW.run(self.client, self.layout.registry[1:], [self.term, *tags[start:start + CHUNK]])
            for raw, taken in zip(gone[::2], gone[1::2], strict=True):
                tag = raw.decode() if isinstance(raw, bytes) else raw
                if not taken:
                    lost.append(tag)
                elif self.held.pop(tag, None) is not None:
                    self.kept.discard(tag)
                    self._slipped.add(tag)
                    self.taken.add(tag)
        if lost:
            self._register(lost)
        self._renewed = started

    def _register(self, tags: list[Tag]) -> None:
        """Register anew what is held here, and was taken by nobody: Redis has lost it."""
        with self.later.releasing:  # what was put away meanwhile is held no more
            ours = [delivery for tag in tags if (delivery := self.held.get(tag)) is not None]
        unacked, index, leases = self.layout.registry
        for start in range(0, len(ours), REGISTERED_AT_ONCE):
            some, at = ours[start:start + REGISTERED_AT_ONCE], self.client.time()[0]
            with self.client.pipeline(transaction=True) as pipe:
                pipe.hset(unacked, mapping={one.tag: self._entry(one) for one in some})
                pipe.zadd(index, {one.tag: at for one in some})
                pipe.zadd(leases, {one.tag: at + self.term for one in some})
                pipe.execute()
            self._acks.extend(one.tag for one in some if one.tag not in self.held)  # settled meanwhile
        if ours:
            logger.error("Of %d calls that this worker holds nothing was left in Redis: it has lost data. They are "
                         "registered anew, and go on.", len(ours))

    def _entry(self, delivery: Delivery, headers: Any = None) -> str:
        """A message as it is in the unacked hash."""
        text = delivery.text(headers)
        return f"[{text if isinstance(text, str) else text.decode()}{self.layout.rest(delivery.queue)}"

    def sweep(self) -> int:
        """Put messages of lost workers back on their queues."""
        found = EXPIRED.run(self.client, self.layout.registry, [SWEPT_AT_ONCE, SWEPT_BYTES, self.interval])
        if found:
            logger.warning("%d messages of lost workers go back to their queues.", len(found) // 2)
        return self.restore(list(zip(found[::2], found[1::2], strict=True)), lost=True)

    def restore(self, found: list[tuple[Tag, bytes]], lost: bool = False) -> int:
        """Put messages back that are in the unacked hash, and that nobody here knows; returns how many.

        Whichever channel finds them: it may not consume from their queues.

        Args:
            found: tags and values of the hash.
            lost: whether the worker that held them was lost; else only the answer was that told of them.
        """
        returns: list[Return] = []
        for tag, value in found:
            try:
                payload, queue = read_entry(value, self.message_max)
                if lost:
                    mark_lost(payload["headers"], get_settings().max_deaths)
                text = Delivery("", queue, payload, payload["properties"]["delivery_tag"]).text()
                returns.append((self.layout.list_for(queue, payload), tag, "lost" if lost else "next", text))
            except Exception as exc:  # one message never stops the others
                self.set_apart(self.layout.unacked, value, exc, tag)
        if returns:
            self.put_back(returns)
        return len(returns)

    def _goes_on(self) -> bool:
        """Whether the loop turns: a worker that cannot hear of its calls' ends leaves them to others.

        It may be held up by what is no fault: a suspended process, a broker that is away, a shutdown, a task that runs
        in its thread. If it goes on waiting when the broker is there again, its connections are dead.
        """
        at = time.monotonic()
        if at - self._ticked > STUCK or shutting_down() or any(
                request.worker_pid == os.getpid() for request in tuple(state.active_requests)):
            self.turned = max(self.turned, at)
        self._ticked, late = at, at - self.turned
        if self._recovered and at - self._recovered > GRACE:
            if self.channels and self.turned < self._recovered:
                break_off()
            self._recovered = 0.0
        if not self.channels or late < STUCK:
            return True
        logger.error("The worker's main thread has not turned for %.0f s. Its connections are broken off, and the "
                     "leases of what it holds are not renewed from %.0f s on: other workers take that over.", late,
                     2 * STUCK)
        break_off()
        return late < 2 * STUCK

    def tick(self) -> None:
        """What the thread does each time."""
        started = now()
        if not self._goes_on():
            return
        if not self.channels:  # else the loop does, which knows best
            self.review()
        self.flush()
        if self.held:
            self.renew()
        elif time.monotonic() < self._sweep_from:  # see whether it takes writes
            RENEW.run(self.client, self.layout.registry[1:], [self.term])
        self._tried = started
        while time.monotonic() > self._sweep_from and self.sweep() == SWEPT_AT_ONCE:
            pass
        with contextlib.suppress(*FAILURES):  # the leases do not depend on it
            epoch(get_settings()).look()

    def _sweep_after(self, seconds: float) -> None:
        """Leases may have run out because the broker was away: first let those renew them who live."""
        self._sweep_from = time.monotonic() + seconds

    def _keep(self, stop: threading.Event) -> None:
        due, later_due, woken = 0.0, 0.0, False
        while not stop.is_set():
            if woken or time.monotonic() >= later_due:
                self.later.wake.clear()
                later_due = time.monotonic() + self.later.turn()
            if time.monotonic() >= due:
                due = time.monotonic() + self._try_tick()
            woken = self.later.wake.wait(max(0.0, min(due, later_due) - time.monotonic()))

    def _try_tick(self) -> float:
        pause, started = self.interval, now()
        try:
            self.tick()
            if self._failed:
                self._failed, self._recovered = False, time.monotonic()
            if self._recovered:
                pause = min(pause, 1.0)
        except FAILURES as exc:
            self._failed, self._tried = True, started
            self.turned = max(self.turned, time.monotonic())
            self._sweep_after(max(1.5 * self.interval, AFTER_TROUBLE))
            pause = min(pause, 1.0)  # so that leases are renewed soon after the broker is back
            self._complain(exc)
        except Exception:
            logger.exception("Leases could not be renewed")
        return pause

    def _complain(self, exc: Exception) -> None:
        late = now() - self._renewed
        if self.held and late > self.term / 2 and now() - self._said > SAY_AGAIN:
            self._said = now()
            logger.warning("Leases cannot be renewed since %.0f s; calls go on meanwhile. %s", late,
                           in_words(exc, get_settings()))


#: Tells the tags of the calls that the pool has begun, or None while Celery has yet to hear of others; set by the pool.
begun: Callable[[], set[str] | None] | None = None


def running_tags() -> set[str] | None:
    """The tags of the calls that have started in this process; None while that is not certain."""
    known = begun() if begun is not None else set()
    if known is None:
        return None
    return known | {request.message.delivery_tag for request in tuple(state.active_requests)}


_leaving = threading.Event()


def begin_shutdown() -> None:
    """This process's worker is on its way out; a `shutdown` command leaves no sign of that with Celery."""
    _leaving.set()


def shutting_down() -> bool:
    """Whether Celery's worker in this process is on its way out."""
    flags = state.should_stop, state.should_terminate
    return _leaving.is_set() or any(flag is not None and flag is not False for flag in flags)


_ledgers: dict[tuple[Any, ...], Ledger] = {}
_ledgers_lock = threading.Lock()


def ledger_of(channel: Any) -> Ledger:
    """The ledger that the channels of this process to one broker share."""
    layout, info = Layout.of(channel), channel.connection.client
    key = (os.getpid(), info.hostname, info.port, info.virtual_host, layout)
    with _ledgers_lock:
        if key not in _ledgers:
            for old in [old for old in _ledgers if old[0] != os.getpid()]:  # a forked child holds nothing
                del _ledgers[old]
            renew = min(0.2 * channel.lease, channel.visibility_timeout / 3)
            _ledgers[key] = Ledger(layout, channel.lease, renew, channel.ledger_pool(), channel.message_max,
                                   channel.eta_horizon)
        return _ledgers[key]


def ledgers() -> list[Ledger]:
    """The ledgers of this process."""
    with _ledgers_lock:
        return [ledger for key, ledger in _ledgers.items() if key[0] == os.getpid()]
