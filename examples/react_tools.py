"""A ReAct agent with two tools, which answers in words and as data. Without a key: the model follows a script.

    python -m examples.react_tools                     # in this process
    python -m examples.react_tools --workers           # on the workers of `callsheet up`

For a real model, put `OpenAIChatModel("gpt-4o-mini")` in place of the script, and set OPENAI_API_KEY.
"""

import argparse

from pydantic import BaseModel, Field

import callsheet
from callsheet import Msg, ReActAgent, Toolkit
from callsheet.formatters import OpenAIChatFormatter
from callsheet.testing import ScriptedModel, tool_call

PRICES = {"apple": 0.4, "pear": 0.6}


def price_of(item: str) -> float:
    """Look up a price.

    Args:
        item: in the singular, e.g. "apple".
    """
    return PRICES[item]


async def total(prices: list[float], pieces: list[int]) -> float:
    """Add up a bill.

    Args:
        prices: of one piece each, in euros.
        pieces: how many of each.
    """
    return round(sum(price * count for price, count in zip(prices, pieces, strict=True)), 2)


class Bill(BaseModel):
    """A bill."""

    amount: float = Field(description="The total.", ge=0)
    currency: str = "EUR"


SCRIPT = [
    [tool_call("price_of", item="apple"), tool_call("price_of", item="pear")],
    tool_call("total", prices=[0.4, 0.6], pieces=[3, 2]),
    [{"type": "text", "text": "That is 2.40 euros."}, tool_call("generate_response", amount=2.4)],
]


def clerk() -> ReActAgent:
    """The agent."""
    toolkit = Toolkit()
    toolkit.register_tool_function(price_of)
    toolkit.register_tool_function(total)
    return ReActAgent("clerk", "You sell fruit. Look prices up; never guess.", ScriptedModel(SCRIPT),
                      OpenAIChatFormatter(), toolkit, parallel_tool_calls=True)


def ask() -> Msg:
    """The agent's reply."""
    question = Msg("user", "What do three apples and two pears cost?", "user")
    reply: Msg = clerk().submit(question, structured_model=Bill).get(60)
    return reply


def main() -> None:
    """Ask, and print the answer."""
    parser = argparse.ArgumentParser(description="A ReAct agent with tools.")
    parser.add_argument("--workers", action="store_true", help="run on workers (CALLSHEET_MODULES=examples)")
    if parser.parse_args().workers:
        reply = ask()
    else:
        with callsheet.inline():
            reply = ask()
    print(reply.get_text_content())
    print(reply.metadata)


if __name__ == "__main__":
    # Workers find the tools by the name of this module, which is "__main__" here.
    from examples import react_tools  # noqa: PLW0406 - the same file, by its name

    react_tools.main()
