"""A turn of an agent with state that does nothing: Redis trips, worker CPU, and what a long conversation costs."""

import asyncio
from typing import Any

from benchmarks.agents import Clerk, Noop
from benchmarks.harness import IO, Report, Row, Stage, at_most, usage_of
from callsheet import AgentBase, Msg

ROUNDS = 300
REMEMBERED = 200
LONG = 1000


def trips(stage: Stage) -> int:
    """How often the server has read from any connection."""
    return int(stage.redis.client().info("stats")["total_reads_processed"])


def turns(agent: AgentBase, rounds: int) -> None:
    """One after another, as in a conversation."""
    async def talk() -> None:
        for number in range(rounds):
            await agent(Msg("user", f"Message {number} of a conversation, of a usual length.", "user"))

    asyncio.run(talk())


def measured(stage: Stage, pid: int, agent: AgentBase, rounds: int = ROUNDS) -> dict[str, float]:
    """What each turn took."""
    turns(agent, 20)
    before, log = trips(stage), commands(stage)
    with usage_of(pid) as usage:
        turns(agent, rounds)
    after = trips(stage)
    return {"trips": (after - before) / rounds, "scripts": (commands(stage) - log) / rounds,
            "cpu_ms": 1000 * usage.cpu / rounds, "others_cores": usage.others}


def commands(stage: Stage) -> int:
    """Scripts run so far."""
    stats: dict[str, Any] = stage.redis.client().info("commandstats")
    return sum(int(stats.get(name, {}).get("calls", 0)) for name in ("cmdstat_eval", "cmdstat_evalsha"))


def filled(messages: int, agent: Clerk) -> Clerk:
    """An agent that remembers so many messages."""
    asyncio.run(agent.memory.add([Msg("user", f"Message {number} of a conversation, of a usual length.", "user")
                                  for number in range(messages)]))
    turns(agent, 1)
    other = Clerk()
    other.id = agent.id
    return other


def long_conversation(stage: Stage, pid: int) -> dict[str, list[float]]:
    """CPU of turns 1 to 20 and of 990 to 1,010 of one conversation, of the worker and of Redis together."""
    agent, found = Clerk(), {}
    assert stage.redis.process is not None
    for name, first, last in (("turn 10", 5, 105), ("turn 1,000", 950, 1050)):
        turns(agent, first - (105 if name != "turn 10" else 0))
        with usage_of(pid) as usage, usage_of(stage.redis.process.pid) as redis:
            turns(agent, last - first)
        found[name] = [1000 * (usage.cpu + redis.cpu) / (last - first)]
    return found


def run(stage: Stage) -> Report:
    rows = {name: Row(name) for name in ("without state", f"with {REMEMBERED} messages remembered, warm",
                                         f"with {REMEMBERED} messages remembered, never warm",
                                         "one conversation")}
    names = list(rows)
    for _ in range(stage.repeat):
        with stage.worker(IO, "-c", "20") as pid:
            rows[names[0]].add(**measured(stage, pid, Noop()))
            rows[names[1]].add(**measured(stage, pid, filled(REMEMBERED, Clerk())))
            found = long_conversation(stage, pid)
            rows[names[3]].add(**{f"{name}_ms": values[0] for name, values in found.items()})
        with stage.worker(IO, "-c", "20", env={"CALLSHEET_WARM_AGENTS": "0"}) as pid:
            rows[names[2]].add(**measured(stage, pid, filled(REMEMBERED, Clerk())))
    stateless, warm, talk = rows[names[0]], rows[names[1]], rows[names[3]]
    extra = warm.median("trips") - stateless.median("trips")
    return Report("state", __doc__ or "", list(rows.values()), [
        at_most("Redis trips that state adds to a turn: at most 3", extra, 3),
        at_most("worker CPU of a turn: under 5 ms", warm.median("cpu_ms"), 5),
        at_most("turn 1,000 costs at most 1.2 times turn 10", talk.median("turn 1,000_ms") / talk.median("turn 10_ms"),
                1.2)])
