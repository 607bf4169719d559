"""Who may use a Flower: nobody by mistake. Its errors, and what it answers to whom."""

import base64
import http.cookiejar
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli_process import environment
from tests.flower_process import Flower, flower
from tests.services import RedisServer, wait_for, worker

PASSWORD = "open-sesame-7"


#: Runs commands in forks of one process: importing Flower anew for each would take seconds.
RUNNER = """
import json, os, sys
import flower.command
from callsheet.cli import flower, main
for args, env, cwd in json.load(sys.stdin):
    ends = os.pipe()
    if os.fork() == 0:
        os.dup2(ends[1], 1), os.dup2(ends[1], 2)
        os.environ.update(env), os.chdir(cwd)
        main.main(["flower", *args])
    os.close(ends[1])
    print(json.dumps([os.waitstatus_to_exitcode(os.wait()[1]), open(ends[0]).read()]))
"""
TO_STRANGERS = [
    (["--address", "0.0.0.0"], {}), (["--address", ""], {}), (["--address", "::"], {}),
    ([], {"FLOWER_ADDRESS": "0.0.0.0"}),
    (["--", "--address=0.0.0.0"], {}), (["--", "--unix-socket=/tmp/flower.sock"], {}),
    (["--address", "0.0.0.0"], {"FLOWER_UNAUTHENTICATED_API": "1"}),
]
WRONG = [(PASSWORD, "no colon"), (f":{PASSWORD}", "user is missing"), ("me:", "password is missing"),
         (f"me:{PASSWORD},you", "no colon"), (f"me:{PASSWORD}ä", "ASCII")]
VARIABLES = ["CALLSHEET_FLOWER_AUTH", "FLOWER_BASIC_AUTH"]


