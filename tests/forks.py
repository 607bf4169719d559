"""Python processes that need not load first what they will load: each is forked off one that has loaded it.

Half of what a run of the tests costs is the import of Celery, Redis' client, httpx and pydantic by some 450 workers.
What is forked here is a process of its own in all that a test can see: its id, session, signals, output, exit code.
"""

import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import cache
from typing import Any, BinaryIO

MODULES = ("asyncio", "celery.bin.celery", "celery.app.trace", "celery.apps.worker", "celery.worker.consumer",
           "kombu.transport.redis", "redis.asyncio", "httpx", "pydantic", "pydantic_settings", "psutil", "mcp", "rich",
           "uvicorn", "starlette.applications", "callsheet", "callsheet.cli.stack")
_AS_STARTED = {"PYTHONPATH", "PYTHONUNBUFFERED"}  # variables of Python that a forked process can follow


class Forked:
    """As subprocess.Popen, of `python -m module ...` in a session of its own."""

    def __init__(self, server: "_Server", pid: int, args: Sequence[str]) -> None:
        self.pid, self.args = pid, args
        self.returncode: int | None = None
        self._server = server

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.ended(self.pid, 0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended; subprocess.TimeoutExpired after `timeout` s."""
        if self.poll() is None:
            self.returncode = self._server.ended(self.pid, 1e9 if timeout is None else timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Server:
    """The process that has loaded all, as its client sees it."""

    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen([sys.executable, "-m", "tests.forks", str(theirs.fileno())],
                                         pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._lock = threading.RLock()
        self._codes: dict[int, int] = {}
        self._started: list[int] = []

    def start(self, args: Sequence[str], output: BinaryIO | None, env: dict[str, str], cwd: str) -> Forked:
        request = json.dumps({"args": list(args), "env": env, "cwd": cwd}).encode()
        with self._lock, open(os.devnull, "wb") as nothing:
            socket.send_fds(self._sock, [request], [(output or nothing).fileno()])
            while not self._started:
                self._hear(60)
            return Forked(self, self._started.pop(), args)

    def ended(self, pid: int, timeout: float) -> int | None:
        end = time.monotonic() + timeout
        while True:
            with self._lock:
                self._hear(0)
                if pid in self._codes:
                    return self._codes.pop(pid)
            left = end - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(0.01, left))

    def _hear(self, timeout: float) -> None:
        self._sock.settimeout(timeout)
        with contextlib.suppress(BlockingIOError):
            data = self._sock.recv(1024)
            if not data:
                raise RuntimeError(f"tests.forks ended with {self._process.wait(10)}")
            pid, *code = json.loads(data)
            if code:
                self._codes[pid] = code[0]
            else:
                self._started.append(pid)


@cache
def _server(_pid: int) -> _Server:
    return _Server()


def python(module: str, *args: str, env: dict[str, str], cwd: Any, output: BinaryIO | None = None) -> Any:
    """`python -m module args`, in a session of its own, with stdout and stderr in `output`.

    Where it needs a Python of its own (gevent's patches, variables that are read with the modules) it is a subprocess.
    """
    names = {name for name in (*env, *os.environ) if name.startswith("PYTHON") or name == "REMAP_SIGTERM"}
    special = {name for name in names - _AS_STARTED if env.get(name) != os.environ.get(name)}
    if special or any("gevent" in arg or "eventlet" in arg for arg in args):
        return subprocess.Popen([sys.executable, "-m", module, *args], env=env, cwd=cwd, start_new_session=True,
                                stdout=output or subprocess.DEVNULL, stderr=subprocess.STDOUT)
    return _server(os.getpid()).start([module, *args], output, env, str(cwd))


def _serve(sock: socket.socket) -> list[str]:
    """Fork for each request, and tell of each child that ended. Returns in a child: what it is to run."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wake)
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not sock:
                    os.read(woken, 512)
                    _reap(sock)
                    continue
                data, fds, _, _ = socket.recv_fds(sock, 1 << 20, 1)
                if not data:
                    sys.exit()
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    os.close(woken), os.close(wake)
                    sock.close()
                    return _become(json.loads(data), fds[0])
                os.close(fds[0])
                sock.send(json.dumps([pid]).encode())


def _reap(sock: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            with contextlib.suppress(OSError):
                sock.send(json.dumps([found[0], os.waitstatus_to_exitcode(found[1])]).encode())


def _become(request: dict[str, Any], output: int) -> list[str]:
    os.setsid()
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    given = [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [request["cwd"], *given, *(path for path in sys.path if "python3" in path)]
    return list(request["args"])


if __name__ == "__main__":
    import gc
    import importlib

    for name in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    module, *args = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv = [module, *args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
