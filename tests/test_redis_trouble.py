"""A Redis that is read-only, out of memory, slow, silent or away: clients are told in words and soon, workers go on by
themselves once it is right again, and no call and no result is lost."""

import asyncio
import contextlib
import json
import re
import signal
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
import redis
from celery import chain

import callsheet
from callsheet import AgentFailed, FanoutPipeline, Job, Msg, MsgHub, SequentialPipeline, Settings
from callsheet.agents import CallOptions
from callsheet.cli.batch import Batch, Sent
from callsheet.cli.inputs import Input
from callsheet.cli.progress import Display, Tally
from callsheet.cli.results import Results
from callsheet.errors import AgentTimeout, HubMissing, JobLost, RedisUnavailable, ResultTimeout
from callsheet.hub import listening
from callsheet.hub.place import the_hubs
from callsheet.resources import redis as clients
from callsheet.resources.epoch import epoch
from callsheet.resources.trouble import in_words, is_lasting, is_trouble, refusal
from callsheet.settings import celery as config
from callsheet.settings import get_settings, use_settings
from callsheet.tasks import waiter as waiting
from callsheet.tasks.app import current_app
from tests import breaks
from tests.agents.basic import Compute, Echo
from tests.agents.gated import (
    Asks,
    Chatters,
    Convenes,
    CpuConvenes,
    CpuGated,
    CpuKeeps,
    FailsOnce,
    Gated,
    GatedGroup,
    Keeps,
    Prints,
    Stuck,
    Ticks,
)
from tests.agents.hubs import Talker
from tests.agents.work import Known
from tests.fleet import client_settings
from tests.proxy import Proxy
from tests.services import RedisServer, Worker, wait_for, worker

HELLO = Msg("user", "hello", "user")
ENV = {"CALLSHEET_MODULES": "tests.agents,tests.agents.gated", "CALLSHEET_LEASE": "2",
       "CALLSHEET_RETRY_BACKOFF": "0.05"}
LEASE = 2.0


class Trouble:
    """Brings a server into one kind of trouble, and out of it."""

    words: ClassVar = {
        "oom": r"is out of memory and takes no more data \(OOM\)\. Raise its maxmemory",
        "readonly": r"is a read-only replica and takes no writes \(READONLY\)\. Set CALLSHEET_REDIS_URL to the primary",
        "noreplicas": r"takes no writes, as too few replicas follow it \(NOREPLICAS\)\. Bring the replicas back",
        "away": "No Redis answers at .*Start one",
    }

    def __init__(self, server: RedisServer, kind: str) -> None:
        self.server, self.kind, self.client = server, kind, server.client()

    def begin(self) -> None:
        if self.kind == "oom":
            self.client.config_set("maxmemory", 1)
        elif self.kind == "readonly":
            self.client.execute_command("REPLICAOF", "127.0.0.1", 1)  # where nothing listens
        elif self.kind == "noreplicas":
            self.client.config_set("min-replicas-to-write", 1)
        else:
            self.server.stop(signal.SIGKILL)

    def end(self) -> None:
        if self.kind == "oom":
            self.client.config_set("maxmemory", 0)
        elif self.kind == "readonly":
            self.client.execute_command("REPLICAOF", "NO", "ONE")
        elif self.kind == "noreplicas":
            self.client.config_set("min-replicas-to-write", 0)
        else:
            self.server.start()

    def __enter__(self) -> "Trouble":
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


REFUSALS = ["oom", "readonly", "noreplicas"]


def durable() -> RedisServer:
    return RedisServer("--appendonly", "yes", "--appendfsync", "always")


# Programs that submit ----------------------------------------------------------------------------------


CALLS = {
    "submit": lambda: Echo("a").submit(HELLO),
    "pipeline": lambda: SequentialPipeline([Echo("a"), FanoutPipeline([Echo("b"), Echo("c")])]).submit(HELLO),
    "empty pipeline": lambda: SequentialPipeline([]).submit(HELLO),
    "large": lambda: Known("x" * 100_000).submit(HELLO),
    "map": lambda: list(callsheet.map(Echo("a"), [HELLO] * 3, progress=False)),
    "await": lambda: asyncio.run(Echo("a")(HELLO)),
    "cancel": lambda: Job.from_id("x").cancel(),
    "own task": lambda: current_app().send_task("tests.gated_task", ("x", "y"), queue="io"),
}


