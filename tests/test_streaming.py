"""What agents print as a stream: in order, batched, bounded, resumable, and with a sign where a call ran again."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time

import pytest

import callsheet
from callsheet import AgentBase, Job, Msg, ReActAgent, SequentialPipeline
from callsheet.errors import UsageError
from callsheet.formatters import OpenAIChatFormatter
from callsheet.settings import use_settings
from callsheet.settings.keys import Keys
from callsheet.tasks.loop import wait_on_process_loop
from callsheet.tasks.prints import KEPT_BYTES, WRITE_EVERY, EventWriter
from callsheet.tasks.scope import Scope
from tests.agents.printing import Computes, Delegates, Dictates, FailsHalfway, Recalls, Whispers
from tests.fleet import client_settings
from tests.office import say
from tests.services import ROOT, wait_for

HELLO = Msg("user", "hello", "user")


def counted(words):
    return "".join(f"{number} " for number in range(words))


def growing(events):
    """The texts of each message, in order of their first chunk."""
    found = {}
    for event in events:
        found.setdefault(event.msg.id, []).append(event.msg.get_text_content())
    return list(found.values())


# On workers --------------------------------------------------------------------------------------------


def test_tokens_of_a_react_agent_arrive_while_it_speaks(fleet):
    agent = ReActAgent("r", "Speak.", Whispers(20, 0.03), OpenAIChatFormatter())
    job = agent.submit(HELLO)
    events = [(event, time.time()) for event in job.stream()]
    [texts] = growing(event for event, _ in events)
    assert len(texts) > 5, "it came in pieces"
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert texts[-1] == job.get(5).get_text_content() == " ".join(map(str, range(20)))
    assert [event.last for event, _ in events] == [False] * (len(events) - 1) + [True]
    assert {event.call for event, _ in events} == {job.id}
    assert not any(event.again for event, _ in events)


@pytest.mark.parametrize("inline", [False, True])
def test_what_a_reply_has_others_print_by_plain_calls_is_the_jobs(fleet, inline):
    if inline:
        with callsheet.inline():
            job = Delegates("d").submit(HELLO)
            events = list(job.stream())
    else:
        job = Delegates("d").submit(HELLO)
        events = list(job.stream())
    assert [event.agent for event in events if event.last] == [
        "Dictates(d.0)", "Dictates(d.1)", "Dictates(d.2)", "Delegates(d)"]
    assert [texts[-1] for texts in growing(events)] == [counted(3)] * 3 + ["done"]
    assert len({event.run for event in events}) == 1


@pytest.mark.parametrize("kind", [Computes, Recalls])
@pytest.mark.parametrize("queue", ["cpu", "io"])
def test_plain_code_prints_into_the_stream_too(fleet, kind, queue):
    events = list(kind("c").submit(HELLO, queue=queue).stream())
    assert growing(events)[0][-1] == counted(3) and events[-1].last
    with callsheet.inline():
        assert [event.msg.content for event in kind("c").submit(HELLO).stream()][-1] == counted(3)


def test_a_job_is_written_to_every_30_ms_at_most(fleet):
    def xadds():
        return fleet.redis.info("commandstats").get("cmdstat_xadd", {}).get("calls", 0)

    before = xadds()
    job = Dictates("d", 200, 0.005).submit(HELLO)
    job.get(30)
    writes = xadds() - before
    [key] = list(fleet.redis.scan_iter(f"*events:{job.id}"))
    entries = fleet.redis.xrange(key)
    took = float(entries[-1][1]["time"]) - float(entries[0][1]["time"])
    assert writes == len(entries), "one chunk of the message each time"
    assert 3 < writes <= took / WRITE_EVERY + 3
    assert entries[-1][1]["last"] == "1"


def test_jobs_of_a_worker_share_their_writes(fleet):
    def reads():
        return int(fleet.redis.info("stats")["total_reads_processed"])

    def writes():
        return fleet.redis.info("commandstats").get("cmdstat_xadd", {}).get("calls", 0)

    gate = fleet.key()
    jobs = [Dictates(f"d{number}", 200, 0.02, gate, 1).submit(HELLO) for number in range(40)]
    keys = [f"callsheet:events:{job.id}" for job in jobs]
    wait_for(lambda: fleet.redis.exists(*keys) == 40, what="all of them to print", every=0.1)
    held = writes()
    fleet.open(gate)
    wait_for(lambda: writes() - held >= 120, what="all to be past the gate, at which each of them polls")
    before, written = reads(), writes()
    wait_for(lambda: writes() - written >= 600, what="a good part of what they print", every=0.1)
    made, took = writes() - written, reads() - before
    assert [job.get(30).content for job in jobs] == [counted(200)] * 40
    assert took < made / 4, "each by itself would take a trip for each of its writes"


def test_who_reads_slowly_slows_nobody_and_misses_no_message(fleet):
    job = Dictates("d", 30, 0.01).submit(HELLO)
    stream = iter(job.stream())
    first = next(stream)
    assert job.get(20).content == counted(30)
    rest = list(stream)
    assert not first.last and rest[-1].last and rest[-1].msg.content == counted(30)


def test_a_reader_that_was_killed_goes_on_in_another_process(fleet):
    gate = fleet.key()
    job = SequentialPipeline([Dictates("a", 20, 0.01), Dictates("b", 20, 0.01, gate, 10)]).submit(HELLO)
    code = ("import sys\nfrom callsheet import Job\n"
            "for event in Job.from_id(sys.argv[1]).stream(since=sys.argv[2]):\n"
            "    print(event.id, event.msg.id, event.last, flush=True)")

    def reader(since):
        return subprocess.Popen([sys.executable, "-c", code, job.id, since], cwd=ROOT, stdout=subprocess.PIPE,
                                text=True, env={**os.environ, "CALLSHEET_REDIS_URL": fleet.server.url})

    one = reader("0")
    seen = [one.stdout.readline().split() for _ in range(3)]
    one.send_signal(signal.SIGKILL)
    one.communicate()
    two = reader(seen[-1][0])
    fleet.open(gate)
    seen += [line.split() for line in two.communicate(timeout=30)[0].splitlines()]
    whole = [[event.id, event.msg.id, str(event.last)] for event in job.stream()]
    assert seen == whole
    ids = [tuple(map(int, line[0].split("-"))) for line in seen]
    assert ids == sorted(ids)


def test_what_is_no_event_id_is_refused(fleet):
    job = Dictates("d", 1).submit(HELLO)
    for wrong in ("yesterday", "-1", "$", 7, None):
        with pytest.raises(UsageError, match="no event's id"):
            job.stream(since=wrong)
    job.get(10)


@pytest.mark.parametrize("inline", [False, True])
def test_a_call_that_is_tried_again_says_so_in_its_stream(fleet, inline):
    def events():
        job = FailsHalfway("f", fleet.key()).submit(HELLO, retries=1)
        return list(job.stream())

    if inline:
        with use_settings(fleet.settings.model_copy(update={"retry_backoff": 0.01})), callsheet.inline():
            found = events()
    else:
        found = events()
    assert [(event.msg.content, event.last, event.again) for event in found if event.last or event.again][-1][0] == (
        "half and half")
    first, *rest = found
    assert (first.msg.content, first.last, first.again) == ("half", False, False)
    assert [event.again for event in rest] == [True] + [False] * (len(rest) - 1)
    assert {event.run for event in rest} != {first.run}
    assert len({event.call for event in found}) == 1
    assert first.msg.id not in {event.msg.id for event in rest}


def test_a_worker_that_dies_in_mid_stream_and_the_run_that_follows(office):
    first = office.hire("io", "-c", "2")
    job = Dictates("d", 40, 0.01, "gate", 20, "runs").submit(say("x"))
    seen = []
    stream = iter(job.stream())
    while not seen or len(seen[-1].msg.content.split()) < 15:
        seen.append(next(stream))
    first.kill()
    office.redis.set("gate", 1)
    office.hire("io", "-c", "2")
    seen += list(stream)
    [begin] = [position for position, event in enumerate(seen) if event.again]
    old, new = seen[:begin], seen[begin:]
    assert {event.call for event in seen} == {job.id}
    assert len({event.run for event in old}) == len({event.run for event in new}) == 1
    assert old[0].run != new[0].run
    assert not any(event.last for event in old)
    assert [event.msg.content for event in new if event.last] == [counted(40)]
    assert job.get(10).content == counted(40)
    assert len(office.notes("runs")) == 2
    assert [(event.id, event.again) for event in Job.from_id(job.id).stream()] == [
        (event.id, event.again) for event in seen]


# The writer --------------------------------------------------------------------------------------------


class Speaker(AgentBase):
    def __init__(self, name="s"):
        self.name = name

    async def reply(self):
        """Is not called."""


@pytest.fixture
def written(redis_server):
    """Run something with a writer on this process's loop; gives what is in the stream then."""
    settings = client_settings(redis_server, events_max=50, events_expires=77)
    client = redis_server.client()

    def run(work, job):
        async def main():
            writer = EventWriter(Scope(job, "call", "path", False), settings)
            await work(writer, Speaker())
            await writer.close()

        with use_settings(settings):
            wait_on_process_loop(main, 30)
        key = Keys(settings.key_prefix).events(job)
        return [fields for _, fields in client.xrange(key)], client.ttl(key), client.memory_usage(key)

    run.redis = client
    return run


