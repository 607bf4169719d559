"""The autoscaler on real workers: it follows the load, keeps to its bounds, and says what it decides."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from celery import Celery
from celery.concurrency import thread
from celery.events.state import State
from flower.events import EventsState

from callsheet import Msg
from callsheet.errors import SettingsError
from callsheet.models import OpenAIChatModel
from callsheet.scaling import Limits, Load, Policy
from callsheet.settings import use_settings
from callsheet.tasks.app import make_app
from callsheet.tasks.control import ask
from callsheet.workers.app import wrong_with
from callsheet.workers.autoscaler import AT_WORK, LoadAutoscaler
from callsheet.workers.gauges import BusyTime, ProcessGauge, Reading, UnitMemory, WaitsForTurns, age_of
from callsheet.workers.machine import Group, Processors, cores, cpu_seconds, memory_of, own_share_of
from callsheet.workers.status import LOAD
from tests.agents.asking import Asker
from tests.agents.gated import Blocking, CpuGated, Gated
from tests.fleet import MODULES, client_settings
from tests.services import ROOT, RedisServer, Worker, wait_for, worker
from tests.test_limits_fleet import server as provider_server

IO, CPU = "callsheet.workers.io", "callsheet.workers.cpu"
HI = Msg("user", "hi", "user")


class Scaled:
    """A worker that scales, and this process's calls to it."""

    def __init__(self, server: RedisServer, process: Worker, app: Celery) -> None:
        self.server, self.process, self.app = server, process, app

    def stats(self) -> dict:
        answer = self.app.control.inspect([self.process.name], timeout=5, limit=1).stats() or {}
        return answer.get(self.process.name) or {}

    @property
    def scaler(self) -> dict:
        return self.stats().get("autoscaler") or {}

    @property
    def size(self) -> int:
        return int(self.scaler.get("current", -1))

    def autoscale(self, most: int, least: int) -> dict:
        answers = self.app.control.autoscale(most, least, destination=[self.process.name], reply=True, timeout=5)
        return answers[0][self.process.name]

    def lines(self) -> list[str]:
        return [line for line in self.process.log.splitlines() if "autoscale size" in line]


@contextmanager
def scaled(server: RedisServer, app: str, *options: str, **env: str) -> Iterator[Scaled]:
    """An autoscaled worker, with this process's settings on its Redis."""
    settings = client_settings(server)
    environ = {"CALLSHEET_MODULES": MODULES, "CALLSHEET_AUTOSCALE_COOLDOWN": "2", **env}
    with worker(app, server.url, *options, env=environ) as process, use_settings(settings):
        yield Scaled(server, process, make_app(settings))


@pytest.fixture(scope="module")
def io_worker(redis_server):
    server = RedisServer()
    try:
        with scaled(server, IO, "--autoscale=100,5", "-E") as one:
            yield one
    finally:
        server.remove()


@pytest.fixture
def one(io_worker):
    """The io worker, idle at its smallest size."""
    io_worker.autoscale(100, 5)
    wait_for(lambda: io_worker.size == 5, 30, "five slots")
    return io_worker


def started(folder: Path) -> list[str]:
    path = folder / "started"
    return path.read_text().split() if path.exists() else []


def test_an_io_worker_grows_with_its_load_tells_so_and_comes_back(one, tmp_path):
    events: list[dict] = []
    with one.app.connection_for_read() as connection:
        receiver = one.app.events.Receiver(connection, handlers={"worker-autoscaled": events.append})
        listener = threading.Thread(target=receiver.capture, kwargs={"limit": None, "timeout": None}, daemon=True)
        listener.start()
        jobs = [Gated(str(tmp_path), f"g{i}").submit(HI) for i in range(60)]
        wait_for(lambda: len(started(tmp_path)) == 60, what="all at work")
        told = one.scaler
        assert (told["max"], told["min"], told["current"]) == (100, 5, 60)
        assert told["load"]["size"] >= 5
        wait_for(lambda: (one.scaler["load"]["memory"] or 0) > 20 << 20 and one.scaler["load"]["cpu"] is not None,
                 what="memory and CPU")
        assert told["changes"]["up:backlog"] >= 2
        (tmp_path / "gate").touch()
        for job in jobs:
            job.get(10)
        wait_for(lambda: one.size == 5, 20, "five slots again")
        wait_for(lambda: events and events[-1]["autoscale"]["size"] == 5, what="the last event")
        receiver.should_stop = True
    sizes = [event["autoscale"]["size"] for event in events]
    assert max(sizes) == 60
    assert events[0]["autoscale"]["bound"] == "backlog" and events[-1]["autoscale"]["bound"] == "minimum"
    assert re.search(r"autoscale size=5->\d+ bound=backlog busy=\d backlog=\d+ need=\d+", one.process.log)
    downs = [int(line.partition("->")[2].split()[0]) for line in one.lines() if "bound=cooldown" in line]
    assert len(downs) >= 1 and downs == sorted(downs, reverse=True)  # bit by bit


