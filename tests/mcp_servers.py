"""Real MCP servers for the tests: the official ones of npm and PyPI, and one that behaves badly."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.forks import python
from tests.services import ROOT, free_port, wait_for

EVERYTHING = "2026.8.31"
HOME = ROOT / ".callsheet" / f"mcp-everything-{EVERYTHING}"
TIME = Path(sys.executable).with_name("mcp-server-time")


def everything() -> str | None:
    """The main file of npm's @modelcontextprotocol/server-everything, installed once; None without node and npm."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return None
    main = HOME / "node_modules" / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / ".lock").open("w") as lock:  # test files run side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (HOME / ".done").exists():
            package = f"@modelcontextprotocol/server-everything@{EVERYTHING}"
            done = subprocess.run(["npm", "install", "--prefix", str(HOME), "--no-audit", "--no-fund", package],
                                  capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                return None
            (HOME / ".done").touch()
    return str(main)


class HttpServer:
    """A server behind an address, which can be killed and started again at the same one.

    Args:
        command: starts it; PORT in the environment and `{port}` in the command are its port.
        path: of its address.
    """

    def __init__(self, *command: str, path: str) -> None:
        self.port = free_port()
        self.command = [part.replace("{port}", str(self.port)) for part in command]
        self.notes_file = Path(tempfile.mkstemp(prefix="callsheet-mcp-", suffix=".notes")[1])
        self.url = f"http://127.0.0.1:{self.port}{path}"
        self.process: Any = None

    def start(self) -> "HttpServer":
        env = {**os.environ, "PORT": str(self.port), "NOTES": str(self.notes_file)}
        if self.command[:2] == [sys.executable, "-m"]:
            self.process = python(*self.command[2:], env=env, cwd=ROOT)
        else:
            self.process = subprocess.Popen(self.command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL,
                                            stderr=subprocess.DEVNULL, start_new_session=True)

        def answers() -> bool:
            assert self.process is not None and self.process.poll() is None, "the server ended"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2):
                return True
            return False

        wait_for(answers, 30, "the MCP server to listen")
        return self

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    def restart(self) -> None:
        self.kill()
        self.start()

    @property
    def notes(self) -> list[str]:
        """What happened, where it is the server that behaves badly."""
        return self.notes_file.read_text().splitlines()


@contextlib.contextmanager
def running(*command: str, path: str) -> Iterator[HttpServer]:
    server = HttpServer(*command, path=path)
    try:
        yield server.start()
    finally:
        server.kill()
        server.notes_file.unlink(missing_ok=True)


@contextlib.contextmanager
def bad_server(mode: str) -> Iterator[HttpServer]:
    """tests/mcp_server.py over "http", "json", "modern" or "sse"."""
    with running(sys.executable, "-m", "tests.mcp_server", mode, "{port}",
                 path="/sse" if mode == "sse" else "/mcp") as server:
        yield server


BAD = ["-m", "tests.mcp_server", "stdio"]
