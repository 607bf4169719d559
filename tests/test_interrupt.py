"""job.interrupt and agent.interrupt across processes, and inline."""

import asyncio
import signal

import pytest

import callsheet
from callsheet import AgentBase, Job, Msg, SequentialPipeline
from callsheet.agents.running import run_reply
from callsheet.errors import AgentTimeout, JobCancelled, UsageError
from callsheet.settings import use_settings
from callsheet.tasks.control import interruptible, running
from tests.agents.basic import Echo
from tests.agents.interrupted import Computes, ComputesOnIo, Talker, Waits, WaitsOnCpu
from tests.fleet import client_settings
from tests.hanging import for_ever
from tests.services import wait_for, worker


def say(text):
    return Msg("user", text, "user")


def talker(fleet, name="t"):
    return Talker(name, fleet.key("never"), fleet.key())


def test_handle_interrupt_answers_and_knows_the_message(fleet):
    agent = talker(fleet)
    job = agent.submit(say("go on"))
    fleet.wait_notes(agent.notes)
    assert Job.from_id(job.id).interrupt(say("stop")) is True  # from any process
    assert job.get(10).content == "go on, stop"
    assert (job.status, fleet.notes(agent.notes)) == ("SUCCESS", ["talks", "broken off", "handles"])
    assert job.interrupt() is False  # it has ended


def test_of_two_calls_the_other_goes_on(fleet):
    one, two = talker(fleet), talker(fleet)
    jobs = [one.submit(say("1")), two.submit(say("2"))]
    fleet.wait_notes(one.notes)
    fleet.wait_notes(two.notes)
    assert jobs[0].interrupt()
    assert jobs[0].get(10).content == "1, nothing"
    fleet.open(two.gate)
    assert jobs[1].get(10).content == "all of it"


def test_a_job_that_waits_in_its_queue_stays_as_it_is(fleet):
    job = Echo("e").options(queue="nobody").submit(say("x"))
    assert job.interrupt() is False
    job.cancel()


def test_a_pipeline_goes_on_with_what_handle_interrupt_gave(fleet):
    agent = talker(fleet)
    job = SequentialPipeline([Echo("e"), agent, Echo("f")]).submit(say("x"))
    fleet.wait_notes(agent.notes)
    assert job.interrupt(say("stop"))
    assert job.get(10).content.endswith(", stop")
    assert len(job.calls()) == 3


def test_a_call_that_waits_for_a_child_is_interrupted_and_its_child_cancelled(fleet):
    child = talker(fleet)
    job = Waits(child, child.notes).submit(say("x"))
    fleet.wait_notes(child.notes)
    assert job.interrupt()
    assert job.get(10).content == "enough"
    wait_for(lambda: fleet.notes(child.notes) == ["talks", "broken off"], what="the child's end")


def test_a_timeout_or_a_cancellation_is_no_interrupt(fleet):
    agent = talker(fleet)
    with pytest.raises(AgentTimeout):
        agent.options(timeout=0.1).submit(say("x")).get(10)
    job = agent.submit(say("x"))
    fleet.wait_notes(agent.notes, 3)
    job.cancel()
    with pytest.raises(JobCancelled):
        job.get(10)
    assert fleet.wait_notes(agent.notes, 4) == ["talks", "broken off"] * 2


@pytest.mark.parametrize(("sig", "soft", "noted", "left"), [
    (signal.SIGQUIT, "0", ["talks", "broken off"], 1),
    (signal.SIGQUIT, "1", ["talks", "broken off"], 1),
    (signal.SIGTERM, "0", ["talks"], 0),
], ids=["cold", "soft", "warm"])
def test_a_shutdown_is_no_interrupt(own_redis, sig, soft, noted, left):
    env = {"CALLSHEET_MODULES": "tests.agents", "CALLSHEET_SOFT_SHUTDOWN": soft}
    redis = own_redis.client()
    with use_settings(client_settings(own_redis)), \
            worker("callsheet.workers.io", own_redis.url, "-c", "2", env=env) as process:
        job = Talker("t", "gate", "notes").submit(say("go on"))
        wait_for(lambda: redis.llen("notes"), what="the reply to begin")
        process.send_signal(sig)
        if sig == signal.SIGTERM:
            process.wait_log("Warm shutdown")
            redis.set("gate", 1)
        process.process.wait(30)
        assert redis.lrange("notes", 0, -1) == noted
        assert (redis.hlen("unacked"), redis.llen("io")) == (0, left)
        assert job.status == ("PENDING" if left else "SUCCESS")


@pytest.mark.parametrize("kind", [Computes, ComputesOnIo, WaitsOnCpu])
def test_plain_code_and_cpu_workers_refuse(fleet, kind):
    gate, notes = fleet.key("gate"), fleet.key()
    job = (kind("c", gate, notes) if kind is WaitsOnCpu else kind(gate, notes)).submit(say("x"))
    fleet.wait_notes(notes)
    with pytest.raises(UsageError, match=r"cannot be interrupted.*cancel\(\)"):
        job.interrupt()
    fleet.open(gate)
    assert job.get(10).content in ("done", "all of it")


def test_the_callers_object_reaches_its_calls(fleet):
    async def main():
        agent = talker(fleet)
        call, job = asyncio.create_task(agent(say("called"))), agent.submit(say("sent"))
        await asyncio.to_thread(fleet.wait_notes, agent.notes, 2)
        await agent.interrupt(say("stop"))
        return [(await call).content, (await job).content]

    assert asyncio.run(main()) == ["called, stop", "sent, stop"]


def test_inline(fleet):
    async def main():
        agent = talker(fleet)
        call, job = asyncio.create_task(agent(say("called"))), agent.submit(say("sent"))
        while len(fleet.notes(agent.notes)) < 2:
            await asyncio.sleep(0.01)
        assert job.interrupt(say("you"))
        await agent.interrupt(say("stop"))
        replies = [(await call).content, (await job).content]
        assert job.interrupt() is False
        plain = ComputesOnIo(fleet.key("gate"), agent.notes).submit(say("x"))
        while "computes" not in fleet.notes(agent.notes):
            await asyncio.sleep(0.01)
        with pytest.raises(UsageError, match="cannot be interrupted"):
            plain.interrupt()
        fleet.open(plain._run.target.gate)
        await plain
        return replies

    with callsheet.inline():
        assert asyncio.run(main()) == ["called, stop", "sent, you"]


class Long(AgentBase):
    async def reply(self):
        await for_ever()

    async def handle_interrupt(self):
        return say("interrupted")


def test_an_interrupt_that_comes_before_the_agent_is_built():
    async def main():
        with interruptible("call") as entry:
            assert running("call") is entry
            assert entry.interrupt(None)
            await asyncio.sleep(0)  # the agent is loaded
            agent = Long()
            entry.begin(agent)
            reply = await run_reply(agent, (), {})
        assert running("call") is None
        return reply.content

    assert asyncio.run(main()) == "interrupted"
