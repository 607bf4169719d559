"""A discussion of 100 agents as map and reduce: ten tables of ten, a rapporteur each, and a chair.

    python -m examples.assembly                     # in this process
    python -m examples.assembly --workers           # on the workers of `callsheet up --modules examples`

All members think at once (map). Each table has a hub; its rapporteur hears what was said there, and speaks in the hub
of the assembly (reduce); the chair hears the rapporteurs (reduce). The agents are plain code here: a `reply` that calls
a model fits in their place.
"""

import argparse
import asyncio
import contextlib
from collections import Counter

import callsheet
from callsheet import AgentBase, Msg, MsgHub
from callsheet.memory import InMemoryMemory

QUESTION = Msg("chair", "Where should the new library stand: harbour, market or park?", "user")
TABLES, SEATS = 10, 10
PLACES = ("harbour", "market", "park")


class Member(AgentBase):
    """Says where the library should stand."""

    def __init__(self, name: str, home: int) -> None:
        self.name, self.home = name, home
        self.memory = InMemoryMemory()

    async def observe(self, msg: Msg | list[Msg] | None) -> None:
        """Remember what is said at the table."""
        await self.memory.add(msg)

    async def reply(self, msg: Msg | None = None) -> Msg:
        """What is nearest to where it lives."""
        asked = (await self.memory.get_memory())[0].get_text_content() or ""
        place = next(place for place in PLACES if place in asked and self.home <= 20 + 40 * PLACES.index(place))
        return Msg(self.name, place, "assistant", metadata={"votes": {place: 1}})


class Rapporteur(AgentBase):
    """Sums up what it has heard since it last spoke."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.votes: dict[str, int] = {}
        self.register_state("votes")

    async def observe(self, msg: Msg | list[Msg] | None) -> None:
        """Count votes."""
        for one in msg if isinstance(msg, list) else [msg] if msg else []:
            told = one.metadata.get("votes")
            self.votes = dict(Counter(self.votes) + Counter(told if isinstance(told, dict) else {}))

    async def reply(self, msg: Msg | None = None) -> Msg:
        """All votes so far, which others can count."""
        order = sorted(self.votes.items(), key=lambda pair: (-pair[1], pair[0]))
        return Msg(self.name, ", ".join(f"{place} {count}" for place, count in order), "assistant",
                   metadata={"votes": dict(self.votes)})


async def table(number: int) -> Rapporteur:
    """One table's discussion: its members speak at once; its rapporteur has heard them then."""
    first = number * SEATS
    members = [Member(f"member {first + seat}", (first + seat) * 37 % 100) for seat in range(SEATS)]
    rapporteur = Rapporteur(f"table {number}")
    async with MsgHub([*members, rapporteur], announcement=QUESTION):
        await asyncio.gather(*(member() for member in members))
    return rapporteur


async def assembly() -> Msg:
    """What the chair concludes."""
    rapporteurs = await asyncio.gather(*map(table, range(TABLES)))
    chair = Rapporteur("chair")
    reports = await asyncio.gather(*(rapporteur() for rapporteur in rapporteurs))
    for report in reports:
        print(f"{report.name}: {report.get_text_content()}")
    async with MsgHub([*rapporteurs, chair], announcement=reports):
        concluded: Msg = await chair()
    return concluded


def main() -> None:
    """Discuss, and print the conclusion."""
    parser = argparse.ArgumentParser(description="A discussion of 100 agents.")
    parser.add_argument("--workers", action="store_true", help="run on workers (CALLSHEET_MODULES=examples)")
    with contextlib.nullcontext() if parser.parse_args().workers else callsheet.inline():
        concluded = asyncio.run(assembly())
    print(f"The chair: {concluded.get_text_content()}")


if __name__ == "__main__":
    # Workers find the agents by the name of this module, which is "__main__" here.
    from examples import assembly as module  # noqa: PLW0406 - the same file, by its name

    module.main()
