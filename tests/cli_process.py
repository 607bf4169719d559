"""`callsheet` as a subprocess, and what it leaves behind."""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.forks import python
from tests.services import ROOT, wait_for

READY = "Ready. Ctrl-C stops all."


def environment(**more: str) -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("CALLSHEET_")}
    return {**env, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}


class Cli:
    """A running `callsheet ...`; its output goes to a file outside the folder that it runs in."""

    def __init__(self, *args: str, cwd: Path, **env: str) -> None:
        self._log = Path(tempfile.mkstemp(prefix="callsheet-cli-", suffix=".log")[1])
        with self._log.open("wb") as log:
            self.popen = python("callsheet.cli.main", *args, output=log, env=environment(**env), cwd=cwd)
        self.process = psutil.Process(self.popen.pid)
        self.family: list[psutil.Process] = []

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_output(self, text: str, timeout: float = 60.0) -> "Cli":
        def there() -> bool:
            code = self.popen.poll()  # before its last words are read
            if text in self.output:
                return True
            assert code is None, f"ended with {code}:\n{self.output}"
            return False

        wait_for(there, timeout, lambda: f"{text!r} in the output:\n{self.output}")
        return self

    def wait_ready(self) -> "Cli":
        self.wait_output(READY)
        self.look()
        return self

    def look(self) -> list[psutil.Process]:
        """Note which processes belong to it now."""
        self.family = self.process.children(recursive=True)
        return self.family

    def child(self, *words: str) -> psutil.Process:
        """The direct child with these words in its command line."""
        for process in self.process.children():
            line = " ".join(process.cmdline())
            if all(word in line for word in words):
                return process
        raise AssertionError(f"no child with {words}: {[p.cmdline() for p in self.process.children()]}")

    def send(self, sig: signal.Signals) -> None:
        self.popen.send_signal(sig)

    def wait(self, timeout: float = 45.0) -> int:
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it goes on:\n{self.output}") from None

    def wait_alone(self, timeout: float = 15.0) -> None:
        """None of the family that was noted is left."""
        def left() -> list[psutil.Process]:
            return [process for process in self.family
                    if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]

        wait_for(lambda: not left(), timeout, lambda: f"children to end: {left()}")

    def end(self) -> None:
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = self.process.children(recursive=True)
        for process in [*family, *self.family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(10)
        self._log.unlink(missing_ok=True)


@contextmanager
def cli(*args: str, cwd: Path, **env: str) -> Iterator[Cli]:
    started = Cli(*args, cwd=cwd, **env)
    try:
        yield started
    finally:
        started.end()
