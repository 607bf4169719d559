"""`callsheet run` against real workers: what comes out, what a kill costs, what the user is told."""

import json
import os
import signal
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from callsheet.cli.inputs import Input, Inputs
from callsheet.cli.main import main
from callsheet.settings import Settings, use_settings
from tests.cli_process import cli
from tests.services import RedisServer, Worker, free_port, wait_for, worker

DEMO = Path(__file__).parent / "demo_files"
MODULES = "counted,parts,tests.agents"
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def workers(redis_server: RedisServer) -> Iterator[Worker]:
    redis_server.client().flushall()
    env = {"CALLSHEET_MODULES": MODULES, "PYTHONPATH": os.pathsep.join([str(DEMO), str(DEMO.parent.parent)])}
    with (worker("callsheet.workers.io", redis_server.url, "--autoscale=50,5", env=env) as io,
          worker("callsheet.workers.cpu", redis_server.url, "--concurrency=1", env=env)):
        yield io


@pytest.fixture
def run(tmp_path: Path, workers: Worker, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`callsheet run` of a demo file in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(file: str, *args: str) -> Result:
        with use_settings(Settings.load(redis_url=redis_server.url)):
            return CliRunner().invoke(main, ["run", str(DEMO / file), *args])

    return call


def write_lines(path: Path, *lines: Any) -> Path:
    """A JSONL input; texts become objects that name the folder, other things are written as they are."""
    folder = str(path.parent)
    path.write_text("".join(
        (line if isinstance(line, str) and line.startswith("!") else
         json.dumps({"text": line, "folder": folder} if isinstance(line, str) else line)).removeprefix("!") + "\n"
        for line in lines))
    return path


def results(folder: Path, name: str = "results.jsonl") -> list[dict[str, Any]]:
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def texts(folder: Path) -> list[str]:
    return [line["result"]["content"] for line in results(folder)]


def runs(folder: Path) -> Counter[str]:
    return Counter((folder / "runs").read_text().splitlines())


def test_what_agents_print_is_shown_as_it_comes_with_stream(run: Run, tmp_path: Path) -> None:
    inputs = write_lines(tmp_path / "in.jsonl", "one", "two")
    done = run("talking.py", "--input", str(inputs), "--stream")
    assert done.exit_code == 0, done.output
    for source in ("in.jsonl:1", "in.jsonl:2"):
        assert [line.partition(": p: ")[2] for line in done.stdout.splitlines()
                if line.startswith(f"{source}: p: ") or f"{source}: p: " in line] == ["0 1 ", "bye"]
    alone = run("talking.py", "--input", str(inputs), "--stream", "--limit", "1", "--no-resume")
    assert "p: 0 1 \np: bye\n" in alone.stdout
    assert "p: bye" not in run("talking.py", "--input", str(inputs), "--no-resume").stdout


def test_inputs_become_results_in_their_order(run: Run, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "b").mkdir(parents=True)
    (docs / "a.txt").write_text("one two three")
    (docs / "b" / "c.md").write_text("four five")
    write_lines(docs / "z.jsonl", {"content": "six", "name": "eve", "role": "user"}, "seven eight")
    (docs / "image.png").write_bytes(b"\x89PNG\0\0")
    (docs / ".hidden").write_text("no")
    done = run("counted.py", "--target", "count", "--input", "docs", "--window", "2")
    assert done.exit_code == 0, done.output
    assert [line["source"] for line in results(tmp_path)] == ["docs/a.txt", "docs/z.jsonl:1", "docs/z.jsonl:2",
                                                             "docs/b/c.md"]
    assert texts(tmp_path) == ["3", "1", "2", "2"]
    assert "4 inputs: 4 ok, 0 failed" in done.output and "Left out: hidden files: 1, not text: 1" in done.output
    [first, *_] = results(tmp_path)
    assert first["status"] == "ok" and first["error"] is None and first["seconds"] > 0
    assert first["result"]["metadata"] == {"path": "docs/a.txt"}
    assert uuid.UUID(first["job_id"])

    again = run("counted.py", "--target", "count", "--input", "docs")
    assert again.exit_code == 0 and "nothing to do" in again.output
    assert len(results(tmp_path)) == 4


def test_failures_and_malformed_lines_do_not_stop_the_others(run: Run, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", "a", "fail b", "!{half", "c", "![1]", {"x": 1})
    done = run("counted.py", "--input", str(source))
    assert done.exit_code == 1
    for told in (":3: it is not JSON", ":5: it is a JSON array", ":6: it has neither 'text'"):
        assert f"{source}{told}" in done.stderr and f"{source}{told}" in done.stdout
    assert f"{source}:2 failed: Counted(only) raised ValueError: not mended" in done.stderr
    assert "3 inputs: 2 ok, 1 failed" in done.stdout
    assert [line["status"] for line in results(tmp_path)] == ["ok", "failed", "ok"]
    failed = results(tmp_path)[1]
    assert failed["result"] is None and failed["error"]["remote_type"] == "builtins.ValueError"
    assert "raise ValueError" in failed["error"]["remote_traceback"]

    # Mended, the same command runs what failed, and that alone; a new line above does not disturb it.
    (tmp_path / "mended").touch()
    write_lines(source, "new", "a", "fail b", "c")
    done = run("counted.py", "--input", str(source))
    assert done.exit_code == 0, done.output
    assert texts(tmp_path) == ["only:new", "only:a", "only:fail b", "only:c"]
    assert runs(tmp_path) == {"only new": 1, "only a": 1, "only fail b": 2, "only c": 1}


def test_a_killed_run_goes_on_and_runs_nothing_twice(run: Run, tmp_path: Path, redis_server: RedisServer) -> None:
    source = write_lines(tmp_path / "in.jsonl", *(f"a{i}" for i in range(30)), *(f"wait{i}" for i in range(30)))
    command = ("run", str(DEMO / "counted.py"), "--target", "chain", "--input", str(source))
    with cli(*command, "--window", "40", cwd=tmp_path, CALLSHEET_REDIS_URL=redis_server.url) as killed:
        def there() -> bool:
            assert killed.popen.poll() is None, killed.output
            return len(results(tmp_path)) >= 30 and sum(runs(tmp_path).values()) >= 60 + 20

        wait_for(there, 40, killed.output)
        killed.send(signal.SIGKILL)
        killed.wait()
    with (tmp_path / "results.jsonl").open("a") as output:
        output.write('{"input_id": "half a li')  # as if it had been killed in the middle of it
    (tmp_path / "gate").touch()
    done = run("counted.py", "--target", "chain", "--input", str(source))
    assert done.exit_code == 0, done.output
    assert "Resuming: 30 of 60 inputs" in done.stderr and "Picking up" in done.stderr
    assert texts(tmp_path) == [f"second:first:a{i}" for i in range(30)] + [f"second:first:wait{i}" for i in range(30)]
    assert set(runs(tmp_path).values()) == {1} and len(runs(tmp_path)) == 120


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(run: Run, tmp_path: Path, redis_server: RedisServer) -> None:
    source = write_lines(tmp_path / "in.jsonl", "a", "wait b", "c")
    command = ("run", str(DEMO / "counted.py"), "--input", str(source))
    with cli(*command, cwd=tmp_path, CALLSHEET_REDIS_URL=redis_server.url) as running:
        wait_for(lambda: len(results(tmp_path)) == 2, 40, running.output)
        running.send(signal.SIGINT)
        assert running.wait() == 130
        assert "2 of 3 inputs have a result in results.jsonl, 1 have none" in running.output
        assert "Jobs that go on at the workers: 1." in running.output
        assert "give the same command again" in running.output and "Traceback" not in running.output
    (tmp_path / "gate").touch()
    assert run("counted.py", "--input", str(source)).exit_code == 0
    assert texts(tmp_path) == ["only:a", "only:wait b", "only:c"]
    assert set(runs(tmp_path).values()) == {1}


def test_a_job_that_was_noted_but_never_sent_is_sent(run: Run, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", "a", "b")
    assert run("counted.py", "--input", str(source), "--limit", "1").exit_code == 0
    with (tmp_path / "results.jsonl.state").open("a") as state:
        input_id = input_ids(source)[1]
        state.write(json.dumps({"input_id": input_id, "job_id": str(uuid.uuid4())}) + "\n" + '{"half')
    assert run("counted.py", "--input", str(source)).exit_code == 0
    assert texts(tmp_path) == ["only:a", "only:b"] and set(runs(tmp_path).values()) == {1}


def input_ids(source: Path) -> list[str]:
    return [item.id for item in Inputs([source]) if isinstance(item, Input)]


def test_an_output_of_something_else_is_not_touched(run: Run, tmp_path: Path) -> None:
    one, other = write_lines(tmp_path / "1.jsonl", "a"), write_lines(tmp_path / "2.jsonl", "b")
    assert run("counted.py", "--input", str(one)).exit_code == 0
    before = (tmp_path / "results.jsonl").read_text()
    refused = run("counted.py", "--input", str(other))
    assert refused.exit_code == 1 and "results of other inputs" in refused.output
    refused = run("counted.py", "--target", "first", "--input", str(one))
    assert refused.exit_code == 1 and "holds results of counted.py:agent, not of counted.py:first" in refused.output
    (tmp_path / "notes.txt").write_text("my notes\n")
    refused = run("counted.py", "--input", str(one), "--output", "notes.txt")
    assert refused.exit_code == 1 and "notes.txt:1 is not a result" in refused.output
    assert (tmp_path / "results.jsonl").read_text() == before
    assert (tmp_path / "notes.txt").read_text() == "my notes\n" and not (tmp_path / "notes.txt.state").exists()

    assert run("counted.py", "--input", str(other), "--resume").exit_code == 0
    assert texts(tmp_path) == ["only:b", "only:a"]
    assert run("counted.py", "--input", str(one), "--no-resume").exit_code == 0
    assert texts(tmp_path) == ["only:a"] and runs(tmp_path)["only a"] == 2


def test_workers_that_refuse_the_module_are_named_with_the_remedy(run: Run, tmp_path: Path) -> None:
    (tmp_path / "stranger.py").write_text((DEMO / "counted.py").read_text())
    source = write_lines(tmp_path / "in.jsonl", "a", "b")
    refused = run(str(tmp_path / "stranger.py"), "--input", str(source))
    assert refused.exit_code == 1
    assert "stranger:Counted is outside the allowed modules" in refused.stderr
    assert "callsheet up --modules stranger\n" in refused.stderr and "--up" in refused.stderr
    assert results(tmp_path) == [] and not (tmp_path / "results.jsonl").exists()


def test_a_pipeline_names_the_modules_of_its_parts(run: Run, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", "a b c")
    done = run("parts.py", "--input", str(source))
    assert done.exit_code == 0, done.output
    assert texts(tmp_path) == ["words:3"]
    with use_settings(Settings.load(redis_url=f"redis://127.0.0.1:{free_port()}/0")):
        lost = CliRunner().invoke(main, ["run", str(DEMO / "parts.py"), "--input", str(source), "--no-resume"])
    assert texts(tmp_path) == ["words:3"]  # not forgotten for a run that did not begin
    assert lost.exit_code == 1 and "No Redis answers" in lost.stderr and "Nothing was sent" in lost.stderr
    assert f"PYTHONPATH={DEMO} callsheet up --modules parts,tests.agents.basic\n" in lost.stderr


def test_without_workers_nothing_is_sent(tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
                                         ) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = write_lines(tmp_path / "in.jsonl", "a")
    with use_settings(Settings.load(redis_url=own_redis.url)):
        lost = CliRunner().invoke(main, ["run", str(DEMO / "counted.py"), "--input", str(source)])
    assert lost.exit_code == 1
    assert f"No worker reads the queue io at {own_redis.url}" in lost.stderr
    assert f"callsheet up --modules counted --redis {own_redis.url}" in lost.stderr
    assert own_redis.client().llen("io") == 0


def test_with_up_it_brings_its_workers_and_survives_a_kill(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", "a", "wait b", "wait c")
    command = ("run", str(DEMO / "counted.py"), "--input", str(source), "--up", "--cpu", "0", "--io", "2,2")
    with cli(*command, cwd=tmp_path) as killed:
        wait_for(lambda: results(tmp_path) and sum(runs(tmp_path).values()) == 3, 60, "the first result")
        killed.look()
        killed.send(signal.SIGKILL)
        killed.wait_alone()
    (tmp_path / "gate").touch()
    with cli(*command, cwd=tmp_path) as resumed:
        resumed.wait_output("Picking up jobs of the run before:")
        resumed.look()
        assert resumed.wait() == 0 and "broke" not in resumed.output, resumed.output
        resumed.wait_alone(timeout=1)
    assert texts(tmp_path) == ["only:a", "only:wait b", "only:wait c"]
    assert runs(tmp_path)["only a"] == 1
    assert not (tmp_path / ".callsheet").exists()
