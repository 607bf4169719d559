"""`callsheet answer`: what jobs ask people, and the answers."""

import asyncio
import json
import sys
import time
from dataclasses import asdict
from typing import Any

import click

from callsheet.agents.terminal import fields_of
from callsheet.cli.progress import clock
from callsheet.cli.show import meant
from callsheet.cli.terminal import say, say_json
from callsheet.errors import AnswerRefused
from callsheet.settings import get_settings
from callsheet.tasks.jobs import Job
from callsheet.tasks.people.answers import open_questions, why_not
from callsheet.tasks.people.here import put


@click.command(epilog="""\b
Examples:
  callsheet answer                                   what waits for an answer
  callsheet answer 3f2a "Tea, please."               the beginning of the job's id is enough
  callsheet answer 3f2a --data '{"street": "Main 1"}'
  callsheet answer 3f2a                              asks here, field by field where the answer has a form""")
@click.argument("job_id", metavar="[JOB]", required=False)
@click.argument("text", metavar="[TEXT]", required=False)
@click.option("--data", "data_text", metavar="JSON", help="Data of the form that is asked for.")
@click.option("--question", "question_id", metavar="ID", help="The question that is meant, where a job asks several.")
@click.option("--json", "as_json", is_flag=True, help="List as a JSON object a line.")
def answer(job_id: str | None, text: str | None, data_text: str | None, question_id: str | None,
           as_json: bool) -> None:
    """Answer what a job asks a person; without JOB, list what waits. The jobs are those at CALLSHEET_REDIS_URL."""
    if job_id is None:
        _listed(as_json)
        return
    data = _data(data_text)
    waiting = open_questions(get_settings())
    job_id = meant(job_id, (one.job_id for one in waiting), "jobs that wait")
    job = Job.from_id(job_id)
    if text is None and data is None:
        questions = [one for one in waiting if one.job_id == job_id and question_id in (None, one.id)]
        if not questions:
            raise AnswerRefused(why_not(job.id, "", question_id, get_settings()))
        if sys.stdin.isatty():
            for question in questions:
                asyncio.run(put(job, question))
            return
        text, question_id = sys.stdin.read().rstrip("\n"), questions[0].id
    question = job.answer(text, data, question=question_id)
    say(f"Answered {question.agent} of job {question.job_id}.")


def _listed(as_json: bool) -> None:
    found = open_questions(get_settings())
    for question in found:
        if as_json:
            say_json(asdict(question))
            continue
        say(f"{question.job_id}  {question.id}  {question.agent}  for {clock(time.time() - question.asked)}")
        for line in (question.prompt or "(no question in words)").splitlines():
            say(f"    {line}")
        if question.problem:
            say(f"    The answer before did not fit: {question.problem}")
        if question.schema:
            say(f"    with data: {', '.join(fields_of(question.schema))}")
    if not found and not as_json:
        say("Nothing waits for an answer.", err=True)


def _data(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        data = json.loads(text)
    except ValueError as exc:
        raise click.ClickException(f"--data is no JSON: {exc}.") from None
    if not isinstance(data, dict):
        raise click.ClickException('--data is no JSON object: {"field": value, ...} is needed.')
    return data
