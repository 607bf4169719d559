"""The limiter in Redis, as one process of the fleet reaches it."""

import json
from collections.abc import Callable
from pathlib import Path

from callsheet.resources.limits.messages import Answer, Message
from callsheet.resources.redis import Script, async_client, translated
from callsheet.resources.subscriptions import subscriptions
from callsheet.settings import Settings
from callsheet.settings.keys import Keys

_SCRIPT = Script(Path(__file__).with_name("exchange.lua"))


class RedisStore:
    """The limits of the whole fleet; to be used on the process's loop.

    Args:
        settings: which Redis, and the prefix of its keys.
        clock: gives the time in seconds; the server's without.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] | None = None) -> None:
        self._settings = settings
        self._keys = Keys(settings.key_prefix)
        self._clock = clock
        self._told: list[Callable[[str, float], None]] = []  # of pauses

    async def exchange(self, message: Message) -> Answer:
        """One exchange, one round trip.

        Raises:
            RedisUnavailable: no Redis answers.
        """
        name, window = message.name, message.limits.window
        parts = [self._keys.limits(name, window, part) for part in ("state", "queue", "seen", "shares", "own:")]
        keys = [*parts[:4], parts[4] + message.gate]
        now = "" if self._clock is None else repr(self._clock())
        args = [json.dumps(message.to_data()), now, self._keys.limits_wake(""), self._keys.limits_pause(), parts[4]]
        with translated(self._settings):
            text = await _SCRIPT.arun(async_client(self._settings), keys, args)
        return Answer.from_data(json.loads(text))

    def attach(self, gate: str, wake: Callable[[bytes], None], paused: Callable[[str, float], None]) -> None:
        """Call `wake` when the gate's turn may have come, `paused` when an endpoint is paused."""
        listening = subscriptions(self._settings)
        listening.add(self._keys.limits_pause(), self._paused, quiet=True)
        self._told.append(paused)
        listening.add(self._keys.limits_wake(gate), wake, quiet=True)

    def _paused(self, data: bytes) -> None:
        if data:
            name, seconds = json.loads(data)
            for paused in self._told:
                paused(name, seconds)
