"""Celery's ways of declaring tasks, on our apps: what is declared once is known everywhere, and in time."""

import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import celery
import pytest
from celery.app.utils import find_app
from celery.worker.request import Request

from callsheet import Settings, errors
from callsheet.settings import use_settings
from callsheet.settings.celery import celery_config
from callsheet.tasks import base
from callsheet.tasks.app import make_app
from callsheet.tasks.loop import new_loop
from callsheet.tasks.request import SecondChanceRequest
from callsheet.workers.app import cpu_app, io_app
from tests.agents.basic import Echo
from tests.fleet import Fleet
from tests.services import ROOT, wait_for

#: A program that knows no task but by name, and one that sends.
PROGRAM = """
import celery, json, sys
from callsheet.workers.io import app

send = lambda name, *args: app.send_task(name, args).get(timeout=30)
own = "tests.agents.own_tasks."
names = ["on_io_app", "on_io_app_async", "on_cpu_app", "on_cpu_app_async", "based", "based", "abortable"]
found = [send(own + name) for name in names] + [send("tests.registered"), send(own + "dies_once", sys.argv[1])]
try:
    send(own + "dies_always", sys.argv[1])
except celery.exceptions.WorkerLostError:
    found.append("lost")
print(json.dumps(found))
"""
GREEN = """
from gevent.monkey import patch_all
patch_all()
from gevent import spawn, sleep as pause
from callsheet import Msg
from tests.agents.basic import Echo

turns = []
def turn():
    while True:
        turns.append(1)
        pause(0.01)
spawn(turn)
def ask(text):
    return Echo("e").submit(Msg("user", text, "user")).get(timeout=30).get_text_content()
print(ask("one"), [done.get() for done in [spawn(ask, str(n)) for n in range(3)]], len(turns) > 3)
"""


def program(code: str, fleet: Fleet, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "CALLSHEET_REDIS_URL": fleet.server.url, "PYTHONPATH": str(ROOT),
               "CALLSHEET_MODULES": "tests.agents", "CELERY_BROKER_URL": "redis://127.0.0.1:1/0", **env}
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], env=environ, timeout=90, capture_output=True,
                          text=True, check=False)


def test_what_is_declared_once_runs_on_workers_of_both_kinds_and_is_seen_by_who_watches(
        fleet: Fleet, tmp_path: Path) -> None:
    done = program(PROGRAM, fleet, tmp_path / "died")
    heard = [True, True, ["configured", "finalized"], True]
    assert done.stdout, done.stderr
    *found, based, again, abortable, registered, second, third = json.loads(done.stdout)
    assert found == [["cpu", *heard], ["io", *heard], ["cpu", True], ["io", True]]
    assert (based, again) == (["called", ["io", True, False]], ["called", ["io", True, True]])
    assert third == "lost"
    assert (tmp_path / "died").read_text() == "always" * 2
    assert (abortable, registered, second) == (["io", True, False], ["io", True], ["called", "second chance"])


def test_beat_sends_what_modules_schedule_whichever_app_they_name(fleet: Fleet, tmp_path: Path) -> None:
    ticks = tmp_path / "ticks"
    ticks.touch()
    env = {**os.environ, "CALLSHEET_REDIS_URL": fleet.server.url, "TICKS": str(ticks), "PYTHONPATH": str(ROOT),
           "CALLSHEET_MODULES": "tests.agents.own_tasks"}
    command = [sys.executable, "-m", "celery", "-A", "callsheet.workers.cpu", "beat", "-s", str(tmp_path / "s")]
    beat = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: {"configured", "finalized"} <= set(ticks.read_text().split()), 40, "both to be sent")
    finally:
        beat.kill()
        beat.wait()


def test_programs_that_gevent_has_patched_wait_for_jobs(fleet: Fleet) -> None:
    done = program(GREEN, fleet)
    assert done.stdout == "e:one ['e:0', 'e:1', 'e:2'] True\n", done.stderr


