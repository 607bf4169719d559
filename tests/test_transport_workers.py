"""The batched transport under real workers that are killed, suspended, cut off and shut down."""

import contextlib
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
import redis
from celery import Celery

from callsheet import Msg
from callsheet.errors import PoisonedCall
from callsheet.resources import dead_letters
from callsheet.settings import use_settings
from callsheet.tasks.app import current_app
from callsheet.workers.broker.layout import mark_lost
from tests.agents.marking import CpuMarks
from tests.fleet import client_settings
from tests.services import Counts, RedisServer, Worker, wait_for, worker
from tests.test_transport import registered

QUEUE = "t"


class Fleet:
    """Workers on one server and queue."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.redis: redis.Redis = server.client()
        self.app = Celery("client", broker=server.url, backend=server.url, set_as_current=False)

    @contextmanager
    def worker(self, *options: str, lease: float = 2, slots: int = 4, **env: str) -> Iterator[Worker]:
        env = {"POOL_QUEUE": QUEUE, "LEASE": str(lease), **env}
        with worker("tests.transport_app", self.server.url, "-c", str(slots), *options, env=env) as process:
            yield process

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        options.setdefault("queue", QUEUE)
        return self.app.send_task(task, args, **options)

    def notes(self, key: str) -> list[str]:
        return self.redis.lrange(key, 0, -1)

    def wait_notes(self, key: str, count: int = 1, timeout: float = 20) -> list[str]:
        wait_for(lambda: len(self.notes(key)) >= count, timeout, lambda: f"{count} x {key}, not {self.notes(key)}")
        return self.notes(key)

    def idle(self) -> bool:
        return self.redis.llen(QUEUE) == 0 and registered(self.redis) == (0, 0, 0)

    def wait_idle(self) -> None:
        wait_for(self.idle, what=lambda: f"an empty queue, not {self.redis.llen(QUEUE)} {registered(self.redis)}")


@pytest.fixture
def fleet_on(own_redis: RedisServer) -> Iterator[Fleet]:
    fleet = Fleet(own_redis)
    yield fleet
    fleet.app.close()


@pytest.mark.parametrize("pool", ["callsheet.workers.pool:AsyncioPool", "prefork", "threads", "solo"])
def test_tasks_run_on_every_pool(fleet_on, pool):
    with fleet_on.worker(POOL=pool):
        for i in range(30):
            fleet_on.send("tests.transport_app.plain_note", "k", str(i))
        assert sorted(map(int, fleet_on.wait_notes("k", 30))) == list(range(30))
        fleet_on.wait_idle()


def test_stock_and_batched_workers_share_a_queue(fleet_on):
    with fleet_on.worker(), fleet_on.worker(TRANSPORT="stock"):
        results = [fleet_on.send("tests.pool_app.who", 0.01) for _ in range(200)]
        for result in results:
            result.get(timeout=20)
        fleet_on.wait_idle()
    assert registered(fleet_on.redis) == (0, 0, 0)


@pytest.mark.parametrize("pool", ["callsheet.workers.pool:AsyncioPool", "prefork"])
def test_a_killed_workers_calls_are_back_within_the_lease(fleet_on, pool):
    with fleet_on.worker() as survivor:
        fleet_on.send("tests.transport_app.mark", "warm", "x")
        fleet_on.wait_notes("warm")
        survivor.send_signal(signal.SIGSTOP)
        with fleet_on.worker(POOL=pool, PREFETCH="2") as victim:
            task = "tests.transport_app.count_and_hold" if pool != "prefork" else "tests.transport_app.plain_hold"
            for _ in range(12):
                fleet_on.send(task, "k", "gate")
            fleet_on.wait_notes("k", 4)
            wait_for(lambda: fleet_on.redis.hlen("unacked") == 8, what="the prefetched messages")
            victim.kill()
        seconds, micros = fleet_on.redis.time()
        ends = [score for _, score in fleet_on.redis.zrange("unacked_lease", 0, -1, withscores=True)]
        assert len(ends) == 8 and max(ends) <= seconds + micros / 1e6 + 1.5  # the rest of the 2 s is for the sweep
        fleet_on.redis.delete("k")  # what the victim noted, and nothing of the survivor's
        survivor.send_signal(signal.SIGCONT)
        wait_for(lambda: fleet_on.redis.llen(QUEUE) + len(fleet_on.notes("k")) >= 8, 8, "the messages to be back")
        fleet_on.redis.set("gate", 1)
        fleet_on.wait_notes("k", 12)
        if pool != "prefork":
            assert sorted(fleet_on.notes("k")) == ["1 0 False"] * 4 + ["2 1 True"] * 8
        fleet_on.wait_idle()


def test_a_call_that_kills_its_workers_is_given_up_after_three_and_its_neighbours_end(fleet_on):
    poison = fleet_on.send("tests.transport_app.count_and_hold", "k", "never")
    neighbours = [fleet_on.send("tests.transport_app.count_and_hold", "n", "gate") for _ in range(3)]
    for count in (1, 2, 3):
        with fleet_on.worker(lease=1, PARTS="callsheet") as victim:
            fleet_on.wait_notes("k", count)
            if count < 3:
                fleet_on.wait_notes("n", 3 * count)
            victim.kill()
        if count == 2:
            fleet_on.redis.set("gate", 1)  # the neighbours end from now on
    assert fleet_on.notes("k") == ["1 0 False", "2 1 True", "3 2 True"]
    with fleet_on.worker(lease=1, PARTS="callsheet") as last, \
            use_settings(client_settings(fleet_on.server)):
        with pytest.raises(PoisonedCall, match="3 workers died while they ran it"):
            poison.get(timeout=20)
        for one in neighbours:
            assert one.get(timeout=20) is None
        assert len(fleet_on.notes("k")) == 3 and len(fleet_on.notes("n")) <= 9
        letter = wait_for(dead_letters.read, what="the dead letter")[0]
        assert letter["task_id"] == poison.id and letter["size"] > len("never")
        assert last.log.count("was refused") == 1


@pytest.mark.parametrize(("lost", "begun", "then", "given_up"), [
    (0, None, 1, False), (1, None, 2, False),
    (2, None, 2, False),  # it was kept back, and did not end its worker
    (2, "alone", 3, True), (2, "beside", 3, False), (5, "beside", 6, True), (2, "", 2, False),
    ("many", None, 1, False),
])
def test_what_a_message_tells_of_workers_that_were_lost(lost, begun, then, given_up):
    headers = {"lost": lost, **({} if begun is None else {"begun": begun})}
    mark_lost(headers, 3)
    assert (headers["lost"], headers.get("poisoned", False), "begun" in headers) == (then, given_up, False)


def test_a_call_longer_than_the_visibility_timeout_is_delivered_once(fleet_on):
    """Neither a batched nor a stock worker beside it takes the call for abandoned."""
    with fleet_on.worker(VISIBILITY="1") as one, fleet_on.worker(VISIBILITY="1") as two:
        results = [fleet_on.send("tests.pool_app.hold", "k", "gate") for _ in range(4)]
        fleet_on.wait_notes("k:in", 4)
        with fleet_on.worker(TRANSPORT="stock", VISIBILITY="1") as stock:
            end = time.monotonic() + 3  # three times the timeout
            wait_for(lambda: time.monotonic() > end)
            assert len(fleet_on.notes("k:in")) == 4
            fleet_on.redis.set("gate", 1)
            for result in results:
                result.get(timeout=10)
            fleet_on.wait_idle()
            assert "lost workers" not in one.log + two.log + stock.log


def test_a_lease_is_renewed_while_the_consumer_is_blocked(fleet_on):
    """The solo pool runs tasks on the consumer's thread."""
    with fleet_on.worker(POOL="solo", lease="1"), fleet_on.worker("-Q", "none") as watcher:
        fleet_on.send("tests.transport_app.plain_hold", "k", "gate")
        fleet_on.wait_notes("k")
        end = time.monotonic() + 2.5
        wait_for(lambda: time.monotonic() > end)
        assert fleet_on.redis.hlen("unacked") == 1
        fleet_on.redis.set("gate", 1)
        fleet_on.wait_idle()
        assert len(fleet_on.notes("k")) == 1
        assert "lost workers" not in watcher.log


