"""Whatever cancels a call closes the connection that it holds open."""

import re

import httpx
import pytest

from callsheet import Msg
from callsheet.errors import AgentTimeout, JobCancelled
from callsheet.settings import use_settings
from callsheet.tasks.app import current_app
from tests.agents.streams import Blocks, Listens
from tests.agents.work import Relay
from tests.fleet import client_settings
from tests.flower_process import flower
from tests.services import wait_for, worker
from tests.streams import stream_server


@pytest.fixture(scope="module")
def server():
    with stream_server() as running:
        yield running


@pytest.fixture
def listening(fleet, server):
    """A job that reads a stream, the streams, and the path of its own."""
    url, streams = server
    path = f"/{fleet.key('stream')}"

    def start(**options):
        job = Listens(url, path).options(**options).submit()
        streams.wait_open(path)
        return job

    start.closed = lambda: streams.wait_closed(path)
    return start


def active(fleet):
    return current_app(fleet.settings).control.inspect([fleet.io.name], timeout=5, limit=1).active()[fleet.io.name]


def test_cancelling_a_job_closes_its_stream(fleet, listening):
    job = listening()
    job.cancel()
    listening.closed()
    with pytest.raises(JobCancelled):
        job.get(5)
    wait_for(lambda: not active(fleet), what="the call's end")


def test_revoke_with_terminate_closes_the_stream(fleet, listening):
    job = listening()
    current_app(fleet.settings).control.revoke(job.id, terminate=True)
    listening.closed()
    with pytest.raises(JobCancelled):
        job.get(10)


def test_terminate_in_flower_closes_the_stream(fleet, listening):
    with flower(fleet.server.url) as started:
        job = listening()
        assert "Revoked" in started.post(f"/api/task/revoke/{job.id}", terminate="true")
        listening.closed()
        with pytest.raises(JobCancelled):
            job.get(10)
        assert job.status == "REVOKED"


def test_a_timeout_closes_the_stream(listening):
    job = listening(timeout=0.3)
    listening.closed()
    with pytest.raises(AgentTimeout):
        job.get(10)


def test_a_caller_that_stops_waiting_closes_the_streams_below(fleet, listening, server):
    """The agent awaits another, which holds the stream."""
    url, streams = server
    path = f"/{fleet.key('below')}"
    job = Relay("outer", Listens(url, path)).submit(Msg("u", "x", "user"))
    streams.wait_open(path)
    job.cancel()
    streams.wait_closed(path)


def test_a_reply_that_blocks_the_loop_is_logged_with_its_agent(fleet):
    job = Blocks("careless", 0.7).submit()
    job.get(10)
    fleet.io.wait_log(f"Task Blocks(careless)[{job.id}] has blocked the event loop")
    assert "time.sleep(self.seconds)" in fleet.io.log
    stats = current_app(fleet.settings).control.inspect([fleet.io.name], timeout=5, limit=1).stats()
    assert stats[fleet.io.name]["pool"]["loop-blocked"] >= 1


BLOCKED = re.compile(r"Task Blocks\(tested\)\[\S+\] has blocked the event loop")


def test_by_default_a_third_of_a_second_is_too_long(fleet):
    for _ in range(20):  # the watch may be late on a busy machine, but not each time
        Blocks("tested", 0.35).submit().get(10)
        if BLOCKED.search(fleet.io.log):
            return
    raise AssertionError(f"nothing said:\n{fleet.io.log[-3000:]}")


def test_how_long_code_may_block_the_loop_is_settable(own_redis):
    """A busy machine may hold up the loop, too: the agent's name is looked for."""
    env = {"CALLSHEET_MODULES": "tests.agents", "CALLSHEET_LOOP_BLOCK_WARNING": "20"}
    with use_settings(client_settings(own_redis)), \
            worker("callsheet.workers.io", own_redis.url, "-c", "1", env=env) as process:
        for _ in range(2):
            Blocks("tested", 0.7).submit().get(20)
        assert process.stop() == 0  # all that it has to say is said
        assert not BLOCKED.search(process.log)


def test_the_streams_of_the_tests_do_end_only_when_they_are_left(server):
    url, streams = server
    with httpx.stream("GET", f"{url}/mine") as answer:
        chunks = answer.iter_bytes()
        assert [next(chunks) for _ in range(3)]
        assert "/mine" not in streams.closed
    streams.wait_closed("/mine")
