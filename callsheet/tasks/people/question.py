"""Question: what a call asks a person."""

import json
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter


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
