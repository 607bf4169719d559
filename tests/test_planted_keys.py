"""Keys planted wherever a user may put one: after one run of everything no log, Redis key, page or error has any."""

import base64
import contextlib
import http.server
import json
import socketserver
import sys
import threading
import traceback
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from callsheet import Msg, Settings
from callsheet.cli.main import main
from callsheet.errors import CannotTravel
from callsheet.models import OpenAIChatModel
from callsheet.settings import use_settings
from callsheet.tasks.app import current_app
from tests.agents.planted import NAMES, Asks, Computes, Repeats, Tells
from tests.flower_process import Flower, flower
from tests.services import ROOT, RedisServer, free_port, worker

PLACES = ["redis password", "sentinel password", "flower password", "endpoint api_key", "endpoint api_key_env",
          "endpoint api_key_file", "provider's variable", "endpoint header", "endpoint authorization header",
          "password of an endpoint's address", "proxy password", "mcp endpoint key", "mcp endpoint header",
          "mcp env_from", "mcp env", "mcp option", "model api_key"]
KEYS = {place: f"zebra{number}-{place.split()[0][:6]}-Plant+ed/{number:04}9" for number, place in enumerate(PLACES)}
WHOM = ("open", "file", "login", "header", "proxied", "claude", "gemini", "ollama", "dashscope", "own", "mcp",
        "program", "client")


