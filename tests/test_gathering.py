"""What many ask for goes in few trips."""

import asyncio

import pytest

from callsheet.resources.gathering import Gathering


class Trips:
    """Answers each with its double; waits at a gate."""

    def __init__(self, fits: int = 3) -> None:
        self.made: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gathering = Gathering(self.trip, lambda waiting: min(len(waiting), fits), "trips")

    async def trip(self, batch: list[int]) -> list[object]:
        self.made.append(batch)
        await self.gate.wait()
        if 13 in batch:
            raise ConnectionError("gone")
        return [ValueError(number) if number < 0 else 2 * number for number in batch]


def test_what_is_asked_during_a_trip_goes_with_the_next_in_order():
    async def main() -> None:
        trips = Trips()
        first = trips.gathering.ask(1)
        await asyncio.sleep(0)
        rest = [trips.gathering.ask(number) for number in range(2, 7)]
        trips.gate.set()
        assert await asyncio.gather(first, *rest) == [2, 4, 6, 8, 10, 12]
        assert trips.made == [[1], [2, 3, 4], [5, 6]]
        assert await trips.gathering.ask(7) == 14, "it begins again"

    asyncio.run(main())


def test_what_goes_wrong_reaches_those_whom_it_concerns():
    async def main() -> None:
        trips = Trips()
        asked = [trips.gathering.ask(number) for number in (1, -1, 2, 13, 3, 4, 5)]
        asked[2].cancel()
        trips.gate.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [
            int, ValueError, asyncio.CancelledError, ConnectionError, ConnectionError, ConnectionError, int]

    asyncio.run(main())


def test_those_who_wait_are_cancelled_with_it():
    async def main() -> None:
        trips = Trips()
        asked = [trips.gathering.ask(number) for number in range(5)]
        await asyncio.sleep(0)
        await trips.gathering.aclose()
        for future in asked:
            with pytest.raises(asyncio.CancelledError):
                await future
        trips.gate.set()
        assert await trips.gathering.ask(1) == 2

    asyncio.run(main())


def test_it_goes_on_after_it_was_closed_before_it_began():
    async def main() -> None:
        trips = Trips()
        trips.gate.set()
        asked = trips.gathering.ask(1)
        await trips.gathering.aclose()
        await asyncio.sleep(0)
        assert await trips.gathering.ask(2) == 4
        assert await asked == 2

    asyncio.run(main())
