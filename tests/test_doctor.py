"""`callsheet doctor`: real servers that are set up wrongly, and what it says of them."""

import io
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kombu import Connection
from kombu.pidbox import Mailbox
from rich.console import Console

from callsheet import Msg, Settings
from callsheet.cli.checks import fleet as fleet_checks
from callsheet.cli.checks.endpoints import check_endpoints
from callsheet.cli.checks.findings import Finding
from callsheet.cli.checks.fleet import check_fleet, check_modules
from callsheet.cli.checks.server import check_server, compared
from callsheet.cli.main import main
from callsheet.cli.top_frame import frame
from callsheet.cli.top_look import Rates, look
from callsheet.errors import RedisUnavailable
from callsheet.models.stub import StubModelServer
from callsheet.settings import use_settings
from tests.agents.basic import Echo
from tests.cli_process import environment
from tests.fleet import Fleet
from tests.services import RedisServer, free_port, worker

SECRET = "sk-the-key-that-nobody-may-see"


@contextmanager
def redis_with(*options: str, password: str | None = None) -> Iterator[RedisServer]:
    server = RedisServer(*options, password=password)
    try:
        yield server
    finally:
        server.remove()


@contextmanager
def answering(status: int) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """A server that answers everything with a status: its address, and the paths and keys that came."""
    heard: list[tuple[str, str | None]] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append((self.path, self.headers.get("Authorization")))
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", heard
        server.shutdown()


def of(found: list[Finding], subject: str) -> Finding:
    return next(finding for finding in found if finding.subject == subject)


def server_findings(server: RedisServer, **more: Any) -> list[Finding]:
    found, answers = check_server(Settings.load(redis_url=server.url, **more))
    assert answers
    return found


# Redis --------------------------------------------------------------------------------------------------------------

def test_a_redis_that_keeps_what_it_is_given_is_right() -> None:
    with redis_with("--appendonly", "yes") as server:
        found = server_findings(server)
    assert {finding.level for finding in found} == {"ok"}
    assert {finding.subject for finding in found} == {"redis", "persistence", "eviction", "clock"}


def test_no_persistence_and_snapshots_alone_are_warned_of_with_the_command() -> None:
    with redis_with() as server:
        nothing = of(server_findings(server), "persistence")
        server.client().config_set("save", "3600 1")
        snapshots = of(server_findings(server), "persistence")
        assert (nothing.level, snapshots.level) == ("warn", "warn")
        assert "nothing to disk" in nothing.text and "snapshots only" in snapshots.text
        command = re.search(r"redis-cli CONFIG SET (\w+) (\w+)", nothing.remedy)
        assert command
        server.client().config_set(command[1], command[2])
        assert of(server_findings(server), "persistence").level == "ok"  # the remedy works


def test_a_redis_that_evicts_fails_and_one_that_would_is_warned_of() -> None:
    with redis_with("--maxmemory-policy", "allkeys-lru") as server:
        assert of(server_findings(server), "eviction").level == "warn"
        server.client().config_set("maxmemory", "100mb")
        found = of(server_findings(server), "eviction")
        assert found.level == "fail" and "allkeys-lru" in found.text and "noeviction" in found.remedy
        server.client().config_set("maxmemory-policy", "noeviction")
        assert of(server_findings(server), "eviction").level == "ok"


def test_a_redis_that_is_nearly_full_is_warned_of() -> None:
    with redis_with() as server:
        used = int(server.client().info("memory")["used_memory"])
        server.client().config_set("maxmemory", int(used * 1.03))
        assert of(server_findings(server), "memory").level == "warn"


def test_a_replica_fails() -> None:
    with redis_with() as primary, redis_with("--replicaof", "127.0.0.1", str(primary.port)) as replica:
        assert of(server_findings(replica), "role").level == "fail"


def test_a_redis_whose_configuration_nobody_may_read_is_judged_by_what_it_tells() -> None:
    with redis_with("--rename-command", "CONFIG", "") as server:
        assert of(server_findings(server), "persistence").level == "warn"
        assert of(server_findings(server), "eviction").level == "ok"