class Echo(http.server.BaseHTTPRequestHandler):
    """A server that refuses everybody and repeats what it was sent."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        said = f"you sent {dict(self.headers.items())}"
        mcp = "mcp" in self.path
        body = (said if mcp else json.dumps({"error": {"message": said}})).encode()
        self.send_response(401)
        self.send_header("Content-Type", "text/plain" if mcp else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.server.seen.append(said)  # type: ignore[attr-defined]

    do_GET = do_DELETE = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


@contextlib.contextmanager
def echo() -> Iterator[tuple[str, list[str]]]:
    server = Server(("127.0.0.1", 0), Echo)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", server.seen  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()


def planted(at: str, folder: Path) -> str:
    """A settings file with a key wherever one may be."""
    (folder / "key").write_text(KEYS["endpoint api_key_file"])
    (folder / "server.py").write_text("import os, sys\nprint('I have', dict(os.environ), sys.argv, flush=True)\n"
                                      "print('I have', dict(os.environ), sys.argv, file=sys.stderr, flush=True)\n")
    once = 'retry = {attempts = 1}\nbreaker = {enabled = false}\n'
    endpoints = {
        "open": f'api_key = "{KEYS["endpoint api_key"]}"', "file": f'api_key_file = "{folder}/key"',
        "header": f'headers = {{"X-Team" = "{KEYS["endpoint header"]}", '
                  f'Authorization = "Token {KEYS["endpoint authorization header"]}"}}',
        "proxied": f'proxy = "http://me:{quote(KEYS["proxy password"], safe="")}@{at}"',
        "anthropic": f'api_key = "{KEYS["endpoint api_key"]}"', "gemini": 'api_key_env = "THE_KEY"',
        "ollama": f'api_key = "{KEYS["endpoint api_key"]}"', "dashscope": 'api_key_env = "THE_KEY"',
        "mcp": f'api_key = "{KEYS["mcp endpoint key"]}"\nheaders = {{"X-Org" = "{KEYS["mcp endpoint header"]}"}}'}
    text = "".join(f'[endpoints.{name}]\nbase_url = "http://{at}/{"mcp" if name == "mcp" else "v1"}"\n{more}\n{once}'
                   for name, more in endpoints.items())
    login = f"me:{quote(KEYS['password of an endpoint' + chr(39) + 's address'], safe='')}"
    text += f'[endpoints.login]\nbase_url = "http://{login}@{at}/v1"\n{once}'
    return text + (f'[mcp]\nconnect_timeout = 5\n[mcp.servers.leaky]\ncommand = "{sys.executable}"\n'
                   f'env_from = ["FROM"]\nargs = ["{folder}/server.py", "--token={KEYS["mcp option"]}"]\n'
                   f'env = {{LOCAL_TOKEN = "{KEYS["mcp env"]}"}}\n')


def environment(server: RedisServer, folder: Path) -> dict[str, str]:
    return {"CALLSHEET_REDIS_URL": f"redis://:{quote(KEYS['redis password'], safe='')}@127.0.0.1:{server.port}/0",
            "CALLSHEET_REDIS_SENTINEL_PASSWORD": KEYS["sentinel password"], "CALLSHEET_MODULES": "tests.agents.planted",
            "CALLSHEET_FLOWER_AUTH": f"me:{KEYS['flower password']}", "THE_KEY": KEYS["endpoint api_key_env"],
            "OPENAI_API_KEY": KEYS["provider's variable"], "FROM": KEYS["mcp env_from"],
            NAMES: json.dumps([*KEYS.values()]), "CALLSHEET_RETRY_BACKOFF": "0.05",
            "PYTHONPATH": str(ROOT), "CALLSHEET_METRICS_PORT": str(free_port())}


def everything_in(server: RedisServer) -> str:
    redis = server.client()
    read = {"string": redis.get, "hash": redis.hgetall, "list": lambda key: redis.lrange(key, 0, -1),
            "set": redis.smembers, "zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
            "stream": redis.xrange}
    return "\n".join(f"{key} {read[redis.type(key)](key)}" for key in redis.scan_iter("*"))


def failed(found: dict[str, str], what: str, job: Any) -> None:
    with pytest.raises(Exception) as raised:
        job.get(timeout=60)
    found[f"the error of {what}"] = "".join(traceback.format_exception(raised.value)) + repr(vars(raised.value))


def submitted(found: dict[str, str]) -> str:
    """Have agents and tasks tell all that they know; the id of a job."""
    hello = Msg("user", "hello", "user")
    jobs = {whom: Asks(whom, whom).submit(hello) for whom in WHOM}
    jobs |= {"telling": Tells("t").submit(hello), "cpu": Computes("c").submit(hello),
             "reply": Repeats("r").submit(hello), "retries": Tells("again").submit(hello, retries=1)}
    for what, job in jobs.items():
        failed(found, what, job)
    app = current_app()
    for name in ("plain_task", "tries_again"):
        failed(found, name, app.send_task(f"tests.agents.planted.{name}", queue="io"))
    return str(jobs["telling"].id)


def pages_of(pages: Flower, workers: list[str]) -> Iterator[tuple[str, str]]:
    sign = base64.b64encode(f"me:{KEYS['flower password']}".encode()).decode()
    names = ["/api/tasks", "/tasks", "/api/workers?refresh=1", "/workers", "/broker", "/metrics"]
    names += [f"/worker/{name}" for name in workers]
    for name in names:
        status, text = pages.ask(name, headers={"Authorization": f"Basic {sign}"})
        assert status == 200, (name, text[:300])
        yield f"Flower's {name}", text
        if name == "/api/tasks":
            names += [f"/task/{task}" for task in json.loads(text)]
    yield "Flower's log", pages.log_path.read_text()


def looked_at(job: str) -> Iterator[tuple[str, str]]:
    for words in (["show", job], ["show", job, "--html", "job.html"], ["doctor"], ["top", "--once"]):
        yield words[0] if len(words) < 3 else "html", CliRunner().invoke(main, words, catch_exceptions=False).output
    yield "page", Path("job.html").read_text()
    app = current_app()
    yield "report", app.bugreport()
    asked = app.control.inspect(timeout=3)
    yield "inspect", f"{asked.stats()} {asked.conf(with_defaults=True)}"


def a_run(folder: Path, env: dict[str, str], server: RedisServer, found: dict[str, str]) -> None:
    """Everything once, and what it left by where."""
    cpu_env = {**env, "CALLSHEET_METRICS_PORT": ""}
    url = env["CALLSHEET_REDIS_URL"]
    with use_settings(Settings.load()), flower(url, **env) as pages, \
            worker("callsheet.workers.io", url, "-E", env=env, cwd=folder) as io, \
            worker("callsheet.workers.cpu", url, "-E", "-c", "1", env=cpu_env, cwd=folder) as cpu:
        job = submitted(found)
        found.update(looked_at(job))
        found.update(pages_of(pages, [io.name, cpu.name]))
        with urllib.request.urlopen(f"http://127.0.0.1:{env['CALLSHEET_METRICS_PORT']}/metrics") as metrics:
            found["metrics"] = metrics.read().decode()
        found["Redis"] = everything_in(server)
        for what, value in {"argument": Msg("u", f"key {KEYS['endpoint header']}", "user"), "model": OpenAIChatModel(
                "m", KEYS["model api_key"])}.items():
            with pytest.raises(CannotTravel) as refused:
                Asks("x", "open").submit(value)
            found[f"refused {what}"] = str(refused.value)
        io.stop()
        cpu.stop()
        found["io's log"], found["cpu's log"] = io.log, cpu.log


def test_no_planted_key_is_told_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = RedisServer("--requirepass", KEYS["redis password"], password=KEYS["redis password"])
    found: dict[str, str] = {}
    monkeypatch.chdir(tmp_path)
    try:
        with echo() as (at, seen):
            (tmp_path / "callsheet.toml").write_text(planted(at, tmp_path))
            for name, value in (env := environment(server, tmp_path)).items():
                monkeypatch.setenv(name, value)
            a_run(tmp_path, env, server, found)
    finally:
        server.remove()
    told = "".join(seen)
    for place in ("endpoint api_key", "endpoint api_key_env", "endpoint api_key_file", "endpoint header",
                  "model api_key", "endpoint authorization header", "mcp endpoint key", "mcp endpoint header"):
        assert KEYS[place] in told, f"{place} was not sent, so that nothing could repeat it"
    for where in ("io's log", "cpu's log", "Redis", "show", "page", "Flower's /api/tasks"):
        assert "***" in found[where], found[where][-3000:]
    leaks = [f"{place} in {where}: ...{text[max(0, at - 300):at + 60]}" for where, text in found.items()
             for place, key in KEYS.items() for form in forms(key) if (at := text.find(form)) >= 0]
    assert not leaks, f"{len(leaks)}:\n" + "\n".join(leaks[:20])


def forms(key: str) -> list[str]:
    """A key as texts hold it, also cut."""
    return [key, quote(key), quote(key, safe=""), base64.b64encode(key.encode()).decode().rstrip("="),
            base64.b64encode(f"me:{key}".encode()).decode().rstrip("="), key[:len(key) * 2 // 3]]
