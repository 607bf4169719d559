"""The caller's side of a contender, in a process of its own: `python -m benchmarks.drive MODULE`.

A process for each, so that one's imports, memory and connections do not weigh on another, and so that a peer that needs
other versions of our dependencies can have an environment of its own: only the standard library is imported here.
"""

import contextlib
import gc
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Driver:
    """A started caller."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def ask(self, action: str, jobs: int = 0) -> dict[str, Any]:
        """Do one thing and say how it went: `seconds` and the caller's `cpu` seconds, or `pid` for "worker"."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{action} {jobs}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"the caller ended with {self.process.wait(10)} at {action!r}")


@contextlib.contextmanager
def driver(module: str, python: Path | str = sys.executable) -> Iterator[Driver]:
    process = subprocess.Popen([str(python), "-m", "benchmarks.drive", module], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield Driver(process)
    finally:
        assert process.stdin
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        process.kill()
        process.wait(10)


def main() -> None:
    module, published = importlib.import_module(sys.argv[1]), []
    for line in sys.stdin:
        action, jobs = line.split()
        answer: dict[str, Any] = {}
        gc.collect()  # of what was loaded and done before: else it falls into one contender's figures, not another's
        began, cpu = time.monotonic(), time.process_time()
        if action == "publish":
            published = module.publish(int(jobs))
        elif action == "wait":
            module.wait(published)
        elif action == "run":
            done = module.run(int(jobs))
            assert done == int(jobs), f"{done} of {jobs} results"
        else:
            answer["pid"] = module.worker()
        print(json.dumps({"seconds": time.monotonic() - began, "cpu": time.process_time() - cpu, **answer}), flush=True)


if __name__ == "__main__":
    main()
