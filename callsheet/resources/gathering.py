"""Many asks, few trips: what is asked while one trip is under way goes with the next."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Gathering(Generic[T]):
    """Makes trips for many; on one loop.

    Args:
        trip: makes one for some, and gives an answer for each; an exception among them is raised where it was asked.
        fits: how many of those that wait, the first at least, go in one trip.
        name: of its task.
    """

    def __init__(self, trip: Callable[[list[T]], Awaitable[Sequence[Any]]], fits: Callable[[Sequence[T]], int],
                 name: str) -> None:
        self._trip, self._fits, self._name = trip, fits, name
        self._waiting: list[T] = []
        self._futures: list[asyncio.Future[Any]] = []  # theirs
        self._going: asyncio.Task[None] | None = None

    def ask(self, what: T) -> asyncio.Future[Any]:
        """Have it go with the next trip; the future gives its answer, or what went wrong."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(what)
        self._futures.append(future)
        if self._going is None or self._going.done():
            self._going = loop.create_task(self._go(), name=self._name)
        return future

    async def _go(self) -> None:
        while self._waiting:
            count = self._fits(self._waiting)
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            futures, self._futures = self._futures[:count], self._futures[count:]
            answers: Sequence[Any]
            try:
                answers = await self._trip(batch)
            except asyncio.CancelledError:  # the loop ends
                for future in (*futures, *self._futures):
                    future.cancel()
                self._waiting, self._futures = [], []
                raise
            except Exception as exc:  # whatever it is, those who wait for this trip must hear of it
                answers = [exc] * len(batch)
            for future, answer in zip(futures, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, BaseException):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    async def aclose(self) -> None:
        """Break off what is under way."""
        if self._going is not None:
            self._going.cancel()
