"""The README is true: its files and commands, run as they stand there."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from callsheet.models.stub import StubModelServer
from tests.services import ROOT, RedisServer, free_port, wait_for

README = (ROOT / "README.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", README, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]
BIN = Path(sys.executable).parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder with the README's files."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    (tmp_path / "README.md").write_text("\n\n".join(prose.split("\n\n")[:6]))
    return tmp_path


@pytest.fixture
def model() -> Iterator[StubModelServer]:
    with StubModelServer() as server:
        yield server


def environment(project: Path, model: StubModelServer, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("CALLSHEET_", "OPENAI_"))}
    return {**kept, "PATH": f"{BIN}{os.pathsep}{kept['PATH']}", "PYTHONPATH": str(project), "PYTHONUNBUFFERED": "1",
            "OPENAI_BASE_URL": model.base_url, **more}


def run_review(project: Path, env: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "review.py"], cwd=project, env=env, capture_output=True, text=True,
                          timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_names_just_the_commands_that_are_tested() -> None:
    programs = {" ".join(shlex.split(line, comments=True)[:2]) for line in COMMANDS}
    assert programs == {"make demo", "make test", "callsheet up", "export CALLSHEET_REDIS_URL=redis://127.0.0.1:6379/0",
                        "export CALLSHEET_MODULES=myproject.agents", "celery -A", "callsheet flower", "callsheet run"}


def test_the_code_runs_on_callsheet_up(project: Path, model: StubModelServer) -> None:
    [line] = [line for line in COMMANDS if line.startswith("callsheet up")]
    env, log = environment(project, model), project / "up.log"
    with log.open("wb") as out:
        up = subprocess.Popen([*shlex.split(line), "--redis-port", "0", "--flower-port", "0"], cwd=project, env=env,
                              stdout=out, stderr=out)
    try:
        wait_for(lambda: "Ready." in log.read_text() or up.poll() is not None, 60, what="callsheet up to be ready")
        url = re.search(r"export CALLSHEET_REDIS_URL=(\S+)", log.read_text())
        assert url, log.read_text()
        printed = run_review(project, environment(project, model, CALLSHEET_REDIS_URL=url[1]))
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(60)
    assert printed.count("of the words are distinct") == 2
    assert all(agent in printed for agent in ("Summarizer(a) io", "Summarizer(b) io", "Editor(editor) io",
                                              "Scorer(score) cpu"))
    assert up.returncode == 0, log.read_text()


def test_the_code_runs_on_workers_started_by_hand(project: Path, model: StubModelServer,
                                                  own_redis: RedisServer) -> None:
    env = environment(project, model, CALLSHEET_REDIS_URL=own_redis.url, CALLSHEET_MODULES="myproject.agents")
    lines = [line for line in COMMANDS if line.startswith(("celery -A", "callsheet flower"))]
    assert [" ".join(shlex.split(line)[2:4]) for line in lines] == [
        "callsheet.workers.io worker", "callsheet.workers.cpu worker", ""] and lines[2] == "callsheet flower"
    started = []
    try:
        for index, line in enumerate(lines):
            more = [f"--port={free_port()}"] if "flower" in line else ["-n", f"readme{index}@test"]
            with (project / f"{index}.log").open("wb") as out:
                command = [*shlex.split(line), *more]
                started.append(subprocess.Popen(command, cwd=project, env=env, stdout=out, stderr=out))
        wait_for(lambda: "Visit me at" in (project / "2.log").read_text(), 60, what="Flower to be ready")
        assert all(process.poll() is None for process in started)
        assert "of the words are distinct" in run_review(project, env)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)


def test_callsheet_run_reviews_the_docs(model: StubModelServer, tmp_path: Path) -> None:
    [line] = [line for line in COMMANDS if line.startswith("callsheet run")]
    output = tmp_path / "reviews.jsonl"
    command = [*shlex.split(line.replace("reviews.jsonl", str(output)))]
    env = environment(ROOT, model)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    texts = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".svg")]  # pictures are left out
    assert len(output.read_text().splitlines()) == len(texts)
