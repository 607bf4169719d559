"""Turns of agents with state on real workers: one at a time, in order, and nothing lost or kept twice."""

import signal
import time

import pytest

from callsheet import AgentFailed, Job, SequentialPipeline
from callsheet.cli.under_way import fates
from callsheet.errors import JobExpired
from callsheet.settings import get_settings
from callsheet.tasks.whereabouts import whereabouts
from tests.agents.basic import Echo
from tests.agents.interrupted import Talker
from tests.agents.remembering import AsyncOnCpu, Clerk, CpuClerk, Other, SelfCaller
from tests.office import LEASE, say
from tests.services import wait_for

# What a turn finds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Clerk, CpuClerk, AsyncOnCpu])
def test_a_turn_finds_what_the_turns_before_it_left(at, cls):
    agent, other = cls("a"), cls("b")
    found = [agent.submit(say(str(number))).get(20).content for number in range(4)]
    assert [text.partition(":")[0] for text in found] == ["1", "2", "3", "4"]
    assert other.submit(say("hi")).get(20).content.partition(":")[0] == "1"
    assert at.settled(agent.id)


def test_the_same_id_is_the_same_agent_in_another_program(at):
    assert Clerk("a").with_id("alice-7").submit(say("one")).get(20).content == "1:0"
    named = Clerk("renamed")
    named.id = "alice-7"
    assert named.submit(say("two")).get(20).content == "2:2"
    assert named.submit(say("three")).get(20).content == "3:4"


def test_what_is_not_registered_is_not_kept(at):
    agent = Clerk()
    assert [agent.submit(say("x")).get(20).metadata["visits"] for _ in range(3)] == [1, 1, 1]


def test_in_a_pipeline_and_in_its_own_turn_each(at):
    agent = Clerk().with_id("pipe")
    out = SequentialPipeline([agent, Echo("e"), agent]).submit(say("x")).get(20)
    assert out.content == "2:2"


def test_where_a_call_is_wherever_it_waits(at):
    agent, gate = Clerk("waits"), "gate of whereabouts"
    held = agent.submit(say("first", gate=gate, note="whereabouts"))
    at.wait_notes("whereabouts", 1)
    jobs = {"held": held, "parked": agent.submit(say("second")), "queued": Echo("x").options(queue="extra").submit(
        say("third"), priority=6), "delayed": Echo("x").submit(say("fourth"), countdown=7200)}
    wanted = {job.id: where for where, job in jobs.items()}

    def found():
        places = dict(whereabouts(get_settings()))
        return {call: places.get(call) for call in wanted}

    wait_for(lambda: found() == wanted, 20, lambda: f"{wanted}, not {found()}")
    assert set(fates(wanted, get_settings()).values()) == {"under way"}
    at.redis.set(gate, 1)
    assert jobs["parked"].get(20).content == "2:2"
    for where in ("queued", "delayed"):
        jobs[where].cancel()
    assert fates([held.id, jobs["delayed"].id, "nonsense"], get_settings()) == {
        held.id: "done", jobs["delayed"].id: "gone", "nonsense": "gone"}


# What it costs those who have none ---------------------------------------------------------------------


def test_agents_without_state_take_no_turn_and_make_no_trip_for_one(office):
    office.hire("io", CALLSHEET_LEASE="60")  # what a worker does by the clock is little beside its calls
    plain, clerk = Talker("plain", "open", "begun").with_id("plain-1"), Clerk().with_id("clerk-1")
    state = ("turn", "line", "lines", "parked", "state", "memory")

    def kept(agent_id):
        return [key for kind in state for key in office.redis.keys(f"callsheet:{kind}:{agent_id}*")]

    def each(agent, count):
        """Commands of Redis a call, those of scripts included; of such as come with a call, and not with time."""
        before = office.redis.info("commandstats")
        for _ in range(count):
            agent.submit(say("hi")).get(20)
        after = office.redis.info("commandstats")
        names = ("evalsha", "lpush", "getrange", "set", "get", "hmget", "hgetall", "xadd", "pexpire")
        calls = {name: [info.get(f"cmdstat_{name}", {"calls": 0})["calls"] for info in (before, after)]
                 for name in names}
        return {name: round((late - early) / count) for name, (early, late) in calls.items()}

    # Those of one agent run side by side.
    jobs = [plain.submit(say("held")) for _ in range(5)]
    office.wait_notes("begun", 5)
    assert kept("plain-1") == [] and not office.redis.exists("callsheet:lines")
    office.redis.set("open", 1)
    assert [job.get(20).content for job in jobs] == ["all of it"] * 5
    clerk.submit(say("warm")).get(20)
    few, many, stateful = each(plain, 10), each(plain, 50), each(clerk, 10)
    # The message is put and taken, its result looked for and stored: that is all.
    assert few == many == {"evalsha": 3, "lpush": 1, "getrange": 1, "set": 1, "get": 0, "hmget": 0, "hgetall": 0,
                           "xadd": 0, "pexpire": 0}
    assert stateful["evalsha"] > few["evalsha"] and stateful["hmget"] and stateful["xadd"]  # so it would be seen
    assert kept("plain-1") == [] and kept("clerk-1")


