"""UserAgent: a person's answers, on real workers that may die, and inline."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import callsheet
from callsheet import (
    AgentFailed,
    FanoutPipeline,
    Job,
    JobCancelled,
    Msg,
    MsgHub,
    ResultTimeout,
    SequentialPipeline,
    UserAgent,
)
from callsheet.agents import TerminalUserInput
from callsheet.agents.terminal import _about, fields_of
from callsheet.errors import AgentTimeout, AnswerRefused, CannotTravel, PayloadTooLarge, UsageError
from callsheet.settings import get_settings, use_settings
from callsheet.settings.keys import Keys
from callsheet.tasks.app import current_app
from callsheet.tasks.loop import wait_on_process_loop
from callsheet.tasks.people import store
from callsheet.tasks.people.answers import open_questions, problems
from callsheet.tasks.people.asker import JobAsker
from callsheet.tasks.people.store import Question
from callsheet.tasks.prints import EventWriter
from callsheet.tasks.scope import Scope
from tests.agents.basic import Echo
from tests.agents.gated import Unyielding
from tests.agents.hubs import Talker
from tests.agents.people import Address, Counts, Fails, Interviews, Parrot, Remembers, gives_address, says_yes
from tests.fleet import client_settings
from tests.office import say
from tests.services import ROOT, wait_for

ASK = Msg("alice", "Tea or coffee?", "assistant")


def asked(job, count=1):
    """Wait for so many open questions."""
    return wait_for(lambda: len(found := job.questions()) == count and found, 20, f"{count} questions of {job}")


def active(worker, settings):
    found = current_app(settings).control.inspect([worker.name], timeout=5, limit=1).stats()
    return found[worker.name]["pool"]


# Asking and answering ----------------------------------------------------------------------------------


def test_a_question_is_an_event_and_the_answer_is_the_reply(fleet):
    job = SequentialPipeline([UserAgent("bob"), Echo("e")]).submit(ASK)
    events = []
    for event in job.stream():
        events.append(event)
        if event.type == "input_required":
            assert event.question == asked(job)[0]
            assert event.question.prompt == event.msg.content == ASK.content
            taken = job.answer("tea")
            assert taken.id == event.question.id
    assert [(event.type, event.msg.content, event.last) for event in events[:2]] == [
        ("input_required", ASK.content, True), ("message", "tea", True)]
    assert events[0].question.agent == "UserAgent(bob)" and events[0].question.job_id == job.id
    assert job.get(5).get_text_content().endswith("tea")
    assert (job.questions(), job.done) == ([], True)


def test_who_waits_too_short_is_told_that_a_person_is_asked(fleet):
    job = UserAgent("bob").submit(ASK)
    asked(job)
    told = rf"waits for a person's answer to UserAgent\(bob\).*callsheet answer {job.id}"
    with pytest.raises(ResultTimeout, match=told):
        job.get(timeout=0.1)
    job.answer("tea")
    assert job.get(10).content == "tea"


def test_what_a_user_agent_gives(fleet):
    blocks = [{"type": "text", "text": "see"}, {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}]
    job = UserAgent("bob").submit(ASK)
    asked(job)
    job.answer(Msg("whoever", blocks, "assistant", {"mood": "good"}))
    reply = job.get(10)
    assert (reply.name, reply.role, reply.content, reply.metadata) == ("bob", "user", blocks, {"mood": "good"})


def test_a_job_without_a_question_takes_no_answer_and_says_why(fleet):
    job = UserAgent("bob").submit(ASK)
    [question] = asked(job)
    job.answer("tea")
    with pytest.raises(AnswerRefused, match=r"waits for no answer: it has|was answered"):
        job.answer("coffee")
    with pytest.raises(AnswerRefused, match=r"was answered at 20.*first answer holds"):
        job.answer("coffee", question=question.id)
    assert job.get(10).content == "tea"
    with pytest.raises(AnswerRefused, match=r"of UserAgent\(bob\) waits for no answer: it has ended \(SUCCESS\)"):
        job.answer("late")
    with pytest.raises(AnswerRefused, match=r"asked nothing that is not answered.*callsheet answer"):
        Job.from_id("no-such-job").answer("x")
    waiting = UserAgent("bob").submit(ASK)
    asked(waiting)
    with pytest.raises(AnswerRefused, match="no such question is open"):
        waiting.answer("x", question="123")
    with pytest.raises(UsageError, match="without an answer"):
        waiting.answer()
    with pytest.raises(UsageError, match="are not"):
        waiting.answer("x", {"a": object()})
    waiting.cancel()


def test_several_questions_at_once_are_told_apart(fleet):
    job = FanoutPipeline([UserAgent("bob"), UserAgent("eve")]).submit(ASK)
    questions = {question.name: question for question in asked(job, 2)}
    with pytest.raises(AnswerRefused, match=r"several answers: .*UserAgent\(bob\).*question=id"):
        job.answer("tea")
    job.answer("coffee", question=questions["eve"].id)
    job.answer("tea")  # only one is left
    assert [msg.content for msg in job.get(10)] == ["tea", "coffee"]


def test_of_many_answers_at_once_one_holds(fleet):
    job = UserAgent("bob").submit(ASK)
    [question] = asked(job)
    outcomes = []

    def answer(number):
        try:
            job.answer(f"answer {number}", question=question.id)
            outcomes.append(number)
        except AnswerRefused:
            outcomes.append(None)

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [number for number in outcomes if number is not None]
    assert job.get(10).content == f"answer {winner}"


def test_an_answer_has_the_form_that_is_asked_for(fleet):
    job = UserAgent("bob").submit(ASK, structured_model=Address)
    [question] = asked(job)
    assert question.schema["required"] == ["street"]
    for wrong in (("here",), ("here", {"street": 7}), ("here", {"floor": 1}), ('{"floor": 2}',)):
        with pytest.raises(AnswerRefused, match=r"do not fit: .*street.*the fields are street, floor"):
            job.answer(*wrong)
    assert asked(job) == [question]
    # What only the class knows, the worker finds: it asks again, and says what was wrong.
    job.answer("here", {"street": "Main"})
    again = wait_for(lambda: [one for one in job.questions() if one.problem], what="the question again")
    assert again[0].id != question.id and again[0].problem == "street: a street without a number"
    job.answer(Msg("u", "here", "user", {"street": "Main 1"}))
    reply = job.get(10)
    assert (reply.content, reply.metadata) == ("here", {"street": "Main 1", "floor": 0})
    job = UserAgent("bob").submit(ASK, structured_model=Address)
    asked(job)
    job.answer('{"street": "Main 2", "floor": 3}')
    assert job.get(10).metadata == {"street": "Main 2", "floor": 3}
    job = UserAgent("bob").submit(ASK, structured_model=Address)
    asked(job)
    job.answer("x", Address(street="Main 3"))
    assert job.get(10).metadata == {"street": "Main 3", "floor": 0}


DOUBLING = {"$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)} | {"d40": {}},
            "properties": {"a": {"$ref": "#/$defs/d0"}}}


@pytest.mark.parametrize("schema", [
    DOUBLING, {"$ref": "#"}, {"properties": {"a": {"$ref": "http://127.0.0.1:9/x"}}},
    {"properties": [1], "required": 3},
    {"properties": {"a": {"pattern": "(a+)+$"}}}, {"properties": {"a": 5}}, {"$defs": [], "properties": {"a": True}},
])
def test_a_form_from_elsewhere_costs_a_person_no_time_and_fetches_nothing(schema):
    began = time.monotonic()
    assert isinstance(problems({"a": "a" * 40 + "!"}, schema), list)
    assert all(isinstance(_about(field, False), str) for field in fields_of(schema).values())
    assert time.monotonic() - began < 3


def test_fields_are_told_by_what_their_references_say():
    tea = {"$defs": {"Tea": {"enum": ["green", "black"], "type": "string"}},
           "properties": {"tea": {"$ref": "#/$defs/Tea", "description": "Which."}, "cups": {"type": "integer"}}}
    assert {name: _about(field, True) for name, field in fields_of(tea).items()} == {
        "tea": " (Which., green|black)", "cups": " (integer)"}
    assert problems({"tea": "mint"}, tea) and not problems({"tea": "green"}, tea)


def test_what_is_no_question_is_none_and_is_not_listed(fleet):
    good = Question(id="q", job_id="j", agent="A(a)", name="n", asked=1.0)
    assert Question.from_json(good.to_json()) == good
    assert Question.from_json(good.to_json().replace("}", ', "newer": 1}')) == good
    keys = Keys("callsheet:")
    for number, text in enumerate(["", "x", "[]", "{}", "[" * 100_000, good.to_json().replace('"n"', "{}"),
                                   good.to_json().replace("null", "[]"), good.to_json().replace("1.0", '"soon"')]):
        assert Question.from_json(text) is None
        fleet.redis.hset(keys.questions("j"), f"q{number}", text)
        fleet.redis.zadd(keys.waiting(), {f"q{number} j": 1})
    assert Job.from_id("j").questions() == []
    with use_settings(client_settings(fleet.server)):
        assert not [one for one in open_questions(get_settings()) if one.job_id == "j"]
    fleet.redis.delete(keys.questions("j"))


def test_an_answer_is_bounded(fleet):
    with use_settings(client_settings(fleet.server, payload_max=2000)):
        job = UserAgent("bob").submit(ASK)
        asked(job)
        with pytest.raises(PayloadTooLarge, match=r"over 2,000 bytes.*CALLSHEET_PAYLOAD_MAX"):
            job.answer("x" * 3000)
        job.answer("short")
        job.get(10)


def test_an_agent_asks_by_a_plain_call_of_reply_again_and_again(fleet):
    job = Interviews("i", 3).submit()
    prompts = []
    for event in job.stream():
        if event.question:
            prompts.append(event.question.prompt)
            job.answer(f"answer {len(prompts)}")
    assert prompts == ["question 0", "question 1", "question 2"]
    assert job.get(5).content == "answer 1, answer 2, answer 3"


def test_on_a_cpu_worker_it_asks_as_well(fleet):
    job = UserAgent("bob").submit(ASK, queue="cpu")
    asked(job)
    job.answer("tea")
    assert job.get(10).content == "tea"


def test_a_user_that_a_reply_awaits_asks_in_the_replys_job(fleet):
    job = Interviews("i", 2, awaits=True).submit()
    for event in job.stream():
        if event.question:
            assert event.question.call != job.id and event.question.job_id == job.id
            job.answer(f"to {event.question.prompt}")
    assert job.get(5).content == "to question 0, to question 1"


def test_an_agent_with_state_keeps_its_turn_while_a_person_thinks(fleet):
    agent = Remembers("r").with_id(fleet.key("r"))
    first, second = agent.submit(say("one")), agent.submit(say("two"))
    asked(first)
    wait_for(lambda: fleet.redis.zcard(f"callsheet:line:{agent.id}") == 1, what="the second in line")
    assert second.questions() == []
    first.answer("1")
    assert first.get(10).content == "one 1"
    asked(second)
    second.answer("2")
    assert second.get(10).content == "one 1 two 2"


def test_what_a_person_in_a_hub_says_the_others_hear(at):
    async def main():
        alice, bob = Talker("alice"), UserAgent("bob")
        async with MsgHub([alice, bob]):
            job = bob.submit(ASK)
            await asyncio.to_thread(asked, job)
            await asyncio.to_thread(job.answer, "I say tea")
            await job
            return (await alice(say("", all=True))).content

    assert "I say tea" in asyncio.run(main())


# Callbacks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inline", [False, True])
def test_input_methods_answer_where_the_agent_runs(fleet, inline):
    def results():
        overridden = UserAgent("bob", input=says_yes)
        overridden.override_instance_input_method(Parrot("hi"))
        structured = UserAgent("bob", input=gives_address).submit(ASK, structured_model=Address).get(10)
        return [UserAgent("bob", input=says_yes).submit(ASK).get(10).content,
                UserAgent("bob", input=Parrot("hello")).submit(ASK).get(10).content,
                overridden.submit(ASK).get(10).content, (structured.content, structured.metadata)]

    expected = ["bob: yes to Tea or coffee?", "hello bob", "hi bob", ("here", {"street": "Main 1", "floor": 0})]
    if inline:
        with callsheet.inline():
            assert results() == expected
    else:
        assert results() == expected


def test_an_input_method_of_a_class_holds_for_its_agents_and_travels(fleet):
    class Local(UserAgent):
        pass

    def here():
        return "here"

    def seven():
        return 7

    UserAgent.override_class_input_method(Parrot("all"))
    try:
        assert UserAgent("bob").submit(ASK).get(10).content == "all bob"
        assert UserAgent("bob", input=says_yes).submit(ASK).get(10).content == "bob: yes to Tea or coffee?"
    finally:
        UserAgent._class_input = None
    Local.override_class_input_method(here)
    with callsheet.inline():
        assert Local("x").submit(ASK).get().content == "here"
    with pytest.raises(CannotTravel, match="lambda"):
        UserAgent("bob", input=lambda: "no").submit(ASK)
    with pytest.raises(UsageError, match="no input method"):
        UserAgent("bob", input="text")
    with callsheet.inline(), pytest.raises(AgentFailed, match="gave a int: a text, a Msg"):
        UserAgent("bob", input=seven).submit(ASK).get()


def python(code, text, **env):
    return subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, cwd=ROOT,
                          timeout=60, env={**os.environ, **env}, check=False)


INLINE = """
import asyncio, callsheet
from callsheet import Msg, UserAgent
from tests.agents.hubs import Talker
from tests.agents.people import Address
with callsheet.inline():
    print(UserAgent("bob").submit(Msg("alice", "Tea?", "assistant")).get().content)
    reply = UserAgent("bob").submit(Msg("alice", "Where?", "assistant"), structured_model=Address).get()
    print(reply.content, reply.metadata)