def test_a_slow_redis_gets_the_latest_of_each_message_and_all_that_ended(written):
    async def work(writer, agent):
        writer.add(agent, Msg("s", "first", "assistant"), True)
        await writer.flush()
        written.redis.client_pause(700, all=False)
        one, two = Msg("s", "", "assistant"), Msg("s", "", "assistant")
        for number in range(500):
            for msg in (one, two):
                msg.content += f"{number} "
                writer.add(agent, msg, last=False)
            if number % 100 == 99:
                writer.add(agent, Msg("s", f"whole {number}", "assistant"), True)
            await asyncio.sleep(0.001)
        two.content += "end"
        writer.add(agent, two, True)
        await writer.flush()
        assert written.redis.xlen("callsheet:events:slow") < 20
        one.content += "end"
        writer.add(agent, one, True)

    entries, _, _ = written(work, "slow")
    ends = [fields["msg"] for fields in entries if fields["last"]]
    assert [text.count("whole") for text in ends] == [0, 1, 1, 1, 1, 1, 0, 0]
    assert ends[-1].count("end") == ends[-2].count("end") == 1
    numbers = [int(fields["n"]) for fields in entries]
    assert numbers == sorted(numbers)


def test_a_stream_is_bounded_in_length_and_time_by_the_settings(written):
    async def work(writer, agent):
        for number in range(1000):
            writer.add(agent, Msg("s", str(number), "assistant"), True)
            if number % 40 == 39:
                await writer.flush()

    entries, ttl, _ = written(work, "long")
    assert 50 <= len(entries) < 50 + 101, "Redis trims by the hundred"
    assert 0 < ttl <= 77
    assert '"999"' in entries[-1]["msg"]


