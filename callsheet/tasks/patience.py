"""How a worker waits while Redis is away or takes no writes: what has ended is stored, and what follows it is sent,
as soon as Redis works again.

Programs that submit jobs do not wait so: they are told at once (RedisUnavailable).
"""

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import cached_property, partial
from typing import Any, TypeVar

import redis
from celery._state import get_current_worker_task
from celery.app.amqp import AMQP
from celery.backends.redis import RedisBackend
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import worker_init

from callsheet.hub.patience import provide_patience
from callsheet.resources.loops import running_loop
from callsheet.resources.redis import sync_client
from callsheet.resources.trouble import in_words, is_trouble
from callsheet.settings import Settings, get_settings
from callsheet.settings.keys import Keys
from callsheet.tasks.aside import begin_aside
from callsheet.tasks.bridge import drive, in_strand

logger = logging.getLogger(__name__)
T = TypeVar("T")

_FIRST_LOOK, _SLOWEST_LOOK = 0.1, 2.0  # seconds between two looks whether Redis works again
_SAY_AGAIN = 60.0  # seconds between two warnings about the same trouble
_TURN = 1.0  # seconds that a thread waits in one go, so that what is raised in it gets through

#: Lifts the time limits of the call that runs here; set by the pool.
lift_limits: ContextVar[Callable[[], object] | None] = ContextVar("callsheet_lift_limits", default=None)
#: Stops the time limits of the call that runs here, but those that its sender set; gives what has them go on. Likewise.
hold_limits: ContextVar[Callable[[], Callable[[], object]] | None] = ContextVar("callsheet_hold_limits", default=None)
_tries: ContextVar["_Tries | None"] = ContextVar("callsheet_tries", default=None)
_ended: ContextVar[bool] = ContextVar("callsheet_ended", default=False)
_serves = False


@worker_init.connect(weak=False)
def _serve(**_: object) -> None:
    global _serves  # noqa: PLW0603 - a process is a worker's, or it is not
    _serves = True


class MessageId(str):
    """A delivery tag that was made for a message before it was first sent."""

    __slots__ = ()

    @classmethod
    def new(cls) -> "MessageId":
        """One that no other message has."""
        return cls(os.urandom(16).hex())

    @property
    def number(self) -> int:
        """Its random part, in 63 bits."""
        return int(self[:16], 16) >> 1


class Trouble:
    """The trouble that one Redis is in: tells the log, and those who wait, when it begins and when it is over."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._over.set()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._late: deque[Callable[[], object]] = deque()
        self._since = self._said = 0.0

    @property
    def on(self) -> bool:
        """Whether there is trouble."""
        return not self._over.is_set()

    def notice(self, exc: BaseException) -> None:
        """Something has failed: from now on a thread looks whether Redis works again."""
        with self._lock:
            if self.on:
                return
            self._since, self._said = time.monotonic(), 0.0
            self._over.clear()
            _on.add(self)
        self._say(exc)
        threading.Thread(target=self._look, name="callsheet-trouble", daemon=True).start()

    async def over(self) -> None:
        """Wait until there is none; any loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if not self.on:
                return
            self._waiting.append((loop, future))
        await future

    def wait(self) -> None:
        """Wait until there is none; any thread without a loop."""
        while not self._over.wait(_TURN):
            pass

    def afterwards(self, do: Callable[[], object]) -> None:
        """Have something done once there is none, by the thread that looks."""
        self._late.append(do)

    def _say(self, exc: BaseException) -> None:
        if time.monotonic() - self._said < _SAY_AGAIN and self._said:
            return
        self._said = time.monotonic()
        since = f" So since {self._said - self._since:.0f} s." if self._said - self._since > 1 else ""
        logger.warning("%s%s Calls of this worker that have ended keep their results until it works again.",
                       in_words(exc, self._settings), since)

    def _look(self) -> None:
        pause = _FIRST_LOOK
        while True:
            time.sleep(pause)
            pause = min(2 * pause, _SLOWEST_LOOK)
            try:
                sync_client(self._settings).set(Keys(self._settings.key_prefix).probe(), os.getpid(), ex=10)
                while self._late:
                    self._late[0]()
                    self._late.popleft()
                break
            except Exception as exc:
                if is_trouble(exc):
                    self._say(exc)
                elif self._late:
                    logger.exception("A result that was to be stored late is lost")
                    self._late.popleft()
                else:
                    break  # this user may not write the key of the probe: each has to see for itself
        self._end()

    def _end(self) -> None:
        with self._lock:
            self._over.set()
            _on.discard(self)
            waiting, self._waiting = self._waiting, []
        logger.warning("The Redis at %s works again, after %.1f s.", self._settings.redis_address,
                       time.monotonic() - self._since)
        for loop, future in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_release, future)
        if self._late:  # put there meanwhile
            self.notice(redis.ConnectionError("results are late"))


