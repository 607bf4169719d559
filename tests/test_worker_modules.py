"""Modules that a worker builds agents from: where they are looked for, and what is said of those that are not there."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from callsheet import Settings
from callsheet.tasks.app import make_app
from tests.services import RedisServer, wait_for

CELERY = Path(sys.executable).parent / "celery"
AGENTS = """
from celery import shared_task

from callsheet import AgentBase, Msg


class Shouter(AgentBase):
    def __init__(self, name):
        self.name = name

    async def reply(self, msg):
        from mine.voice import loud           # not before it is called
        return Msg(self.name, loud(msg.get_text_content()), "assistant")


@shared_task
def add(a, b):
    return a + b
"""
PROGRAM = """
from callsheet import Msg
from callsheet.workers.io import app
from mine.agents import Shouter, add

print(Shouter("s").submit(Msg("user", "hello", "user")).get(timeout=30).get_text_content())
print(add.apply_async((2, 3), queue="io").get(timeout=30), add.app is app)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "agents.py").write_text(AGENTS)
    (tmp_path / "mine" / "voice.py").write_text("def loud(text):\n    return text.upper()\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def environment(redis: RedisServer, modules: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and "CALLSHEET" not in name}
    return {**kept, "CALLSHEET_REDIS_URL": redis.url, "CALLSHEET_MODULES": modules, "PYTHONUNBUFFERED": "1"}


class Started:
    """`celery -A callsheet.workers.io worker`, as one types it in a folder."""

    def __init__(self, redis: RedisServer, folder: Path, modules: str, *options: str, kind: str = "io") -> None:
        self.log = folder / f"worker-{kind}{''.join(options)}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([CELERY, "-A", f"callsheet.workers.{kind}", "worker", "-c", "1", *options],
                                            env=environment(redis, modules), cwd=folder, stdout=log,
                                            stderr=subprocess.STDOUT)

    def said(self, text: str) -> None:
        wait_for(lambda: text in self.log.read_text(errors="replace") or self.process.poll() is not None, 40,
                 what=lambda: f"{text!r} in its log:\n{self.log.read_text(errors='replace')[-3000:]}")
        assert text in " ".join(self.log.read_text(errors="replace").split())

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()


@pytest.fixture
def started(own_redis: RedisServer, project: Path) -> Iterator[list[Started]]:
    every: list[Started] = []
    yield every
    with ExitStack() as stack:
        for one in every:
            stack.callback(one.stop)


def test_celery_finds_the_modules_of_the_folder_where_it_is_typed(own_redis: RedisServer, project: Path,
                                                                   started: list[Started]) -> None:
    started.append(Started(own_redis, project, "mine.agents"))
    done = subprocess.run([sys.executable, "program.py"], cwd=project, env=environment(own_redis, ""), timeout=90,
                          capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["HELLO", "5 True"], done.stderr + started[0].log.read_text()
    assert "names no modules" not in started[0].log.read_text()


def test_a_misspelt_module_ends_the_worker_with_its_name_and_the_remedy(own_redis: RedisServer, project: Path,
                                                                         started: list[Started]) -> None:
    started.append(Started(own_redis, project, "mine.agnets"))
    assert started[0].process.wait(40)
    started[0].said("CALLSHEET_MODULES names 'mine.agnets', which cannot be imported here: No module named "
                    "'mine.agnets'. Correct the name")


def test_a_worker_without_modules_says_that_it_builds_no_agents(own_redis: RedisServer, project: Path,
                                                                 started: list[Started]) -> None:
    started.append(Started(own_redis, project, ""))
    started[0].said("CALLSHEET_MODULES names no modules")


def test_workers_of_both_kinds_on_one_machine_have_names_of_their_own(own_redis: RedisServer, project: Path,
                                                                     started: list[Started]) -> None:
    """Celery calls each celery@host; its tools, and ours, would see one of them."""
    started += [Started(own_redis, project, "mine.agents"), Started(own_redis, project, "mine.agents", kind="cpu"),
                Started(own_redis, project, "mine.agents", "-n", "celery@named")]
    app, host = make_app(Settings.load(redis_url=own_redis.url), "io", "names"), socket.gethostname()
    wanted = {f"io@{host}", f"cpu@{host}", "celery@named"}
    wait_for(lambda: set(app.control.inspect(timeout=1.0).ping() or ()) == wanted, 60, what=f"{wanted} to answer")
