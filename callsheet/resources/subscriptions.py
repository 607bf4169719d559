"""One Redis pub/sub connection of a process, for all channels that it listens to; on the process's loop."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from callsheet.resources.redis import listening_client
from callsheet.settings import Settings

logger = logging.getLogger(__name__)
_SHORTEST_RETRY, _SLOWEST_RETRY = 0.1, 5.0  # seconds
_SIGN_OF_LIFE = 30.0  # seconds between two pings
Listener = Callable[[bytes], None]


class Subscriptions:
    """Callbacks by channel over one pub/sub connection, which comes back by itself when it breaks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._listeners: dict[str, set[Listener]] = {}
        self._quiet: set[Listener] = set()
        self._new: set[str] = set()
        self._gone: set[str] = set()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._heard = False  # anything, since the last sign of life was asked for
        self.healthy = False

    def add(self, channel: str, listener: Listener, quiet: bool = False) -> None:
        """Call `listener` with each message on `channel`, from soon after now on.

        `quiet`: it can do without, so that a broken connection is not worth a warning for it.
        """
        if quiet:
            self._quiet.add(listener)
        self._listeners.setdefault(channel, set()).add(listener)
        self._gone.discard(channel)
        self._new.add(channel)
        self._wake.set()
        if not self._tasks or self._tasks[0].done():
            self._tasks = [asyncio.get_running_loop().create_task(self._run(), name="callsheet-subscriptions")]

    def remove(self, channel: str, listener: Listener) -> None:
        """Stop calling `listener`."""
        listeners = self._listeners.get(channel)
        if listeners:
            listeners.discard(listener)
            self._quiet.discard(listener)
            if not listeners:
                del self._listeners[channel]
                self._new.discard(channel)
                self._gone.add(channel)
                self._wake.set()

    async def _run(self) -> None:
        pause = _SHORTEST_RETRY
        while True:
            client = listening_client(self._settings)
            pubsub = client.pubsub()
            try:
                await self._serve(pubsub)
            except Exception as exc:  # whatever it was, those who listen wait for it to come back
                pause = _SHORTEST_RETRY if self.healthy else min(pause * 2, _SLOWEST_RETRY)
                self.healthy = False
                self._tell(exc, pause)
                await self._rest(pause)
            finally:
                await _closed(pubsub, client)
            if not self._listeners:
                return  # the next `add` begins anew
            self._new |= set(self._listeners)

    def _tell(self, exc: Exception, pause: float) -> None:
        # Where nobody waits, Redis may well have been stopped on purpose.
        waited_for = any(listeners - self._quiet for listeners in self._listeners.values())
        usual = isinstance(exc, RedisError | OSError)
        logger.log(logging.WARNING if waited_for or not usual else logging.DEBUG,
                   "The subscription to results and events at %s broke (%s); it is opened again in %.1f s.",
                   self._settings.redis_address, type(exc).__name__, pause,
                   exc_info=None if usual else exc)

    async def _rest(self, seconds: float) -> None:
        """Wait before the next try; less where somebody begins to listen."""
        await asyncio.sleep(_SHORTEST_RETRY)
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds - _SHORTEST_RETRY):
                await self._wake.wait()

    async def _serve(self, pubsub: Any) -> None:
        await pubsub.connect()
        self._heard, ask_at = True, time.monotonic() + _SIGN_OF_LIFE
        reader: asyncio.Task[None] | None = None
        try:
            while True:
                new, gone = self._new & set(self._listeners), self._gone
                self._new, self._gone = set(), set()
                self._wake.clear()
                if new:
                    await pubsub.subscribe(*new)
                if gone:
                    await pubsub.unsubscribe(*gone)
                if reader is None:
                    reader = asyncio.get_running_loop().create_task(self._read(pubsub))
                waker = asyncio.get_running_loop().create_task(self._wake.wait())
                await asyncio.wait({waker, reader}, timeout=max(0.0, ask_at - time.monotonic()),
                                   return_when=asyncio.FIRST_COMPLETED)
                waker.cancel()
                if reader.done():
                    reader.result()
                if time.monotonic() >= ask_at:  # also where somebody begins or ends to listen all the time
                    ask_at = time.monotonic() + _SIGN_OF_LIFE
                    await self._ask_for_life(pubsub)
        finally:
            if reader is not None:
                reader.cancel()

    async def _ask_for_life(self, pubsub: Any) -> None:
        """A connection that something on the way dropped without a word would wait for ever."""
        if not self._heard:
            raise redis.ConnectionError("nothing heard since the last ping")
        self._heard = False
        await pubsub.ping()

    async def _read(self, pubsub: Any) -> None:
        while True:
            message = await pubsub.parse_response(block=True)
            self._heard = True
            if message is None or message[0] not in (b"message", b"subscribe"):
                continue
            # Only now that the subscription holds is nothing missed by looking: an empty notice says so.
            data = message[2] if message[0] == b"message" else b""
            self.healthy = True
            for listener in list(self._listeners.get(message[1].decode(), ())):
                try:
                    listener(data)
                except Exception as exc:  # of what anybody may have published: the others go on
                    logger.error("What came over the channel %s was dropped (%s: %s): %.200r", message[1].decode(),
                                 type(exc).__name__, exc, data)


async def _closed(pubsub: Any, client: Any) -> None:
    try:
        await pubsub.aclose()
        await client.aclose()
    except Exception as exc:
        logger.debug("closing a broken subscription: %s", exc)


_all: dict[tuple[int, str], tuple[asyncio.AbstractEventLoop, Subscriptions]] = {}


def subscriptions(settings: Settings) -> Subscriptions:
    """This process's subscriptions; to be used on the process's loop only."""
    key, loop = (os.getpid(), settings.redis_url.get_secret_value()), asyncio.get_running_loop()
    found = _all.get(key)
    if found is None or found[0] is not loop:  # a process may have another loop after a while, as a pool stops
        for stale in [old for old in _all if old[0] != key[0]]:
            del _all[stale]
        found = _all[key] = loop, Subscriptions(settings)
    return found[1]
