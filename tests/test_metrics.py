"""What workers tell Prometheus: of real workers, over HTTP, while and after jobs run."""

import asyncio
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry

from callsheet import AgentFailed, Msg, SequentialPipeline, Settings
from callsheet.errors import SettingsError
from callsheet.hub import MsgHub
from callsheet.models import OpenAIChatModel
from callsheet.models.stub import Reply, StubModelServer
from callsheet.resources import timings
from callsheet.resources.context import CallNotes
from callsheet.settings import use_settings
from callsheet.workers.metrics.collector import FAMILIES
from callsheet.workers.metrics.port import MetricsPort
from tests.agents.asking import Asker
from tests.agents.counted import Counted, CountedInProcess, Listens
from tests.agents.gated import Blocking
from tests.model_server import narrow_and_gone
from tests.scrape import Scrape
from tests.services import ROOT, RedisServer, Worker, free_port, wait_for, worker

SECRET = "sk-the-key-that-nobody-may-see"
PROMPT = "a prompt that stays between the two of us"
HELLO = Msg("u", PROMPT, "user")
DASHBOARD = ROOT / "deploy" / "grafana" / "callsheet.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"


@dataclass
class Stage:
    """Two workers that answer, and what stands behind them.

    Beside `openai` the workers have the endpoints `narrow` and `gone`.
    """

    redis: RedisServer
    model: StubModelServer
    io: Worker
    io_port: int
    cpu: Worker
    cpu_port: int

    def both(self) -> tuple[Scrape, Scrape]:
        return Scrape(self.io_port), Scrape(self.cpu_port)


def port_in(log: str) -> int:
    found = re.search(r"Metrics for Prometheus on http://127\.0\.0\.1:(\d+)/metrics", log)
    assert found, log
    return int(found[1])


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    own = RedisServer()
    first = free_port()
    with StubModelServer() as server:
        env = {"CALLSHEET_MODULES": "tests.agents", "CALLSHEET_ENDPOINTS__OPENAI__BASE_URL": server.base_url,
               "CALLSHEET_ENDPOINTS__OPENAI__RPM": "60000", "CALLSHEET_PRICES": '{"gpt-*": {"input": 2, "output": 8}}',
               "OPENAI_API_KEY": SECRET, "CALLSHEET_METRICS_PORT": f"{first}-{min(first + 20, 65535)}",
               "CALLSHEET_ENDPOINTS__OPENAI__RETRY__BACKOFF": "0.01", "CALLSHEET_RETRY_BACKOFF": "0.01",
               **narrow_and_gone(server.base_url)}
        try:
            with (worker("callsheet.workers.io", own.url, "--autoscale=20,5", env=env) as io,
                  worker("callsheet.workers.cpu", own.url, "-c", "1", "--max-tasks-per-child=2", env=env) as cpu,
                  use_settings(Settings.load(redis_url=own.url))):
                yield Stage(own, server, io, port_in(io.log), cpu, port_in(cpu.log))
        finally:
            own.remove()


@pytest.fixture(scope="module")
def busy(stage: Stage) -> Stage:
    """After some jobs: well, failed and tried again."""
    SequentialPipeline([Counted("first"), CountedInProcess("second")]).submit(HELLO).get(timeout=30)
    with pytest.raises(AgentFailed):
        Counted("fails", fail=True).submit(HELLO, retries=1).get(timeout=30)
    wait_for(lambda: Scrape(stage.cpu_port).value("callsheet_replies_total") >= 1, what="the process's counts")
    return stage