def test_a_long_message_that_grows_does_not_fill_redis(written):
    async def work(writer, agent):
        msg = Msg("s", "", "assistant")
        for number in range(100):
            msg.content += "x" * 1000
            writer.add(agent, msg, last=number == 99)
            await writer.flush()

    entries, _, size = written(work, "grows")
    assert size < KEPT_BYTES + 500_000, "all chunks together are 5 MB"
    assert entries[-1]["last"] == "1" and "x" * 100_000 in entries[-1]["msg"]


def test_what_is_changed_after_it_was_printed_does_not_change_what_was_printed(written):
    async def work(writer, agent):
        msg = Msg("s", [{"type": "text", "text": "as it was"}], "assistant", {"a": [1]})
        writer.add(agent, msg, last=True)
        msg.content[0]["text"] = "changed"
        msg.metadata["a"].append(2)

    [entry], _, _ = written(work, "copied")
    assert "as it was" in entry["msg"] and '"a": [1]' in entry["msg"]


def test_a_print_after_the_replys_end_is_left_out(written):
    async def work(writer, agent):
        await writer.close()
        writer.add(agent, Msg("s", "late", "assistant"), True)

    assert written(work, "late")[0] == []


def test_a_chunk_that_was_written_twice_is_read_once(fleet):
    job = Dictates("d", 2, 0.1).submit(HELLO)
    whole = list(job.stream())
    [key] = list(fleet.redis.scan_iter(f"*events:{job.id}"))
    for _, fields in fleet.redis.xrange(key):
        fleet.redis.xadd(key, fields)
    assert list(job.stream()) == whole