def _release(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


_troubles: dict[tuple[int, str], Trouble] = {}
_on: set[Trouble] = set()  # those that are on, for who looks often


def trouble() -> Trouble:
    """The trouble of this process's Redis, if any."""
    settings = get_settings()
    key = (os.getpid(), settings.redis_url.get_secret_value())  # a forked child has no thread that looks
    found = _troubles.get(key)
    return found if found is not None else _troubles.setdefault(key, Trouble(settings))


def _pause(tries: int) -> float:
    """Seconds before another try where Redis seems to work, and yet it fails."""
    return float(min(0.05 * 2 ** min(tries, 10), _SLOWEST_LOOK))


class _Tries:
    """The tries of one piece of work, which each send the same messages, so that the broker takes each of them once.

    What the work consists of is not tried by itself: an error ends the try.
    """

    def __init__(self) -> None:
        self.count = 0
        self._messages: list[Any] = []
        self._at = 0
        self._on = False

    @staticmethod
    def under_way() -> "_Tries | None":
        """Those that this code is part of."""
        found = _tries.get()
        return found if found is not None and found._on else None  # else of a subtask that outlives them

    def __enter__(self) -> None:  # a try; a generator would take four times as long
        self._at, self._on = 0, True
        self._token = _tries.set(self)

    def __exit__(self, *exc_info: object) -> None:
        self._on = False
        _tries.reset(self._token)

    def failed(self, exc: Exception) -> None:
        """A try has failed; what is no trouble of Redis is raised."""
        if not is_trouble(exc):
            raise exc
        trouble().notice(exc)
        self.count += 1

    def before(self) -> tuple[Trouble, float] | None:
        """What is to be waited for before the next try, and the seconds after that."""
        if not (_on or self.count):
            return None
        found = trouble()
        if not (found.on or self.count):
            return None
        lift = lift_limits.get() if _ended.get() else None
        if lift is not None:
            lift()
        return found, _pause(self.count) if self.count > 1 else 0.0

    def message(self, name: str, made: Any) -> Any:
        """The message to send: the one that an earlier try made for this place, or this one."""
        self._at += 1
        if self._at > len(self._messages):
            made.properties["delivery_tag"] = MessageId.new()
            self._messages.append(made)
        before = self._messages[self._at - 1]
        return before if before.headers.get("task") == name else made


def patiently(do: Callable[[], T]) -> T:
    """Run a function, again and again while Redis is in trouble; in code of a worker that is not async.

    On the asyncio pool the call steps aside meanwhile. Once its work is done (`ended`), time limits hold no more.
    """
    if not _serves or _Tries.under_way():
        return do()
    strand = in_strand()
    if not strand and (get_current_worker_task() is None or running_loop() is not None):
        return do()  # no task runs in this thread, or a loop does
    tries = _Tries()
    while True:
        try:
            if wait := tries.before():
                if strand:
                    drive(_waited(*wait))
                else:
                    wait[0].wait()
                    time.sleep(wait[1])
            with tries:
                return do()
        except SoftTimeLimitExceeded:
            if not _ended.get():
                raise
            tries.count += 1
        except Exception as exc:
            tries.failed(exc)


async def patient(do: Callable[[], Awaitable[T]]) -> T:
    """As `patiently`, in async code: on any loop."""
    if not _serves or _Tries.under_way():
        return await do()
    tries = _Tries()
    while True:
        if wait := tries.before():
            await _waited(*wait)
        try:
            with tries:
                return await do()
        except Exception as exc:
            tries.failed(exc)


async def _waited(found: Trouble, pause: float) -> None:
    await found.over()
    await asyncio.sleep(pause)


async def trouble_over(exc: BaseException, tries: int) -> None:
    """After a failure, wait until it is time for the next of so many tries; for work that no call does."""
    if _serves:
        trouble().notice(exc)
        await trouble().over()
    await asyncio.sleep(_pause(tries))


provide_patience(patient, patiently)


class ended:
    """The work of the call that runs here is done: what is left, the block's, is to store and to send."""

    __slots__ = ("_token",)

    def __enter__(self) -> None:
        self._token = _ended.set(True)

    def __exit__(self, *exc_info: object) -> None:
        _ended.reset(self._token)


def has_ended() -> bool:
    """Whether it is."""
    return _ended.get()


@contextmanager
def limits_held() -> Iterator[None]:
    """Time limits of the call that its sender did not set do not count the block."""
    hold = hold_limits.get()
    go_on = hold() if hold is not None else None
    try:
        yield
    finally:
        if go_on is not None:
            go_on()


async def _outcome(future: "asyncio.Future[T]") -> T:
    return await future


class PatientAMQP(AMQP):
    """Celery's, for workers: what follows a task that has ended is sent as soon as Redis takes it.

    On the asyncio pool a thread sends it, so that a slow Redis does not hold up the loop.
    """

    @cached_property
    def send_task_message(self) -> Callable[..., Any]:
        """Celery's; where it is tried again, the message is the one that was made first."""
        send = self._create_task_sender()

        def send_once(producer: Any, name: str, message: Any, **options: Any) -> Any:
            if tries := _Tries.under_way():
                message = tries.message(name, message)
            return send(producer, name, message, **options)

        return send_once

    def _retry_publish(self, publish: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        def send() -> T:
            return publish(*args, **kwargs)

        with ended():
            if _serves and in_strand():
                return patiently(lambda: drive(_outcome(begin_aside(self.app, send))))
            return patiently(send)


class PatientBackend(RedisBackend):
    """Celery's Redis backend, for workers: a result that cost a model call is stored as soon as Redis takes it.

    Tasks wait for that. What the worker's main thread has to store (of a call over its hard time limit, say) is left
    to a thread meanwhile.
    """

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Whether it may work at another time."""
        return is_trouble(exc)

    def _ensure_retryable(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not _serves or kwargs.get("max_retries") is not None:
            return super()._ensure_retryable(func, *args, **kwargs)
        given = {key: value for key, value in kwargs.items() if not key.startswith(("fallback_", "max_retries"))}
        return patiently(lambda: func(*args, **given))

    def ensure(self, fun: Callable[..., Any], args: Any, **policy: Any) -> Any:
        """Celery's tries again by itself; in a worker `patiently` does."""
        if _serves or in_strand():
            return patiently(lambda: fun(*args))
        return super().ensure(fun, args, **policy)

    def delete(self, key: Any) -> None:
        """Delete a key."""
        self.ensure(super().delete, (key,))

    def mark_as_done(self, *args: Any, **kwargs: Any) -> None:
        """Celery's."""
        with ended():
            super().mark_as_done(*args, **kwargs)

    def mark_as_retry(self, *args: Any, **kwargs: Any) -> None:
        """Celery's."""
        with ended():
            super().mark_as_retry(*args, **kwargs)

    def mark_as_failure(self, *args: Any, **kwargs: Any) -> None:
        """Celery's."""
        self._now_or_late(super().mark_as_failure, *args, **kwargs)

    def mark_as_revoked(self, *args: Any, **kwargs: Any) -> None:
        """Celery's."""
        self._now_or_late(super().mark_as_revoked, *args, **kwargs)

    def _now_or_late(self, mark: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        with ended():
            if not _serves or in_strand() or get_current_worker_task() is not None:
                mark(*args, **kwargs)
                return
            found = trouble()
            if not found.on:
                try:
                    mark(*args, **kwargs)
                    return
                except Exception as exc:
                    if not is_trouble(exc):
                        raise
                    found.notice(exc)
            found.afterwards(partial(copy_context().run, mark, *args, **kwargs))