def test_a_scrape_while_jobs_run_tells_slots_and_backlog(stage: Stage, tmp_path: Path) -> None:
    gate, count = tmp_path / "gate", 60
    jobs = [Counted("held", str(gate)).submit(HELLO) for _ in range(count)]

    def full() -> Scrape | None:
        found = Scrape(stage.io_port)
        return found if found.value("callsheet_slots_used") == 20 and found.value("callsheet_backlog") > 0 else None

    found = wait_for(full, what="all slots in use, and messages behind them")
    held, waiting = found.value("callsheet_unacknowledged"), found.value("callsheet_backlog", queue="io")
    assert held + waiting == count and held >= found.value("callsheet_slots_used")
    assert found.value("callsheet_slots") >= found.value("callsheet_slots_used")
    wait_for(lambda: Scrape(stage.io_port).value("callsheet_autoscale_changes_total", direction="up") >= 1,
             what="the autoscaler")
    gate.touch()
    for job in jobs:
        job.get(timeout=20)
    wait_for(lambda: Scrape(stage.io_port).value("callsheet_slots_used") == 0, what="free slots")
    after = Scrape(stage.io_port)
    assert after.value("callsheet_backlog") == 0 and after.value("callsheet_tasks_total", task="Counted") >= count
    assert after.value("callsheet_autoscale_limit", limit="max") == 20
    assert after.value("callsheet_replies_total", agent="Counted(held)", outcome="ok") == count
    assert after.value("callsheet_reply_seconds_count", agent="Counted(held)") == count
    assert after.value("callsheet_reply_seconds_sum", agent="Counted(held)") > 0
    taken = after.value("callsheet_time_in_queue_seconds_count", queue="io")
    assert taken >= count and after.value("callsheet_time_in_queue_seconds_bucket", queue="io", le="+Inf") == taken


def test_tokens_cost_and_outcomes_are_told_by_agent_and_model(busy: Stage) -> None:
    found = Scrape(busy.io_port)
    of_first = {"agent": "Counted(first)", "endpoint": "openai", "model": "gpt-small"}
    assert found.value("callsheet_model_calls_total", **of_first) == 1
    tokens = [found.value("callsheet_tokens_total", kind=kind, **of_first) for kind in ("input", "output")]
    assert all(tokens)
    assert found.value("callsheet_cost_total", **of_first) == pytest.approx((tokens[0] * 2 + tokens[1] * 8) / 1e6)
    assert found.value("callsheet_replies_total", agent="Counted(fails)", outcome="retried") == 1
    assert found.value("callsheet_replies_total", agent="Counted(fails)", outcome="failed") == 1
    assert found.value("callsheet_model_call_seconds_count", endpoint="openai") >= 3
    assert found.value("callsheet_limiter_wait_seconds_count", endpoint="openai") >= 3
    assert found.value("callsheet_breaker_open", endpoint="openai") == 0
    assert found.value("drafts_total") == 3  # of a user's own module
    assert found.value("process_resident_memory_bytes") > 1e6