# One at a time, in order -------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Clerk, CpuClerk])
def test_calls_wait_in_the_order_in_which_they_came(at, cls):
    agent, gate, notes = cls().with_id(f"line-{cls.__name__}"), f"gate-{cls.__name__}", f"notes-{cls.__name__}"
    jobs = [agent.submit(say("0", gate=gate, note=notes))]
    at.wait_notes(notes, 1)
    jobs += [agent.submit(say(str(number), note=notes)) for number in range(1, 12)]
    wait_for(lambda: at.redis.zcard(f"callsheet:line:{agent.id}") == 11, what="11 calls in line")
    # They wait without a slot: another agent's call is not held up.
    assert cls().submit(say("other")).get(20).content.startswith("1:")
    at.redis.set(gate, 1)
    assert [job.get(30).content.partition(":")[0] for job in jobs] == [str(number) for number in range(1, 13)]
    assert [text.split()[0] for text in at.notes(notes)] == [str(number) for number in range(12)]
    wait_for(lambda: at.settled(agent.id), what="no trace of turns")


def test_100_calls_on_four_workers_end_in_one_history(office):
    for kind in ("io", "io", "io", "io"):
        office.hire(kind, "-c", "10")
    agent = Clerk().with_id("alice")
    jobs = [agent.submit(say(str(number), note="notes")) for number in range(100)]
    assert [int(job.get(90).content.partition(":")[0]) for job in jobs] == list(range(1, 101))
    ran = [text.split()[0] for text in office.notes("notes")]
    assert office.history("alice") == ran, "the history is in the order of the turns"
    assert len({text.split()[1] for text in office.notes("notes")}) > 1, "several workers took part"
    assert ran == [str(number) for number in range(100)]
    wait_for(lambda: office.settled("alice"), what="no trace of turns")


def test_a_call_whose_forerunner_never_comes_does_not_wait_for_long(office):
    agent = Clerk().with_id("alice")
    agent.submit(say("lost", note="notes"))
    office.redis.delete("io")
    office.hire("io", "-c", "4")
    began = time.monotonic()
    assert agent.submit(say("next", note="notes")).get(20).content == "1:0"
    assert time.monotonic() - began < 5
    assert [agent.submit(say("x")).get(20).content for _ in range(2)] == ["2:2", "3:4"]


# Workers that die or sleep -----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "cls"), [("io", Clerk), ("cpu", CpuClerk)])
def test_the_turn_of_a_killed_worker_passes_on_within_the_lease(office, kind, cls):
    agent = cls().with_id("alice")
    first = office.hire(kind, "-c", "1")
    held = agent.submit(say("held", gate="gate", note="notes"))
    office.wait_notes("notes", 1)
    other = office.hire(kind, "-c", "2")
    waiting = [agent.submit(say(f"w{number}", note="notes")) for number in range(3)]
    wait_for(lambda: office.redis.zcard("callsheet:line:alice") == 3, what="3 calls in line")
    first.kill()
    killed = time.monotonic()
    office.wait_notes("notes", 2)
    assert time.monotonic() - killed < LEASE + 3, other.log[-2000:]
    office.redis.set("gate", 1)
    assert [job.get(30).content.partition(":")[0] for job in waiting] == ["1", "2", "3"]
    assert held.get(30).content.partition(":")[0] == "4", "it is run again, and its state is kept once"
    ran = [text.split()[0] for text in office.notes("notes")]
    assert ran == ["held", "w0", "w1", "w2", "held"]


def test_a_worker_that_lost_its_turn_cannot_write_and_runs_the_call_again(office):
    agent = Clerk().with_id("alice")
    sleeper = office.hire("io", "-c", "4", CALLSHEET_LEASE="60")
    late = agent.submit(say("late", gate="gate", note="notes"))
    office.wait_notes("notes", 1)
    waiting = agent.submit(say("waiting", note="notes"))
    wait_for(lambda: office.redis.zcard("callsheet:line:alice") == 1, what="a call in line")
    other = office.hire("io", "-c", "4")  # which has never heard of the agent
    sleeper.send_signal(signal.SIGSTOP)
    assert waiting.get(30).content == "1:0", "the turn passes on"
    office.redis.set("gate", 1)
    sleeper.send_signal(signal.SIGCONT)
    assert late.get(30).content == "2:2"
    sleeper.wait_log("turn_lost")
    assert office.history("alice") == ["waiting", "late"]
    assert [text.split()[0] for text in office.notes("notes")] == ["late", "waiting", "late"]
    assert other.process.poll() is None


def test_a_long_reply_keeps_its_turn_while_the_loop_is_blocked_or_waits(office):
    agent = Clerk().with_id("alice")
    office.hire("io", "-c", "4")
    job = agent.submit(say("long", sleep=2.5 * LEASE, note="notes"))
    office.wait_notes("notes", 1)
    behind = agent.submit(say("behind", note="notes"))
    assert (job.get(30).content, behind.get(30).content) == ("1:0", "2:2")
    assert [text.split()[0] for text in office.notes("notes")] == ["long", "behind"]


