"""Questions that calls ask people, and where they and their answers are kept: in Redis, under the job's id."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from callsheet.resources.redis import Script, async_client, sync_client, translated
from callsheet.settings import Settings
from callsheet.settings.keys import Keys

_HERE = Path(__file__).parent
_ASK, _ANSWER, _WITHDRAW = (Script(_HERE / f"{name}.lua") for name in ("ask", "answer", "withdraw"))
_LOOKED_AT = 200  # jobs in one trip


@dataclass(frozen=True, kw_only=True)
class Question:
    """Something that an agent of a job asks a person.

    Attributes:
        id: of the question; the same if the call has to ask it again.
        job_id: of the job to answer: `Job.from_id(question.job_id).answer(text)`.
        agent: who asks, as `Class(name)`.
        name: of the person who is asked.
        prompt: the text to be answered, or "".
        schema: JSON schema of the data that the answer must have, or None.
        problem: what was wrong with the answer before, or "".
        asked: unix time.
        call: id of the call that waits.
        run: names its run.
    """

    id: str
    job_id: str
    agent: str
    name: str
    prompt: str = ""
    schema: dict[str, Any] | None = None
    problem: str = ""
    asked: float = 0.0
    call: str = ""
    run: str = ""

    def to_json(self) -> str:
        """It as JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Question | None":
        """What `to_json` wrote; what a newer version added is left out. None if it is no question."""
        try:
            return _adapter().validate_json(text)
        except ValueError:
            return None


@cache
def _adapter() -> TypeAdapter[Question]:
    return TypeAdapter(Question)


def _member(question: Question) -> str:
    return f"{question.id} {question.job_id}"


async def ask(question: Question, needed: Sequence[str], settings: Settings) -> dict[str, Any] | None:
    """The answer to a question, if it is there; else the question waits for one from now on."""
    keys, job = Keys(settings.key_prefix), question.job_id
    with translated(settings):
        text = await _ASK.arun(
            async_client(settings),
            [keys.questions(job), keys.answers(job), keys.waiting(), keys.events(job), keys.job(job),
             *needed],
            [question.id, question.to_json(), _member(question), question.asked, 1000 * settings.answers_expires,
             1000 * settings.events_expires, 1000 * settings.result_expires])
    return json.loads(text) if text else None


async def withdraw(question: Question, settings: Settings) -> None:
    """The run that asked it does not wait any more."""
    keys = Keys(settings.key_prefix)
    with translated(settings):
        await _WITHDRAW.arun(async_client(settings), [keys.questions(question.job_id), keys.waiting()],
                             [question.id, _member(question), question.run])


def put_answer(question: Question, answer: dict[str, Any], settings: Settings) -> str:
    """Answer a question: "taken", "answered" if it was before, "gone" if nobody asks it."""
    keys, job = Keys(settings.key_prefix), question.job_id
    with translated(settings):
        said = _ANSWER.run(sync_client(settings), [keys.questions(job), keys.answers(job), keys.waiting()],
                           [question.id, json.dumps(answer, ensure_ascii=False), _member(question),
                            1000 * settings.answers_expires, keys.answers_channel(job)])
    return str(said, "ascii")


def questions_of(job_id: str, settings: Settings) -> list[Question]:
    """What a job waits for, the oldest question first."""
    with translated(settings):
        texts = sync_client(settings).hvals(Keys(settings.key_prefix).questions(job_id))
    return sorted(filter(None, map(Question.from_json, texts)), key=lambda question: question.asked)


def answered_at(job_id: str, question_id: str, settings: Settings) -> float | None:
    """When a question was answered; None if it was not."""
    with translated(settings):
        text = sync_client(settings).hget(Keys(settings.key_prefix).answers(job_id), question_id)
    return float(json.loads(text)["time"]) if text else None


def all_questions(settings: Settings, ended: Any) -> list[Question]:
    """What all jobs wait for, the oldest question first.

    Args:
        settings: ours.
        ended: says which of some job ids are of jobs that have ended; questions of these are taken off the list.
    """
    keys, client = Keys(settings.key_prefix), sync_client(settings)
    found: list[Question] = []
    with translated(settings):
        members = [member.decode(errors="replace") for member in client.zrange(keys.waiting(), 0, -1)]
        for start in range(0, len(members), _LOOKED_AT):
            some = [member.partition(" ") for member in members[start:start + _LOOKED_AT]]
            over = ended(sorted({job for _, _, job in some}))
            with client.pipeline(transaction=False) as pipe:
                for question_id, _, job in some:
                    pipe.hget(keys.questions(job), question_id)
                texts = pipe.execute()
            for (question_id, _, job), text in zip(some, texts, strict=True):
                if text and job not in over and (question := Question.from_json(text)):
                    found.append(question)
                else:
                    _WITHDRAW.run(client, [keys.questions(job), keys.waiting()],
                                  [question_id, f"{question_id} {job}", ""])
    return sorted(found, key=lambda question: question.asked)
