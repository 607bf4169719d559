"""The server forgets all scripts, again and again, under load: each is sent to it again, and nothing is lost."""

import contextlib
import signal
import threading
import time

import pytest

import callsheet
from callsheet import FanoutPipeline, Msg, SequentialPipeline
from callsheet.settings import use_settings
from tests.agents.basic import Compute, Echo
from tests.agents.gated import Gated, Keeps
from tests.fleet import client_settings
from tests.services import RedisServer, wait_for, worker
from tests.test_redis_trouble import ENV, HELLO, LEASE, Folder, folder, outlast  # noqa: F401 - a fixture


class Forgetful:
    """Has a server forget its scripts some hundred times a second."""

    def __init__(self, server: RedisServer) -> None:
        self._client, self._over, self.times = server.client(), threading.Event(), 0
        self._thread = threading.Thread(target=self._flush, daemon=True)

    def _flush(self) -> None:
        while not self._over.wait(0.003):
            self._client.script_flush()
            self.times += 1

    def __enter__(self) -> "Forgetful":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def server(own_redis):
    with use_settings(client_settings(own_redis)):
        yield own_redis


def texts(client) -> int:
    """How many scripts were sent as text, as the server had forgotten them."""
    return client.info("commandstats").get("cmdstat_eval", {}).get("calls", 0)


def idle(server) -> bool:
    client = server.client()
    return not any(client.llen(queue) for queue in ("io", "cpu")) and not client.hlen("unacked")


def test_calls_results_chords_and_state(server, tmp_path):
    """claim, settle and turns."""
    kept = Keeps(str(tmp_path))
    Folder(tmp_path).open()
    with worker("callsheet.workers.io", server.url, "--autoscale=50,5", env=ENV), \
            worker("callsheet.workers.cpu", server.url, "-c", "2", env=ENV):
        Echo("a").submit(HELLO).get(20)
        before = texts(server.client())
        with Forgetful(server) as forgetful:
            counts = [kept.submit(HELLO) for _ in range(20)]
            pipelines = [SequentialPipeline([FanoutPipeline([Echo("a"), Compute("b"), Echo("c")], reduce=Echo("d")),
                                             Echo("e")]).submit(HELLO) for _ in range(20)]
            inputs = [Msg("user", str(number), "user") for number in range(500)]
            results = [msg.content for msg in callsheet.map(Echo("m"), inputs, progress=False)]
            assert results == [f"m:{number}" for number in range(500)]
            assert [job.get(60).content for job in pipelines] == ["e:d:a:hello+b:1+c:hello"] * 20
            assert [job.get(60).content for job in counts] == [str(number) for number in range(1, 21)]
        wait_for(lambda: idle(server), 20, "all acknowledged")
        assert forgetful.times > 20
        assert texts(server.client()) - before > 20


def test_leases_of_calls_that_go_on(server, folder):  # noqa: F811
    """renew: neither worker takes the other's calls for lost ones."""
    with worker("callsheet.workers.io", server.url, "-c", "5", env=ENV) as one, \
            worker("callsheet.workers.io", server.url, "-c", "5", env=ENV) as two:
        jobs = [Gated(str(folder), str(number)).submit(HELLO) for number in range(8)]
        folder.wait("started", 8)
        with Forgetful(server):
            outlast(2.5 * LEASE)
        folder.open()
        assert [job.get(20).content for job in jobs] == ["through"] * 8
        assert len(folder.lines("started")) == 8
        assert "lost workers" not in one.log + two.log


def test_calls_of_killed_and_of_stopped_workers(server, folder):  # noqa: F811
    """expired and giveback."""
    with contextlib.ExitStack() as stack:
        killed, stopped = (stack.enter_context(worker("callsheet.workers.io", server.url, "-c", "4", env=ENV))
                           for _ in range(2))
        jobs = [Gated(str(folder), str(number)).submit(HELLO) for number in range(12)]
        folder.wait("started", 8)
        with Forgetful(server):
            killed.kill()
            stopped.send_signal(signal.SIGTERM)
            stopped.wait_log("Warm shutdown")
            stopped.send_signal(signal.SIGQUIT)
            stopped.process.wait(30)
            began = time.monotonic()
            stack.enter_context(worker("callsheet.workers.io", server.url, "-c", "20", env=ENV))
            folder.wait("started", 8 + 12)
            assert time.monotonic() - began < 30
            folder.open()
            assert [job.get(20).content for job in jobs] == ["through"] * 12
        wait_for(lambda: idle(server), 20, "all acknowledged")
        assert len(folder.lines("started")) == 8 + 12
