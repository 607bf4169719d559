"""Ids of agents: under an agent's id its state is kept."""

from typing import Any

from callsheet.errors import UsageError

_LONGEST = 200


def checked_id(agent_id: Any) -> str:
    """`agent_id`, if a state can be kept under it."""
    if not isinstance(agent_id, str):
        raise UsageError(f"The agent id {agent_id!r} is no text.")
    if not 0 < len(agent_id) <= _LONGEST or not agent_id.isprintable() or agent_id != agent_id.strip():
        raise UsageError(f"The agent id {agent_id[:_LONGEST]!r} cannot be used: 1 to {_LONGEST} characters, no line "
                         "breaks, and no space at its ends, are needed, e.g. \"alice-7\".")
    return agent_id
