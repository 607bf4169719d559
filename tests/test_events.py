"""What agents print, as it arrives at whoever watches the job."""

import asyncio
import json
import os
import subprocess
import sys
import time

import pytest

import callsheet
from callsheet import AgentFailed, FanoutPipeline, Job, JobCancelled, Msg, SequentialPipeline, stream_printing_messages
from callsheet.errors import UsageError
from tests.agents.basic import Chatty, Echo
from tests.agents.work import CpuPrinter, Printer, PrintsAndFails
from tests.services import ROOT

HELLO = Msg("user", "hello", "user")


def texts(events):
    return [(event.msg.content, event.last) for event in events]


@pytest.mark.parametrize("kind", [Printer, CpuPrinter])
def test_chunks_come_in_order_and_the_stream_ends_with_the_job(fleet, kind):
    agent = kind("p", 4, pause=0.05)
    job = agent.submit(HELLO)
    events = list(job.stream())
    assert texts(events) == [("0 ", False), ("0 1 ", False), ("0 1 2 ", False), ("0 1 2 3 ", True), ("bye", True)]
    assert {event.agent for event in events} == {f"{kind.__name__}(p)"}
    assert {event.agent_id for event in events} == {agent.id}
    assert len({event.msg.id for event in events}) == 2
    assert [event.time for event in events] == sorted(event.time for event in events)
    assert job.get(1).content == "0 1 2 3 "


def test_async_for(fleet):
    async def main():
        return [event async for event in Printer("p", 3, pause=0.05).submit(HELLO).stream()]

    assert texts(asyncio.run(main()))[-2:] == [("0 1 2 ", True), ("bye", True)]


def test_events_arrive_while_the_job_runs_and_a_stream_goes_on_where_it_was_left(fleet):
    gate = fleet.key()
    job = Printer("p", 2, gate, pause=0.05).submit(HELLO)
    seen = []
    for event in job.stream():
        seen.append(event)
        if event.last:
            break
    assert not job.done
    fleet.open(gate)
    rest = list(job.stream(since=seen[-1].id))
    assert texts(rest) == [("bye", True)]
    assert texts(job.stream()) == [*texts(seen), ("bye", True)]
    again = list(job.stream(since=rest[-1].id))
    assert again == []


def test_chunks_that_come_fast_are_written_together_and_none_of_the_text_is_lost(fleet):
    events = list(Printer("p", 500).submit(HELLO).stream())
    assert len(events) < 200
    whole = [event for event in events if event.last]
    assert [event.msg.content for event in whole] == ["".join(f"{i} " for i in range(500)), "bye"]


def test_the_stream_raises_the_jobs_error_after_its_events(fleet):
    seen = []
    with pytest.raises(AgentFailed, match="after printing"):
        for event in PrintsAndFails("p").submit(HELLO).stream():
            seen.append(event.msg.content)
    assert seen == ["before"]

    async def main():
        async for event in PrintsAndFails("q").submit(HELLO).stream():
            seen.append(event.msg.content)

    with pytest.raises(AgentFailed, match="after printing"):
        asyncio.run(main())
    assert seen == ["before", "before"]


def test_the_stream_of_a_cancelled_job_ends(fleet):
    job = Printer("p", 1, "never").submit(HELLO)
    seen = []
    with pytest.raises(JobCancelled):
        for event in job.stream():
            seen.append(event.msg.content)
            job.cancel()
    assert seen == ["0 "]


def test_all_agents_of_a_pipeline_print_into_its_stream(fleet):
    job = SequentialPipeline([FanoutPipeline([Printer("a", 2), CpuPrinter("b", 2)]), Printer("c", 1)]).submit(HELLO)
    names = [event.msg.name for event in job.stream() if event.last]
    assert sorted(names[:-2]) == ["a", "a", "b", "b"]
    assert names[-2:] == ["c", "c"]


@pytest.mark.parametrize("inline", [False, True])
def test_what_a_reply_awaits_prints_where_the_reply_does_and_what_it_submits_does_not(fleet, inline):
    def names():
        return [event.msg.name for event in Chatty("outer").submit(Msg("u", "x", "user")).stream()]

    if inline:
        with callsheet.inline():
            assert names() == ["outer.awaited", "outer"]
    else:
        assert names() == ["outer.awaited", "outer"]


def test_several_watchers_and_another_process_see_the_same(fleet):
    gate = fleet.key()
    job = Printer("p", 3, gate).submit(HELLO)
    watcher = subprocess.Popen(
        [sys.executable, "-c", "import sys\nfrom callsheet import Job\n"
         "for event in Job.from_id(sys.argv[1]).stream():\n    print(event.id, flush=True)", job.id],
        cwd=ROOT, env={**os.environ, "CALLSHEET_REDIS_URL": fleet.server.url}, stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    first = watcher.stdout.readline().strip()

    async def main():
        async def watch():
            return [event.id async for event in job.stream()]

        watches = [asyncio.create_task(watch()) for _ in range(3)]
        await asyncio.sleep(0.05)
        fleet.open(gate)
        return await asyncio.gather(*watches)

    one, two, three = asyncio.run(main())
    assert one == two == three
    rest = watcher.stdout.read()  # not communicate(), which leaves out what readline() read ahead
    watcher.wait(15)
    assert [first, *rest.split()] == one


def test_a_job_that_prints_nothing_and_one_that_has_ended(fleet):
    assert list(Echo("a").submit(HELLO).stream()) == []
    job = Printer("p", 1).submit(HELLO)
    job.get(10)
    assert texts(Job.from_id(job.id).stream()) == [("0 ", True), ("bye", True)]


def test_a_stream_left_early_leaves_nothing_behind(fleet):
    job = Printer("p", 1, "never").submit(HELLO)
    for _ in job.stream():
        break
    del _

    async def main():
        async for _ in job.stream():
            break

    asyncio.run(main())
    job.cancel()


def test_plain_for_on_a_running_loop_is_refused(fleet):
    async def main():
        with pytest.raises(UsageError, match="async for"):
            for _ in Echo("a").submit(HELLO).stream():
                pass

    asyncio.run(main())


def test_a_jobs_stream_is_bounded_and_expires(fleet):
    job = Printer("p", 1).submit(HELLO)
    job.get(10)
    [key] = list(fleet.redis.scan_iter(f"*events:{job.id}"))
    assert 0 < fleet.redis.ttl(key) <= fleet.settings.events_expires
    pipe = fleet.redis.pipeline(transaction=False)
    fields = {"agent": "a", "agent_id": "b", "msg": json.dumps(HELLO.to_dict()), "last": "1", "time": repr(time.time())}
    most = fleet.settings.events_max
    for _ in range(most + 2000):
        pipe.xadd(key, fields, maxlen=most, approximate=True)
    pipe.execute()
    assert fleet.redis.xlen(key) < most + 500
    assert len(list(job.stream())) == fleet.redis.xlen(key)


def test_stream_printing_messages_of_agents_on_workers(fleet):
    agents = [Printer("a", 2), CpuPrinter("b", 2)]

    async def main():
        pipeline = SequentialPipeline(agents)
        return [(msg.name, msg.content, last) async for msg, last in
                stream_printing_messages(agents, pipeline(HELLO))]

    seen = asyncio.run(main())
    assert [(name, content) for name, content, last in seen if last] == [
        ("a", "0 1 "), ("a", "bye"), ("b", "0 1 "), ("b", "bye")]