def refused(cwd: Path, cases: list[tuple[list[str], dict[str, str]]]) -> list[str]:
    """What `callsheet flower` says that does not start, with these options and variables."""
    given = json.dumps([(args, env, str(cwd)) for args, env in cases])
    done = subprocess.run([sys.executable, "-c", RUNNER], env=environment(), input=given, capture_output=True,
                          text=True, timeout=120, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for code, text in answers:
        assert code == 1 and text.startswith("Error: ") and "Traceback" not in text, text
    return [text for _, text in answers]


def test_strangers_are_not_let_in(tmp_path: Path) -> None:
    for said in refused(tmp_path, TO_STRANGERS):
        assert "has no password" in said and "CALLSHEET_FLOWER_AUTH=user:password" in said and "127.0.0.1" in said
    (tmp_path / "flowerconfig.py").write_text("unix_socket = '/tmp/flower.sock'\n")
    assert "has no password" in refused(tmp_path, [([], {})])[0]


@pytest.mark.parametrize("variable", VARIABLES)
def test_credentials_that_cannot_work_are_named_without_being_shown(tmp_path: Path, variable: str) -> None:
    for said, (_, why) in zip(refused(tmp_path, [([], {variable: given}) for given, _ in WRONG]), WRONG, strict=True):
        assert why in said and "user:password" in said and PASSWORD not in said


def test_a_port_in_use_and_wrong_options_are_named(tmp_path: Path, server: RedisServer) -> None:
    redis = {"CALLSHEET_REDIS_URL": server.url}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        here, there, elsewhere, colour, nowhere, number = refused(tmp_path, [
            (["--port", str(port)], redis), (["--", f"--port={port}"], redis),
            (["--address", "192.0.2.1"], {**redis, "CALLSHEET_FLOWER_AUTH": f"me:{PASSWORD}"}),
            (["--", "--colour=red"], redis), (["--address", "no such host.invalid"], redis),
            (["--", "--port=many"], redis)])
    for said in (here, there):
        assert f"port {port}" in said and "in use" in said and "--port" in said
    assert "cannot listen on 192.0.2.1" in elsewhere and "address of this machine" in elsewhere
    assert "no option 'colour'" in colour and "--address" in nowhere and "'many'" in number


# With a password


@pytest.fixture(scope="module")
def server(redis_server: RedisServer) -> Iterator[RedisServer]:
    own = RedisServer()
    yield own
    own.remove()


@pytest.fixture(scope="module")
def guarded(server: RedisServer) -> Iterator[Flower]:
    with flower(server.url, f"--basic-auth=me:{PASSWORD}", "--address=0.0.0.0", CALLSHEET_FLOWER_AUTH="not:me") as one:
        yield one


def as_user(text: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


PLACES = ["/", "/workers", "/workers?json=1", "/tasks", "/broker", "/api/workers", "/api/tasks", "/api/queues/length",
          "/api/task/types", "/metrics"]


@pytest.mark.parametrize("place", PLACES)
def test_wrong_credentials_see_nothing_and_right_ones_do(guarded: Flower, place: str) -> None:
    for headers in ({}, as_user("me:wrong"), as_user("not:me"), as_user(PASSWORD), {"Authorization": "Bearer x"}):
        assert guarded.ask(place, headers=headers)[0] == 401
    assert guarded.ask(place, headers=as_user(f"me:{PASSWORD}"))[0] == 200


def test_wrong_credentials_do_nothing(guarded: Flower) -> None:
    for path in ("/api/worker/shutdown/x", "/api/worker/pool/grow/x", "/api/task/revoke/x", "/api/task/async-apply/x"):
        assert guarded.ask(path, "POST", as_user("me:wrong"))[0] == 401
    assert guarded.ask("/api/worker/pool/grow/x", "POST", as_user(f"me:{PASSWORD}"))[0] == 404  # no such worker


def test_the_password_is_shown_nowhere(guarded: Flower) -> None:
    assert PASSWORD not in " ".join(psutil.Process(guarded.process.pid).cmdline())
    log = guarded.log_path.read_text()
    assert PASSWORD not in log and "asks for user and password" in log and "unencrypted" in log


def test_the_health_check_asks_nobody(guarded: Flower) -> None:
    assert guarded.ask("/healthcheck") == (200, "OK")


def test_no_page_shows_the_password_of_redis() -> None:
    secret = "hunter2-of-redis"
    locked = RedisServer("--requirepass", secret, password=secret)
    url = f"redis://:{secret}@127.0.0.1:{locked.port}/0"
    try:
        with worker("callsheet.workers.cpu", url, "-c", "1", "-E") as process, flower(url) as one:
            wait_for(lambda: process.name in one.get("/api/workers", refresh="1"), 40, "the worker")
            for page in (f"/worker/{process.name}", "/workers", "/tasks", "/broker", "/api/workers", "/metrics"):
                assert secret not in str(one.get(page)), page
            assert secret not in one.log_path.read_text() + process.log
    finally:
        locked.remove()


# On loopback


class Browser:
    """A client that keeps cookies and sends what browsers send."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.base, self.host = f"http://127.0.0.1:{port}", f"{host}:{port}"
        self.cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Any]:
        token = {cookie.name: cookie.value for cookie in self.cookies}.get("_xsrf")
        given = {"Host": self.host, **({"X-XSRFToken": token} if token else {}),
                 **{name.replace("_", "-"): value for name, value in headers.items()}}
        request = urllib.request.Request(self.base + path, b"" if method == "POST" else None, given, method=method)
        try:
            with self._opener.open(request, timeout=30) as answer:
                return answer.status, answer.headers
        except urllib.error.HTTPError as exc:
            return exc.code, exc.headers


@pytest.fixture(scope="module")
def local(server: RedisServer) -> Iterator[Flower]:
    with flower(server.url, FLOWER_UNAUTHENTICATED_API="") as one:
        yield one


def test_on_loopback_this_machines_browser_sees_and_does_everything(local: Flower) -> None:
    browser = Browser(local.port)
    assert [browser.ask(place)[0] for place in ("/", "/tasks", "/api/workers")] == [200] * 3
    assert browser.ask("/api/worker/pool/grow/x", "POST", Sec_Fetch_Site="same-origin")[0] == 404  # no such worker


@pytest.mark.parametrize("headers", [
    {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Origin": "https://elsewhere.example"},
    {"X_XSRFToken": "guessed"},
])
def test_on_loopback_another_site_does_nothing(local: Flower, headers: dict[str, str]) -> None:
    browser = Browser(local.port)
    browser.ask("/")
    assert browser.ask("/api/worker/pool/grow/x", "POST", **headers)[0] == 403
    assert "Access-Control-Allow-Origin" not in browser.ask("/api/workers", Origin="https://elsewhere.example")[1]


def test_on_loopback_a_name_that_was_made_to_point_here_sees_nothing(local: Flower) -> None:
    assert Browser(local.port, "elsewhere.example").ask("/")[0] == 403
    assert Browser(local.port, "localhost").ask("/")[0] == 200
    assert local.ask("/metrics", headers={"Host": f"elsewhere.example:{local.port}"})[0] == 403


def test_on_loopback_nothing_is_done_without_the_cookie(local: Flower) -> None:
    assert local.ask("/api/worker/shutdown/x", "POST")[0] == 403
    assert local.ask("/api/task/async-apply/x", "POST", as_user("local:local"))[0] == 403


def test_on_loopback_the_metrics_are_open(local: Flower) -> None:
    assert "flower_" in local.get("/metrics")


def test_it_listens_on_loopback_alone_unless_told(local: Flower) -> None:
    listening = {connection.laddr.ip for connection in psutil.Process(local.process.pid).net_connections("tcp")
                 if connection.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
