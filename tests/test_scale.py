"""`callsheet scale` as a user starts it: real workers come and go with their load, and end their calls first."""

import contextlib
import os
import re
import signal
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from callsheet import Msg
from callsheet.cli.main import main
from callsheet.cli.stack import claimed
from callsheet.settings import use_settings
from tests.agents.gated import Gated
from tests.cli_process import Cli, cli
from tests.fleet import client_settings
from tests.services import RedisServer, wait_for

HI = Msg("user", "hi", "user")


def workers(scale: Cli) -> list[psutil.Process]:
    alive = (process for process in scale.process.children() if process.status() != psutil.STATUS_ZOMBIE)
    with contextlib.suppress(psutil.NoSuchProcess):  # one that has just ended
        return [process for process in alive if "worker" in process.cmdline()]
    return workers(scale)


def started(folder: Path) -> list[str]:
    path = folder / "started"
    return sorted(path.read_text().split()) if path.exists() else []


def calls(folder: Path, names: str) -> list:
    folder.mkdir()
    return [Gated(str(folder), name).submit(HI) for name in names]


def finish(folder: Path, jobs: list) -> None:
    (folder / "gate").touch()
    assert [job.get(20).get_text_content() for job in jobs] == ["through"] * len(jobs)


def environment(server: RedisServer) -> dict[str, str]:
    return {"CALLSHEET_REDIS_URL": server.url, "CALLSHEET_MODULES": "tests.agents",
            "CALLSHEET_AUTOSCALE_COOLDOWN": "2"}


def test_workers_come_with_the_load_are_replaced_and_are_drained_and_never_killed(own_redis, tmp_path) -> None:
    with use_settings(client_settings(own_redis)), cli("scale", "io", "--min", "1", "--max", "3", "--", "-c", "2",
                                                       cwd=tmp_path, **environment(own_redis)) as scale:
        scale.wait_output("is ready")
        (first,) = workers(scale)
        first.send_signal(signal.SIGKILL)
        scale.wait_output("ended with signal 9 (SIGKILL)")
        wait_for(lambda: scale.output.count("is ready") == 2, 60, "a worker in its place")

        jobs = calls(tmp_path / "many", "abcdef")
        wait_for(lambda: len(started(tmp_path / "many")) == 6, 60, lambda: f"all at work:\n{scale.output}")
        assert len(workers(scale)) == 3
        assert re.search(r"scale io size=1->\d bound=(backlog|maximum) .*backlog=\d", scale.output)
        finish(tmp_path / "many", jobs)
        scale.wait_output("bound=minimum")
        scale.wait_output("has ended its calls and is gone")
        wait_for(lambda: len(workers(scale)) == 1, 30, "one worker")
        assert started(tmp_path / "many") == list("abcdef")

        last = calls(tmp_path / "last", "xy")
        wait_for(lambda: len(started(tmp_path / "last")) == 2, 30, "the last calls")
        scale.look()
        scale.send(signal.SIGTERM)
        scale.wait_output("draining all")
        wait_for(lambda: "Warm shutdown" in logs(tmp_path), 20, "the worker to hear of it")
        assert workers(scale)
        finish(tmp_path / "last", last)
        assert scale.wait() == 0
        scale.wait_alone()
        assert started(tmp_path / "last") == ["x", "y"]
        assert "all workers have ended" in scale.output


def logs(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in (folder / ".callsheet").rglob("*.log"))


def test_a_controller_that_is_killed_leaves_its_workers_to_end_their_calls(own_redis, tmp_path) -> None:
    with use_settings(client_settings(own_redis)), cli("scale", "io", "--max", "1", cwd=tmp_path,
                                                       **environment(own_redis)) as scale:
        scale.wait_output("is ready")
        jobs = calls(tmp_path / "calls", "ab")
        wait_for(lambda: len(started(tmp_path / "calls")) == 2, 30, "both at work")
        scale.look()
        scale.send(signal.SIGKILL)
        wait_for(lambda: "Warm shutdown" in logs(tmp_path), 20, "the worker to drain")
        finish(tmp_path / "calls", jobs)
        scale.wait_alone()


def test_workers_that_cannot_start_end_it_with_their_last_words(own_redis, tmp_path) -> None:
    with cli("scale", "cpu", "--max", "2", "--", "--no-such-option", cwd=tmp_path,
             **environment(own_redis)) as scale:
        assert scale.wait() == 1
        assert "No such option" in scale.output and "ended with exit code 2" in scale.output
        assert "Traceback" not in scale.output


@pytest.mark.parametrize(("args", "says"), [
    (("io", "--min", "5", "--max", "2"), "--min 5 --max 2: A maximum of 2 and a minimum of 5 leave no size"),
    (("io", "--max", "0"), "0 is not in the range"),
    (("io", "--max", "many"), "'many' is not a valid integer"),
    (("io",), "Missing option '--max'"),
    (("gpu", "--max", "2"), "'gpu' is not one of 'io', 'cpu'"),
    (("io", "--max", "2", "--", "--autoscale=2,20"), "A maximum of 2 and a minimum of 20"),
    (("io", "--max", "2", "--", "--autoscale", "a,b"), "'a,b' is not MAX,MIN"),
    (("io", "--max", "2", "--", "-c", "none"), "'none' is no number of calls"),
    (("cpu", "--max", "2", "--", "-c0"), "'0' is no number of calls"),
    (("io", "--max", "2", "--", "-n", "mine"), "-n cannot be given"),
    (("io", "--max", "2", "--", "--hostname=mine"), "--hostname cannot be given"),
    (("io", "--max", "2", "--", "-D"), "-D cannot be given"),
])
def test_wrong_words_are_named(args: tuple[str, ...], says: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["scale", *args])
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())


def test_two_with_one_folder_and_one_without_redis_are_refused(own_redis, tmp_path) -> None:
    with use_settings(client_settings(own_redis)), claimed(tmp_path):
        result = CliRunner().invoke(main, ["scale", "io", "--max", "2", "--data", str(tmp_path)])
        assert result.exit_code == 1
        assert f"pid {os.getpid()}" in result.output and result.output.strip().endswith("with other --data.")
    own_redis.stop()
    with use_settings(client_settings(own_redis)):
        result = CliRunner().invoke(main, ["scale", "io", "--max", "2", "--data", str(tmp_path / "other")])
        assert result.exit_code == 1 and "No Redis answers at" in result.output
