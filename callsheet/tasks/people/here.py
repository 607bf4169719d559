"""Answers from the terminal of a program that waits for a call on a worker."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from callsheet.agents import AgentBase
from callsheet.agents.terminal import Unfit, filled_in, line, tell
from callsheet.errors import AnswerRefused, JobError
from callsheet.resources.context import NO_CALL, current_call
from callsheet.tasks.people.answers import problems
from callsheet.tasks.people.store import Question


@asynccontextmanager
async def asking_here(job: Any, agents: Sequence[AgentBase]) -> AsyncIterator[None]:
    """Put what the job asks a person to the one at this terminal, if there is one, while the block waits for the job.

    In a program only: a call of an agent that waits for another leaves that to whoever waits for it.
    """
    asks = any(agent.asks_people for agent in agents)
    if not asks or current_call() is not NO_CALL or not sys.stdin or not sys.stdin.isatty():
        yield
        return
    asking = asyncio.create_task(_ask(job))
    try:
        yield
    finally:
        asking.cancel()
        await asyncio.wait({asking})


async def _ask(job: Any) -> None:
    done: set[str] = set()
    try:
        async for event in job.stream():
            if event.question is not None and event.question.id not in done:
                done.add(event.question.id)
                await put(job, event.question)
    except JobError:
        return  # who waits for the job is told


async def put(job: Any, question: Question, told: str | None = None) -> None:
    """Ask the person at this terminal, and answer the question."""
    if question.prompt:
        tell(question.prompt)
    if question.problem:
        tell(f"({question.problem})")
    text = await line(f"{question.name}: ") if told is None else told
    data = None if question.schema is None else await filled_in(question.schema, fitting(question.schema))
    try:
        await asyncio.to_thread(job.answer, text, data, question=question.id)
    except AnswerRefused as exc:
        tell(exc.message)


def fitting(schema: dict[str, Any]) -> Any:
    """Checks data by a JSON schema; see Check."""
    def check(given: dict[str, Any]) -> dict[str, Any]:
        wrong = problems(given, schema)
        if wrong:
            raise Unfit(dict((part.partition(": ")[::2] if ": " in part else ("", part)) for part in wrong))
        return given

    return check