def test_bounds_set_below_what_runs_wait_for_it_and_wrong_ones_are_refused(one, tmp_path):
    one.autoscale(40, 2)
    jobs = [Gated(str(tmp_path), f"g{i}").submit(HI) for i in range(20)]
    wait_for(lambda: len(started(tmp_path)) == 20, what="all at work")
    for most, least in ((1, 5), (0, 0), (5, -1)):
        assert f"A maximum of {most} and a minimum of {least} leave no size" in one.autoscale(most, least)["error"]
    assert one.scaler["max"] == 40
    assert one.autoscale(4, 1) == {"ok": "autoscale now max=4 min=1"}
    one.process.wait_log("20 calls run, more than the new maximum of 4")
    wait_for(lambda: one.size == 20, what="what runs, and no more")
    assert one.scaler["bound"] == "busy"
    (tmp_path / "gate").touch()
    assert [job.get(10).get_text_content() for job in jobs] == ["through"] * 20
    wait_for(lambda: one.size <= 4, what="the new maximum")
    assert len(started(tmp_path)) == 20
    assert one.autoscale(50, 30)["ok"]
    wait_for(lambda: one.size == 30, what="the new minimum")


def test_a_cpu_worker_grows_and_never_kills_a_process_at_work(own_redis, tmp_path):
    busy, quick = tmp_path / "busy", tmp_path / "quick"
    busy.mkdir()
    quick.mkdir()
    with scaled(own_redis, CPU, "--autoscale=3,1", CALLSHEET_AUTOSCALE_COOLDOWN="0") as one:
        jobs = [CpuGated(str(busy), f"b{i}").submit(HI) for i in range(2)]
        wait_for(lambda: len(started(busy)) == 2, 30, "two processes at work")
        (quick / "gate").touch()
        end, sent = time.monotonic() + 4, 0
        while time.monotonic() < end:  # it shrinks whenever it may, while calls are handed over
            short = [CpuGated(str(quick), f"c{sent + i}").submit(HI) for i in range(3)]
            sent += len(short)
            for job in short:
                job.get(20)
            wait_for(lambda: one.size == 2, 20, "the idle one gone, and those at work still there")
        (busy / "gate").touch()
        assert [job.get(10).get_text_content() for job in jobs] == ["through"] * 2
        wait_for(lambda: one.size == 1, 20, "one process")
        assert sorted(started(busy)) == ["b0", "b1"]
        assert sorted(started(quick)) == sorted(f"c{i}" for i in range(sent))
        assert sum(count for way, count in one.scaler["changes"].items() if way.startswith("down")) >= 2
        assert "WorkerLost" not in one.process.log and "Traceback" not in one.process.log


def test_a_worker_before_a_rate_limit_keeps_the_slots_that_it_can_use(own_redis):
    with provider_server() as provider, scaled(
            own_redis, IO, "--autoscale=1000,10", CALLSHEET_ENDPOINTS__LIMITED__BASE_URL=provider.url,
            CALLSHEET_ENDPOINTS__LIMITED__RPM="60") as one:
        settings = client_settings(own_redis, endpoints={"limited": {"base_url": provider.url, "rpm": 60}})
        with use_settings(settings):
            agent = Asker(OpenAIChatModel("m", endpoint="limited", stream=False))
            for _ in range(400):
                agent.submit(HI, expires=600)
        wait_for(lambda: one.stats()["pool"]["parked"] > 300, 30, "calls that wait for their turn")
        assert one.size < 250
        assert any("quota=" in line for line in one.lines()) or one.scaler["load"]["quota"] is not None
        one.process.kill()  # they would wait for minutes


