"""The benchmarks run, with few jobs: what they say of speed is not tested here."""

import dataclasses
from collections.abc import Iterator

import pytest

from benchmarks import hub, memory, throughput
from benchmarks.drive import driver
from benchmarks.harness import Row, Stage
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
