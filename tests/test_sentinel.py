"""Redis behind sentinels: jobs survive the loss of the master, passwords stay hidden."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from callsheet import Msg, Settings
from callsheet.errors import RedisUnavailable
from callsheet.resources.redis import async_client, sync_client
from callsheet.settings import use_settings
from callsheet.tasks.app import current_app
from tests.agents.files import Patient, PatientInAProcess
from tests.conftest import missing
from tests.sentinels import PASSWORD, SENTINELS_PASSWORD, Watched
from tests.services import free_port, redis_binary, wait_for, worker


@pytest.fixture
def watched() -> Iterator[Watched]:
    if redis_binary() is None:
        missing("redis-server")
    made = Watched()
    yield made
    made.remove()


def asked(text: str) -> Msg:
    return Msg("user", text, "user")


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("transport", ["batched", "stock"])
def test_jobs_from_before_and_after_the_loss_of_the_master_complete(watched, tmp_path, transport):
    patient, steady = Patient(str(tmp_path)), PatientInAProcess(str(tmp_path))
    env = {**watched.env, "CALLSHEET_MODULES": "tests.agents", "CALLSHEET_TRANSPORT": transport,
           "CALLSHEET_REDIS_URL": watched.url}
    with use_settings(watched.settings(transport=transport)), \
            worker("callsheet.workers.io", watched.url, "--autoscale=4,4", env=env) as io, \
            worker("callsheet.workers.cpu", watched.url, "-c", "1", env=env) as cpu:
        before = [*(patient.submit(asked(f"io{i}")) for i in range(12)),
                  *(steady.submit(asked(f"cpu{i}")) for i in range(2))]
        wait_for(lambda: len(lines(tmp_path / "started")) >= 5, what="calls to start")
        watched.fail_over()
        (tmp_path / "go").touch()
        after = [patient.submit(asked(f"later{i}")) for i in range(6)] + [steady.submit(asked("last"))]
        texts = [job.get(timeout=60).get_text_content() for job in [*before, *after]]
        wanted = [*(f"io{i}" for i in range(12)), "cpu0", "cpu1", *(f"later{i}" for i in range(6)), "last"]
        assert texts == [f"done {name}" for name in wanted], io.log + cpu.log
        if transport == "batched":  # kombu's may deliver again what ran when the connection broke
            assert sorted(lines(tmp_path / "started")) == sorted(wanted)
        assert asyncio.run(patient(asked("awaited"))).get_text_content() == "done awaited"
        shown = json.dumps([current_app().control.inspect(timeout=5).stats(),
                            current_app().control.inspect(timeout=5).conf()])
        for secret in (PASSWORD, "hunter2", SENTINELS_PASSWORD):
            assert secret not in shown
            assert secret not in io.log + cpu.log
        assert "DeprecationWarning" not in io.log + cpu.log  # of Celery's, at each reconnect


def test_clients_reach_the_master_and_its_database(watched):
    settings = watched.settings()
    sync_client(settings).set("key", "value")

    async def read() -> bytes:
        return await async_client(settings).get("key")

    assert asyncio.run(read()) == b"value"
    assert watched.master.client().execute_command("SELECT", 2)
    direct = watched.master.client()
    direct.execute_command("SELECT", 2)
    assert watched.master.client().info("keyspace")["db2"]["keys"] == 1


@pytest.mark.parametrize(("changes", "remedy"), [
    ({"redis_sentinel_master": "other"}, "CALLSHEET_REDIS_SENTINEL_MASTER"),
    ({"redis_sentinel_password": "wrong-sentry"}, "CALLSHEET_REDIS_SENTINEL_PASSWORD")])
def test_what_is_wrong_with_sentinels_is_said_without_a_password(watched, changes, remedy):
    settings = watched.settings(**changes)
    with use_settings(settings), pytest.raises(RedisUnavailable, match=remedy) as failed:
        Patient("/").submit(asked("x"))
    for secret in (PASSWORD, "hunter2", SENTINELS_PASSWORD, "wrong-sentry"):
        assert secret not in str(failed.value)


def test_no_sentinel_at_all():
    settings = Settings.load(redis_url=f"sentinel://:hunter2@127.0.0.1:{free_port()}/0?master_name=main")
    with use_settings(settings), pytest.raises(RedisUnavailable, match="sentinels run") as failed:
        Patient("/").submit(asked("x"))
    assert "hunter2" not in str(failed.value)