def test_a_suspended_worker_does_no_harm(fleet_on):
    """What it held is another's once it wakes: its late acknowledgements and its line are void."""
    with fleet_on.worker(lease=1, PREFETCH="2") as sleeper:
        for _ in range(8):
            fleet_on.send("tests.transport_app.count_and_hold", "k", "gate")
        fleet_on.wait_notes("k", 4)
        wait_for(lambda: fleet_on.redis.hlen("unacked") == 8, what="the prefetched messages")
        sleeper.send_signal(signal.SIGSTOP)
        with fleet_on.worker(lease=30, slots=8, POOL_QUEUE=QUEUE) as other:
            # The sweep of a worker with a long lease is rare: one with a short lease finds them.
            with fleet_on.worker("-Q", "none", lease=1):
                fleet_on.wait_notes("k", 12)
            tags = set(fleet_on.redis.hkeys("unacked"))
            assert len(tags) == 8
            sleeper.send_signal(signal.SIGCONT)
            sleeper.wait_log("leases of calls that had not started have run out")
            wait_for(lambda: sleeper.log.count("Connected to") == 2, what="the sleeper to have forgotten them")
            other.send_signal(signal.SIGSTOP)
            fleet_on.redis.set("gate", 1)
            wait_for(lambda: sleeper.log.count("succeeded in") >= 4, what="the sleeper's own four calls")
            assert set(fleet_on.redis.hkeys("unacked")) == tags
            other.send_signal(signal.SIGCONT)
            fleet_on.wait_idle()
        assert len(fleet_on.notes("k")) == 12


