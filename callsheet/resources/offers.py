"""Numbers that rooms offer to whoever exports metrics, without knowing who that is.

    offer(Offer(name="hub_lag", help="Messages that a subscriber has yet to read.", labels=("hub",),
                read=lambda: {("standup",): 3}))

They are read when somebody looks, on a thread of its own, so that offering them costs nothing meanwhile.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Readings = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One number, or one for each combination of labels.

    Attributes:
        name: without `callsheet_` before it, and without `_total` behind it.
        help: what it is, with its unit.
        kind: "gauge", or "counter" for what only grows.
        labels: their names; the values must be few, and no secrets.
        read: gives the numbers by their labels' values; must be quick, and may be called by any thread.
    """

    name: str
    help: str
    read: Callable[[], Readings]
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter"] = "gauge"


_offers: dict[str, Offer] = {}


def offer(one: Offer) -> None:
    """Offer a number from now on, in place of one of the same name."""
    _offers[one.name] = one


def withdraw(name: str) -> None:
    """Offer it no more."""
    _offers.pop(name, None)


def offers() -> list[Offer]:
    """All that is offered in this process."""
    return list(_offers.values())
