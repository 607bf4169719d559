"""The benchmarks run, with few jobs: what they say of speed is not tested here."""

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from benchmarks import hub, memory, throughput, watching
from benchmarks.drive import driver
from benchmarks.harness import Row, Stage, Usage
from benchmarks.throughput import CONTENDERS, OURS, STOCK_GEVENT
from callsheet import Settings
from callsheet.settings import use_settings
from tests.conftest import missing
from tests.services import redis_binary


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    if redis_binary() is None:
        missing("redis-server")
    for name in ("CALLSHEET_REDIS_URL", "CALLSHEET_MODULES", "PYTHONPATH"):
        monkeypatch.setenv(name, "")  # so that what the stage sets is taken back
    made = Stage(repeat=1, jobs=60)
    with use_settings(Settings.load()):
        yield made
    made.close()


def test_throughput_measures_ours_and_the_stock_pool(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "CONTENDERS", [one for one in CONTENDERS if one.name in (OURS, STOCK_GEVENT)])
    report = throughput.run(stage)
    assert [row.contender for row in report.rows] == [OURS, STOCK_GEVENT]
    assert all(row.median(column) > 0 for row in report.rows for column in row.values if column != "others_cores")
    assert len(report.goals) == 4


def test_a_peer_that_is_not_installed_is_left_out_by_name(
        stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ours = next(one for one in CONTENDERS if one.name == OURS)
    missing = [dataclasses.replace(ours, name="a module", needs="no_such_module", install="pip install it"),
               dataclasses.replace(ours, name="an environment", python="/no/such/python", install="make it")]
    monkeypatch.setattr(throughput, "CONTENDERS", [ours, *missing])
    monkeypatch.setattr(throughput, "measure", lambda stage, row, contender: row.add(
        published_per_s=9000, caller_cpu_ms_per_job=0.1))
    report = throughput.run(stage)
    assert [row.contender for row in report.rows] == [OURS]
    said = capsys.readouterr().err
    assert "a module is left out" in said and "pip install it" in said
    assert "an environment is left out" in said and "make it" in said


def test_a_caller_that_fails_says_so() -> None:
    with driver("no.such.module") as caller, pytest.raises(RuntimeError, match="caller ended with 1 at 'publish'"):
        caller.ask("publish", 1)


def test_memory_is_taken_while_calls_are_in_flight(stage: Stage) -> None:
    submit, worker = next(iter(memory.CONTENDERS.values()))
    assert memory.resident(stage, submit, worker, calls=30) > 30


def test_pushes_of_a_hub_are_counted_and_timed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RATE", 50), ("SECONDS", 1), ("LISTENERS", 1)):
        monkeypatch.setattr(hub, name, value)
    row = Row("pushes")
    hub.pushes(stage, row)
    assert row.median("missed") == 0
    assert row.median("late_p99_ms") > 0


@pytest.mark.parametrize(("sent", "missed", "met"), [
    ([1000.0, 991.0], [0.0, 0.0], [True, True]), ([600.0, 1000.0], [0.0, 0.0], [False, True]),
    ([1000.0, 1000.0], [0.0, 3.0], [True, False])])
def test_broadcasts_that_are_too_slow_or_missed_in_any_run_miss_the_goal(
        sent: list[float], missed: list[float], met: list[bool]) -> None:
    row = Row("pushes", {"broadcasts_per_s": sent, "missed": missed, "late_p50_ms": [1.0], "late_p99_ms": [2.0]})
    assert [goal.met for goal in hub.push_goals(row)] == [*met, True, True]


def test_what_watching_costs_is_judged_by_the_medians_that_it_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = dict(zip(watching.KINDS, ([500, 510, 400], [505, 400, 520], [500, 506, 530]), strict=True))
    events = dict(zip(watching.KINDS, ([0.02, 0.01, 0.0], [0.9, 0.02, 0.03], [0.02, -0.5, 0.04]), strict=True))

    def measured(stage: Stage, row: Row, options: object, env: object) -> None:
        worker = len(row.values.get("worker_cpu_us_per_job", ()))
        row.add(worker_cpu_us_per_job=costs[row.contender][worker], added_by_events=events[row.contender][worker])

    monkeypatch.setattr(watching, "measure", measured)
    report = watching.run(SimpleNamespace(repeat=3))  # type: ignore[arg-type]
    assert [(goal.value, goal.met) for goal in report.goals] == [
        (pytest.approx(0.01), True), (pytest.approx(0.012), True), (0.02, True), (pytest.approx(0.03224), False)]
    added = {row.contender: row.values["added"] for row in report.rows}
    assert [*added["autoscaler"], *added["autoscaler and metrics"]] == [goal.value for goal in report.goals[:2]]


def test_watching_turns_events_on_and_off_in_one_worker(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, a_round = [], watching.worked_off
    with redis.Redis.from_url(stage.redis.url) as client, client.pubsub(ignore_subscribe_messages=True) as listening:
        listening.psubscribe("*celeryev*")
        listening.get_message(timeout=5)  # that it is subscribed

        def worked_off(*args: Any) -> Usage:
            usage = a_round(*args)
            channels = {str(one["channel"]) for one in iter(lambda: listening.get_message(timeout=0.1), None)}
            heard.append(any("celeryev/task" in channel for channel in channels))
            return usage

        monkeypatch.setattr(watching, "worked_off", worked_off)
        monkeypatch.setattr(watching, "PAIRS", 2)
        row = Row("one")
        watching.measure(stage, row, *watching.KINDS[watching.NOTHING])
    assert heard == [False, True, True, False]
    assert row.median("worker_cpu_us_per_job") > 0 and row.median("with_events") > 0
