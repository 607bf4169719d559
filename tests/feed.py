"""Calls without end, for tests and benchmarks that disturb workers meanwhile."""

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import callsheet
from callsheet import AgentBase, Msg
from callsheet.settings import Settings, use_settings


class Feed:
    """A `callsheet.map` of messages "0", "1", ... in a thread, from the block's beginning until `finish`.

    Args:
        agent: that replies with what it is told.
        window: calls that are under way at a time.
        settings: for the thread; those of the process without.

    Attributes:
        sent: the messages.
        results: the contents of the replies.
    """

    def __init__(self, agent: AgentBase, window: int, settings: Settings | None = None) -> None:
        self.sent: list[str] = []
        self.results: list[Any] = []
        self._agent, self._window, self._settings = agent, window, settings
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._call, daemon=True)

    def __enter__(self) -> "Feed":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()  # where it was broken off, nobody waits for the rest

    def finish(self, timeout: float = 120.0) -> None:
        """Send no more, and wait for the replies, so many seconds at most."""
        self._enough.set()
        self._thread.join(timeout)

    def _messages(self) -> Iterator[Msg]:
        while not self._enough.is_set():
            self.sent.append(str(len(self.sent)))
            yield Msg("user", self.sent[-1], "user")

    def _call(self) -> None:
        with use_settings(self._settings) if self._settings else nullcontext():
            self.results.extend(msg.content for msg in callsheet.map(
                self._agent, self._messages(), window=self._window, progress=False))
