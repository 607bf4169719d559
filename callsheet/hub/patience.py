"""How a worker waits for a Redis in trouble, as the layer above says; anywhere else what goes wrong is told at once."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

Patient = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]
Patiently = Callable[[Callable[[], Any]], Any]


_provided: list[tuple[Patient, Patiently]] = []


def provide_patience(patient: Patient, patiently: Patiently) -> None:
    """Say how a worker waits, in async and in plain code; called once by the layer above, at import."""
    _provided[:] = [(patient, patiently)]


async def patient(work: Callable[[], Awaitable[T]]) -> T:
    """Await what a function gives; in a worker again and again while Redis is in trouble."""
    result: T = await (_provided[0][0](work) if _provided else work())
    return result


def patiently(do: Callable[[], T]) -> T:
    """As `patient`, for plain code; also for plain code that a reply calls on the loop, which goes on meanwhile."""
    result: T = _provided[0][1](do) if _provided else do()
    return result
