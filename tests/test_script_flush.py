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
from tests.services import RedisServer, Worker, wait_for
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


def workers(stack, server, *given):
    """Workers that start side by side."""
    started = [Worker(f"callsheet.workers.{kind}", server.url, *options, "--without-mingle", env=ENV)
               for kind, *options in given]
    for one in started:
        stack.callback(one.remove)
    return [one.wait_ready() for one in started]


def texts(client) -> int:
    """How many scripts were sent as text, as the server had forgotten them."""
    return client.info("commandstats").get("cmdstat_eval", {}).get("calls", 0)


def idle(server) -> bool:
    client = server.client()
    return not any(client.llen(queue) for queue in ("io", "cpu")) and not client.hlen("unacked")


def test_calls_results_chords_and_state(server, tmp_path):
    """claim, settle, turns, and those that finish chords."""
    kept = Keeps(str(tmp_path))
    Folder(tmp_path).open()
    with contextlib.ExitStack() as stack:
        io, cpu = workers(stack, server, ("io", "--autoscale=50,5"), ("cpu", "-c", "2"))
        Echo("a").submit(HELLO).get(20)
        before = texts(server.client())
        with Forgetful(server) as forgetful:
            counts = [kept.submit(HELLO) for _ in range(20)]
            pipelines = [SequentialPipeline([FanoutPipeline([Echo("a"), Compute("b"), Echo("c")], reduce=Echo("d")),
                                             Echo("e")]).submit(HELLO) for _ in range(40)]
            inputs = [Msg("user", str(number), "user") for number in range(200)]
            results = [msg.content for msg in callsheet.map(Echo("m"), inputs, progress=False)]
            assert results == [f"m:{number}" for number in range(200)]
            assert [job.get(60).content for job in pipelines] == ["e:d:a:hello+b:1+c:hello"] * 40
            assert [job.get(60).content for job in counts] == [str(number) for number in range(1, 21)]
        wait_for(lambda: idle(server), 20, "all acknowledged")
        assert forgetful.times > 20
        assert texts(server.client()) - before > 20
        assert "outside body" not in io.log + cpu.log


def test_leases_of_calls_that_go_on_and_of_those_that_do_not(server, folder):  # noqa: F811
    """renew: neither worker takes the other's calls for lost ones. Then expired and giveback."""
    with contextlib.ExitStack() as stack:
        killed, stopped = workers(stack, server, ("io", "-c", "4"), ("io", "-c", "4"))
        jobs = [Gated(str(folder), str(number)).submit(HELLO) for number in range(12)]
        folder.wait("started", 8)
        with Forgetful(server):
            outlast(1.5 * LEASE)
            assert len(folder.lines("started")) == 8
            assert "lost workers" not in killed.log + stopped.log
            killed.kill()
            stopped.send_signal(signal.SIGTERM)
            stopped.wait_log("Warm shutdown")
            stopped.send_signal(signal.SIGQUIT)
            stopped.process.wait(30)
            began = time.monotonic()
            workers(stack, server, ("io", "-c", "20"))
            folder.wait("started", 8 + 12)
            assert time.monotonic() - began < 30
            folder.open()
            assert [job.get(20).content for job in jobs] == ["through"] * 12
        wait_for(lambda: idle(server), 20, "all acknowledged")
        assert len(folder.lines("started")) == 8 + 12


def test_chords_where_scripts_may_not_be_loaded(server):
    """Each script comes with the command that runs it, wherever the server does not know it."""
    with contextlib.ExitStack() as stack:
        io, cpu = workers(stack, server, ("io", "-c", "5"), ("cpu", "-c", "1"))
        # Kombu has loaded its own when a worker is ready.
        server.client().execute_command("ACL", "SETUSER", "default", "-script")
        pipeline = FanoutPipeline([Echo("a"), Compute("b")], reduce=Echo("c"))
        assert pipeline.submit(HELLO).get(20).content == "c:a:hello+b:1"
        wait_for(lambda: idle(server), 20, "all acknowledged")
        assert "outside body" not in io.log + cpu.log
