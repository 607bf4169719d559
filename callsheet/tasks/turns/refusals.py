"""Why a call does not get its agent's turn, in words."""

from callsheet.tasks.turns.records import Claim


def other_class(claim: Claim, found: str) -> str:
    """Why a state is refused that is of another class."""
    return (f"{claim.label} with the id {claim.agent_id!r} is a {claim.cls}, but the state under this id is of a "
            f"{found}. Give the agent another id, or delete the state: callsheet session delete {claim.agent_id}")


def held_up(claim: Claim, job: str) -> str:
    """Why a call is refused for which the reply waits whose turn it is."""
    return (f"{claim.label} with the id {claim.agent_id!r} is called in the course of job {job}, for which its own "
            "reply waits: neither would ever end. Do not wait there, or have another agent answer.")


def lost(claim: Claim) -> str:
    """What TurnLost says."""
    return (f"{claim.label} with the id {claim.agent_id!r} lost its turn while it replied (call {claim.call_id}): its "
            "process did not run for longer than CALLSHEET_TURN_LEASE. What it changed is not kept.")


def within_itself(label: str, agent_id: str) -> str:
    """Why an agent's reply may not wait for a reply of the same agent."""
    return (f"{label} with the id {agent_id!r} is called while its own reply waits for the answer, itself or through "
            "others: an agent with state replies to one call at a time, so neither would ever end. Submit the call and "
            "do not wait for it, or call an agent with another id.")