@pytest.fixture(scope="module")
def lonely():
    """A Redis that no worker reads from."""
    server = RedisServer()
    yield server
    server.remove()


@pytest.mark.parametrize("kind", REFUSALS)
@pytest.mark.parametrize("what", [name for name in CALLS if name != "own task"])
def test_a_program_is_told_at_once_why_redis_takes_nothing(lonely, what, kind):
    url = lonely.url.replace("redis://", "redis://default:hunter2@")
    lonely.client().execute_command("ACL", "SETUSER", "default", "on", "nopass")
    with use_settings(client_settings(lonely, redis_url=url)), Trouble(lonely, kind) as trouble:
        began = time.monotonic()
        with pytest.raises(RedisUnavailable, match=rf"The Redis at redis://127.*{trouble.words[kind]}") as caught:
            CALLS[what]()
        assert time.monotonic() - began < 10
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("kind", REFUSALS)
def test_and_goes_on_afterwards(lonely, kind):
    with use_settings(client_settings(lonely)):
        with Trouble(lonely, kind), pytest.raises(RedisUnavailable):
            Echo("a").submit(HELLO)
        before = lonely.client().llen("io")
        Echo("a").submit(HELLO)
        assert lonely.client().llen("io") == before + 1


@pytest.fixture
def silent(lonely, monkeypatch):
    """Settings of a program behind a proxy that may fall silent; it waits 1 s for answers, not 15."""
    for module in (config, clients):
        monkeypatch.setattr(module, "TIMEOUT", 1.0)
    proxy = Proxy(lonely.port)
    with use_settings(client_settings(lonely, redis_url=proxy.url)):
        yield proxy
    proxy.close()


