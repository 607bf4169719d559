"""`make demo`: the whole thing, as a stranger runs it."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.services import ROOT, redis_binary

KEYS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "CALLSHEET_ENDPOINTS__OPENAI__BASE_URL", "CALLSHEET_REDIS_URL")


def demo(*options: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    env = {key: value for key, value in os.environ.items() if key not in KEYS}
    env |= {"PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    return subprocess.run([sys.executable, "-m", "examples.review.demo", "--no-keep", *options], cwd=cwd, env=env,
                          capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    docs.mkdir()
    shared = "The harbour master keeps a list of every vessel, its draught and its berth, and reads it aloud at noon. "
    links = "See [the tides](tides.md) and [gone](x.md).\n"
    (docs / "harbour.md").write_text(f"# The harbour\n\n{shared * 3}\n\n{links}")
    (docs / "tides.md").write_text("# Tides\n\nThe tide turns twice a day. " * 5 + "\n\n" + shared * 3)
    return docs


@pytest.mark.skipif(redis_binary() is None and os.environ.get("CI") != "true", reason="no redis-server")
def test_the_demo_reviews_a_folder_and_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    done = demo("--input", str(folder), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / ".callsheet/demo/report.md").read_text()
    assert "harbour" in report and "x.md" in report  # the broken link was found
    assert "### Summary" in report and "harbour master" in report
    assert "Not done" not in report, report
    assert "Reader(summary)" in done.stdout and "Statistician(statistics)" in done.stdout
    assert "Flower shows it all" not in done.stdout  # nobody waits: Flower has ended, too
    left = [process for process in psutil.process_iter(["cwd", "cmdline"]) if process.info["cwd"] == str(tmp_path)]
    assert not left


def test_the_demo_says_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    done = demo("--input", str(tmp_path / "nowhere"), cwd=tmp_path)
    assert done.returncode == 1
    assert "nowhere" in done.stderr and "Traceback" not in done.stderr


def test_make_demo_passes_its_options_on() -> None:
    done = subprocess.run(["make", "-n", "demo", "INPUT=a folder", "MODEL=m"], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    assert 'examples.review.demo --input "a folder" --model "m"' in done.stdout