def test_time_in_queue_and_a_late_loop_are_what_it_decides_by(own_redis, tmp_path):
    early, late, loop = (tmp_path / name for name in ("early", "late", "loop"))
    for folder in (early, late, loop):
        folder.mkdir()
    with use_settings(client_settings(own_redis)):
        before, sent = [Gated(str(early), f"e{i}").submit(HI) for i in range(12)], time.monotonic()
        wait_for(lambda: time.monotonic() - sent > 1, what="them to have waited")
    with scaled(own_redis, IO, "--autoscale=8,2", CALLSHEET_AUTOSCALE_LAG="0.3",
                CALLSHEET_AUTOSCALE_STRAIN="0") as one:
        def waited() -> float:
            return ask(one.app, client_settings(own_redis), LOAD)[one.process.name]["waited"] or 0.0

        wait_for(lambda: len(started(early)) == 8, what="all that may work")
        first = wait_for(lambda: re.search(r"autoscale size=2->\d .* waited=([\d.]+)", one.process.log),
                         what=lambda: f"its first decision in\n{one.process.log}")
        assert float(first[1]) > 1, "since they were sent, when there was no worker"
        since = wait_for(waited, what="a decision while four calls wait")
        wait_for(lambda: waited() > since + 0.5, what="them to wait longer")
        (early / "gate").touch()
        assert [job.get(20).content for job in before] == ["through"] * 12
        wait_for(lambda: one.size == 2 and one.scaler["load"]["waited"] is None, what="rest")

        blocking = Blocking(str(loop), "blocks").submit(HI)
        wait_for(lambda: (one.scaler["load"]["lag"] or 0) > 0.3, what="the loop to be seen late")
        jobs = [Gated(str(late), f"l{i}").submit(HI) for i in range(6)]
        told = wait_for(lambda: (now := one.scaler)["bound"] == "lag" and now, what="a decision bound by that")
        assert told["need"] > told["size"] == told["load"]["size"] < 8, "it holds its size"
        (loop / "gate").touch()
        blocking.get(20)
        wait_for(lambda: one.size == 6, what="growth now that the loop goes on")
        (late / "gate").touch()
        assert [job.get(20).content for job in jobs] == ["through"] * 6


def test_a_memory_limit_below_what_the_worker_takes_is_an_error_at_start(redis_server):
    small = Worker(IO, redis_server.url, "--autoscale=100,5",
                   env={"CALLSHEET_MODULES": MODULES, "CALLSHEET_AUTOSCALE_MEMORY": "1000000"})
    assert small.process.wait(60) != 0
    assert re.search(r"The worker uses \d+ MiB before its first call, and may use 1 MiB", small.log)


def test_it_goes_on_after_its_connections_were_cut(one, tmp_path):
    client = one.server.client()
    assert sum(client.client_kill_filter(addr=f"127.0.0.1:{connection.laddr.port}")
               for connection in psutil.Process(one.process.process.pid).net_connections("tcp4")
               if connection.raddr and connection.raddr.port == one.server.port) > 2
    jobs = [Gated(str(tmp_path), f"g{i}").submit(HI) for i in range(40)]
    wait_for(lambda: len(started(tmp_path)) == 40, 30, "all at work")
    assert one.size == 40
    (tmp_path / "gate").touch()
    assert [job.get(20).get_text_content() for job in jobs] == ["through"] * 40
    assert len(started(tmp_path)) == 40