def test_a_redis_that_answers_with_an_error_is_told_in_words(own_redis: RedisServer) -> None:
    client = own_redis.client()
    found, answers = check_server(Settings.load(redis_url=own_redis.url.replace("/0", "/99")))
    assert not answers
    assert "no database of this number" in found[0].text
    assert "CALLSHEET_REDIS_URL" in found[0].remedy
    client.set("io", "somebody's")
    found, answers = check_server(Settings.load(redis_url=own_redis.url))
    assert answers
    assert [finding.text for finding in found if finding.level == "fail"] == [
        "The key 'io' is a string of somebody else's, where Callsheet has a list."]
    with use_settings(Settings.load(redis_url=own_redis.url)), pytest.raises(RedisUnavailable, match=r"\(WRONGTYPE\)"):
        Echo("a").submit(Msg("user", "hi", "user"))
    with redis_with("--cluster-enabled", "yes") as server:
        found, _ = check_server(Settings.load(redis_url=server.url))
        assert "cluster" in " ".join(finding.text for finding in found if finding.level == "fail")


def test_a_user_who_may_not_ask_how_redis_is_set_up_is_served_all_the_same(own_redis: RedisServer) -> None:
    own_redis.client().execute_command("ACL", "SETUSER", "managed", "on", ">pw", "~*", "&*", "+@all", "-@dangerous")
    found, answers = check_server(Settings.load(redis_url=own_redis.url.replace("redis://", "redis://managed:pw@")))
    assert answers
    assert {finding.level for finding in found} == {"ok"}


def test_a_redis_that_is_not_there_or_wants_a_password_fails_without_showing_one() -> None:
    found, answers = check_server(Settings.load(redis_url=f"redis://me:{SECRET}@127.0.0.1:{free_port()}/0"))
    assert not answers and found[0].level == "fail"
    assert SECRET not in found[0].text and found[0].remedy.startswith("Start one")
    with redis_with("--requirepass", "another", password="another") as server:
        found, answers = check_server(Settings.load(redis_url=server.url.replace("://", f"://:{SECRET}@")))
        assert not answers and found[0].level == "fail" and "CALLSHEET_REDIS_URL" in found[0].remedy
        assert SECRET not in f"{found[0]}"


@pytest.mark.parametrize(("theirs", "level"), [
    (100.0, "ok"), (101.5, "ok"), (99.1, "ok"), (104.0, "warn"), (96.0, "warn"), (60.0, "fail"), (4000.0, "fail")])
def test_clocks_that_differ_by_more_than_the_answer_took_are_told(theirs: float, level: str) -> None:
    found = compared("workers' clocks", "io@mars's", theirs, before=100.0, after=101.0)
    assert found.level == level and (level == "ok" or ("io@mars" in found.text and "NTP" in found.remedy))


# Workers, queues, modules -------------------------------------------------------------------------------------------

def test_workers_that_agree_are_right_and_queues_are_told_with_their_readers(fleet: Fleet) -> None:
    found = check_fleet(Settings.load(redis_url=fleet.server.url, modules="tests.agents"))
    workers = of(found, "workers")
    assert workers.level == "ok" and fleet.io.name in workers.text and "prefork" in workers.text
    assert of(found, "versions").level == "ok" and of(found, "workers' clocks").level == "ok"
    assert fleet.io.name in of(found, "queue io").text and fleet.cpu.name in of(found, "queue cpu").text
    assert not [finding for finding in found if finding.level in ("warn", "fail")]


def test_a_queue_with_messages_that_no_worker_reads_fails_with_the_command_to_start_one(fleet: Fleet) -> None:
    settings = Settings.load(redis_url=fleet.server.url, queues="doctors")  # which no other test uses
    with use_settings(settings):
        job = Echo("left").submit(Msg("u", "x", "user"), queue="doctors")
    found = of(check_fleet(settings), "queue doctors")
    assert found.level == "fail" and "1 message waits, and no worker reads it" in found.text
    assert "celery -A callsheet.workers.io worker -Q doctors" in found.remedy
    job.cancel()
    fleet.redis.delete("doctors")
    assert of(check_fleet(settings), "queue doctors").level == "skip"