print(asyncio.run(UserAgent("bob").reply()).content)
"""


def test_inline_it_reads_standard_input():
    done = python(INLINE, "tea\nhome\nMain\n\nMain 5\nagain\n")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "alice: Tea?"
    assert lines[1] == "User Input: tea"
    assert "home {'street': 'Main 5', 'floor': 0}" in done.stdout
    assert "street: a street without a number" in done.stdout
    assert lines[-1] == "again"
    assert "With the number., string" in done.stdout and "integer, optional" in done.stdout


def test_inline_without_standard_input_says_what_to_do():
    done = python(INLINE, "")
    assert "UserAgent(name, input=function)" in done.stderr
    with callsheet.inline():
        job = UserAgent("bob", input=Parrot("x")).submit(ASK)
        assert job.questions() == []
        with pytest.raises(AnswerRefused, match="runs inline"):
            job.answer("x")


# What it holds while it waits --------------------------------------------------------------------------


def test_it_waits_without_a_slot_and_without_the_workers_time_limits(office):
    worker = office.hire("io", "-c", "1", "--soft-time-limit", "1", "--time-limit", "2")
    settings = callsheet.get_settings()
    jobs = [UserAgent("bob").submit(ASK), Interviews("i", 1, awaits=True).submit(), Interviews("j", 1).submit()]
    goes_on = Interviews("k", 2, "never").submit()
    for job in (*jobs, goes_on):
        asked(job)
    assert (active(worker, settings)["running"], active(worker, settings)["parked"]) == (0, 5)
    assert Echo("e").submit(ASK).get(10)
    late = Unyielding().submit(ASK)
    with pytest.raises(AgentTimeout):
        late.get(20)  # both limits have struck a call that began after they were asked
    for job in jobs:
        job.answer("tea")
    assert [job.get(10).content for job in jobs] == ["tea"] * 3
    goes_on.answer("tea")  # what it does then is under the limits again
    with pytest.raises(AgentTimeout):
        goes_on.get(15)


def test_a_timeout_that_the_user_set_holds_for_a_wait_too(fleet):
    job = UserAgent("bob").submit(ASK, timeout=0.5)
    with pytest.raises(AgentTimeout):
        job.get(10)
    wait_for(lambda: not [one for one in open_questions(fleet.settings) if one.job_id == job.id], what="no question")


def test_as_many_wait_without_a_slot_as_may_be_parked(office):
    worker = office.hire("io", "-c", "2", CALLSHEET_MAX_PARKED="1")
    first = UserAgent("bob").submit(ASK)
    asked(first)
    second = UserAgent("bob").submit(ASK)
    asked(second)
    worker.wait_log("Raise CALLSHEET_MAX_PARKED")
    assert Echo("e").submit(ASK).get(10)
    for job in (first, second):
        job.answer("tea")
        assert job.get(10).content == "tea"


# The end of a wait -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [UserAgent, Interviews])
def test_a_job_that_is_cancelled_asks_nothing_any_more(fleet, kind):
    job = kind("bob").submit(ASK)
    [question] = asked(job)
    job.cancel()
    with pytest.raises(JobCancelled):
        job.get(10)
    with pytest.raises(AnswerRefused, match=r"it has ended \(REVOKED\)"):
        job.answer("tea")
    wait_for(lambda: not fleet.redis.exists(f"callsheet:questions:{job.id}"), what="the question to go")
    assert question.id not in {one.id for one in open_questions(fleet.settings)}


def test_a_call_that_is_cancelled_as_it_asks_leaves_no_question(fleet, monkeypatch):
    """The question stands in Redis, and the call has not heard of that yet."""
    ask = store.ask

    async def main():
        asks, goes_on = asyncio.Event(), asyncio.Event()

        async def slow(*args):
            answer = await ask(*args)
            asks.set()
            await goes_on.wait()
            return answer

        monkeypatch.setattr(store, "ask", slow)
        writer = EventWriter(Scope(fleet.key(), "call", "", False), fleet.settings)
        asking = asyncio.create_task(JobAsker(writer).ask(UserAgent("bob"), ASK, None))
        await asks.wait()
        assert fleet.redis.exists(f"callsheet:questions:{writer.scope.job}")
        asking.cancel()
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await asking
        return writer.scope.job

    job = wait_on_process_loop(main, 30)
    wait_for(lambda: not fleet.redis.exists(f"callsheet:questions:{job}"), what="the question to go")


def test_an_interrupt_ends_the_wait(fleet):
    job, outer = UserAgent("bob").submit(ASK), Interviews("i", 1).submit()
    for one in (job, outer):
        asked(one)
        assert one.interrupt()
    assert job.get(10).metadata == {"_is_interrupted": True}
    assert outer.get(10).content == "interrupted"
    for one in (job, outer):
        with pytest.raises(AnswerRefused):
            one.answer("tea")


# Processes that die ------------------------------------------------------------------------------------


def test_a_question_survives_the_death_of_its_worker_and_its_stop(office):
    first = office.hire("io", "-c", "2")
    job = UserAgent("bob").submit(ASK)
    [question] = asked(job)
    first.kill()
    assert [one.id for one in open_questions(callsheet.get_settings())] == [question.id]
    second = office.hire("io", "-c", "2")
    again = wait_for(lambda: [one for one in job.questions() if one.run != question.run], 30, "the question again")
    assert [one.id for one in again] == [question.id]
    wait_for(lambda: office.redis.xlen(f"callsheet:events:{job.id}") == 2, what="its event")
    second.send_signal(signal.SIGQUIT)
    second.process.wait(30)
    assert [one.id for one in job.questions()] == [question.id], "it stays open while no worker lives"
    job.answer("tea")
    office.hire("io", "-c", "2")
    assert job.get(30).content == "tea"
    events = list(job.stream())
    assert [event.question.id for event in events if event.question] == [question.id] * 2
    assert [event.again for event in events] == [False, True, True]


def test_an_answer_that_comes_while_no_worker_lives_is_found_and_nothing_is_asked_twice(office):
    first = office.hire("io", "-c", "8")
    jobs = [Interviews("i", 2, "gate", "notes", awaits).submit() for awaits in (False, True)]
    for job in jobs:
        asked(job)
        job.answer("one")
    office.wait_notes("notes", 4)  # both have heard the first answer, and wait at the gate
    first.kill()
    office.redis.set("gate", 1)
    second = office.hire("io", "-c", "8")
    for job in jobs:
        wait_for(lambda job=job: [one for one in job.questions() if one.prompt == "question 1"], 30, "the second one")
    second.kill()
    for job in jobs:
        job.answer("two")
    office.hire("io", "-c", "8")
    for job in jobs:
        assert job.get(40).content == "one, two"
        prompts = [event.question.prompt for event in job.stream() if event.question]
        assert prompts.count("question 0") == 1
        assert set(prompts) <= {"question 0", "question 1"}


def test_a_call_that_is_tried_again_is_not_asked_again(fleet):
    job = Fails(fleet.key()).submit(ASK, retries=1)
    asked(job)
    job.answer("tea")
    assert job.get(15).content == "tea"
    assert len([event for event in job.stream() if event.question]) == 1


def test_a_job_of_the_same_id_asks_anew(fleet):
    for number in range(2):
        job = UserAgent("bob").submit(ASK, job_id="daily")
        asked(job)
        job.answer(str(number))
        assert job.get(10).content == str(number)
        fleet.redis.delete("celery-task-meta-daily")


def test_the_client_may_die_and_another_process_answers(fleet):
    code = ("from callsheet import Msg, UserAgent\n"
            "job = UserAgent('bob').submit(Msg('alice', 'Tea?', 'assistant'))\nprint(job.id, flush=True)\njob.get()")
    env = {**os.environ, "CALLSHEET_REDIS_URL": fleet.server.url}
    client = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    job = Job.from_id(client.stdout.readline().strip())
    asked(job)
    client.send_signal(signal.SIGKILL)
    client.communicate()
    done = python(f"from callsheet import Job\njob = Job.from_id({job.id!r})\njob.answer('tea')\n"
                  "print(job.get(20).content)", "", CALLSHEET_REDIS_URL=fleet.server.url)
    assert done.stdout == "tea\n", done.stderr


def test_a_redis_that_loses_the_question_gets_it_again(fleet):
    job = UserAgent("bob").submit(ASK)
    asked(job)
    fleet.redis.delete(f"callsheet:questions:{job.id}")
    fleet.redis.client_kill_filter(_type="pubsub")
    asked(job)
    job.answer("tea")
    assert job.get(20).content == "tea"


def test_a_wait_may_be_longer_than_results_are_kept(office):
    with use_settings(client_settings(office.server, result_expires=3)):
        office.hire("io", "-c", "4", CALLSHEET_RESULT_EXPIRES="3")
        long = Msg("alice", "x" * 100_000, "assistant")
        inner = FanoutPipeline([UserAgent("bob"), Echo("e")])
        job = SequentialPipeline([FanoutPipeline([inner, Echo("f")], reduce=Counts("c"))]).submit(long)
        asked(job)
        late = Echo("late").submit(ASK)
        assert late.get(10)

        def expired() -> bool:
            assert job.questions(), "it waits"
            return not office.redis.exists(f"celery-task-meta-{late.id}")

        wait_for(expired, what="results that are younger to be gone", every=0.5)
        job.answer("tea")
        assert job.get(10).content == "3 messages, the first 3"


def test_what_nobody_answers_is_not_listed_for_ever(fleet):
    job = UserAgent("bob").submit(ASK)
    [question] = asked(job)
    assert question in open_questions(fleet.settings)
    key = f"callsheet:questions:{job.id}"
    assert 0 < fleet.redis.ttl(key) <= fleet.settings.answers_expires
    job.answer("tea")
    job.get(10)
    assert 0 < fleet.redis.ttl(f"callsheet:answers:{job.id}") <= fleet.settings.answers_expires
    # As if the worker had died, and the key expired.
    fleet.redis.zadd("callsheet:waiting", {f"gone {job.id}": 1.0})
    assert not [one for one in open_questions(fleet.settings) if one.id == "gone"]
    assert fleet.redis.zscore("callsheet:waiting", f"gone {job.id}") is None


def test_async_code_awaits_a_user(fleet):
    async def main():
        call = asyncio.create_task(UserAgent("bob")(ASK))
        [question] = await asyncio.to_thread(wait_for, lambda: open_questions(fleet.settings))
        await asyncio.to_thread(Job.from_id(question.job_id).answer, "tea")
        return (await call).content

    assert asyncio.run(main()) == "tea"


def test_terminal_input_has_a_hint():
    assert TerminalUserInput("> ").input_hint == "> "
