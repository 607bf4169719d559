"""Objects that remember how they were constructed, so that a worker can build them again."""

import copy
from typing import Any, Self

_CONTAINERS = (list, dict, set)


class Recorded:
    """Base of what travels as "construct it again": agents, models, toolkits, memories, MCP clients.

    The outermost constructor's arguments are kept as given; lists, dictionaries and sets among them are copied
    one level deep, so that a constructor that adds to them does not change the record. Attributes set after
    construction do not travel.
    """

    _recorded: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the arguments that the outermost constructor gets."""
        self = super().__new__(cls)
        self._recorded = (tuple(map(_snapshot, args)), {key: _snapshot(val) for key, val in kwargs.items()})
        return self

    def leaving(self, local: bool) -> None:
        """Called before it is written to a message; raises CannotTravel if it must not be.

        Args:
            local: whether the message stays in this process.
        """

    def arrived(self, local: bool) -> None:
        """Called when it was built of a message; raises CannotTravel if no message may have it built here.

        Args:
            local: whether the message stayed in this process.
        """

    def wire_extras(self) -> dict[str, Any]:
        """What travels beside the constructor's arguments; given to `apply_wire_extras` over there."""
        return {}

    def apply_wire_extras(self, extras: dict[str, Any]) -> None:
        """Take what `wire_extras` gave on the sending side."""


def _snapshot(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, _CONTAINERS) else value
