"""A game of hidden roles: a public hub for all, private hubs for the wolves and for the seer.

    python -m examples.werewolf                     # in this process
    python -m examples.werewolf --workers           # on the workers of `callsheet up --modules examples`

At night the wolves choose a victim in their own hub, and the seer learns a role in hers. By day all speak, vote with
auto-broadcast off, so that nobody votes after another, and hear the count. Without a key: the models follow a script.
"""

import argparse
import asyncio
import contextlib
import re
from collections import Counter
from typing import Any

from pydantic import BaseModel, Field

import callsheet
from callsheet import Msg, MsgHub, ReActAgent
from callsheet.formatters import OpenAIMultiAgentFormatter
from callsheet.testing import ScriptedModel, tool_call

ROLES = {"ada": "villager", "ben": "wolf", "cleo": "seer", "dan": "villager", "eve": "wolf", "fay": "villager",
         "gus": "villager"}


class Choice(BaseModel):
    """Whom a player chooses."""

    name: str = Field(description="A player who is still in the game.")


def play(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, **_: Any) -> Any:
    """A player's next move, made of what the player knows: what stands in the messages and nothing else."""
    text = "\n".join(str(message["content"]) for message in messages)
    name, role = re.findall(r"You are (\w+), a (\w+)", text)[0]
    alive = re.findall(r"Still in the game: ([\w, ]+)", text)[-1].split(", ")
    friends = re.findall(r"The wolves are (\w+) and (\w+)", text)[-1] if role == "wolf" else ()
    seen = dict(re.findall(r"The truth about (\w+): a (\w+)", text)) if role == "seer" else {}
    accused = [one for one in re.findall(r"(\w+) is a wolf", text) if one in alive and one != name]
    others = [one for one in alive if one != name and one not in friends]
    wolves = [one for one, found in seen.items() if found == "wolf" and one in alive]
    if not any(tool["function"]["name"] == "generate_response" for tool in tools or []):
        return f"{wolves[0]} is a wolf." if wolves else "I do not know yet."
    if role == "seer" and not wolves:
        others = [one for one in others if one not in seen]
    suspects = wolves or [one for one in accused if one in others] or others
    return [{"type": "text", "text": f"I choose {suspects[0]}."}, tool_call("generate_response", name=suspects[0])]


def player(name: str) -> ReActAgent:
    """A player, who knows a role and nothing else."""
    agent = ReActAgent(name, f"You are {name}, a {ROLES[name]} in a game of werewolf.",
                       ScriptedModel([play], then="last"), OpenAIMultiAgentFormatter())
    agent.set_console_output_enabled(False)
    return agent


def tell(text: str) -> Msg:
    """Said by the moderator."""
    return Msg("moderator", text, "user")


class Game:
    """One game, moderated by plain code."""

    def __init__(self) -> None:
        self.players = {name: player(name) for name in ROLES}

    def of(self, role: str) -> list[ReActAgent]:
        """Players of a role who are still in the game."""
        return [agent for name, agent in self.players.items() if ROLES[name] == role]

    @property
    def alive(self) -> str:
        """Who is still in the game."""
        return f"Still in the game: {', '.join(self.players)}"

    @property
    def winner(self) -> str | None:
        """Who has won, or None."""
        wolves = len(self.of("wolf"))
        if wolves and wolves < len(self.players) - wolves:
            return None
        return "the wolves" if wolves else "the village"

    async def choose(self, agents: list[ReActAgent], question: str) -> str:
        """Whom most of the agents choose; they choose at once."""
        chosen = await asyncio.gather(*(agent(tell(f"{question} {self.alive}"), structured_model=Choice)
                                        for agent in agents))
        votes = Counter(str(choice.metadata["name"]) for choice in chosen)
        return max(votes, key=lambda name: (votes[name], -list(ROLES).index(name)))

    async def night(self) -> str:
        """The victim."""
        wolves = self.of("wolf")
        names = [agent.name for agent in wolves]
        secret = tell(f"The wolves are {names[0]} and {names[-1]}. {self.alive}")
        async with MsgHub(wolves, announcement=secret) as den:
            for wolf in wolves:
                await wolf()
            den.set_auto_broadcast(False)
            victim = await self.choose(wolves, "Whom do you hunt?")
        for seer in self.of("seer"):
            async with MsgHub([seer], enable_auto_broadcast=False) as dream:
                asked = await self.choose([seer], "Whose role do you want to know?")
                await dream.broadcast(tell(f"The truth about {asked}: a {ROLES[asked]}"))
        return victim

    async def leave(self, village: MsgHub, name: str, how: str) -> None:
        """A player is out of the game."""
        village.delete(self.players.pop(name))
        print(f"{name}, a {ROLES[name]}, {how}")
        await village.broadcast(tell(f"{name} {how}. {self.alive}"))

    async def day(self, village: MsgHub) -> None:
        """All speak, one after the other; then all vote at once."""
        village.set_auto_broadcast(True)
        for agent in self.players.values():
            said = await agent()
            print(f"  {said.name}: {said.get_text_content()}")
        village.set_auto_broadcast(False)
        await self.leave(village, await self.choose([*self.players.values()], "Who is a wolf?"), "was voted out")

    async def play(self) -> str:
        """Who has won."""
        async with MsgHub([*self.players.values()], announcement=tell(self.alive),
                          enable_auto_broadcast=False) as village:
            while True:
                await self.leave(village, await self.night(), "was hunted at night")
                if not self.winner:
                    await self.day(village)
                if self.winner:
                    return self.winner


def main() -> None:
    """Play a game."""
    parser = argparse.ArgumentParser(description="A game of werewolf.")
    parser.add_argument("--workers", action="store_true", help="run on workers (CALLSHEET_MODULES=examples)")
    with contextlib.nullcontext() if parser.parse_args().workers else callsheet.inline():
        print(f"Won by {asyncio.run(Game().play())}")


if __name__ == "__main__":
    # Workers find the script by the name of this module, which is "__main__" here.
    from examples import werewolf as module  # noqa: PLW0406 - the same file, by its name

    module.main()
