"""MCP clients on real workers: they travel, share sessions in a process, and leave nothing behind."""

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import callsheet
from callsheet import Msg, ReActAgent, Settings, Toolkit
from callsheet.errors import AgentFailed, JobCancelled, ModuleNotAllowed
from callsheet.formatters import OpenAIChatFormatter
from callsheet.mcp import HttpStatefulClient, HttpStatelessClient, StdIOStatefulClient
from callsheet.settings import use_settings
from callsheet.testing import ScriptedModel, tool_call
from tests.agents.mcp import Caller, PlainCaller
from tests.agents.tools import Caller as KitCaller
from tests.mcp_servers import BAD, HttpServer, bad_server
from tests.services import ROOT, RedisServer, Worker, wait_for, worker


@dataclass
class Shop:
    redis: RedisServer
    io: Worker
    cpu: Worker
    http: HttpServer
    env: dict[str, str]
    notes: Path

    def servers_of(self, one: Worker) -> list[psutil.Process]:
        """Programs that a worker started as servers."""
        found = []
        for child in psutil.Process(one.process.pid).children(recursive=True):
            try:
                if child.cmdline()[-1:] == ["stdio"]:
                    found.append(child)
            except psutil.Error:
                continue
        return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    notes = tmp_path_factory.mktemp("mcp") / "notes"
    with ExitStack() as stack:
        http = stack.enter_context(bad_server("http"))
        redis = RedisServer()
        stack.callback(redis.remove)
        server = {"command": sys.executable, "args": BAD, "env": {"NOTES": str(notes), "PYTHONPATH": str(ROOT)},
                  "env_from": ["TOOL_KEY"]}
        env = {"CALLSHEET_MODULES": "tests.agents", "TOOL_KEY": "sesame-1",
               "CALLSHEET_MCP": json.dumps({"servers": {"bad": server}}),
               "CALLSHEET_ENDPOINTS": json.dumps({"tools": {"base_url": http.url, "api_key": "k-123456"},
                                                    "narrow": {"base_url": http.url, "max_concurrency": 2}})}
        io = stack.enter_context(worker("callsheet.workers.io", redis.url, "--autoscale=20,5", env=env))
        cpu = stack.enter_context(worker("callsheet.workers.cpu", redis.url, "-c", "1", env=env))
        stack.enter_context(use_settings(Settings.load(
            redis_url=redis.url, modules="tests.agents", mcp=json.loads(env["CALLSHEET_MCP"]))))
        yield Shop(redis, io, cpu, http, env, notes)


def said(reply: Msg) -> list[str]:
    return (reply.get_text_content() or "").split()


def test_calls_of_many_jobs_share_one_session_over_an_endpoint(shop: Shop) -> None:
    agent = Caller("a", HttpStatefulClient("web", "streamable_http", endpoint="tools"))
    jobs = [agent.submit("count", {}) for _ in range(20)]
    counts = sorted(int(said(job.get(30))[0]) for job in jobs)
    assert counts == list(range(1, 21))
    assert int(said(agent.submit("count", {}).get(30))[0]) == 21
    assert jobs[0].usage.by("endpoint")["tools"].calls >= 1


def test_a_toolkit_travels_with_its_clients(shop: Shop) -> None:
    kit, client = Toolkit(), HttpStatefulClient("kit", "streamable_http", shop.http.url)

    async def register() -> None:
        await client.connect()
        await kit.register_mcp_client(client, enable_funcs=["count", "fails", "sleep"], execution_timeout=1)
        await client.close()

    asyncio.run(register())
    assert KitCaller("k", kit).submit("count", {}).get(30).content.startswith("1 ")
    assert KitCaller("k", kit).submit("count", {}).get(30).content.startswith("2 ")
    assert KitCaller("k", kit).submit("fails", {}).get(30).content == "Error: the disk\nis full"
    assert "within 1 s" in KitCaller("k", kit).submit("sleep", {"seconds": 30}).get(30).content


def test_an_agent_that_reasons_uses_a_servers_tools(shop: Shop) -> None:
    kit, client = Toolkit(), HttpStatefulClient("react", "streamable_http", shop.http.url)

    async def register() -> None:
        await client.connect()
        await kit.register_mcp_client(client, enable_funcs=["count", "fails"])
        await client.close()

    asyncio.run(register())
    model = ScriptedModel([[tool_call("count"), tool_call("fails")], "Once, and it failed."])
    agent = ReActAgent("bot", "You count.", model, OpenAIChatFormatter(), kit)
    job = agent.submit(Msg("user", "Count.", "user"))
    assert job.get(40).get_text_content() == "Once, and it failed."
    results = [block for event in job.stream() for block in event.msg.get_content_blocks("tool_result")]
    texts = {block["name"]: block["output"][0]["text"] for block in results}
    assert texts["count"].startswith("1 ") and texts["fails"] == "Error: the disk\nis full"


