"""Two agents debate before a judge; each hears the others. Without a key: the models follow scripts.

    python -m examples.debate                     # in this process
    python -m examples.debate --workers           # on the workers of `callsheet up --modules examples`

For real models, put `OpenAIChatModel("gpt-4o-mini")` in place of the scripts, and set OPENAI_API_KEY.
"""

import argparse
import asyncio
import contextlib
from typing import Any, Literal

from pydantic import BaseModel, Field

import callsheet
from callsheet import Msg, MsgHub, ReActAgent
from callsheet.formatters import OpenAIMultiAgentFormatter
from callsheet.testing import ScriptedModel, tool_call

TOPIC = "City centres should be closed to private cars."
ROUNDS = 2
LINES = {
    "alice": ["The air is cleaner where cars are kept out, and the streets are quiet.",
              "Shops lose no one, bob: most of their customers come on foot already."],
    "bob": ["Shops lose the customers who come from afar, alice.",
            "Quiet streets are no use to those who cannot walk far."],
}


class Verdict(BaseModel):
    """The judge's."""

    winner: Literal["alice", "bob"]
    why: str = Field(description="In one sentence.")


def line(messages: list[dict[str, Any]], **_: Any) -> str:
    """What a debater says next: their next line that was not said yet."""
    text = str(messages)
    name = "alice" if "You are alice" in text else "bob"
    return next(line for line in LINES[name] if line not in text)


def ruling(messages: list[dict[str, Any]], **_: Any) -> Any:
    """The judge's ruling: for who took up more of what the other said."""
    text = str(messages)
    taken_up = {name: sum(other in line for line in LINES[name] if line in text)
                for name, other in (("alice", "bob"), ("bob", "alice"))}
    winner = max(taken_up, key=lambda name: (taken_up[name], name == "alice"))
    why = f"{winner.title()} answered what was said."
    return [{"type": "text", "text": why}, tool_call("generate_response", winner=winner, why=why)]


def debater(name: str, side: str) -> ReActAgent:
    """A debater."""
    return quiet(ReActAgent(name, f"You are {name}, and argue {side} the motion in one sentence at a time.",
                            ScriptedModel([line], then="last"), OpenAIMultiAgentFormatter()))


def quiet(agent: ReActAgent) -> ReActAgent:
    """The agent, which prints nothing itself: on workers it would print there."""
    agent.set_console_output_enabled(False)
    return agent


async def debate() -> Verdict:
    """The debate, printed as it goes."""
    alice, bob = debater("alice", "for"), debater("bob", "against")
    judge = quiet(ReActAgent("judge", "You judge a debate.", ScriptedModel([ruling], then="last"),
                             OpenAIMultiAgentFormatter()))
    motion = Msg("host", f"The motion: {TOPIC}", "user")
    async with MsgHub([alice, bob, judge], announcement=motion):
        for _ in range(ROUNDS):
            for speaker in (alice, bob):
                said = await speaker()
                print(f"{said.name}: {said.get_text_content()}")
    # The judge has left the hub with the others, and still hears what was said in it.
    ruled = await judge(Msg("host", "Who has won?", "user"), structured_model=Verdict)
    return Verdict.model_validate(ruled.metadata)


def main() -> None:
    """Debate, and print the verdict."""
    parser = argparse.ArgumentParser(description="A debate before a judge.")
    parser.add_argument("--workers", action="store_true", help="run on workers (CALLSHEET_MODULES=examples)")
    with contextlib.nullcontext() if parser.parse_args().workers else callsheet.inline():
        verdict = asyncio.run(debate())
    print(f"The judge is for {verdict.winner}: {verdict.why}")


if __name__ == "__main__":
    # Workers find the scripts by the name of this module, which is "__main__" here.
    from examples import debate as module  # noqa: PLW0406 - the same file, by its name

    module.main()