def test_a_pool_that_cannot_be_is_refused_in_words() -> None:
    done = subprocess.run([sys.executable, "-m", "celery", "-A", "callsheet.workers.io", "worker", "-P", "gevent"],
                          timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "gevent:TaskPool is no pool for the workers of callsheet.workers.io. Leave -P away" in done.stderr


@pytest.mark.parametrize(("kind", "changes", "says"), [
    ("io", {"worker_pool": "prefork"}, "celery.concurrency.prefork:TaskPool is no pool for"),
    ("io", {"worker_pool": None}, "is no pool for"),
    ("io", {"worker_pool": "threads"}, "-A callsheet.workers.cpu"),
    ("cpu", {"worker_pool": "gevent"}, "-A callsheet.workers.io"),
    ("cpu", {"worker_pool": "callsheet.workers.pool:AsyncioPool"}, "callsheet.workers.pool:AsyncioPool is no pool for"),
    ("cpu", {"broker_url": "redis://127.0.0.1:1/1", "accept_content": ["pickle"]}, "broker_url, accept_content: "),
    ("cpu", {"worker_pool": "solo", "worker_max_tasks_per_child": 3}, "")])
def test_a_worker_does_not_start_with_a_configuration_that_is_not_callsheets(kind: str, changes: dict[str, Any],
                                                                             says: str) -> None:
    settings = Settings.load()
    app = {"io": io_app, "cpu": cpu_app}[kind](settings)
    app.conf.update(changes)
    app.add_defaults({"worker_pool": "eventlet"})  # is not even looked at
    worker = SimpleNamespace(pool_cls=app.conf.worker_pool or "prefork")
    if says:
        with pytest.raises(SystemExit, match=says):
            app.check(worker, celery_config(settings))
    else:
        app.check(worker, celery_config(settings))


def test_a_configuration_object_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(Settings.load())
    monkeypatch.setenv("THEIRS", "tests.fleet")
    for configure in (lambda: app.config_from_object("tests.fleet"), lambda: app.config_from_envvar("THEIRS")):
        with pytest.raises(errors.UsageError, match=r"app\.conf\.update"):
            configure()


def test_base_classes_are_mixed_in_or_refused_when_declared() -> None:
    class Plain:
        """No task at all."""

    class Odd(type):
        """A kind of class."""

    class OfItsKind(metaclass=Odd):
        """Of that kind."""

    class Early(celery.Task):
        Request = Request

    app = make_app(Settings.load())
    made = app.task(name="plain", base=Plain)(find_app)
    assert isinstance(made, Plain)
    assert isinstance(made, base.Task)
    assert base.mixed(Early).Request is SecondChanceRequest
    own = type("Own", (base.Task,), {"Request": type("Mine", (Request,), {})})
    assert issubclass(own.Request, SecondChanceRequest)
    assert base.mixed(own) is own
    with pytest.raises(errors.UsageError, match="cannot be a task's base class"):
        base.mixed(type("Twice", (celery.Task,), {"__init_subclass__": None}))
    assert base.mixed(OfItsKind).__mro__[1] is OfItsKind


def test_agents_under_task_always_eager_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(Settings.load())
    app.conf.task_always_eager = True
    monkeypatch.setattr("celery._state.default_app", app)
    with pytest.raises(errors.UsageError, match="CALLSHEET_INLINE=1"):
        Echo("e").submit()


def test_times_without_a_zone_are_refused() -> None:
    soon = datetime.now() + timedelta(seconds=1)
    for option in ("eta", "expires"):
        with pytest.raises(errors.UsageError, match=rf"{option}=.* says no time zone.*astimezone\(\)"):
            Echo("e").submit(**{option: soon})


def test_the_loop_is_asyncios_own_if_the_settings_say_so() -> None:
    for setting, module in (("asyncio", "asyncio"), ("uvloop", "uvloop")):
        with use_settings(Settings.load(loop=setting)):
            loop = new_loop()
            loop.close()
            assert type(loop).__module__.partition(".")[0] == module


def test_celery_finds_an_app_in_the_package() -> None:
    assert find_app("callsheet").main == "callsheet.workers.io"
