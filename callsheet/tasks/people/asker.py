"""How a call on a worker asks a person, and waits without a slot."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from celery._state import get_current_task
from pydantic import BaseModel

from callsheet.agents import AgentBase, UserInputData
from callsheet.agents.asking import question_of
from callsheet.agents.terminal import Unfit, checked
from callsheet.errors import JobCancelled
from callsheet.messages import Msg
from callsheet.resources.loops import on_lasting_loop
from callsheet.resources.payloads import REF
from callsheet.settings import Settings
from callsheet.settings.keys import Keys
from callsheet.tasks.bridge import parked
from callsheet.tasks.loop import on_process_loop
from callsheet.tasks.patience import limits_held, patient
from callsheet.tasks.people import store
from callsheet.tasks.people.store import Question
from callsheet.tasks.prints import EventWriter
from callsheet.tasks.waiter import waiter

INPUT_REQUIRED = "input_required"
_LOOK = 60.0  # seconds between two looks at most: what is kept for the job is kept on, and what was missed is found
_OF_A_CHORD = (".j", ".t", ".s", ".d", "")  # suffixes of Celery's keys
_leaving: list[Callable[[], bool]] = [lambda: False]


def provide_leaving(leaving: Callable[[], bool]) -> None:
    """Say how a call knows that it is broken off because its worker ends; called once by the layer of the workers."""
    _leaving[0] = leaving


class JobAsker:
    """Asks by way of the job's events."""

    def __init__(self, writer: EventWriter) -> None:
        self._scope, self._writer, self._settings = writer.scope, writer, writer.settings

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Without a slot, and without the time limits that the user did not set for the call."""
        with limits_held():
            async with parked():
                yield

    async def ask(self, agent: AgentBase, msg: Msg | list[Msg] | None,
                  structured_model: type[BaseModel] | None) -> UserInputData:
        """The answer, which fits the form.

        Raises:
            JobCancelled: the job has ended meanwhile.
        """
        asked, problem = question_of(msg), ""
        while True:
            question = Question(
                id=self._scope.ordinal(f"question {agent.label}"), job_id=self._scope.job, agent=agent.label,
                name=str(getattr(agent, "name", "")), prompt=(asked.get_text_content() if asked else None) or "",
                schema=structured_model.model_json_schema() if structured_model else None, problem=problem,
                asked=time.time(), call=self._scope.call, run=self._scope.run)
            shown = asked or Msg(question.name, "", "system")
            answer = await self._answer(agent, question, shown)
            try:
                data = checked(structured_model, answer["data"] or {}) if structured_model else answer["data"]
                return UserInputData(Msg("user", answer["content"], "user").get_content_blocks(), data)
            except Unfit as exc:
                problem = str(exc)

    async def _answer(self, agent: AgentBase, question: Question, shown: Msg) -> dict[str, Any]:
        settings, needed = self._settings, _needed(self._settings)
        try:
            answer = await patient(lambda: on_process_loop(lambda: _asked(question, needed, settings)))
            if answer is not None:
                return answer
            self._writer.add(agent, shown, True, type=INPUT_REQUIRED, question=question.to_json())
            await self._writer.flush()
            async with self.waiting():
                return await on_process_loop(lambda: _answered(question, needed, settings))
        except BaseException:
            if not _leaving[0]():  # else the next run asks the same, and finds an answer that comes meanwhile
                on_lasting_loop(lambda: _withdrawn(question, settings))
            raise


def _needed(settings: Settings) -> list[str]:
    """What Redis holds for the rest of the job, and would drop while one of its calls waits for a person.

    Keys of the large payloads that the current task and the steps behind it refer to, and of the chords that its
    result, or theirs, is a part of.
    """
    task = get_current_task()
    request = task.request_stack.top if task is not None else None
    if request is None:
        return []
    keys, found = Keys(settings.key_prefix), []
    message = [request.args, request.kwargs, request.chain, request.chord, {"group_id": request.group}]
    for kind, value in _named(message):
        if kind == REF:
            found.append(keys.payload(value))
        else:
            found += [_text(task.backend.get_key_for_group(value, suffix)) for suffix in _OF_A_CHORD]
    return list(dict.fromkeys(found))


def _named(data: Any) -> Iterator[tuple[str, str]]:
    """References to payloads, and ids of groups, anywhere in messages."""
    left = [data]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            for kind in (REF, "group_id"):
                if isinstance(item.get(kind), str):
                    yield kind, item[kind]
            left += item.values()
        elif isinstance(item, (list, tuple)):
            left += item


def _text(key: str | bytes) -> str:
    return key.decode() if isinstance(key, bytes) else key


async def _asked(question: Question, needed: Sequence[str], settings: Settings) -> dict[str, Any] | None:
    """Ask, to the end: cut off, it might come to Redis after the question was withdrawn, and stay."""
    asking = asyncio.ensure_future(store.ask(question, needed, settings))
    try:
        return await asyncio.shield(asking)
    except asyncio.CancelledError:
        await asyncio.gather(asking, return_exceptions=True)
        raise


async def _answered(question: Question, needed: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Wait for the answer; on the process's loop."""
    changed = asyncio.Event()
    channel = Keys(settings.key_prefix).answers_channel(question.job_id)
    subscriptions = waiter(settings).subscriptions
    look = min(_LOOK, settings.result_expires / 3, settings.events_expires / 3)

    def heard(_: object) -> None:
        changed.set()

    subscriptions.add(channel, heard)
    ended = asyncio.ensure_future(waiter(settings).wait(question.job_id))
    ended.add_done_callback(heard)
    try:
        while True:
            changed.clear()
            answer = await patient(lambda: _asked(question, needed, settings))
            if answer is not None:
                return answer
            if ended.done() and not ended.cancelled() and ended.exception() is None:
                raise JobCancelled(f"{question.agent} waits for an answer, and its job {question.job_id} has ended.")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(look):
                    await changed.wait()
    finally:
        ended.cancel()
        subscriptions.remove(channel, heard)


async def _withdrawn(question: Question, settings: Settings) -> None:
    with contextlib.suppress(Exception):  # whoever lists the questions of a job that has ended drops them
        await store.withdraw(question, settings)
