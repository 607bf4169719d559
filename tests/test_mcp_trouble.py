"""MCP servers that are down, slow, silent, lie, die, or answer too much."""

import asyncio
import contextlib
import os
import signal
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from callsheet import Settings, Toolkit
from callsheet.errors import CircuitOpen, McpError, McpTimeout, McpUnavailable, SettingsError, ToolFailed, UsageError
from callsheet.mcp import HttpStatefulClient, HttpStatelessClient, StatefulClientBase, StdIOStatefulClient
from callsheet.settings import use_settings
from tests.mcp_servers import BAD, HttpServer, bad_server
from tests.services import ROOT, free_port, wait_for
from tests.test_mcp import ask, connected
from tests.toolbox import called, text_of

MODES = ("stdio", "sse", "http", "json", "modern")


class Trouble:
    """A server that behaves badly, and a client of it."""

    def __init__(self, mode: str, server: HttpServer | None, notes: Path) -> None:
        self.mode = mode
        self.server = server
        self._notes = notes

    def client(self, **more: Any) -> StatefulClientBase:
        if self.server is None:
            env = {"NOTES": str(self._notes), "PYTHONPATH": str(ROOT)}
            return StdIOStatefulClient("bad", sys.executable, BAD, env=env)
        return HttpStatefulClient("bad", "sse" if self.mode == "sse" else "streamable_http", self.server.url, **more)

    @property
    def notes(self) -> list[str]:
        return self.server.notes if self.server else self._notes.read_text().splitlines()


@pytest.fixture(scope="module", params=MODES)
def trouble(request: Any, tmp_path_factory: Any) -> Iterator[Trouble]:
    if request.param == "stdio":
        yield Trouble("stdio", None, tmp_path_factory.mktemp("bad") / "notes")
        return
    with bad_server(request.param) as server:
        yield Trouble(request.param, server, Path())


@pytest.fixture(scope="module")
def http() -> Iterator[HttpServer]:
    with bad_server("http") as server:
        yield server


@contextlib.contextmanager
def settings(**mcp: Any) -> Iterator[None]:
    more = mcp.pop("more", {})
    with use_settings(Settings.load(mcp=mcp, **more)):
        yield


async def wait_note(trouble: Any, text: str) -> None:
    await asyncio.to_thread(wait_for, lambda: text in trouble.notes, 15, lambda: f"{text} in {trouble.notes}")


def test_lies_errors_and_large_answers_are_told_and_the_session_goes_on(trouble: Trouble) -> None:
    async def main() -> None:
        async with connected(trouble.client()) as client:
            before = await ask(client, "count")
            with pytest.raises(ToolFailed, match=r"does not fit the schema.*\n  n: 'many' is not of type 'integer'"):
                await ask(client, "lies")
            with pytest.raises(ToolFailed, match=r"there is no structured content"):
                await ask(client, "silent")
            with pytest.raises(ToolFailed, match=r"the schema itself is broken"):
                await ask(client, "broken", x=1)
            with pytest.raises(ToolFailed, match=r"n: 9 is greater than the maximum of 5"):
                await ask(client, "strict", n=9)
            assert "called strict" not in trouble.notes
            with pytest.raises(ToolFailed, match=r"^the disk\nis full$"):
                await ask(client, "fails")
            assert await ask(client, "picture") == "<image>"
            with pytest.raises(McpError, match=r"the answer is over .* bytes, and was not read"):
                await ask(client, "big", size=9_000_000)
            said = await ask(client, "big", size=150_000)
            assert said.startswith("x" * 100_000 + "[cut: the answer has 150,000 characters")
            # It is the same session, or, where there are none, the same process.
            assert before.split()[1] == (await ask(client, "count")).split()[1]

    asyncio.run(main())