def test_a_worker_that_takes_its_own_running_call_again_does_not_run_it_again(fleet_on):
    """Its lease ran out while the worker was suspended; it is on its way out when the call ends."""
    with fleet_on.worker(lease=1) as sleeper:
        fleet_on.send("tests.pool_app.hold", "k", "gate")
        fleet_on.wait_notes("k:in")
        sleeper.send_signal(signal.SIGSTOP)
        with fleet_on.worker("-Q", "none", lease=1):
            wait_for(lambda: fleet_on.redis.llen(QUEUE) == 1, what="the message to be back")
        sleeper.send_signal(signal.SIGCONT)
        sleeper.wait_log("was delivered again while it runs")
        sleeper.send_signal(signal.SIGTERM)
        wait_for(lambda: not fleet_on.app.control.ping(timeout=0.3), what="its consumer's end")
        fleet_on.redis.set("gate", 1)
        sleeper.process.wait(20)
        fleet_on.wait_idle()
        assert (fleet_on.notes("k:in"), fleet_on.notes("k:out")) == (["x"], ["x"])


def test_connections_killed_under_load(fleet_on, tmp_path):
    """Twenty times all connections of a loaded worker are cut."""
    ran, rounds, each = tmp_path / "ran", 20, 200
    ran.touch()

    def lines() -> list[str]:
        return ran.read_text().split()

    with fleet_on.worker("--without-mingle", lease=3, slots=50) as process:
        for number in range(rounds):
            have = len(lines())
            with fleet_on.app.producer_pool.acquire() as producer, producer.batch():
                for i in range(each):
                    fleet_on.send("tests.transport_app.write", str(ran), number * each + i, producer=producer)
            wait_for(lambda have=have: len(lines()) > have + 20, what="progress")
            fleet_on.redis.client_kill_filter(_type="normal", skipme=True)
            with contextlib.suppress(redis.RedisError):
                fleet_on.redis.client_kill_filter(_type="pubsub", skipme=True)
        wait_for(lambda: len(set(lines())) == rounds * each, 30, "all calls")
        fleet_on.wait_idle()
        duplicates = len(lines()) - rounds * each
        print(f"{duplicates} of {rounds * each} ran twice")
        assert process.log.count("Connection to broker lost") >= rounds / 2
        assert duplicates <= rounds * each / 100


def test_a_running_call_is_not_given_away_when_its_connection_breaks(fleet_on):
    with fleet_on.worker(lease=2) as one:
        results = [fleet_on.send("tests.pool_app.hold", "k", "gate") for _ in range(4)]
        fleet_on.wait_notes("k:in", 4)
        with fleet_on.worker():
            for _ in range(3):
                ids = [client["id"] for client in fleet_on.redis.client_list() if client["cmd"] == "psubscribe"]
                for one_id in ids:
                    fleet_on.redis.client_kill_filter(_id=one_id)
                wait_for(lambda ids=ids: len([c for c in fleet_on.redis.client_list() if c["cmd"] == "psubscribe"
                                              and c["id"] not in ids]) >= len(ids), what="new connections")
            end = time.monotonic() + 2.5  # beyond the lease
            wait_for(lambda: time.monotonic() > end)
            assert len(fleet_on.notes("k:in")) == 4
            fleet_on.redis.set("gate", 1)
            for result in results:
                result.get(timeout=10)
            fleet_on.wait_idle()
        assert "Connection to broker lost" in one.log


def test_what_a_process_was_handed_and_has_not_begun_runs_once_when_the_connection_breaks(own_redis, tmp_path):
    env, client = {"CALLSHEET_MODULES": "tests.agents.marking", "CALLSHEET_LEASE": "30"}, own_redis.client()
    with worker("callsheet.workers.cpu", own_redis.url, "-c", "1", env=env) as process, \
            use_settings(client_settings(own_redis)):
        CpuMarks(str(tmp_path), "warm").submit(Msg("u", "", "user")).get(20)
        child, = psutil.Process(process.process.pid).children()
        child.suspend()
        jobs = [CpuMarks(str(tmp_path), name).submit(Msg("u", "", "user")) for name in "abc"]
        wait_for(lambda: client.hlen("unacked") == 1, what="the first to be taken")
        for kind in ("normal", "pubsub"):
            client.client_kill_filter(_type=kind, skipme=True)
        # It was given back, and taken again, once the worker had looked which of its calls run.
        process.wait_log("Connection to broker lost")
        wait_for(lambda: process.log.count("Connected to") == 2, what="the next connection")
        wait_for(lambda: current_app().control.ping([process.name], timeout=1), what="its consumer")
        wait_for(lambda: client.hlen("unacked") == 1, what="the first to be taken again")
        child.resume()
        for job in jobs:
            job.get(20)
        assert (tmp_path / "ran").read_text().split() == ["warm", "a", "b", "c"]


