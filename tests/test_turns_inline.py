"""Turns of agents with state inline: the same as on workers."""

import asyncio

import pytest

import callsheet
from callsheet import AgentFailed, Msg, sessions
from callsheet.errors import JobCancelled, StateMissing
from callsheet.settings import use_settings
from tests.agents.remembering import Clerk, Other, SelfCaller
from tests.fleet import client_settings
from tests.office import say


@pytest.fixture(autouse=True)
def inline(redis_server):
    """The agents' gates and notes are in Redis, their state is not."""
    with use_settings(client_settings(redis_server, retry_backoff=0.01)), callsheet.inline():
        yield redis_server.client()


def users(agent_id):
    return [msg.content for msg in sessions.messages(agent_id) if msg.role == "user"]


def test_calls_made_at_once_run_one_at_a_time_in_order():
    async def main():
        agent = Clerk().with_id("alice")
        jobs = [agent.submit(say(str(number), sleep=0.01)) for number in range(20)]
        told = [(await job).content for job in jobs]
        told += [msg.content for msg in await asyncio.gather(*(agent(say(f"a{number}")) for number in range(5)))]
        return told, [msg.content for msg in await sessions.amessages("alice") if msg.role == "user"]

    told, heard = asyncio.run(main())
    assert told == [f"{number + 1}:{2 * number}" for number in range(25)]
    assert heard == [*map(str, range(20)), *(f"a{number}" for number in range(5))]


def test_calls_of_others_do_not_wait(inline):
    async def main():
        held = Clerk().with_id("alice").submit(say("held", gate="inline-gate"))
        other = await Clerk().with_id("bob")(say("x"))
        inline.set("inline-gate", 1)
        return other.content, (await held).content

    assert asyncio.run(main()) == ("1:0", "1:0")


def test_a_failed_reply_keeps_what_it_added_and_a_retried_one_does_not(inline):
    agent = Clerk().with_id("fails")
    with pytest.raises(AgentFailed, match="no luck today"):
        agent.submit(say("bad", fail=True)).get()
    assert agent.submit(say("good")).get().content == "1:1"
    inline.delete("inline-tries")
    assert agent.submit(say("third", times=["inline-tries", 2]), retries=3).get().content == "2:3"
    assert users("fails") == ["bad", "good", "third"]


def test_a_cancelled_call_leaves_nothing_and_one_that_is_interrupted_its_answer(inline):
    inline.delete("inline-begun")

    async def noted(count):
        async with asyncio.timeout(20):
            while inline.llen("inline-begun") < count:
                await asyncio.sleep(0.01)

    async def main():
        agent = Clerk().with_id("alice")
        job = agent.submit(say("one", gate="never", note="inline-begun"))
        line = [agent.submit(say(str(number))) for number in range(3)]
        await noted(1)
        line[0].cancel()
        job.cancel()
        with pytest.raises(JobCancelled):
            await job
        told = [(await one).content for one in line[1:]]
        job = agent.submit(say("talk", gate="never", note="inline-begun"))
        await noted(2)
        assert job.interrupt()
        return told, (await job).content, (await agent(say("next"))).content

    assert asyncio.run(main()) == (["1:0", "2:2"], "interrupted", "3:6")


def test_another_class_is_refused_and_both_are_named():
    Clerk().with_id("taken").submit(say("x")).get()
    with pytest.raises(AgentFailed, match=r"is a tests.agents.remembering:Other, but the state under this id is of a "
                                          r"tests.agents.remembering:Clerk"):
        Other().with_id("taken").submit(say("x")).get()


def test_state_that_cannot_be_kept_fails_the_call_and_leaves_the_state_as_it_was():
    agent = Clerk().with_id("unkept")
    agent.submit(say("one")).get()
    with pytest.raises(AgentFailed, match=r"'count' of Clerk cannot be kept"):
        agent.submit(say("bad", unkept=True)).get()
    assert agent.submit(say("two")).get().content == "2:2"


@pytest.mark.parametrize("way", ["await", "job", "chain"])
def test_an_agent_that_would_wait_for_itself_is_refused(way):
    async def main():
        agent = SelfCaller("a", way).with_id(f"self-{way}")
        with pytest.raises(AgentFailed, match="neither would ever end"):
            await asyncio.wait_for(agent(say("go")), 20)
        return (await agent(say("stop"))).content

    assert asyncio.run(main()) == "stopped"


def test_the_blocks_end_forgets():
    agent = Clerk().with_id("short")
    agent.submit(say("x")).get()
    with callsheet.inline():
        with pytest.raises(StateMissing):
            sessions.messages("short")
        assert agent.submit(say("y")).get().content == "1:0"
    assert agent.submit(Msg("u", "z", "user")).get().content == "2:2"
