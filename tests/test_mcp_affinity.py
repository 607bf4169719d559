"""Agents whose MCP session must stay with one process: on two real io workers."""

import asyncio
import contextlib
import json
import logging
import re
import signal
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from callsheet import Settings
from callsheet.mcp import StdIOStatefulClient
from callsheet.settings import use_settings
from callsheet.tasks import homes as module
from callsheet.tasks.app import current_app
from callsheet.tasks.homes import Homes
from callsheet.tasks.loop import wait_on_process_loop
from tests.agents.mcp import Caller
from tests.mcp_servers import BAD
from tests.services import ROOT, RedisServer, Worker, wait_for, worker

SERVER = {"command": sys.executable, "args": BAD, "env": {"PYTHONPATH": str(ROOT)}}
MCP = {"servers": {"bad": SERVER, "other": SERVER}, "idle": 4}
ENV = {"CALLSHEET_MODULES": "tests.agents", "CALLSHEET_MCP": json.dumps(MCP), "CALLSHEET_TURN_LEASE": "4"}


class Pair:
    """Two io workers, of which those that end are replaced."""

    def __init__(self, redis: RedisServer, stack: contextlib.ExitStack) -> None:
        self.redis, self.stack = redis, stack
        self.both = [self.new(), self.new()]

    def new(self) -> Worker:
        return self.stack.enter_context(
            worker("callsheet.workers.io", self.redis.url, "--autoscale=10,5", env=ENV))

    def of(self, pid: int) -> tuple[Worker, Worker]:
        """The worker with that process id, and the other one."""
        home = next(one for one in self.both if one.process.pid == pid)
        return home, next(one for one in self.both if one is not home)


@pytest.fixture(scope="module")
def pair(redis_server: RedisServer) -> Iterator[Pair]:
    redis = RedisServer()
    with contextlib.ExitStack() as stack:
        stack.callback(redis.remove)
        stack.enter_context(use_settings(Settings.load(redis_url=redis.url, modules="tests.agents", mcp=MCP)))
        yield Pair(redis, stack)


def browser(name: str = "bad") -> Caller:
    return Caller("a", StdIOStatefulClient(name, affinity=True))


def count(agent: Caller) -> tuple[int, int, int]:
    """What the server counts to, its process, and that of the worker."""
    reply = agent.submit("count", {}).get(40)
    number, server = (reply.get_text_content() or "").split()
    return int(number), int(server), reply.metadata["pid"]


def gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def test_calls_go_where_the_session_is(pair: Pair) -> None:
    first = count(browser())
    home, other = pair.of(first[2])
    home.send_signal(signal.SIGSTOP)  # so that the other one takes some
    try:
        jobs = [browser().submit("count", {}) for _ in range(30)]
        other.wait_log("mcp_sent_on")
    finally:
        home.send_signal(signal.SIGCONT)
    said = [(job.get(40).get_text_content() or "").split() for job in jobs]
    assert sorted(int(number) for number, _ in said) == list(range(first[0] + 1, first[0] + 31))
    assert {int(server) for _, server in said} == {first[1]}
    assert "mcp_home clients=bad" in home.log and "mcp_home clients" not in other.log
    sent_on = re.findall(r"mcp_sent_on .*call=(\S+)", home.log + other.log)
    assert len(sent_on) == len(set(sent_on))


def test_two_clients_with_homes_of_their_own_come_together(pair: Pair) -> None:
    pids = {"bad": count(browser("bad"))[2]}
    home, _ = pair.of(pids["bad"])
    home.send_signal(signal.SIGSTOP)  # so that the other one takes the call
    try:
        pids["other"] = count(browser("other"))[2]
    finally:
        home.send_signal(signal.SIGCONT)
    assert pids["bad"] != pids["other"]
    agent = browser("bad")
    agent.second = StdIOStatefulClient("other", affinity=True)  # type: ignore[attr-defined]
    at = count(agent)[2]
    assert {at} == {count(agent)[2], count(browser("bad"))[2], count(browser("other"))[2]} <= set(pids.values())


def test_a_home_ends_with_its_session(pair: Pair) -> None:
    _, server, _ = count(browser())
    client = pair.redis.client()
    assert client.hget("callsheet:home:bad", "worker")
    wait_for(lambda: gone(server), 20, "the idle server to end")
    wait_for(lambda: not client.exists("callsheet:home:bad"), 15, "the home to be given up")
    assert count(browser())[0] == 1


def test_a_session_moves_when_its_worker_stops_or_dies(pair: Pair) -> None:
    _, server, pid = count(browser())
    home, other = pair.of(pid)
    home.stop(signal.SIGTERM)
    assert "mcp_home_given_up clients=bad" in home.log
    number, moved, at = count(browser())  # at once: nothing is waited out
    assert (number, at) == (1, other.process.pid) and moved != server

    pair.both = [other, pair.new()]
    _, moved, at = count(browser())
    home, other = pair.of(at)
    home.kill()
    waiting = [browser().submit("count", {}) for _ in range(6)]  # sent on to the queue of a worker that is dead
    said = [(job.get(40).get_text_content() or "").split() for job in waiting]
    assert sorted(int(number) for number, _ in said) == list(range(1, 7))
    assert len({server for _, server in said}) == 1
    other.wait_log(f"mcp_home_moved clients=bad from={home.name}.dq2 to={other.name}.dq2")
    wait_for(lambda: gone(moved), 15, "the dead worker's server to end")


class SlowRelease(Homes):
    """Gives homes up after another has been claimed, if that is possible."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, None, "w@test", "io")
        self._listens = True
        self.releases, self.claimed, self.released = threading.Event(), threading.Event(), threading.Event()

    def run(self, what: str, names: tuple[str, ...], *words: str) -> Any:
        if what == "release":
            self.releases.set()
            self.claimed.wait(0.5)
        found = super().run(what, names, *words)
        if what == "claim":
            self.claimed.set()
        if what == "release":
            self.released.set()
        return found


def test_a_home_that_is_claimed_again_as_it_is_given_up_stays(redis_server: RedisServer) -> None:
    settings = Settings.load(redis_url=redis_server.url, modules="tests.agents", turn_lease=1)
    with use_settings(settings):
        homes = SlowRelease(settings)
        other = Homes(settings, None, "other@test", "io")

        async def both() -> Any:
            request = SimpleNamespace(args=({},))
            async with homes.at(None, request, ("page",), "an agent"):
                homes.claimed.clear()
            await asyncio.to_thread(homes.releases.wait, 10)
            async with homes.at(None, request, ("page",), "an agent"):
                assert await asyncio.to_thread(homes.released.wait, 10)
                return await asyncio.to_thread(other.run, "claim", ("page",), "0")

        assert wait_on_process_loop(both(), 20) == [0, homes.direct.encode()]


def test_a_home_that_could_not_ask_to_be_heard_asks_again(
        own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "_LISTENS_WITHIN", 0.1)
    settings = Settings.load(redis_url=own_redis.url, modules="tests.agents")
    with use_settings(settings):
        homes = Homes(settings, current_app(settings), "w@test", "io")
        own_redis.stop()
        with pytest.raises((OperationalError, OSError, RedisError)):
            wait_on_process_loop(homes._listen(), 20)
        own_redis.start()
        with caplog.at_level(logging.WARNING):
            wait_on_process_loop(homes._listen(), 20)
    assert "mcp_home_unheard" in caplog.text
