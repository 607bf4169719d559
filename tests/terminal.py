"""A program at a terminal of its own."""

import os
import pty
import select
import subprocess
import time

from tests.cli_process import environment
from tests.services import ROOT


class Terminal:
    """Starts the command; what it shows is read as far as `until` has come."""

    def __init__(self, *command: str, **env: str) -> None:
        self.controller, side = pty.openpty()
        self.process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, cwd=ROOT, close_fds=True,
                                        env=environment(**env), start_new_session=True)
        os.close(side)
        self.output = ""

    def _read(self, timeout: float) -> bool:
        """Read what comes within `timeout` seconds; False if nothing did, or it has ended."""
        if not select.select([self.controller], [], [], timeout)[0]:
            return False
        try:
            self.output += os.read(self.controller, 65536).decode(errors="replace")
        except OSError:  # it has ended
            return False
        return True

    def until(self, text: str, timeout: float = 30.0) -> str:
        """Wait for a text; gives, and forgets, what is before it."""
        end = time.monotonic() + timeout
        while text not in self.output:
            read = self._read(0.1)
            assert read or (self.process.poll() is None and time.monotonic() < end), f"{text!r}:\n{self.output[-3000:]}"
        before, _, self.output = self.output.partition(text)
        return before

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self.controller, f"{text}\n".encode())

    def ended(self, timeout: float = 20.0) -> int:
        """Wait for its end; gives the exit code."""
        end = time.monotonic() + timeout
        while self.process.poll() is None:
            self._read(0.1)  # or it waits for a reader
            assert time.monotonic() < end, f"it goes on:\n{self.output[-3000:]}"
        return self.process.returncode

    def close(self) -> None:
        """Kill it, should it run."""
        self.process.kill()
        self.process.wait()
        os.close(self.controller)
