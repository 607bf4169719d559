"""Why something of a hub is refused, in words; and the names that hubs may have."""

from typing import Any

from callsheet.errors import HubMissing, UsageError

_LONGEST = 150
_RESERVED = "/*?[]\\"  # that mean something in the channels of kombu's fanout exchanges


def missing(name: str) -> HubMissing:
    """No hub of this name is open."""
    return HubMissing(f"No hub {name!r} is open here: it was never opened, was closed, or was not used for "
                      "CALLSHEET_HUB_EXPIRES seconds. MsgHub.open(name) opens one; `callsheet hub list` shows those "
                      "there are.")


def differs(name: str, opened: bool) -> str:
    """Why a hub is not joined."""
    return (f"The hub {name!r} is open with enable_auto_broadcast={opened}, and cannot be joined with {not opened}. "
            "Give the same, or another name, or join it as it is with MsgHub.open(name).")


def checked_name(name: Any) -> str:
    """`name`, if a hub may have it."""
    if not isinstance(name, str):
        raise UsageError(f"The hub's name {name!r} is no text.")
    if not 0 < len(name) <= _LONGEST or not name.isprintable() or name != name.strip() or set(name) & set(_RESERVED):
        raise UsageError(f"The hub's name {name[:_LONGEST]!r} cannot be used: 1 to {_LONGEST} characters, none of "
                         f"{' '.join(_RESERVED)}, no line breaks, and no space at its ends, are needed, e.g. "
                         "\"debate-7\".")
    return name