def test_redis_is_asked_at_most_about_once_a_second_and_not_at_all_without_need(one, tmp_path):
    def asked() -> int:
        return int(one.server.client().info("commandstats").get("cmdstat_llen", {}).get("calls", 0)) // 4

    def published() -> int:
        return int(one.server.client().info("commandstats")["cmdstat_publish"]["calls"])

    one.autoscale(4, 2)
    wait_for(lambda: one.size <= 4, what="four slots at most")
    began = asked()
    jobs = [Gated(str(tmp_path), f"g{i}").submit(HI) for i in range(30)]
    wait_for(lambda: len(started(tmp_path)) == 4, what="all that may work")
    wait_for(lambda: one.scaler["bound"] == "maximum" and one.scaler["load"]["backlog"] == 26, what="the whole backlog")
    start, before = time.monotonic(), asked()
    wait_for(lambda: asked() - before >= 3, what="three looks")
    assert asked() - before <= (time.monotonic() - start) + 1
    (tmp_path / "gate").touch()
    for job in jobs:
        job.get(10)
    wait_for(lambda: one.size == 2, what="two slots")
    idle, told = asked(), published()
    # Two heartbeats at least, and the bounds' event: the autoscaler, on the same clock, decides once a second.
    wait_for(lambda: published() >= told + 3, what="the worker's heartbeats")
    assert asked() == idle > began


# Bad input

@pytest.mark.parametrize(("value", "says"), [
    ("1,5", "maximum of 1 and a minimum of 5"), ("0", "maximum of 0"), ("-3", "maximum of -3"),
    ("5,-1", "minimum of -1"), ("many", "'many' is not MAX,MIN"),
    ("a,b", "'a,b' is not MAX,MIN"), ("5,", "'5,' is not"), ("1,2,3", "is not MAX,MIN"), ("", "'' is not"),
    ("2.5,1", "is not MAX,MIN"), ("1e3,1", "is not MAX,MIN"),
])
def test_wrong_flags_are_named(value: str, says: str) -> None:
    assert says in wrong_with(value)
    assert "--autoscale=500,20" in wrong_with(value)


@pytest.mark.parametrize("value", ["500,20", "1", "10,0", "2,2", " 5 , 1 ", "+5,1"])
def test_right_flags_pass(value: str) -> None:
    assert wrong_with(value) == ""


@pytest.mark.parametrize(("app", "value", "says"), [
    (IO, "2,20", "A maximum of 2 and a minimum of 20"), (CPU, "a,b", "'a,b' is not MAX,MIN")])