def test_a_program_of_the_settings_is_started_once_a_worker_with_its_secrets(shop: Shop) -> None:
    agent = Caller("a", StdIOStatefulClient("bad"))
    first = said(agent.submit("count", {}).get(30))
    second = said(agent.submit("count", {}).get(30))
    assert (int(second[0]), second[1]) == (int(first[0]) + 1, first[1])
    assert [server.pid for server in shop.servers_of(shop.io)] == [int(first[1])]
    assert said(agent.submit("env", {"name": "TOOL_KEY"}).get(30)) == ["sesame-1"]
    assert "sesame-1" not in shop.io.log


def test_a_program_that_died_is_started_again_for_the_next_job(shop: Shop) -> None:
    agent = Caller("a", StdIOStatefulClient("bad"))
    pid = said(agent.submit("count", {}).get(30))[1]
    with pytest.raises(AgentFailed, match="exit code 3; its last words: I had enough"):
        agent.submit("die", {}).get(30)
    assert said(agent.submit("count", {}).get(30))[1] != pid


@pytest.mark.parametrize("cls", [Caller, PlainCaller])
def test_clients_work_in_the_processes_of_cpu_workers(shop: Shop, cls: type[Caller]) -> None:
    for client in (HttpStatefulClient(f"cpu-{cls.__name__}", "streamable_http", shop.http.url),
                   StdIOStatefulClient("bad")):
        agent = cls("a", client)
        replies = [agent.submit("count", {}, queue="cpu").get(30) for _ in range(3)]
        counts = [int(said(reply)[0]) for reply in replies]
        assert counts == list(range(counts[0], counts[0] + 3))
        assert {reply.metadata["pid"] for reply in replies} != {shop.io.process.pid}
    assert len(shop.servers_of(shop.cpu)) == 1


def test_a_job_that_is_cancelled_is_cancelled_at_the_server(shop: Shop) -> None:
    began, before = shop.http.notes.count("called sleep"), shop.http.notes.count("cancelled")
    job = Caller("a", HttpStatelessClient("web", "streamable_http", shop.http.url)).submit("sleep", {"seconds": 60})
    wait_for(lambda: shop.http.notes.count("called sleep") > began, what="the call to arrive")
    job.cancel()
    with pytest.raises(JobCancelled):
        job.get(20)
    wait_for(lambda: shop.http.notes.count("cancelled") > before, what="the server to hear of it")


def test_calls_wait_for_their_turn_at_an_endpoint_with_limits(shop: Shop) -> None:
    agent = Caller("a", HttpStatefulClient("narrow", "streamable_http", endpoint="narrow"))
    agent.submit("count", {}).get(30)
    jobs = [agent.submit("sleep", {"seconds": 0.2}) for _ in range(12)]
    assert {job.get(60).get_text_content() for job in jobs} == {"did sleep"}
    assert jobs[0].usage.by("endpoint")["narrow"].calls == 1
    assert sum(job.usage.waited for job in jobs) > 1


def test_a_program_that_the_worker_does_not_know_is_refused(shop: Shop) -> None:
    agent = Caller("a", StdIOStatefulClient("evil", "touch", ["/tmp/evil"]))
    with pytest.raises(ModuleNotAllowed, match="worker starts none that its settings do not name"):
        agent.submit("count", {})
    known = {"servers": {"evil": {"command": "touch", "args": ["/tmp/evil"]}}}
    with use_settings(Settings.load(redis_url=shop.redis.url, modules="tests.agents", mcp=known)), \
            pytest.raises(AgentFailed, match="worker starts none"):
        agent.submit("count", {}).get(30)


def test_a_cpu_worker_refuses_affinity_in_words(shop: Shop) -> None:
    agent = Caller("a", StdIOStatefulClient("bad", affinity=True))
    with pytest.raises(AgentFailed, match=r"affinity \(bad\).*`async def`.*io worker"):
        agent.submit("count", {}, queue="cpu").get(30)


def test_clients_work_inline(shop: Shop) -> None:
    with callsheet.inline():
        client = StdIOStatefulClient("here", sys.executable, BAD, {"PYTHONPATH": str(ROOT)})
        agent = Caller("a", client)
        counts = [int(said(agent.submit("count", {}).get())[0]) for _ in range(2)]
    assert counts == [1, 2]


@pytest.mark.parametrize("app", ["io", "cpu"])
def test_a_worker_that_stops_leaves_no_server_behind(shop: Shop, app: str) -> None:
    redis = RedisServer()
    try:
        with worker(f"callsheet.workers.{app}", redis.url, env=shop.env) as one, \
                use_settings(Settings.load(redis_url=redis.url, modules="tests.agents",
                                           mcp=json.loads(shop.env["CALLSHEET_MCP"]))):
            agent = Caller("a", StdIOStatefulClient("bad"))
            agent.submit("count", {}, queue=app).get(30)
            (server,) = shop.servers_of(one)
            one.stop(signal.SIGTERM)
            wait_for(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, 15,
                     "the server to end")
            assert "Traceback" not in one.log
    finally:
        redis.remove()