def test_one_scrape_tells_a_parked_call_a_blocked_loop_a_retry_and_an_open_breaker(
        stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in narrow_and_gone(stage.model.base_url).items():
        monkeypatch.setenv(name, value)
    zero = {"callsheet_parked": {}, "callsheet_limiter_waiting": {"endpoint": "narrow"},
            "callsheet_retries_total": {"endpoint": "openai", "reason": "status 503"},
            "callsheet_breaker_opened_total": {}, "callsheet_breaker_refused_total": {}}
    begun = Scrape(stage.io_port)
    assert [begun.value(name, **labels) for name, labels in zero.items()] == [0] * len(zero)
    with use_settings(Settings.load(redis_url=stage.redis.url)):
        asks = {name: Asker(OpenAIChatModel("m", endpoint=name, stream=False)) for name in ("openai", "narrow", "gone")}
    stage.model.plan(Reply(status=503))
    for name in ("openai", "narrow"):
        asks[name].submit(HELLO).get(timeout=30)
    for _ in range(2):  # it fails; it is left alone
        with pytest.raises(AgentFailed):
            asks["gone"].submit(HELLO).get(timeout=30)
    parked = asks["narrow"].submit(HELLO)  # its turn is a minute away
    blocking = Blocking(str(tmp_path), "blocks").submit(HELLO)

    def at_once() -> Scrape | None:
        found = Scrape(stage.io_port)
        return found if found.value("callsheet_parked") and found.value("callsheet_loop_lag_seconds") > 0.3 else None

    found = wait_for(at_once, what="a parked call and a late loop in one scrape")
    assert [found.value(name, **labels) for name, labels in zero.items()] == [1] * len(zero)
    assert found.value("callsheet_loop_blocked_total") > begun.value("callsheet_loop_blocked_total")
    assert found.value("callsheet_retries_total", endpoint="narrow") == 0
    for endpoint, there in (("gone", 1), ("openai", 0)):
        assert found.value("callsheet_breaker_open", endpoint=endpoint) == there
        assert found.value("callsheet_breaker_opened_total", endpoint=endpoint) == there
        assert found.value("callsheet_breaker_refused_total", endpoint=endpoint) == there
    (tmp_path / "gate").touch()
    parked.cancel()
    blocking.get(timeout=30)
    wait_for(lambda: (now := Scrape(stage.io_port)).value("callsheet_parked") == 0
             and now.value("callsheet_loop_lag_seconds") < 0.3, what="the loop to go on, and nobody parked")


def test_what_processes_of_a_cpu_worker_count_is_its_workers_though_they_are_replaced(busy: Stage) -> None:
    label = {"agent": "CountedInProcess(many)"}
    for _ in range(5):  # a process takes two calls
        CountedInProcess("many").submit(HELLO).get(timeout=30)
    wait_for(lambda: Scrape(busy.cpu_port).value("callsheet_replies_total", outcome="ok", **label) == 5,
             what="all five calls of three processes")
    found = Scrape(busy.cpu_port)
    assert found.value("callsheet_model_calls_total", **label) == 5
    assert found.value("callsheet_tokens_total", kind="output", **label) > 0
    assert found.value("callsheet_reply_seconds_count", **label) == 5
    assert found.value("callsheet_slots") == 1
    wait_for(lambda: Scrape(busy.cpu_port).value("callsheet_pool_processes") == 1, what="the next process")
    wait_for(lambda: Scrape(busy.cpu_port).value("callsheet_pool_resident_memory_bytes") > 1e6, what="its memory")


def test_how_far_a_member_of_a_hub_is_behind_is_told(stage: Stage) -> None:
    async def talk() -> None:
        async with MsgHub([Listens("listener"), Listens("other")]) as hub:
            assert Scrape(stage.io_port).value("callsheet_hub_lag_messages") == 0
            for word in ("one", "two", "three"):
                await hub.broadcast(Msg("host", word, "user"))
            assert Scrape(stage.io_port).value("callsheet_hub_lag_messages") == 3
            await Counted("third")(HELLO)  # sits in no hub
            assert Scrape(stage.io_port).value("callsheet_hub_lag_messages") == 3

    asyncio.run(talk())
    assert Scrape(stage.io_port).value("callsheet_hub_lag_messages") == 0


def test_no_secret_and_no_prompt_is_in_a_scrape(busy: Stage) -> None:
    for found in busy.both():
        assert SECRET not in found.text and PROMPT not in found.text
        for sample in found.samples():
            assert not any("@" in value and "redis" in value for value in sample.labels.values())


def test_no_metric_is_told_twice(busy: Stage) -> None:
    for found in busy.both():
        names = re.findall(r"^# HELP (\S+)", found.text, re.MULTILINE)
        assert len(names) == len(set(names))


def documented() -> dict[str, tuple[str, set[str]]]:
    """Kind and labels of each metric, as docs/metrics.md has them."""
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in re.findall(
        r"^\| `(callsheet_\w+)` \| (\w+) \| ([^|]*) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)}


def test_the_documentation_lists_each_metric_of_a_scrape_with_its_labels(busy: Stage) -> None:
    listed = documented()
    of_scaling = {name for name in listed if name.startswith("callsheet_autoscale")}
    for found, lacks in zip(busy.both(), (set(), of_scaling), strict=True):
        told = {f"{family.name}{'_total' if family.type == 'counter' else ''}": family for family in found.families
                if family.name.startswith("callsheet_")}
        assert set(told) == set(listed) - lacks
        for name, family in told.items():
            assert family.type == listed[name][0]
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == listed[name][1], name


# Dashboards ---------------------------------------------------------------------------------------------------------

#: Labels that Prometheus itself gives.
OF_PROMETHEUS = {"instance", "job", "le"}


def expressions() -> Iterator[tuple[str, str]]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def parts(expr: object) -> Iterator[object]:
    """An expression and all in it."""
    yield expr
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        inner = getattr(expr, name, None)
        if isinstance(inner, promql_parser.Expr):
            yield from parts(inner)
    for inner in getattr(expr, "args", ()) or ():
        yield from parts(inner)


@pytest.mark.parametrize(("title", "expr"), list(expressions()))
def test_each_query_asks_for_metrics_and_labels_that_a_scrape_has(busy: Stage, title: str, expr: str) -> None:
    both = busy.both()
    names = both[0].names() | both[1].names()
    asked, used = set(), set()
    for part in parts(promql_parser.parse(expr)):
        if isinstance(part, promql_parser.VectorSelector):
            asked.add(part.name)
            used |= {matcher.name for matcher in part.matchers.matchers}
        modifier = getattr(part, "modifier", None)
        if isinstance(part, promql_parser.AggregateExpr) and modifier is not None:
            used |= set(modifier.labels)
    assert asked and asked <= names, f"{title}: {asked - names}"
    listed = documented()
    labels = {label for name in asked if name.startswith("callsheet_")
              for label in listed[name.removesuffix("_bucket")][1]}
    assert used <= labels | OF_PROMETHEUS, f"{title}: {used - labels}"


def test_the_dashboard_shows_every_metric_or_an_alert_watches_it() -> None:
    text = " ".join(expr for _, expr in expressions())
    told_elsewhere = {"parked_most", "threads", "pool_processes", "fallbacks", "unpriced_calls", "limiter_refused",
                      "breaker_opened", "breaker_refused"}
    assert {name for name in FAMILIES if f"callsheet_{name}" not in text} <= told_elsewhere


# Ports --------------------------------------------------------------------------------------------------------------

def start(redis: RedisServer, port: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "callsheet.workers.io", "worker", "-n", f"p{time.monotonic_ns()}@test"],
        env={**os.environ, "CALLSHEET_REDIS_URL": redis.url, "CALLSHEET_METRICS_PORT": port, **env}, timeout=60,
        cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_worker_whose_port_is_in_use_does_not_start_and_says_what_to_do(stage: Stage) -> None:
    ended = start(stage.redis, str(stage.io_port))
    assert ended.returncode == 1
    assert f"127.0.0.1, ports {stage.io_port} to" in ended.stderr and "Address already in use" in ended.stderr
    assert f"CALLSHEET_METRICS_PORT={stage.io_port}-" in ended.stderr and "Traceback" not in ended.stderr


def test_of_a_range_the_first_free_port_is_taken_and_none_is_refused(stage: Stage) -> None:
    registry = CollectorRegistry()
    first = MetricsPort(registry, "127.0.0.1", range(free_port(), 65536))
    try:
        second = MetricsPort(registry, "127.0.0.1", range(first.port, first.port + 10))
        assert first.port < second.port < first.port + 10
        with pytest.raises(SettingsError, match=f"{first.port} to {second.port}"):
            MetricsPort(registry, "127.0.0.1", [first.port, second.port])
        second.stop()
    finally:
        first.stop()


@pytest.mark.parametrize(("host", "status"), [
    ("127.0.0.1:{}", 200), ("localhost:{}", 200), ("[::1]:{}", 200), ("elsewhere.example:{}", 403), ("", 403),
    ("127.0.0.1.elsewhere.example", 403), ("192.168.1.5:{}", 403),
])
def test_on_loopback_a_name_that_was_made_to_point_here_gets_no_metrics(host: str, status: int) -> None:
    port = MetricsPort(CollectorRegistry(), "127.0.0.1", [0])
    port.start()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port.port, timeout=5)
        connection.request("GET", "/metrics", headers={"Host": host.format(port.port)})
        assert connection.getresponse().status == status
        connection.close()
    finally:
        port.stop()


def test_a_wrong_address_is_named() -> None:
    with pytest.raises(SettingsError, match=r"203\.0\.113\.9"):
        MetricsPort(CollectorRegistry(), "203.0.113.9", [0])


@pytest.mark.parametrize("port", ["many", "70000", "9610-9600", "0-5", "1-2-3", "-5", "9600-", "٩"])
def test_a_port_that_cannot_be_right_is_refused(port: str) -> None:
    with pytest.raises(SettingsError, match="9600-9610"):
        Settings.load(metrics_port=port)


def test_ports_are_read() -> None:
    assert list(Settings.load(metrics_port="9600-9602").metrics_ports) == [9600, 9601, 9602]
    assert list(Settings.load(metrics_port=9600).metrics_ports) == [9600]
    assert list(Settings.load(metrics_port=0).metrics_ports) == [0]
    assert not Settings.load().metrics_ports and not Settings.load(metrics_port="").metrics_ports


def test_a_scrape_answers_while_redis_is_away(own_redis: RedisServer) -> None:
    with worker("callsheet.workers.io", own_redis.url, "-c", "2", env={"CALLSHEET_METRICS_PORT": "0"}) as io:
        port = port_in(io.log)
        assert Scrape(port).value("callsheet_redis_up") == 1
        own_redis.stop()
        found = wait_for(lambda: (now := Scrape(port)).value("callsheet_redis_up") == 0 and now, what="the news")
        assert found.value("callsheet_slots") == 2 and found.value("callsheet_backlog") == 0
        own_redis.start()
        wait_for(lambda: Scrape(port).value("callsheet_redis_up") == 1, what="Redis to be back")


# What it costs ------------------------------------------------------------------------------------------------------

def test_without_a_port_nothing_listens_and_nothing_is_imported() -> None:
    program = ("import sys; from callsheet.workers.io import app; "
               "assert not [name for name in sys.modules if name.startswith('prometheus_client')], 'imported'")
    env = {name: value for name, value in os.environ.items() if name != "CALLSHEET_METRICS_PORT"}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, check=True, timeout=60)


