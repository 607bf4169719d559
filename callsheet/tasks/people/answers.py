"""Answering questions of jobs; from any process that has the same Redis."""

import json
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from pydantic import BaseModel

from callsheet.agents.terminal import fields_of
from callsheet.errors import AnswerRefused, PayloadTooLarge, UsageError
from callsheet.messages import Msg
from callsheet.settings import Settings
from callsheet.tasks.people import store
from callsheet.tasks.people.store import Question
from callsheet.tasks.results import ready, stored_results
from callsheet.tools.schemas import misfits

_MOST_PROBLEMS = 20  # that are told of one answer

Said = str | Msg | Sequence[Any] | None
Data = Mapping[str, Any] | BaseModel | None


def open_questions(settings: Settings) -> list[Question]:
    """What the jobs at this Redis wait for, the oldest question first."""
    return store.all_questions(settings, lambda jobs: _ended(jobs, settings))


def answer(job_id: str, label: str, said: Said, data: Data, question_id: str | None, settings: Settings) -> Question:
    """Answer a job's question; see Job.answer."""
    question = _asked(job_id, label, question_id, settings)
    given = _answer(said, data, question)
    if len(json.dumps(given)) > settings.payload_max:
        raise PayloadTooLarge(f"The answer to {question.agent} is over {settings.payload_max:,} bytes as JSON. Send a "
                              "reference (a path, an address) in its place, or raise CALLSHEET_PAYLOAD_MAX.")
    outcome = store.put_answer(question, given, settings)
    if outcome != "taken":
        raise AnswerRefused(why_not(job_id, label, question.id, settings))
    return question


def _asked(job_id: str, label: str, question_id: str | None, settings: Settings) -> Question:
    """The question that is meant."""
    found = [] if _ended([job_id], settings) else store.questions_of(job_id, settings)
    if question_id is not None:
        found = [question for question in found if question.id == question_id]
    if not found:
        raise AnswerRefused(why_not(job_id, label, question_id, settings))
    if len(found) > 1:
        several = ", ".join(f"{question.id} ({question.agent})" for question in found)
        raise AnswerRefused(f"The job {job_id} waits for several answers: {several}. Say which one: "
                            "job.answer(text, question=id), or callsheet answer --question ID.")
    return found[0]


def why_not(job_id: str, label: str, question_id: str | None, settings: Settings) -> str:
    """Why a job takes no answer."""
    if question_id is not None and (when := store.answered_at(job_id, question_id, settings)) is not None:
        return (f"The question {question_id} of the job {job_id} was answered at "
                f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(when))}. The first answer holds.")
    who = f"The job {job_id}" + (f" of {label}" if label and not label.startswith("job ") else "")
    if status := _ended([job_id], settings).get(job_id):
        return f"{who} waits for no answer: it has ended ({status})."
    what = "no such question is open" if question_id is not None else "it has asked nothing that is not answered"
    return f"{who} waits for no answer: {what}. `callsheet answer` lists what waits; job.questions() what the job asks."


def _ended(job_ids: Sequence[str], settings: Settings) -> dict[str, str]:
    """Of the jobs that have ended, their state."""
    return {job_id: str(meta["status"]) for job_id, meta in stored_results(job_ids, settings).items() if ready(meta)}


def _answer(said: Said, data: Data, question: Question) -> dict[str, Any]:
    """The answer as it is kept.

    Raises:
        AnswerRefused: it does not have the data that are asked for.
        UsageError: it is no answer.
    """
    if said is None and data is None:
        raise UsageError("job.answer() without an answer: give a text, a Msg or data=.")
    msg = said if isinstance(said, Msg) else Msg("user", "" if said is None else said, "user")
    if isinstance(data, BaseModel):
        data = data.model_dump(mode="json")
    given = dict(data) if data is not None else dict(msg.metadata)
    if question.schema is not None:
        given = given or _object(msg.get_text_content())
        if wrong := problems(given, question.schema):
            raise AnswerRefused(f"{question.agent} needs an answer with data of this form, and they do not fit: "
                                f"{'; '.join(wrong)}. Give them as job.answer(text, data={{...}}), or --data on the "
                                f"command line; the fields are {', '.join(fields_of(question.schema))}.")
    try:
        json.dumps(given)
    except (TypeError, ValueError) as exc:
        raise UsageError(f"The data of an answer are JSON data, and these are not: {exc}.") from None
    return {"content": msg.content, "data": given or None, "time": time.time()}


def _object(text: str | None) -> dict[str, Any]:
    """The JSON object that a text is, if it is one."""
    try:
        found = json.loads(text or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def problems(data: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """What is wrong with data by a JSON schema. What that does not tell, or not in time, the worker's class does."""
    try:
        return list(islice(misfits(schema, data), _MOST_PROBLEMS))
    except Exception:  # of any class, as the schema is none
        return []
