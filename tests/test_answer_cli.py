"""`callsheet answer`, and a person at the terminal of a program that awaits a UserAgent."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from callsheet import FanoutPipeline, Msg, UserAgent
from callsheet.cli.main import main
from callsheet.tasks.people.answers import open_questions
from tests.agents.people import Address
from tests.cli_process import environment
from tests.services import ROOT, wait_for, worker
from tests.terminal import Terminal

ASK = Msg("alice", "Tea or coffee?\nWe have both.", "assistant")


@pytest.fixture
def answer(fleet):
    """The command, once nothing of other tests waits."""
    wait_for(lambda: not open_questions(fleet.settings), what="no questions")
    return lambda *args, **more: CliRunner().invoke(main, ["answer", *args], **more)


def asked(job, count=1):
    return wait_for(lambda: len(found := job.questions()) == count and found, what=f"{count} questions")


def test_what_waits_is_listed_and_answered(answer):
    assert "Nothing waits" in answer().stderr
    job, form = UserAgent("bob").submit(ASK), UserAgent("eve").submit(ASK, structured_model=Address)
    [question], [formed] = asked(job), asked(form)
    lines = answer().output.splitlines()
    assert next(line for line in lines if line.startswith(job.id)).startswith(
        f"{job.id}  {question.id}  UserAgent(bob)  for 0:0")
    assert "    Tea or coffee?" in lines and "    We have both." in lines and "    with data: street, floor" in lines
    told = {one["id"]: one for one in map(json.loads, answer("--json").output.splitlines())}
    assert told[question.id]["prompt"] == ASK.content and told[formed.id]["job_id"] == form.id
    done = answer(job.id[:13], "tea")
    assert (done.exit_code, done.output) == (0, f"Answered UserAgent(bob) of job {job.id}.\n")
    assert job.get(10).content == "tea"
    done = answer(form.id, "home", "--data", '{"street": 1}')
    assert done.exit_code == 1 and "street" in done.output and "--data" in done.output
    assert answer(form.id, "home", "--data", '{"street": "Main 1"}').exit_code == 0
    assert form.get(10).metadata == {"street": "Main 1", "floor": 0}


def test_wrong_answers_are_refused_in_words(answer):
    for args, text in ((("no-such", "tea"), "waits for no answer"), (("no-such",), "waits for no answer"),
                       (("x", "--data", "{"), "no JSON"), (("x", "--data", "[]"), "no JSON object")):
        done = answer(*args)
        assert done.exit_code == 1 and text in done.output, done.output
    job = FanoutPipeline([UserAgent("bob"), UserAgent("eve")]).submit(ASK)
    other = UserAgent("kim").submit(ASK, job_id=f"{job.id[:4]}-other")
    questions = {one.name: one for one in asked(job, 2)}
    asked(other)
    assert "2 jobs that wait begin with" in answer(job.id[:4], "tea").output
    assert "several answers" in answer(job.id, "tea").output
    assert answer(job.id, "tea", "--question", questions["eve"].id).exit_code == 0
    assert answer(job.id, input="from a file\n").exit_code == 0
    assert [msg.content for msg in job.get(10)] == ["from a file", "tea"]
    other.cancel()


@pytest.fixture
def terminal():
    started = []

    def start(*command, **env):
        started.append(Terminal(*command, **env))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_the_command_asks_field_by_field_at_a_terminal(fleet, terminal):
    job = UserAgent("bob").submit(ASK, structured_model=Address)
    asked(job)
    screen = terminal(sys.executable, "-m", "callsheet.cli.main", "answer", job.id,
                      CALLSHEET_REDIS_URL=fleet.server.url)
    screen.until("We have both.")
    screen.until("bob: ")
    screen.type("home")
    screen.until("street (With the number., string): ")
    screen.type("Main 1")
    screen.until("floor (integer, optional): ")
    screen.type("high")
    screen.until("floor: 'high' is not of type 'integer'")
    screen.until("floor (integer, optional): ")
    screen.type("3")
    reply = job.get(20)
    assert (reply.content, reply.metadata) == ("home", {"street": "Main 1", "floor": 3})


PROGRAM = """
import asyncio
from callsheet import Msg, UserAgent, SequentialPipeline
from tests.agents.basic import Echo
reply = asyncio.run(SequentialPipeline([Echo("e"), UserAgent("bob")])(Msg("alice", "Tea?", "assistant")))
print("it was", reply.content)
"""


def test_a_program_that_awaits_a_person_asks_at_its_terminal(fleet, terminal):
    screen = terminal(sys.executable, "-c", PROGRAM, CALLSHEET_REDIS_URL=fleet.server.url)
    assert "Tea?" in screen.until("bob: ")
    screen.type("green tea")
    screen.until("it was green tea")
    assert screen.process.wait(20) == 0


@pytest.mark.parametrize("place", [(), ("--workers",)])
def test_the_example_asks_until_it_hears_yes(redis_server, place):
    def run(**env):
        return subprocess.run([sys.executable, "-m", "examples.approval", *place], input="nicer\nyes\n", text=True,
                              capture_output=True, cwd=ROOT, env=environment(**env), timeout=60, check=False)

    if place:
        redis_server.client().flushall()
        with worker("callsheet.workers.io", redis_server.url, "-c", "2", env={"CALLSHEET_MODULES": "examples"}):
            done = run(CALLSHEET_REDIS_URL=redis_server.url)
    else:
        done = run()
    assert done.stdout.endswith("Sent: Dear Ann, would you like to come to dinner on Friday?\n"), done.stderr
    assert "clerk: Dear Ann, come to dinner." in done.stdout