def test_what_is_noted_of_a_call_takes_some_microseconds() -> None:
    def once() -> float:
        began = time.process_time()
        for _ in range(2_000):
            timings.call_ended("Counted(x)", "io", 0.01, 0.02, "ok")
            CallNotes().to_data()
        return (time.process_time() - began) / 2_000

    # A call that does nothing takes some 300 microseconds of CPU time.
    assert min(once() for _ in range(5)) < 20e-6


def test_a_process_forked_while_its_parent_tells_counts_can_count() -> None:
    program = """
import os, threading
from callsheet.resources import accounts, timings
for lock in (accounts._lock, timings._lock):
    lock.acquire()  # as a scrape does, on a thread of its own
child = os.fork()
if not child:
    timings.call_ended("A(a)", "cpu", 0, 1, "ok")
    accounts.process_rows()
    os._exit(0 if timings.outcomes() == {("A(a)", "ok"): 1} else 2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, check=True, timeout=60)


def test_agents_beyond_the_first_hundred_are_told_by_their_class() -> None:
    program = """
from callsheet.resources import timings
for number in range(5_000):
    timings.call_ended(f"Agent(user-{number})", "io", 0, 1, "ok")
    timings.call_ended(f"Kind{number}(x)", "io", 0, 1, "ok")
names = {agent for kind, agent in timings.spreads() if kind == "reply"}
assert len(names) <= 2 * timings.MOST_NAMES + 1, len(names)
assert {"Agent(user-0)", "Agent(*)", timings.OTHERS} <= names, names
assert sum(timings.outcomes().values()) == 10_000
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