def test_a_worker_with_a_wrong_flag_ends_with_one_line_that_says_why(app: str, value: str, says: str) -> None:
    done = subprocess.run([sys.executable, "-m", "celery", "-A", app, "worker", f"--autoscale={value}"],
                          check=False, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("Error: Invalid value for --autoscale: " + says)
    assert "Traceback" not in done.stderr


def test_a_pool_that_cannot_grow_is_named() -> None:
    with pytest.raises(SettingsError, match="--autoscale needs a pool that grows and shrinks, and TaskPool does not"):
        LoadAutoscaler(thread.TaskPool(5), 5, 1)


def test_processes_are_not_added_so_fast_that_celery_gives_the_pool_up() -> None:
    assert ProcessGauge.most_added / AT_WORK < 100  # Celery's limit in a second, restarts and new ones together


def test_the_event_is_one_that_flower_and_celerys_own_monitors_take() -> None:
    told = Policy(Limits(minimum=1, maximum=5)).decide(Load(size=1, busy=1, backlog=9), 0.0).to_dict()
    fields = {"hostname": "w@h", "timestamp": time.time(), "local_received": time.time(), "clock": 1}
    for state in (State(), EventsState()):
        state.event({"type": "worker-online", "active": 3, "processed": 7, **fields})
        state.event({"type": "worker-autoscaled", "autoscale": json.loads(json.dumps(told)), **fields})
        seen = state.workers["w@h"]
        assert (seen.alive, seen.active, seen.processed) == (True, 3, 7)


# Measures

def reading(**changes: float) -> Reading:
    given = {"size": 10, "busy": 0, "returning": 0, "waiting": 0, "begun": 0, "ended": 0, "held": 0}
    return Reading(**{**given, **changes})


def request(sent: object, **more: object) -> SimpleNamespace:
    return SimpleNamespace(args=("agent", {"sent": sent}), eta=more.get("eta"),
                           delivery_info={"redelivered": more.get("redelivered", False)})


def test_the_age_of_a_message_is_that_since_it_was_sent() -> None:
    assert age_of(request(time.time() - 5)) == pytest.approx(5, abs=1)
    assert age_of(request(time.time() + 3600)) == 0  # a sender's clock that is ahead
    for one in (request(None), request("soon"), request(1.0, eta="later"), request(1.0, redelivered=True),
                SimpleNamespace(args=(), eta=None, delivery_info=None),
                SimpleNamespace(args=(1, 2), eta=None, delivery_info=None)):
        assert age_of(one) is None


def test_the_time_of_a_call_is_what_slots_were_busy_for_over_what_ended() -> None:
    busy = BusyTime()
    assert busy.seconds(reading(busy=10), 0) is None
    assert busy.seconds(reading(busy=10), 1) is None
    found = [busy.seconds(reading(busy=10, ended=5 * i), 1 + i) for i in range(1, 60)]
    assert found[-1] == pytest.approx(2.0, rel=0.2)
    assert busy.seconds(reading(busy=10, ended=295), 30) == pytest.approx(2.0, rel=0.2)  # a clock that goes back
    longer = [busy.seconds(reading(busy=10, ended=295), 60 + i) for i in range(30)]
    assert longer[-1] > 10  # nothing ends any more


def test_memory_of_a_unit_is_told_by_what_runs_or_by_processes() -> None:
    slots, processes = UnitMemory(100, False), UnitMemory(100, True)
    assert slots.of(reading(held=5), 1000) is None  # too few to tell
    assert slots.of(reading(held=30), 400) == 10
    assert slots.of(reading(held=0), 400) == 10
    assert processes.of(reading(size=4), 500) == 100
    assert UnitMemory(None, True).of(reading(size=4), 500) is None


def test_calls_that_would_only_wait_for_their_turn_get_no_slots() -> None:
    waits = WaitsForTurns()
    assert waits.quota(reading(begun=10, busy=10), 500) is None
    assert waits.quota(reading(begun=50, busy=12, turns=40), 500) == 12
    mixed = WaitsForTurns()
    mixed.quota(reading(), 0)
    assert mixed.quota(reading(begun=100, busy=50, turns=50), 500) == 50 + 250
    assert mixed.quota(reading(begun=100, busy=50), 500) is None  # nobody waits for a turn any more


# The machine

def test_a_process_is_measured() -> None:
    pid = os.getpid()
    assert 1 << 20 < (own_share_of(pid) or 0) <= 2 * (memory_of(pid) or 0)
    look = Processors(1.0)
    assert look.share([pid]) is None
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    assert 0 < (look.share([pid]) or 0) <= 2
    assert memory_of(1 << 30) is None and cpu_seconds(1 << 30) is None and own_share_of(1 << 30) is None
    assert look.share([1 << 30]) == 0.0


def fake(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("--", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_limits_of_a_control_group_and_of_those_above_it_hold(tmp_path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cg"
    fake(proc, self__cgroup="0::/pod/box\n")
    fake(root, **{"pod__memory--max": "2000000\n", "pod__box__memory--max": "max\n",
                  "pod__box__memory--current": "900000\n", "pod__box__memory--stat": "anon 1\ninactive_file 100000\n",
                  "pod__cpu--max": "max 100000\n", "pod__box__cpu--max": "150000 100000\n"})
    group = Group.own(proc, root)
    assert (group.memory_limit(), group.memory_used(), group.cores()) == (2000000, 800000, 1.5)
    assert cores(group) <= 1.5


def test_control_groups_of_version_1_are_understood(tmp_path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cg"
    fake(proc, self__cgroup="4:memory:/docker/x\n2:cpu,cpuacct:/docker/x\n0::/\n")
    fake(root, **{"memory__memory--limit_in_bytes": "5000000\n", "memory__memory--usage_in_bytes": "700000\n",
                  "memory__memory--stat": "cache 1\ntotal_inactive_file 200000\n", "cpu__cpu--cfs_quota_us": "-1\n",
                  "cpu__cpu--cfs_period_us": "100000\n"})
    group = Group.own(proc, root)
    assert (group.memory_limit(), group.memory_used(), group.cores()) == (5000000, 500000, None)
    fake(root, **{"memory__memory--limit_in_bytes": "9223372036854771712\n"})
    assert group.memory_limit() is None


def test_a_machine_that_tells_nothing_bounds_nothing(tmp_path) -> None:
    group = Group.own(tmp_path, tmp_path)
    assert (group.memory_limit(), group.memory_used(), group.cores()) == (None, None, None)
    assert cores(group) >= 1
