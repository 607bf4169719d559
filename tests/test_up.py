"""`callsheet up` as a user starts it: real processes, real signals, nothing left behind."""

import json
import os
import re
import shutil
import signal
import threading
import urllib.request
from pathlib import Path

import psutil
import pytest
import redis

from callsheet import Job, Msg
from callsheet.cli.processes import Interrupts, Service, ServiceFailed, Supervisor
from callsheet.settings import Settings, use_settings
from tests.cli_process import Cli, cli
from tests.demo_files.counted import Counted
from tests.services import RedisServer, free_port, wait_for

DEMO = Path(__file__).parent / "demo_files"
FAST = ("--redis-port", "0", "--no-flower", "--io", "20,2", "--cpu", "0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder, with agents in a module `tests.demo_files.counted` that workers find there."""
    (tmp_path / "mine.py").write_text("ready = True\n")
    return tmp_path


def redis_url(up: Cli) -> str:
    found = re.search(r"CALLSHEET_REDIS_URL=(\S+)", up.output)
    assert found, up.output
    return found[1]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")
                  if path.is_file() and "__pycache__" not in path.parts)


def ask(folder: Path, text: str) -> Msg:
    return Msg("user", text, "user", metadata={"folder": str(folder)})


def test_it_starts_serves_and_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flower = free_port()
    with cli("up", "--redis-port", "0", "--flower-port", str(flower), "--modules", "mine,tests.demo_files",
             "--io", "20,2", "--cpu", "2,1", "--stub-model", "--stub-port", "0", cwd=folder,
             OPENAI_API_KEY="sk-for-workers-alone") as up:
        up.wait_ready()
        url = redis_url(up)
        for line in ("redis ", "io worker ", "cpu worker ", "flower ", "stub model ", ".callsheet/logs/io.log"):
            assert line in up.output
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())  # Flower tells browsers by a cookie
        with browser.open(f"http://127.0.0.1:{flower}/") as page:
            assert page.status == 200

        # All of it listens on the loopback address only.
        listening = {connection.laddr.ip for process in up.family for connection in process.net_connections("tcp")
                     if connection.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}

        with use_settings(Settings.load(redis_url=url)):
            assert Counted("a").submit(ask(folder, "x")).get(30).content == "a:x"

        # Its Redis is its owner's: what it keeps, and what it would do for others.
        assert {path.stat().st_mode & 0o077 for path in (folder / ".callsheet").rglob("*")} == {0}
        password = (folder / ".callsheet/redis/password").read_text()
        assert password not in up.output + " ".join(up.child("redis-server").cmdline())
        port = int(url.rpartition(":")[2].partition("/")[0])
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).set("a", "b")
        for command in ("CONFIG GET dir", "DEBUG SLEEP 0", "SAVE", "REPLICAOF other 6379", "MODULE LIST"):
            with pytest.raises(redis.ResponseError, match="unknown command"):
                redis.Redis(port=port, password=password).execute_command(*command.split())

        # Who calls no models has no keys of theirs.
        for name in ("redis-server", "flower"):
            assert "OPENAI_API_KEY" not in up.child(name).environ()
        assert up.child("callsheet.workers.io").environ()["OPENAI_API_KEY"]

        # Programs in the folder find it without being told.
        monkeypatch.chdir(folder)
        assert Settings.load().redis_address == f"redis://127.0.0.1:{port}/0"
        assert password in Settings.load().redis_url.get_secret_value()

        # A second one in the folder, or on the port, is told what to do.
        with cli("up", *FAST, cwd=folder) as second:
            assert second.wait() == 1
            assert f"pid {up.popen.pid}" in second.output and f"CALLSHEET_REDIS_URL={url}" in second.output
        with cli("up", "--data", "other", "--redis-port", str(port), cwd=folder) as third:
            assert third.wait() == 1
            assert f"port {port}" in third.output and f"--redis redis://127.0.0.1:{port}/0" in third.output

        # A call that runs when it is stopped ends in peace.
        with use_settings(Settings.load(redis_url=url)):
            job = Counted("a").submit(ask(folder, "wait"))
            wait_for(lambda: "wait" in (folder / "runs").read_text(), what="the call to run")
            up.send(signal.SIGINT)
            up.wait_output("Stopping")
            (folder / "gate").touch()
            assert job.get(20).content == "a:wait"
        assert up.wait() == 0, up.output
        up.wait_alone(timeout=1)
        assert "Stopped." in up.output
    left = {name for name in files(folder / ".callsheet") if not name.startswith(("logs/", "redis/appendonly"))}
    assert left == {"redis/password", "redis/redis.conf"}
    assert "ready to exit" in (folder / ".callsheet/logs/redis.log").read_text()


def test_what_ends_is_shown_and_the_rest_stops(folder: Path, own_redis: RedisServer) -> None:
    with cli("up", *FAST, "--redis", own_redis.url, cwd=folder) as up:
        up.wait_ready()
        assert "(yours)" in up.output and len(up.process.children()) == 1
        up.child("callsheet.workers.io").kill()
        assert up.wait() == 1
        assert "The io worker ended with signal 9 (SIGKILL)" in up.output
        assert "Last lines of .callsheet/logs/io.log" in up.output and "ready." in up.output
        up.wait_alone(timeout=1)
    assert own_redis.client().ping()


