"""A real `callsheet flower` process, spoken to over its HTTP API."""

import contextlib
import json
import os
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.forks import python
from tests.services import ROOT, free_port, wait_for


class Flower:
    """Its pages and its API."""

    def __init__(self, port: int, log: Path, process: Any) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = log
        self.process = process

    def ask(self, path: str, method: str = "GET", headers: dict[str, str] | None = None,
            **query: Any) -> tuple[int, str]:
        """Status and text of an answer."""
        opener = urllib.request.build_opener()
        body = urllib.parse.urlencode(query).encode() if method == "POST" else None
        url = f"{self.url}{path}" + ("?" + urllib.parse.urlencode(query) if query and method == "GET" else "")
        try:
            with opener.open(urllib.request.Request(url, body, headers or {}, method=method), timeout=30) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as exc:
            return int(exc.code), exc.read().decode()

    def get(self, path: str, **query: Any) -> Any:
        status, text = self.ask(path, **query)
        assert status == 200, (path, status, text, self.log_path.read_text()[-2000:])
        return json.loads(text) if path.startswith("/api") else text

    def post(self, path: str, **query: Any) -> str:
        status, text = self.ask(path, "POST", **query)
        assert status == 200, (path, status, text, self.log_path.read_text()[-2000:])
        return str(json.loads(text)["message"])

    def post_json(self, path: str, data: Any) -> Any:
        request = urllib.request.Request(f"{self.url}{path}", data=json.dumps(data).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def worker(self, name: str) -> dict[str, Any]:
        """What it knows of a worker, asked for anew."""
        return dict(self.get("/api/workers", refresh="1", workername=name)[name])


@contextlib.contextmanager
def flower(redis_url: str, *options: str, **more: str) -> Iterator[Flower]:
    port, log = free_port(), Path(tempfile.mkstemp(prefix="callsheet-flower-", suffix=".log")[1])
    env = {**os.environ, "CALLSHEET_REDIS_URL": redis_url, "FLOWER_UNAUTHENTICATED_API": "1",
           "PYTHONPATH": str(ROOT), **more}
    with log.open("wb") as out:
        process = python("callsheet.cli.main", "flower", "--port", str(port), "--", *options, output=out, env=env,
                         cwd=ROOT)
    try:
        started = Flower(port, log, process)

        def up() -> bool:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(urllib.error.URLError, OSError):
                return started.ask("/healthcheck")[0] == 200
            return False

        wait_for(up, 40, lambda: f"Flower\n{log.read_text()}")
        yield started
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        log.unlink(missing_ok=True)
