"""The peers that are no part of the development environment: whether they are there, and how their workers start."""

import importlib.util
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.harness import Stage

CONTENDERS = "benchmarks.contenders"
BENCH = "pip install -e '.[bench]', or all of them with `make bench`"
OWN = "`make bench` gives it an environment of its own"
ARQ = Path(sys.prefix) / "peers" / "arq" / "bin" / "python"  # it needs an older redis-py than ours


def importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def left_out(*names: str, install: str) -> None:
    """Say which contenders are not measured, and what would bring them."""
    for name in names:
        print(f"  {name} is left out, as it is not installed: {install}", file=sys.stderr)


def taskiq_worker(stage: Stage, slots: int) -> AbstractContextManager[int]:
    """As many tasks at once as our slots; prefetch a quarter of that, as its author advises (taskiq issue 148)."""
    return stage.process(sys.executable, "-m", "taskiq", "worker", f"{CONTENDERS}.taskiq_jobs:broker", "--workers", "1",
                         "--max-async-tasks", str(slots), "--max-prefetch", str(slots // 4), ready="Listening started")


def arq_worker(stage: Stage) -> AbstractContextManager[int]:
    return stage.process(str(ARQ), "-m", "arq", f"{CONTENDERS}.arq_jobs.WorkerSettings", ready="Starting worker")