def test_children_die_with_it_and_their_calls_go_on_with_the_next(folder: Path) -> None:
    with cli("up", *FAST, "--modules", "tests.demo_files", cwd=folder) as up:
        up.wait_ready()
        with use_settings(Settings.load(redis_url=redis_url(up))):
            job = Counted("a").submit(ask(folder, "wait"))
        wait_for((folder / "runs").exists, what="the call to run")
        up.send(signal.SIGKILL)
        up.wait_alone()
    (folder / "gate").touch()
    with cli("up", *FAST, "--modules", "tests.demo_files", cwd=folder) as up:
        up.wait_ready()
        with use_settings(Settings.load(redis_url=redis_url(up))):
            assert Job.from_id(job.id).get(20).content == "a:wait"
        up.send(signal.SIGTERM)
        assert up.wait() == 0, up.output
        up.wait_alone(timeout=1)


def test_a_redis_that_does_not_answer_is_named(folder: Path) -> None:
    with cli("up", *FAST, "--redis", f"redis://:secret@127.0.0.1:{free_port()}/0", cwd=folder) as up:
        assert up.wait() == 1
        assert "No Redis answers at redis://127.0.0.1:" in up.output
        assert "secret" not in up.output and "Traceback" not in up.output


def service(folder: Path, script: str, *, name: str = "part", ready: str = "up",
            stops: tuple[tuple[signal.Signals, float], ...] = ((signal.SIGTERM, 10), (signal.SIGKILL, 5))) -> Service:
    return Service(name=name, command=("sh", "-c", script), where="here", log=folder / f"{name}.log", env={},
                   stops=stops, ready=lambda process: ready in process.log_text())


def test_a_service_that_cannot_start_is_shown(folder: Path) -> None:
    supervisor = Supervisor(Interrupts())
    good = service(folder, "echo up; exec sleep 60", name="good")
    bad = service(folder, "echo all is lost; exit 3", name="bad")
    with pytest.raises(ServiceFailed, match=r"(?s)The bad ended with exit code 3.*bad\.log.*all is lost"):
        supervisor.start([good, bad])
    [process, _] = supervisor.processes
    supervisor.stop()
    assert process.ended == -signal.SIGTERM


def test_a_service_that_is_never_ready_is_named(folder: Path) -> None:
    supervisor = Supervisor(Interrupts())
    with pytest.raises(ServiceFailed, match=r"The part is not ready after 0\.1 s\. See its log"):
        supervisor.start([service(folder, "exec sleep 60")], timeout=0.1)
    supervisor.stop()


def test_what_will_not_end_is_killed_with_all_that_it_started(folder: Path) -> None:
    supervisor = Supervisor(Interrupts())
    stops = ((signal.SIGTERM, 3), (signal.SIGQUIT, 3), (signal.SIGKILL, 5))
    stubborn = "trap 'echo no' TERM QUIT; sleep 61 & echo up; while :; do wait; done"
    supervisor.start([service(folder, stubborn, stops=stops)])
    [process] = supervisor.processes
    family = psutil.Process(process.pid).children()
    supervisor.stop()
    assert process.ended == -signal.SIGKILL and process.log_text().count("no") == 2
    wait_for(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in family))


def test_one_more_ctrl_c_hurries(folder: Path) -> None:
    interrupts = Interrupts()
    supervisor = Supervisor(interrupts)
    with interrupts.caught():
        supervisor.start([service(folder, "trap 'echo wait' TERM; echo up; while :; do sleep 0.05; done",
                                  stops=((signal.SIGTERM, 600), (signal.SIGKILL, 5)))])
        [process] = supervisor.processes

        def hurry() -> None:
            wait_for(lambda: "wait" in process.log_text(), what="the first signal to arrive")
            os.kill(os.getpid(), signal.SIGINT)

        helper = threading.Thread(target=hurry)
        helper.start()
        supervisor.stop()
        helper.join()
    assert process.ended == -signal.SIGKILL


def test_the_log_of_the_run_before_is_kept(folder: Path) -> None:
    for text in ("up first", "up second"):
        supervisor = Supervisor(Interrupts())
        supervisor.start([service(folder, f"echo {text}; exec sleep 60")])
        supervisor.stop()
    assert (folder / "part.log").read_text() == "up second\n"
    assert (folder / "part.log.1").read_text() == "up first\n"


def test_redis_is_found_or_its_remedy_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    import click

    from callsheet.cli.embedded_redis import redis_binary

    assert redis_binary()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(click.ClickException, match=r"callsheet\[embedded\]"):
        redis_binary()


def test_what_was_taken_goes_back_into_its_queue(own_redis: RedisServer) -> None:
    from callsheet.cli.embedded_redis import take_back

    settings = Settings.load(redis_url=own_redis.url)
    client: redis.Redis = own_redis.client()
    message = {"body": "e30=", "headers": {"id": "t"}, "properties": {
        "priority": 0, "delivery_tag": "tag", "delivery_info": {"exchange": "", "routing_key": "io"}}}
    client.hset("unacked", "tag", json.dumps([message, "", "io"]))
    client.zadd("unacked_index", {"tag": 1})
    assert take_back(settings) == 1
    assert client.llen("io") == 1 and not client.exists("unacked", "unacked_index")