def test_a_call_that_is_delivered_again_after_its_state_was_kept_does_not_run_again(office):
    """As if its worker had died between the two: its message comes once more, its result is gone."""
    agent, queued = Clerk().with_id("alice"), office.redis
    job = agent.submit(say("once", note="notes"))
    [text] = queued.lrange("io", 0, -1)
    office.hire("io", "-c", "2")
    assert job.get(20).content == "1:0"
    wait_for(lambda: not queued.exists("unacked"), what="its acknowledgement")
    queued.delete(f"celery-task-meta-{job.id}")
    marked = text.replace('"delivery_info": {', '"delivery_info": {"redelivered": true, ')
    assert marked != text
    queued.lpush("io", marked)
    wait_for(lambda: queued.exists(f"celery-task-meta-{job.id}"), what="the result again")
    assert job.get(20).content == "1:0"
    assert agent.submit(say("twice", note="notes")).get(20).content == "2:2"
    assert [entry.split()[0] for entry in office.notes("notes")] == ["once", "twice"]


# Failures ----------------------------------------------------------------------------------------------


def test_a_failed_reply_keeps_what_it_added_and_a_retried_one_does_not(at):
    agent = Clerk().with_id("fails")
    with pytest.raises(AgentFailed, match="no luck today"):
        agent.submit(say("bad", fail=True)).get(20)
    assert agent.submit(say("good")).get(20).content == "1:1", "the message is there, the count is not"
    assert agent.submit(say("third", times=["tries", 2]), retries=3).get(20).content == "2:3"
    assert at.history("fails") == ["bad", "good", "third"]


def test_an_interrupted_reply_keeps_its_answer(at):
    agent = Clerk().with_id("interrupted")
    job = agent.submit(say("wait", gate="never", note="begun"))
    at.wait_notes("begun", 1)
    assert job.interrupt()
    assert job.get(20).content == "interrupted"
    assert agent.submit(say("next")).get(20).content == "1:2"


def test_a_cancelled_call_leaves_nothing_and_its_turn_goes_on(at):
    agent = Clerk().with_id("cancelled")
    job = agent.submit(say("wait", gate="never", note="begun-2"))
    at.wait_notes("begun-2", 1)
    in_line = [agent.submit(say(f"line{number}")) for number in range(3)]
    wait_for(lambda: at.redis.zcard("callsheet:line:cancelled") == 3, what="calls in line")
    in_line[0].cancel()
    job.cancel()
    assert [one.get(20).content for one in in_line[1:]] == ["1:0", "2:2"]
    wait_for(lambda: at.settled("cancelled"), what="no trace of turns")


def test_a_call_that_expires_in_line_says_so(at):
    agent = Clerk().with_id("expires")
    job = agent.submit(say("wait", gate="gate-e", note="begun-e"))
    at.wait_notes("begun-e", 1)
    in_line = [agent.submit(say("short"), expires=2.0), agent.submit(say("long"))]
    expired = time.time() + 2.1
    wait_for(lambda: at.redis.zcard("callsheet:line:expires") == 2, what="calls in line")
    wait_for(lambda: time.time() > expired, what="the end of its time")
    at.redis.set("gate-e", 1)
    assert (job.get(20).content, in_line[1].get(20).content) == ("1:0", "2:2")
    with pytest.raises(JobExpired):
        in_line[0].get(20)


def test_state_that_cannot_be_kept_fails_the_call_and_leaves_the_state_as_it_was(at):
    agent = Clerk().with_id("unkept")
    agent.submit(say("one")).get(20)
    with pytest.raises(AgentFailed, match=r"'count' of Clerk cannot be kept.*not JSON data"):
        agent.submit(say("bad", unkept=True)).get(20)
    assert agent.submit(say("two")).get(20).content == "2:2"


def test_an_id_with_state_of_another_class_is_refused_and_both_are_named(at):
    Clerk().with_id("taken").submit(say("x")).get(20)
    with pytest.raises(AgentFailed, match=r"is a tests.agents.remembering:Other, but the state under this id is of a "
                                          r"tests.agents.remembering:Clerk") as caught:
        Other().with_id("taken").submit(say("x"), retries=3).get(20)
    assert "StateMismatch" in caught.value.remote_type


def test_state_of_a_newer_version_is_refused(at):
    agent = Clerk().with_id("newer")
    agent.submit(say("x")).get(20)
    at.redis.hset("callsheet:state:newer", "format", 99)
    with pytest.raises(AgentFailed, match=r"newer version of Callsheet \(form 99.*Update"):
        agent.submit(say("y")).get(20)


# Agents that call themselves ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["await", "job", "chain", "submitted chain"])
def test_an_agent_that_would_wait_for_itself_is_refused(at, way):
    agent = SelfCaller("a", way).with_id(f"self-{way}")
    with pytest.raises(AgentFailed, match="neither would ever end"):
        agent.submit(say("go")).get(30)
    assert agent.submit(say("stop")).get(20).content == "stopped"


def test_an_agent_may_submit_its_own_next_turn(at):
    out = SelfCaller("a", "submit").with_id("self-next").submit(say("go")).get(20)
    assert Job.from_id(out.content).get(20).content == "stopped"
