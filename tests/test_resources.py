"""Outbound clients against real servers: reuse, loops, forks, keys, exact errors."""

import asyncio
import gc
import http.server
import json
import logging
import multiprocessing
import os
import re
import threading
import weakref
from typing import Self

import httpx
import pytest
from aiohttp import web

from callsheet import Msg
from callsheet.errors import SettingsError, UsageError
from callsheet.models.stub import StubModelServer
from callsheet.resources import aclose_all, client, find_endpoint
from callsheet.settings import Endpoint, Settings, use_settings
from tests.agents.calls import Calls
from tests.agents.spenders import Spends
from tests.services import RedisServer, free_port, wait_for, worker


class Counting:
    """An aiohttp server that counts the TCP connections it accepts, and remembers what it was sent."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.peers: set[object] = set()
        self.seen: list[dict[str, str]] = []

    async def handle(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        self.seen.append({name.title(): value for name, value in request.headers.items()})
        await asyncio.sleep(self.delay)
        response = web.json_response({"path": request.path})
        response.set_cookie("whose", "yours")
        return response

    async def __aenter__(self) -> "Counting":
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self.handle)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0, backlog=1024).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.runner.cleanup()


def test_a_thousand_calls_share_a_hundred_connections() -> None:
    async def main() -> int:
        async with Counting(delay=0.005) as server:
            endpoint = Endpoint(base_url=server.url, max_connections=100)

            async def one(number: int) -> None:
                # Each call brings an Endpoint of its own: what it says makes it the same client, not which it is.
                mine = client(endpoint.model_copy(deep=True))
                response = await mine.get(f"calls/{number}")
                assert response.json() == {"path": f"/calls/{number}"}

            for batch in range(10):
                await asyncio.gather(*(one(batch * 100 + i) for i in range(100)))
            await asyncio.gather(*(one(i) for i in range(300)))  # beyond the limit, calls wait
            return len(server.peers)

    assert 1 <= asyncio.run(main()) <= 100


def test_each_loop_has_its_own_client_and_leaves_nothing_open() -> None:
    async def main() -> httpx.AsyncClient:
        async with Counting() as server:
            mine = client(Endpoint(base_url=server.url))
            assert mine is client(Endpoint(base_url=server.url + "/"))
            assert (await mine.get("x")).status_code == 200
            return mine

    first, second = asyncio.run(main()), asyncio.run(main())
    assert first is not second
    assert first.is_closed and second.is_closed  # closed with their loops


def test_an_answer_that_was_read_is_freed_at_once() -> None:
    async def main() -> None:
        async with Counting() as server:
            answer = await client(Endpoint(base_url=server.url)).get("x")
            answer.raise_for_status()
            assert answer.elapsed and not answer.history and answer.next_request is None
            seen = weakref.ref(answer)
            gc.disable()
            try:
                del answer
                assert seen() is None
            finally:
                gc.enable()

    asyncio.run(main())


def test_aclose_all_closes_and_the_next_call_opens_anew() -> None:
    async def main() -> None:
        async with Counting() as server:
            endpoint = Endpoint(base_url=server.url)
            first = client(endpoint)
            await first.get("x")
            await aclose_all()
            await aclose_all()
            assert first.is_closed
            assert (await client(endpoint).get("x")).status_code == 200

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_opens_its_own_connections() -> None:
    def child(url: str, results: "multiprocessing.SimpleQueue[int]") -> None:
        async def call() -> int:
            return (await client(Endpoint(base_url=url)).get("child")).status_code

        results.put(asyncio.run(call()))

    async def main() -> None:
        async with Counting() as server:
            mine = client(Endpoint(base_url=server.url))
            await mine.get("before")
            context = multiprocessing.get_context("fork")
            results = context.SimpleQueue()
            process = context.Process(target=child, args=(server.url, results))
            process.start()
            await asyncio.to_thread(process.join, 20)
            assert process.exitcode == 0
            assert results.get() == 200
            assert len(server.peers) == 2
            assert (await mine.get("after")).status_code == 200
            assert len(server.peers) == 2  # the parent's connection is untouched

    asyncio.run(main())


def test_an_unknown_endpoint_says_what_is_known_and_how_to_declare_it() -> None:
    settings = Settings.load(endpoints={"local": {"base_url": "http://127.0.0.1:1/v1"}})
    with pytest.raises(SettingsError) as caught:
        find_endpoint("locl", settings)
    for part in ("'locl'", "local, ollama, openai", "Did you mean 'local'?", "CALLSHEET_ENDPOINTS__LOCL__BASE_URL"):
        assert part in str(caught.value)
    with pytest.raises(SettingsError, match=r'\[endpoints."My LLM"\]'):
        find_endpoint("My LLM", settings)


def test_without_a_loop_the_error_says_so() -> None:
    with pytest.raises(UsageError, match="no event loop"):
        client(Endpoint(base_url="http://127.0.0.1:1"))


def test_keys_are_sent_to_their_own_host_only_and_shown_nowhere(
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-first")

    async def main() -> None:
        async with Counting() as server, Counting() as other:
            address = server.url.replace("://", "://user:hunter2@")
            headers = {"X-Team": "sk-a", "user-agent": "b"}
            keyed = client(Endpoint(base_url=address, api_key_env="SOME_KEY", headers=headers))
            await keyed.get("one")
            monkeypatch.setenv("SOME_KEY", "sk-second")  # a key that was rotated
            await keyed.get("two")
            await keyed.get(other.url + "/three")
            await keyed.get("four", headers={"Authorization": "Bearer own"})
            monkeypatch.delenv("SOME_KEY")
            await keyed.get("five")
            sent = [head.get("Authorization") for head in server.seen]
            assert sent == ["Bearer sk-first", "Bearer sk-second", "Bearer own", "Basic dXNlcjpodW50ZXIy"]
            assert server.seen[0]["X-Team"] == "sk-a"
            assert server.seen[0]["User-Agent"] == "b"
            assert "Authorization" not in other.seen[0] and "X-Team" not in other.seen[0]
            assert not any("Cookie" in head for head in server.seen)
            assert "sk-" not in repr(vars(keyed)) and "hunter2" not in repr(vars(keyed))

    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())
    assert "HTTP Request" in caplog.text
    assert "sk-" not in caplog.text and "hunter2" not in caplog.text


async def _raw(reply: bytes | None) -> tuple[asyncio.Server, str]:
    """A server that answers every connection with these bytes and hangs up; None: that never answers."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if reply is None:
            await reader.read()
        else:
            writer.write(reply)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(("reply", "expected"), [
    (b"", httpx.RemoteProtocolError),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", httpx.RemoteProtocolError),
    (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", httpx.RemoteProtocolError),
    (None, httpx.ReadTimeout),
])
def test_what_broke_is_told_exactly(reply: bytes | None, expected: type[Exception]) -> None:
    async def main() -> None:
        server, url = await _raw(reply)
        async with server:
            with pytest.raises(expected) as caught:
                await client(Endpoint(base_url=url, timeout=0.2)).get("x")
            assert type(caught.value) is expected

    asyncio.run(main())


def test_a_refused_connection_is_a_connect_error() -> None:
    async def main() -> None:
        with pytest.raises(httpx.ConnectError):
            await client(Endpoint(base_url=f"http://127.0.0.1:{free_port()}")).get("x")

    asyncio.run(main())


def test_the_environment_names_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Counting() as proxy:
            monkeypatch.setenv("http_proxy", proxy.url)
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            response = await client(Endpoint(base_url="http://models.invalid/v1")).get("x")
            assert response.json() == {"path": "/v1/x"}
            await client(Endpoint(base_url=proxy.url)).get("direct")
            assert [head["Host"] for head in proxy.seen] == ["models.invalid", proxy.url[7:]]

    asyncio.run(main())


def test_a_thousand_agents_with_models_of_their_own_share_a_workers_connections(own_redis: RedisServer) -> None:
    """1,000 calls by 1,000 agents, each with a model object of its own, at 100 at once."""
    with StubModelServer(latency=0.02) as server:
        env = {"CALLSHEET_MODULES": "tests.agents", "CALLSHEET_ENDPOINTS__OPENAI__BASE_URL": server.base_url}
        with (worker("callsheet.workers.io", own_redis.url, "--autoscale=100,100", env=env),
              use_settings(Settings.load(redis_url=own_redis.url))):
            jobs = [Spends(f"agent {number}").submit(Msg("u", "hello", "user")) for number in range(1000)]
            for job in jobs:
                job.get(timeout=60)
        assert server.requests == 1000
        assert 1 <= server.connections <= 100


class Listening(http.server.ThreadingHTTPServer):
    """Keeps connections, and notes when each began and ended."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.begun: list[object] = []
        self.ended: list[object] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.server_close()


class _Answering(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Listening

    def setup(self) -> None:
        super().setup()
        self.server.begun.append(self.client_address)

    def finish(self) -> None:
        super().finish()
        self.server.ended.append(self.client_address)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: object) -> None:
        pass


def test_a_worker_that_ends_closes_its_clients(own_redis: RedisServer) -> None:
    """In Python's development mode, which tells of connections and sessions that nobody closed."""
    with Listening() as server:
        endpoints = {"one": {"base_url": f"{server.url}/one"}, "two": {"base_url": f"{server.url}/two", "rpm": 600}}
        env = {"CALLSHEET_MODULES": "tests.agents", "CALLSHEET_ENDPOINTS": json.dumps(endpoints), "PYTHONDEVMODE": "1"}
        with (worker("callsheet.workers.io", own_redis.url, "-c", "4", env=env) as running,
              use_settings(Settings.load(redis_url=own_redis.url))):
            jobs = [Calls(f"agent {number}", name).submit(None) for number in range(4) for name in endpoints]
            assert {job.get(timeout=60).content for job in jobs} == {"200"}
            assert server.begun and not server.ended  # kept for the next calls
            assert running.stop() == 0
            wait_for(lambda: sorted(server.ended) == sorted(server.begun), what="the end of every connection")
            assert not re.findall(r".*Unclosed (?:client session|connector|connection).*", running.log)
