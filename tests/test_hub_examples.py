"""The examples of group conversations say the same in one process and on workers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import RedisServer, worker

ROOT = Path(__file__).parents[1]
SAID = {
    "debate": ["alice: The air is cleaner", "The judge is for alice: Alice answered what was said.\n"],
    "werewolf": ["ada, a villager, was hunted at night\n", "Won by the wolves\n"],
    "assembly": ["table 9: market 4, park 4, harbour 2\n", "The chair: market 40, park 39, harbour 21\n"],
}


def run(example: str, *args: str, **env: str) -> str:
    done = subprocess.run([sys.executable, "-m", f"examples.{example}", *args], cwd=ROOT, env={**os.environ, **env},
                          text=True, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", SAID)
def test_an_example_runs_here_and_on_workers(example: str, redis_server: RedisServer) -> None:
    here = run(example)
    assert all(line in here for line in SAID[example])
    with worker("callsheet.workers.io", redis_server.url, "-c", "50", env={"CALLSHEET_MODULES": "examples"}):
        assert run(example, "--workers", CALLSHEET_REDIS_URL=redis_server.url) == here


@pytest.mark.parametrize("example", SAID)
def test_the_documentation_walks_through_it(example: str) -> None:
    assert f"examples/{example}.py" in (ROOT / "docs/conversations.md").read_text()