def test_a_silent_redis_is_an_error_within_bounded_time(silent):
    for call in (CALLS["submit"], CALLS["large"], CALLS["cancel"]):
        call()  # so that connections are open
    job, found = Echo("a").submit(HELLO), {}

    def measure(name, call):
        began = time.monotonic()
        try:
            found[name] = call()
        except Exception as exc:
            found[name] = exc
        took[name] = time.monotonic() - began

    took = {}
    calls = {**CALLS, "status": lambda: job.status, "calls": job.calls, "interrupt": job.interrupt}
    del calls["own task"]
    silent.silence()
    threads = [threading.Thread(target=measure, args=item) for item in calls.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    silent.speak()
    for name in calls:
        assert isinstance(found.get(name), RedisUnavailable), (name, found.get(name))
        assert "No Redis answers at redis://127" in str(found[name])
        assert took[name] < 30, name


def test_a_result_that_is_awaited_with_a_timeout_is_not_waited_for_longer(silent):
    job = Echo("a").submit(HELLO)
    with pytest.raises(ResultTimeout, match="No worker reads"):
        job.get(0.1)
    silent.silence()
    began = time.monotonic()
    with pytest.raises(ResultTimeout, match=r"Echo\(a\) within 0\.5 s.*(No Redis answers|does not answer)"):
        job.get(0.5)
    assert time.monotonic() - began < 15
    silent.speak()


# Workers -----------------------------------------------------------------------------------------------


class Scene:
    """A worker of each kind, two of the first, and their Redis."""

    def __init__(self, server: RedisServer, io: Worker, more: Worker, cpu: Worker) -> None:
        self.server, self.io, self.more, self.cpu = server, io, more, cpu

        self._seen: dict[Worker, int] = {}

    def look(self) -> None:
        """From now on `said` shows what comes."""
        self._seen = {process: len(process.log) for process in (self.io, self.more, self.cpu)}

    def said(self, queue: str) -> str:
        """What the workers of a queue have logged since."""
        return "".join(process.log[self._seen[process]:]
                       for process in ([self.cpu] if queue == "cpu" else [self.io, self.more]))

    def idle(self) -> bool:
        client = self.server.client()
        return not any(client.llen(queue) for queue in ("io", "cpu")) and not client.hlen("unacked")


@pytest.fixture(scope="module")
def scene_of_all():
    server = durable()
    try:
        with worker("callsheet.workers.io", server.url, "-c", "20", env=ENV) as io, \
                worker("callsheet.workers.io", server.url, "-c", "20", env=ENV) as more, \
                worker("callsheet.workers.cpu", server.url, "-c", "3", env=ENV) as cpu:
            yield Scene(server, io, more, cpu)
    finally:
        server.remove()


@pytest.fixture
def scene(scene_of_all):
    with use_settings(client_settings(scene_of_all.server)):
        yield scene_of_all


class Folder:
    """Where the agents of one test write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self, what: str) -> list[str]:
        file = self.path / what
        return sorted(file.read_text().splitlines()) if file.exists() else []

    def wait(self, what: str, count: int, timeout: float = 20) -> list[str]:
        wait_for(lambda: len(self.lines(what)) >= count, timeout, lambda: f"{count} x {what}, not {self.lines(what)}")
        return self.lines(what)

    def open(self, gate: str = "gate") -> None:
        (self.path / gate).touch()

    def __str__(self) -> str:
        return str(self.path)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def outlast(seconds: float) -> None:
    """The trouble goes on for so long, whatever happens meanwhile."""
    end = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() > end, seconds + 5)


@pytest.mark.parametrize(("queue", "kind"), [
    ("io", "oom"), ("io", "readonly"), ("cpu", "noreplicas"), ("cpu", "away")])
def test_what_ends_in_trouble_is_stored_and_followed_after_it(scene, folder, queue, kind):
    """Single calls, the first step of a chain, the branches of a fan-out; none of them runs twice, though their leases
    could not be renewed meanwhile."""
    one, trouble = (Gated if queue == "io" else CpuGated), Trouble(scene.server, kind)
    scene.look()
    jobs = [one(str(folder), "single").submit(HELLO),
            SequentialPipeline([one(str(folder), "step"), Echo("b")]).submit(HELLO)]
    names = ["single", "step"]
    if queue == "io":
        jobs.append(FanoutPipeline([one(str(folder), "left"), one(str(folder), "right")]).submit(HELLO))
        names += ["left", "right"]
    folder.wait("started", len(names))
    with trouble:
        folder.open()
        folder.wait("ended", len(names))
        wait_for(lambda: "Calls of this worker that have ended keep their results" in scene.said(queue),
                 what="a word in the log")
        outlast(2 * LEASE)
    assert jobs[0].get(30).content == "through"
    assert jobs[1].get(30).content == "b:through"
    if queue == "io":
        assert [msg.content for msg in jobs[2].get(30)] == ["through"] * 2
    wait_for(scene.idle, 20, "all acknowledged")
    assert folder.lines("started") == sorted(names)
    for text in (trouble.words[kind], "works again, after"):
        wait_for(lambda text=text: re.search(text, scene.said(queue)),
                 what=lambda text=text: f"{text} in {scene.said(queue)}")


@pytest.mark.parametrize("kind", ["oom", "away"])
def test_all_that_a_call_writes_waits(scene, folder, kind):
    """A large reply, prints, a call to another agent, another try, a user's own chain."""
    large, prints = Gated(str(folder), "large", 200_000).submit(HELLO), Prints(str(folder), "prints").submit(HELLO)
    asks = Asks(str(folder), "asks").submit(HELLO)
    again = FailsOnce(str(folder), "again").submit(HELLO, retries=1)
    own = chain(*(current_app().signature("tests.gated_task", args=(str(folder), name), immutable=True, queue="io")
                  for name in ("first", "second")), app=current_app()).apply_async()
    folder.wait("started", 5)
    with Trouble(scene.server, kind):
        folder.open()
        folder.wait("ended", 5)
        outlast(1.5 * LEASE)
    assert len(large.get(30).content) == 200_000
    assert prints.get(30).content == "through"
    assert [event.msg.content for event in prints.stream()] == ["through"]
    assert asks.get(30).content == "bob:hello"
    assert again.get(30).content == "the second try"
    wait_for(own.ready, 30, "the chain")
    wait_for(scene.idle, 20, "all acknowledged")
    assert folder.lines("started") == sorted(["large", "prints", "asks", "again", "again", "first", "second"])


@pytest.mark.parametrize(("agent", "kind"), [(Convenes, "oom"), (CpuConvenes, "away")])
def test_what_a_call_does_to_a_hub_waits_also_where_it_is_not_awaited(scene, folder, agent, kind):
    job = agent(str(folder), f"{agent.__name__} {kind}").submit(HELLO)
    folder.wait("started", 1)
    with Trouble(scene.server, kind):
        folder.open()
        folder.wait("ended", 1)
        outlast(LEASE)
    assert job.get(30).content == "1 False"
    members = asyncio.run(the_hubs().members(f"of {agent.__name__} {kind}"))
    assert [(member.label, member.behind) for member in members] == [("Talker(stays)", 1)]
    assert folder.lines("started") == [f"{agent.__name__} {kind}"]


def test_an_elastic_group_that_hands_out_work_waits(scene, folder):
    group = GatedGroup(str(folder))
    with MsgHub([group]) as hub:
        hub.broadcast_nowait([HELLO, HELLO])
        folder.wait("started", 1)
        with Trouble(scene.server, "oom"):
            folder.open()
            folder.wait("ended", 1)
            outlast(LEASE)
        assert group.join(30).done == 2


@pytest.mark.parametrize(("agent", "kind"), [
    (Keeps, "away"), (CpuKeeps, "readonly")])
def test_the_state_of_an_agent_is_kept_after_it(scene, folder, agent, kind):
    keeps = agent(str(folder))
    first = keeps.submit(HELLO)
    folder.wait("started", 1)
    with Trouble(scene.server, kind):
        folder.open()
        folder.wait("ended", 1)
        outlast(1.5 * LEASE)
    assert first.get(30).content == "1"
    assert keeps.submit(HELLO).get(30).content == "2"
    assert folder.lines("started") == ["keeps"] * 2


def test_time_limits_do_not_take_what_has_ended_in_time(scene, folder):
    job = Gated(str(folder)).submit(HELLO, timeout=3)
    folder.wait("started", 1)
    with Trouble(scene.server, "away"):
        folder.open()
        folder.wait("ended", 1)
        outlast(3 + 5 + 1)  # beyond the hard limit
    assert job.get(30).content == "through"


def test_the_end_of_a_call_over_its_time_limit_is_stored_after_the_trouble(scene, folder):
    job = Stuck(str(folder)).submit(HELLO, timeout=2)
    folder.wait("started", 1)
    with Trouble(scene.server, "readonly"):
        folder.open()
        folder.wait("ended", 1)
        outlast(3)
    with pytest.raises((AgentTimeout, AgentFailed)):
        job.get(30)
    wait_for(scene.idle, 20, "all acknowledged")
    assert Echo("a").submit(HELLO).get(20).content == "a:hello"


def test_a_worker_that_starts_in_trouble_works_after_it(own_redis):
    trouble = Trouble(own_redis, "readonly")
    with use_settings(client_settings(own_redis)):
        job = Echo("a").submit(HELLO)
        trouble.begin()
        process = Worker("callsheet.workers.io", own_redis.url, "-c", "2", env=ENV)
        try:
            wait_for(lambda: re.search(trouble.words["readonly"], process.log) or "ready." in process.log, 30,
                     f"a word in the log {process.log}")
            trouble.end()
            assert job.get(30).content == "a:hello"
            assert process.stop() == 0
        finally:
            process.kill()
            process.log_path.unlink(missing_ok=True)


@pytest.mark.parametrize("kind", ["readonly", "away"])
def test_a_worker_without_calls_can_be_stopped_in_trouble(kind):
    server = durable()
    try:
        with worker("callsheet.workers.io", server.url, "-c", "2", env=ENV) as process, use_settings(
                client_settings(server)):
            assert Echo("a").submit(HELLO).get(20).content == "a:hello"
            Echo("a").submit(HELLO, countdown=3600)
            Trouble(server, kind).begin()
            process.wait_log("Connection to broker lost")
            assert process.stop(timeout=30) == 0
    finally:
        server.remove()


@pytest.fixture
def behind_proxy(folder):
    """A worker whose connections a test can silence; the program has its own."""
    server = durable()
    proxy = Proxy(server.port)
    try:
        with worker("callsheet.workers.io", proxy.url, "-c", "10", env=ENV) as process, use_settings(
                client_settings(server)):
            yield server, proxy, process
    finally:
        proxy.close()
        server.remove()


def test_a_redis_that_does_not_answer_the_worker_holds_up_no_running_call(behind_proxy, folder):
    server, proxy, process = behind_proxy
    ticking = Ticks(str(folder)).submit(HELLO)
    jobs = [Gated(str(folder), "single").submit(HELLO),
            SequentialPipeline([Gated(str(folder), "step"), Echo("b")]).submit(HELLO),
            FailsOnce(str(folder), "again").submit(HELLO, retries=1)]
    folder.wait("started", 3)
    folder.wait("ticks", 5)
    proxy.silence()
    folder.open()
    folder.wait("ended", 3)
    before = len(folder.lines("ticks"))
    folder.wait("ticks", before + 100, 15)  # 5 s: the loop turns
    process.wait_log("Leases cannot be renewed")
    proxy.speak()
    folder.open("over")
    assert [job.get(40).content for job in jobs] == ["through", "b:through", "the second try"]
    assert ticking.get(40).content == "over"
    wait_for(lambda: not server.client().hlen("unacked"), 30, "all acknowledged")
    assert [name for name in folder.lines("started") if name != "again"] == ["single", "step"]
    assert Echo("a").submit(HELLO).get(30).content == "a:hello"


def test_a_connection_that_breaks_at_any_command_loses_and_doubles_nothing():
    """At some of them; `make breaks` does at all. And what is left of all the jobs expires."""
    assert breaks.run(2) == []


def test_connections_that_break_after_a_silence_lose_nothing(behind_proxy, folder):
    server, proxy, _ = behind_proxy
    jobs = [Gated(str(folder), f"{number}").submit(HELLO) for number in range(5)]
    folder.wait("started", 5)
    proxy.silence()
    folder.open()
    folder.wait("ended", 5)
    outlast(1)
    proxy.cut()
    outlast(1)
    proxy.speak()
    assert [job.get(60).content for job in jobs] == ["through"] * 5
    wait_for(lambda: not server.client().hlen("unacked"), 30, "all acknowledged")
    assert folder.lines("started") == [str(number) for number in range(5)]


def test_a_redis_that_pauses_for_ten_seconds_is_waited_for(scene, folder):
    """By programs and by workers; neither raises."""
    running = [Gated(str(folder), "single").submit(HELLO),
               SequentialPipeline([Gated(str(folder), "step"), Echo("b")]).submit(HELLO)]
    folder.wait("started", 2)
    scene.server.client().execute_command("CLIENT", "PAUSE", 10_000, "ALL")
    folder.open()
    results = list(callsheet.map(Echo("m"), [HELLO] * 5, progress=False))
    assert [msg.content for msg in results] == ["m:hello"] * 5
    assert [job.get(30).content for job in running] == ["through", "b:through"]
    assert Compute("c").submit(HELLO).get(30).content == "c:1"
    wait_for(scene.idle, 20, "all acknowledged")
    assert folder.lines("started") == ["single", "step"]


# A Redis that has lost its data -------------------------------------------------------------------------


LOST = "has lost data: it came back empty"


def lose(server: RedisServer, how: str) -> None:
    if how == "flushed":
        server.client().flushall()
    else:
        server.stop(signal.SIGKILL)
        server.start()


@pytest.fixture(scope="module")
def forgetful():
    """A worker of each kind, and their Redis that keeps nothing."""
    server = RedisServer()
    try:
        with worker("callsheet.workers.io", server.url, "-c", "20", env=ENV) as io, \
                worker("callsheet.workers.cpu", server.url, "-c", "2", env=ENV) as cpu:
            yield Scene(server, io, io, cpu)
    finally:
        server.remove()


@pytest.mark.parametrize("how", ["flushed", "restarted from an old file"])
def test_what_redis_lost_ends_and_what_runs_goes_on(forgetful, folder, how, monkeypatch):
    monkeypatch.setattr(waiting, "_LOOK", 1.0)
    scene = forgetful
    with use_settings(client_settings(scene.server, lease=LEASE)):
        Echo("a").submit(HELLO).get(20)
        if how == "restarted from an old file":
            client = scene.server.client()
            client.save()
            saved = int(client.hget("callsheet:epoch", "looks"))
            wait_for(lambda: int(client.hget("callsheet:epoch", "looks")) > saved + 5, what="looks of the workers")
            epoch(get_settings()).look()
        scene.look()
        going = [Gated(str(folder), "single").submit(HELLO), CpuGated(str(folder), "cpu").submit(HELLO),
                 SequentialPipeline([Gated(str(folder), "step"), Echo("b")]).submit(HELLO)]
        folder.wait("started", 3)
        lost = [Echo("a").submit(HELLO, queue="nobody"), Echo("a").submit(HELLO, countdown=4000),
                FanoutPipeline([Echo("a"), Gated(str(folder), "a", gate="never")]).submit(HELLO)]
        ended = Echo("a").submit(HELLO)
        assert ended.get(20).content == "a:hello"
        folder.wait("started", 4)
        lose(scene.server, how)
        with pytest.raises(ResultTimeout, match="has lost data since it was sent"):
            going[0].get(0.5)
        for job in lost[:2]:
            with pytest.raises(JobLost, match=f"lost its data, and job {job.id} with them: .*appendonly yes"):
                job.get(30)
        with pytest.raises(ResultTimeout):
            lost[2].get(0.5)  # one of its branches runs
        folder.open("never")
        if how == "flushed":
            with pytest.raises(JobLost):
                list(lost[2].stream())
        folder.open()
        assert [job.get(30).content for job in going] == ["through", "through", "b:through"]
        assert Echo("a").submit(HELLO).get(20).content == "a:hello"
        wait_for(scene.idle, 20, "all acknowledged")
        assert sorted(folder.lines("started")) == ["a", "cpu", "single", "step"]
        for queue in ("io", "cpu"):
            assert scene.said(queue).count(LOST) == (1 if queue == "cpu" else 2)  # both logs of io are one
            assert "calls that this worker holds nothing was left in Redis" in scene.said(queue)


def test_a_run_over_files_sends_again_what_redis_lost(forgetful, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(waiting, "_LOOK", 0.5)
    with use_settings(client_settings(forgetful.server, lease=LEASE)), contextlib.ExitStack() as files:
        before = Echo("a").submit(HELLO, queue="nobody")
        results, sent = Results(tmp_path / "out.jsonl"), Sent(tmp_path / "state", "it")
        files.callback(sent.close)
        files.callback(results.close)
        batch = Batch(target=Echo("a"), options=CallOptions(), results=results, sent=sent,
                      picked_up={"one": before.id}, window=5, display=Display(Tally(1, 0)),
                      check=lambda: None, stalled=lambda: "")

        async def main():
            running = asyncio.ensure_future(batch.run(iter([Input("one", "one.txt", HELLO)])))
            await asyncio.sleep(0)
            await asyncio.to_thread(wait_for, lambda: before.id in waiting_for_now(), 20, "the wait")
            lose(forgetful.server, "flushed")
            await asyncio.wait_for(running, 30)

        asyncio.run(main())
    assert "one.txt is sent again. The Redis at" in capsys.readouterr().err
    [line] = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (line["status"], line["result"]["content"]) == ("ok", "a:hello")
    assert line["job_id"] != before.id


def test_who_listens_to_a_hub_that_redis_lost_hears_of_it(lonely, monkeypatch):
    monkeypatch.setattr(listening, "_LOOK_ANYWAY", 0.1)
    with use_settings(client_settings(lonely)):
        hub = MsgHub.open("lost", [Talker("x")])
        hub.broadcast_nowait(HELLO)
        heard = iter(callsheet.hub.listen("lost"))
        assert next(heard).msg.content == "hello"
        lose(lonely, "flushed")
        with pytest.raises(HubMissing, match="'lost'"):
            next(heard)


def waiting_for_now() -> list[str]:
    return [task_id for one in list(waiting._waiters.values()) for task_id in list(one._sent)]


def test_a_restart_with_data_a_flushed_script_cache_and_broken_connections_lose_nothing(scene, folder):
    data = epoch(get_settings())
    data.look()
    losses = data.losses
    scene.look()
    job = Gated(str(folder)).submit(HELLO)
    folder.wait("started", 1)
    scene.server.stop(signal.SIGKILL)
    scene.server.start()
    client = scene.server.client()
    client.script_flush()
    for kind in ("normal", "pubsub"):
        client.execute_command("CLIENT", "KILL", "TYPE", kind)
    outlast(LEASE)
    data.look()
    with pytest.raises(ResultTimeout, match="It is running"):
        job.get(0.5)
    folder.open()
    assert job.get(30).content == "through"
    assert data.losses == losses
    assert "lost data" not in scene.said("io") + scene.said("cpu")


def test_a_job_whose_parts_were_evicted_is_told_from_one_that_runs(scene, folder):
    job = FanoutPipeline([Gated(str(folder)), Echo("a")]).submit(HELLO)
    folder.wait("started", 1)
    client = scene.server.client()
    client.delete(*(key for key in client.scan_iter() if key.endswith((".j", ".t", ".s"))))
    with pytest.raises(ResultTimeout, match="It is running"):
        job.get(0.5)
    folder.open()
    wait_for(scene.idle, 20, "all acknowledged")
    with pytest.raises(ResultTimeout, match=r"Neither a queue nor a worker has a call of it: .*evicted"):
        job.get(0.5)


PIPED = "Command # 1 (XADD {}) of pipeline caused error: "


@pytest.mark.parametrize(("exc", "code", "passes"), [
    (redis.ResponseError("NOREPLICAS Not enough good replicas"), "NOREPLICAS", True),
    (redis.ResponseError(PIPED + "('MISCONF Redis is configured to save',)"), "MISCONF", True),
    (redis.ResponseError(PIPED + "NOREPLICAS Not enough"), "NOREPLICAS", True),
    (redis.ResponseError("Error running script: @user_script:5: -READONLY No", status_code="ERR"), "READONLY", True),
    (redis.OutOfMemoryError("command not allowed", status_code="OOM"), "OOM", True),
    (redis.exceptions.NoPermissionError("this user has no permissions", status_code="NOPERM"), "NOPERM", False),
    (redis.ResponseError(PIPED + "WRONGTYPE Operation against a key"), "WRONGTYPE", False),
    (redis.ResponseError("DB index is out of range", status_code="ERR"), "DB", False),
    (redis.exceptions.ClusterCrossSlotError("Keys in request", status_code="CROSSSLOT"), "CROSSSLOT", False),
    (redis.exceptions.MovedError("1 127.0.0.1:7", status_code="MOVED"), "MOVED", False),
    (redis.ResponseError("value 'OOM BUSY' is no number"), "", False),
    (redis.ConnectionError("Error 111 connecting to OOM:6379"), "", True),
])
def test_an_error_of_redis_is_known_by_its_code(exc, code, passes):
    assert (refusal(exc), is_trouble(exc), is_lasting(exc)) == (code, passes, bool(code) and not passes)
    assert (f"({code})" if code else str(exc)) in in_words(exc, Settings())


def test_what_is_printed_while_redis_takes_nothing_is_in_the_stream(scene, folder):
    job = Chatters(str(folder)).submit(HELLO)
    folder.wait("printed", 2)
    with Trouble(scene.server, "noreplicas"):
        folder.wait("printed", 5)
        folder.open()
        wait_for(lambda: "keep their results" in scene.io.log + scene.more.log, what="a word of it")
    job.get(30)
    assert [event.msg.content for event in job.stream()] == [str(number) for number in range(6)]