def test_a_call_far_ahead_keeps_its_lease(fleet_on):
    with fleet_on.worker(lease=1, VISIBILITY="1") as process, fleet_on.worker("-Q", "none", lease=1) as watcher:
        fleet_on.send("tests.transport_app.count", "k", countdown=3.5)
        fleet_on.send("tests.transport_app.count", "never", countdown=3600)
        wait_for(lambda: fleet_on.redis.hlen("unacked") == 2, what="both claimed")
        assert fleet_on.wait_notes("k") == ["1 0 False"]
        wait_for(lambda: fleet_on.redis.hlen("unacked") == 1, what="the first acknowledged")
        assert "lost workers" not in process.log + watcher.log
        assert process.stop() == 0
        assert fleet_on.redis.llen(QUEUE) == 1
        assert registered(fleet_on.redis) == (0, 0, 0)


def test_warm_shutdown_of_processes_finishes_what_runs_and_returns_the_rest(fleet_on):
    with fleet_on.worker(lease=60, POOL="prefork", PREFETCH="3") as process:
        for _ in range(20):
            fleet_on.send("tests.transport_app.plain_hold", "k", "gate")
        fleet_on.wait_notes("k", 4)
        wait_for(lambda: fleet_on.redis.hlen("unacked") == 12, what="the prefetched messages")
        process.send_signal(signal.SIGTERM)
        process.wait_log("Warm shutdown")
        fleet_on.redis.set("gate", 1)
        process.process.wait(20)
        done = len(fleet_on.notes("k:out"))
        assert registered(fleet_on.redis) == (0, 0, 0)
        assert fleet_on.redis.llen(QUEUE) == 20 - done


def test_leases_and_acknowledgements_of_many_calls_travel_together(fleet_on, tmp_path):
    calls, gate = 200, tmp_path / "gate"
    options = ("--without-gossip", "--without-heartbeat", "--without-mingle")
    with fleet_on.worker(*options, lease=3, slots=calls) as process:
        for _ in range(calls):
            fleet_on.send("tests.transport_app.wait_for_file", str(gate))
        wait_for(lambda: fleet_on.redis.hlen("unacked") == calls, what="all of them claimed")

        def earliest() -> float:
            """The end of the lease that ends first."""
            return fleet_on.redis.zrange("unacked_lease", 0, 0, withscores=True)[0][1]

        def renewed() -> None:
            """Wait until each lease has been renewed."""
            latest = fleet_on.redis.zrange("unacked_lease", -1, -1, withscores=True)[0][1]
            wait_for(lambda: earliest() > latest, what="all leases to be renewed")

        renewed()
        before = Counts.of(fleet_on.redis)
        for _ in range(3):
            renewed()
        made = Counts.of(fleet_on.redis).since(before)
        assert made.scripts < calls / 10  # for each interval one that renews and one that sweeps
        assert made.connections == 0

        before, asked = Counts.of(fleet_on.redis), 0
        gate.touch()
        while fleet_on.redis.hlen("unacked"):
            asked += 1
            time.sleep(0.1)
            assert asked < 200, process.log[-3000:]
        made = Counts.of(fleet_on.redis).since(before)
        assert made.reads - asked < calls / 2  # a trip for each turn of the loop in which some end
        assert made.connections == 0
        fleet_on.wait_idle()
        assert process.log.count("succeeded in") == calls


def test_idle_workers_neither_poll_nor_spin(fleet_on):
    psutil = pytest.importorskip("psutil")
    with fleet_on.worker("--without-gossip", "--without-heartbeat", lease=60) as process:
        fleet_on.send("tests.transport_app.mark", "k", "x")
        fleet_on.wait_notes("k")
        fleet_on.wait_idle()
        watched = psutil.Process(process.process.pid)

        def use() -> float:
            return sum(watched.cpu_times()[:2])

        def scripts() -> int:
            return int(fleet_on.redis.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))

        before, calls, began = use(), scripts(), time.monotonic()
        wait_for(lambda: time.monotonic() > began + 3)
        used, ran, seconds = use() - before, scripts() - calls, time.monotonic() - began
        assert used / seconds < 0.02
        assert ran <= seconds