def test_workers_with_other_versions_and_modules_are_told(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    here = fleet_checks.versions()
    monkeypatch.setattr(fleet_checks, "versions", lambda: {**here, "celery": "5.6.0", "callsheet": "9.9"})
    found = check_fleet(Settings.load(redis_url=fleet.server.url, modules="elsewhere.agents,tests.agents.basic"))
    versions = [finding for finding in found if finding.subject == "versions"]
    assert {finding.level for finding in versions} == {"warn"} and len(versions) == 2
    assert any("celery is 5.6.0 here" in finding.text and fleet.io.name in finding.text for finding in versions)
    modules = [finding for finding in found if finding.subject == "modules"]
    assert len(modules) == 2 and all("elsewhere.agents" in finding.text for finding in modules)
    assert not any("tests.agents.basic" in finding.text for finding in modules)  # under an allowed one


def test_what_workers_build_agents_from_is_told_where_no_modules_are_named_here(
        fleet: Fleet, own_redis: RedisServer) -> None:
    found = check_fleet(Settings.load(redis_url=fleet.server.url))
    modules = [finding for finding in found if finding.subject == "modules"]
    assert [finding.level for finding in modules] == ["ok", "ok"]
    assert f"{fleet.io.name} builds agents from tests.agents" in " ".join(finding.text for finding in modules)
    with worker("callsheet.workers.io", own_redis.url, env={"CALLSHEET_MODULES": ""}) as bare:
        finding = of(check_fleet(Settings.load(redis_url=own_redis.url)), "modules")
        assert finding.level == "warn" and bare.name in finding.text and "CALLSHEET_MODULES=" in finding.remedy


def test_no_worker_is_a_warning(own_redis: RedisServer) -> None:
    found = check_fleet(Settings.load(redis_url=own_redis.url))
    assert of(found, "workers").level == "warn" and "callsheet up" in of(found, "workers").remedy


@contextmanager
def answers_as(url: str, name: str, serializer: str, answer: Any) -> Iterator[None]:
    """Who listens to commands as a worker does, and answers so."""
    over, ready = threading.Event(), threading.Event()

    def serve() -> None:
        with Connection(url) as connection:
            box = Mailbox("celery", type="fanout", accept=["json"], serializer=serializer)(connection)
            node = box.Node(name, None, {"callsheet_status": lambda *_, **__: answer})
            node.channel = connection.channel()
            node.listen()
            ready.set()
            while not over.is_set():
                with suppress(socket.timeout):
                    connection.drain_events(timeout=0.1)

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_who_answers_otherwise_than_a_worker_of_ours_is_named_and_ends_nothing(own_redis: RedisServer) -> None:
    settings = Settings.load(redis_url=own_redis.url)
    with (answers_as(own_redis.url, "pickles@here", "pickle", {"ok": 1}),
          answers_as(own_redis.url, "yaml@here", "yaml", ["a"]),
          answers_as(own_redis.url, "odd@here", "json", {"slots": 7, "queues": None, "agents": {"a": "b"}}),
          answers_as(own_redis.url, "odder@here", "json", ["versions", {}])):
        found = of(list(check_fleet(settings)), "workers")
        assert found.level == "warn"
        for name in ("pickles@here (it answers as application/x-python-serialize", "odd@here", "odder@here",
                     "yaml@here (it answers as application/x-yaml"):
            assert name in found.text
        one = look(settings)
        assert set(one.workers) == {"pickles@here", "yaml@here", "odd@here", "odder@here"}
        out = io.StringIO()
        Console(file=out, width=140).print(frame(one, Rates()))
        assert out.getvalue().count("stock worker, or another version") == 2


def test_modules_are_imported_as_a_worker_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "doctors_good.py").write_text("x = 1\n")
    (tmp_path / "doctors_bad.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.chdir(tmp_path)
    found = list(check_modules(Settings.load(modules="doctors_good,doctors_bad,doctors.missing")))
    assert [finding.level for finding in found] == ["ok", "fail", "fail"]
    assert "RuntimeError: no licence" in found[1].text and "PYTHONPATH" in found[2].remedy
    assert [finding.level for finding in check_modules(Settings.load())] == ["warn"]
    assert not list(check_modules(Settings.load(), told=True))


# Endpoints ----------------------------------------------------------------------------------------------------------

def endpoint(base_url: str, **more: Any) -> Finding:
    settings = Settings.load(endpoints={"mine": {"base_url": base_url, **more}})
    return check_endpoints(settings.model_copy(update={"endpoints": {"mine": settings.endpoints["mine"]}}))[0]


def test_an_endpoint_that_answers_is_right_and_a_dead_one_fails() -> None:
    with StubModelServer() as server:
        answers = endpoint(server.base_url, api_key=SECRET)
    assert answers.level == "ok" and "answers in" in answers.text
    dead = endpoint(f"http://127.0.0.1:{free_port()}/v1", api_key=SECRET)
    assert dead.level == "fail" and "cannot be reached" in dead.text and "base_url" in dead.remedy
    assert SECRET not in f"{answers}{dead}"


@pytest.mark.parametrize(("status", "key", "level", "words"), [
    (200, SECRET, "ok", "answers"), (401, SECRET, "fail", "refuses the key"), (403, SECRET, "fail", "refuses the key"),
    (401, None, "warn", "wants a key"), (404, None, "ok", "404"), (429, SECRET, "warn", "too often"),
    (503, SECRET, "fail", "503")])
def test_what_an_endpoint_answers_is_judged(status: int, key: str | None, level: str, words: str) -> None:
    with answering(status) as (url, heard):
        found = endpoint(f"{url}/v1", **({"api_key": key} if key else {}))
    assert (found.level, words in found.text) == (level, True)
    assert heard == [("/v1/models", f"Bearer {key}" if key else None)]
    assert SECRET not in f"{found}"


def test_a_key_file_that_is_not_there_and_a_key_that_is_no_header_fail() -> None:
    missing = endpoint("http://127.0.0.1:9/v1", api_key_file="/nowhere/key")
    assert missing.level == "fail" and "/nowhere/key" in missing.text and missing.remedy
    with StubModelServer() as server:
        broken = endpoint(server.base_url, api_key=f"{SECRET}\n{SECRET}")
    assert broken.level == "fail" and SECRET not in f"{broken}"


def test_public_endpoints_without_a_key_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    found = check_endpoints(Settings.load())[0]
    assert found.level == "skip" and found.subject == "endpoint openai" and "OPENAI_API_KEY" in found.text


# The command --------------------------------------------------------------------------------------------------------

def run(*args: str, settings: Settings) -> tuple[int, str]:
    with use_settings(settings):
        result = CliRunner(env={"COLUMNS": "100"}).invoke(main, ["doctor", *args])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def test_the_command_ends_with_1_where_something_failed_and_with_strict_where_it_may(own_redis: RedisServer) -> None:
    settings = Settings.load(redis_url=own_redis.url, modules="tests.agents")
    code, output = run("--no-endpoints", settings=settings)
    assert code == 0 and "! persistence" in output and "→ redis-cli" in output and "0 wrong." in output
    assert max(map(len, output.splitlines())) <= 100
    assert run("--no-endpoints", "--strict", settings=settings)[0] == 1
    own_redis.client().config_set("maxmemory", "100mb")
    own_redis.client().config_set("maxmemory-policy", "allkeys-lru")
    code, output = run("--no-endpoints", "--json", settings=settings)
    lines = [json.loads(line) for line in output.splitlines()]
    assert code == 1 and {"fail"} == {line["level"] for line in lines if line["subject"] == "eviction"}


def test_settings_that_are_wrong_are_a_finding() -> None:
    # A process of its own: this one has read its settings.
    done = subprocess.run([sys.executable, "-m", "callsheet.cli.main", "doctor"], env=environment(CALLSHEET_LEASE="0"),
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "CALLSHEET_LEASE" in done.stdout and "✗ settings" in done.stdout


def test_a_redis_that_is_away_leaves_the_rest_to_be_looked_at() -> None:
    settings = Settings.load(redis_url=f"redis://127.0.0.1:{free_port()}/0", modules="tests.agents")
    code, output = run("--no-endpoints", settings=settings)
    assert code == 1 and "✗ redis" in output and "✓ module tests.agents" in output