@pytest.mark.parametrize("trouble", MODES, indirect=True)
def test_a_call_that_is_given_up_is_cancelled_at_the_server(trouble: Trouble) -> None:
    async def main() -> None:
        async with connected(trouble.client()) as client:
            with pytest.raises(McpTimeout, match=r"'bad'.* did not answer within 0\.3 s"):
                await ask(client, "sleep", 0.3, seconds=60)
            await wait_note(trouble, "cancelled")
            before = trouble.notes.count("cancelled")
            task = asyncio.create_task(ask(client, "sleep", seconds=60))
            await asyncio.to_thread(wait_for, lambda: trouble.notes.count("called sleep") == 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(wait_for, lambda: trouble.notes.count("cancelled") == before + 1)
            assert (await ask(client, "count")).split()[0].isdigit()

    asyncio.run(main())


@pytest.mark.parametrize("trouble", ["sse", "http", "json"], indirect=True)
def test_a_server_that_is_silent_for_sse_read_timeout_is_given_up_and_asked_again(trouble: Trouble) -> None:
    async def main() -> None:
        async with connected(trouble.client(sse_read_timeout=1.5)) as client:
            silent = r"'bad' \(.*\) was silent for too long: sse_read_timeout is 1\.5 s\. Give it longer"
            for _ in range(2):
                with pytest.raises(McpTimeout, match=silent):
                    await ask(client, "sleep", 30, seconds=60)
            assert (await ask(client, "count")).split()[0].isdigit()
        async with connected(trouble.client()) as client:  # which has five minutes
            assert await ask(client, "sleep", seconds=2) == "did sleep"

    asyncio.run(main())


@pytest.mark.parametrize("trouble", ["sse", "http", "json"], indirect=True)
def test_a_stateless_client_opens_a_session_for_each_call_and_a_stateful_one_does_not(trouble: Trouble) -> None:
    async def counted(client: Any) -> tuple[list[str], int]:
        """What `count`, which counts in its session, says twice; and how many streams of "sse" were opened for that."""
        opened = trouble.notes.count("opened")
        said = [(await ask(client, "count")).split()[0] for _ in range(2)]
        return said, trouble.notes.count("opened") - opened

    async def main() -> None:
        assert trouble.server is not None
        transport: Any = "sse" if trouble.mode == "sse" else "streamable_http"
        stateless = HttpStatelessClient("each", transport, trouble.server.url)
        await stateless.list_tools()
        async with connected(trouble.client()) as stateful:
            once, twice = await counted(stateful), await counted(stateless)
        if trouble.mode == "sse":  # it has no ids of sessions: one stream is one
            assert (once[1], twice[1]) == (0, 2)
        else:
            assert (once[0], twice[0]) == (["1", "2"], ["1", "1"])

    asyncio.run(main())


@pytest.mark.parametrize("trouble", ["stdio", "sse", "http", "json"], indirect=True)
def test_a_list_of_tools_is_kept_until_the_server_says_that_it_changed(trouble: Trouble) -> None:
    async def main() -> None:
        async with connected(trouble.client()) as client:
            await client.list_tools()
            listed = trouble.notes.count("listed")
            for _ in range(3):
                assert "grown" not in {tool.name for tool in await client.list_tools()}
                await ask(client, "count")
            assert trouble.notes.count("listed") == listed
            await ask(client, "grow")
            for _ in range(100):
                if "grown" in {tool.name for tool in await client.list_tools()}:
                    break
                await asyncio.sleep(0.05)
            assert await ask(client, "grown") == "did grown"
            assert trouble.notes.count("listed") == listed + 1

    asyncio.run(main())


@pytest.mark.parametrize("trouble", ["stdio", "sse", "http", "json"], indirect=True)
def test_a_server_that_dies_in_a_call_is_told_and_comes_back(trouble: Trouble) -> None:
    async def main() -> None:
        async with connected(trouble.client()) as client:
            with pytest.raises(McpUnavailable, match=r"lost in the middle of a call") as failed:
                await ask(client, "die")
            if trouble.server is not None:
                assert trouble.server.process is not None
                await asyncio.to_thread(trouble.server.process.wait, 20)  # until then its port takes connections
                with pytest.raises(McpUnavailable, match=r"'bad'.*cannot be reached.*Start it"):
                    await ask(client, "count")
                await asyncio.to_thread(trouble.server.start)
            else:
                assert "exit code 3; its last words: I had enough" in str(failed.value)
            assert (await ask(client, "count")).split()[0] == "1"

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["stdio", "http"])
def test_a_server_that_does_not_answer_a_ping_is_left(mode: str, http: HttpServer, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    trouble = Trouble(mode, None if mode == "stdio" else http, notes)

    async def main() -> None:
        async with connected(trouble.client()) as client:
            pid = (await ask(client, "count")).split()[1]
            await wait_note(trouble, "pinged")
            await ask(client, "deafen")
            with pytest.raises(McpUnavailable, match=r"does not answer any more"):
                await ask(client, "sleep", seconds=60)
            if mode == "stdio":
                assert (await ask(client, "count")).split()[1] != pid
            else:
                assert (await ask(client, "count")).split()[0] == "1"  # of another session

    with settings(ping=0.2, pong=3):
        asyncio.run(main())


def test_a_session_without_calls_is_closed_and_opened_when_it_is_needed(tmp_path: Path) -> None:
    trouble = Trouble("stdio", None, tmp_path / "notes")

    async def main() -> None:
        async with connected(trouble.client()) as client:
            first = (await ask(client, "count")).split()[1]
            await asyncio.to_thread(wait_for, lambda: not Path(f"/proc/{first}").exists(), 15, "the idle server to end")
            assert (await ask(client, "count")).split()[1] != first

    with settings(idle=0.3):
        asyncio.run(main())


def test_fifty_megabytes_do_not_fill_memory(http: HttpServer) -> None:
    async def main() -> int:
        client = HttpStatelessClient("bad", "streamable_http", http.url)
        await ask(client, "count")
        tracemalloc.start()
        try:
            with pytest.raises(McpError, match=r"over 8,388,608 bytes"):
                await ask(client, "big", size=50_000_000)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert asyncio.run(main()) < 30_000_000


def test_a_server_that_is_down_is_named_with_its_address_and_the_remedy() -> None:
    url = f"http://user:swordfish@127.0.0.1:{free_port()}/mcp?key=sesame"
    client = HttpStatefulClient("search", "streamable_http", url)
    where = r"'search' \(streamable_http, http://127.0.0.1:\d+/mcp\)"
    with pytest.raises(McpUnavailable, match=f"{where}.*Start it") as down:
        asyncio.run(client.connect())
    assert "swordfish" not in str(down.value) and "sesame" not in str(down.value)
    assert not client.is_connected
    with pytest.raises(McpUnavailable, match=r"no-such-program.*cannot be started: .*PATH is "):
        asyncio.run(StdIOStatefulClient("none", "no-such-program").connect())
    with pytest.raises(McpUnavailable, match=r"'quits'.*exit code 1"):
        asyncio.run(StdIOStatefulClient("quits", sys.executable, ["-c", "raise SystemExit(1)"]).connect())


def test_a_server_that_never_greets_is_given_up() -> None:
    sleeps = StdIOStatefulClient("mute", sys.executable, ["-c", "import sys; sys.stdin.read()"])
    with settings(connect_timeout=0.5), pytest.raises(McpTimeout, match=r"'mute'.*did not greet within 0.5 s"):
        asyncio.run(sleeps.connect())


def test_what_is_no_mcp_server_is_told(http: HttpServer) -> None:
    with pytest.raises(McpError, match=r"answers with status 404"):
        asyncio.run(HttpStatefulClient("odd", "streamable_http", http.url + "/elsewhere").connect())
    with pytest.raises(McpError, match=r"'odd'"):
        asyncio.run(HttpStatefulClient("odd", "sse", http.url).connect())
    talks = StdIOStatefulClient("talks", sys.executable, ["-c", "print('hello')"])
    with pytest.raises(McpUnavailable, match=r"'talks'"):
        asyncio.run(talks.connect())


def test_requests_go_over_the_endpoint_that_is_named_with_its_key_breaker_and_accounting(http: HttpServer) -> None:
    from callsheet.resources.accounts import snapshot

    port = free_port()
    endpoints = {"tools": {"base_url": http.url, "api_key": "k-123456", "headers": {"X-Team": "t"}},
                 "gone": {"base_url": f"http://127.0.0.1:{port}/mcp", "breaker": {"minimum": 3, "cooldown": 60}}}

    async def main() -> None:
        async with connected(HttpStatefulClient("a", "streamable_http", endpoint="tools")) as client:
            assert (await ask(client, "count")).startswith("1 ")
            assert await ask(client, "header", name="authorization") == "Bearer k-123456"
            assert await ask(client, "header", name="x-team") == "t"
        own = HttpStatefulClient("b", "streamable_http", http.url, {"X-Team": "mine"})  # the same endpoint by its url
        async with connected(own) as client:
            assert await ask(client, "header", name="authorization") == "Bearer k-123456"
            assert await ask(client, "header", name="x-team") == "mine"
        async with connected(HttpStatefulClient("b", "streamable_http", http.url + "?x=1")) as client:
            assert await ask(client, "header", name="authorization") == "(none)"
        counted = [row for row in snapshot()["usage"] if row["endpoint"] == "tools"]
        assert counted and counted[0]["calls"] >= 8 and counted[0]["retries"] == 0
        gone = HttpStatelessClient("c", "streamable_http", endpoint="gone")
        for _ in range(3):
            with pytest.raises(McpUnavailable):
                await gone.list_tools()
        async with asyncio.timeout(10):
            while "gone" not in snapshot()["left_alone"]:  # failures are reported off the calls' path
                await asyncio.sleep(0.01)
        with pytest.raises(CircuitOpen):
            await gone.list_tools()
        with pytest.raises(SettingsError, match=r"no endpoint named 'none'"):
            await HttpStatelessClient("d", "streamable_http", endpoint="none").list_tools()
        with pytest.raises(UsageError, match=r"the endpoint 'tools' is at"):
            await HttpStatelessClient("e", "streamable_http", "http://other/mcp", endpoint="tools").list_tools()

    with settings(more={"endpoints": endpoints}):
        asyncio.run(main())


def test_a_call_is_sent_once_unless_the_settings_say_otherwise() -> None:
    def endpoints(url: str, **more: Any) -> dict[str, Any]:
        return {"endpoints": {"tools": {"base_url": url, **more}}}

    async def main() -> None:
        async with connected(HttpStatefulClient("busy", "streamable_http", endpoint="tools")) as client:
            assert await ask(client, "count") == f"1 {pid}"

    with bad_server("busy") as server:
        pid = server.notes[0].split()[1]
        with settings(more=endpoints(server.url)), pytest.raises(McpUnavailable, match=r"status 503: busy"):
            asyncio.run(main())
        assert (server.notes.count("refused"), server.notes.count("called count")) == (1, 0)
        server.restart()
        pid = server.notes[-1].split()[1]
        with settings(more=endpoints(server.url, retry={"attempts": 3, "backoff": 0.01})):
            asyncio.run(main())
        assert (server.notes.count("refused"), server.notes.count("called count")) == (2, 1)


def test_what_a_user_gives_takes_the_place_of_ours(http: HttpServer) -> None:
    given: list[Any] = []

    def factory(headers: Any = None, timeout: Any = None, auth: Any = None) -> httpx2.AsyncClient:
        given.append((headers, timeout.connect, auth))
        return httpx2.AsyncClient(headers=headers, timeout=timeout, auth=auth)

    async def main() -> None:
        auth = httpx2.BasicAuth("u", "p")
        mine = HttpStatefulClient("mine", "streamable_http", http.url, {"X-A": "1"}, 7, auth=auth,
                                  httpx_client_factory=factory)
        async with connected(mine) as client, connected(
                HttpStatefulClient("own", "streamable_http", http.url, http_client=httpx2.AsyncClient())) as other:
            assert (await ask(client, "count")).startswith("1 ") and (await ask(other, "count")).startswith("1 ")
            assert given == [({"X-A": "1"}, 7, auth)]
            http.kill()
            with pytest.raises(McpUnavailable, match=r"lost in the middle of a call: it cannot be reached"):
                await ask(other, "count")
            await asyncio.to_thread(http.start)
            assert (await ask(other, "count")).startswith("1 ")

    asyncio.run(main())


def test_a_list_that_does_not_come_holds_a_call_up_no_longer_than_it_has(tmp_path: Path) -> None:
    trouble = Trouble("stdio", None, tmp_path / "notes")

    async def main() -> None:
        async with connected(trouble.client()) as client:
            count, grow = [await client.get_callable_function(name, execution_timeout=1) for name in ("count", "grow")]
            pid = int((await count()).content[0]["text"].split()[1])
            await grow()  # from now on the list is asked for again
            os.kill(pid, signal.SIGSTOP)
            try:
                listing = asyncio.create_task(client.list_tools())
                await asyncio.sleep(0)  # it asks first
                with pytest.raises(McpTimeout, match=r"within 1 s"):
                    await count()
            finally:
                os.kill(pid, signal.SIGCONT)
            assert "grown" in {tool.name for tool in await listing}

    asyncio.run(main())


def test_an_evil_pattern_in_a_schema_is_not_followed() -> None:
    from callsheet.mcp.results import fitting

    class Tool:
        input_schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": "^(a+)+$"}}}  # noqa: RUF012

    began = time.process_time()
    fitting(Tool, {"x": "a" * 40 + "!"})
    assert time.process_time() - began < 5


def test_a_toolkit_hands_the_servers_troubles_to_the_model(http: HttpServer) -> None:
    async def main() -> None:
        async with connected(HttpStatefulClient("bad", "streamable_http", http.url)) as client:
            kit = Toolkit()
            await kit.register_mcp_client(client, execution_timeout=1)
            assert text_of(await called(kit, "fails")) == "Error: the disk\nis full"
            assert "did not answer within 1 s" in text_of(await called(kit, "sleep", seconds=30))
            assert "'many' is not of type" in text_of(await called(kit, "lies"))
            assert "over 8,388,608 bytes" in text_of(await called(kit, "big", size=9_000_000))

    asyncio.run(main())

