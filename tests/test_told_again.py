"""What is told over Redis is told again, and heard, whatever breaks meanwhile."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from callsheet import Job, Msg, MsgHub, Settings, get_settings
from callsheet.errors import JobError
from callsheet.resources import subscriptions as module
from callsheet.resources.subscriptions import Subscriptions, subscriptions
from callsheet.settings import use_settings
from callsheet.tasks import patience
from callsheet.tasks.loop import LoopThread, adopt, process_loop, wait_on_process_loop
from callsheet.tasks.results import failure
from callsheet.tasks.turns.hearing import tell_eager
from callsheet.tasks.turns.records import COLD, Changes, Claim, Granted, Replied
from callsheet.tasks.turns.redis import RedisStore
from callsheet.tasks.waiter import waiter
from tests.agents.basic import Echo
from tests.agents.hubs import Watcher
from tests.fleet import client_settings
from tests.proxy import Proxy
from tests.services import RedisServer

HELLO = Msg("u", "x", "user")


@pytest.fixture
def durable(redis_server: RedisServer) -> Iterator[RedisServer]:
    """A redis-server that keeps all that it was told."""
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.remove()


def away(server: RedisServer, seconds: float) -> threading.Timer:
    """It stops now, and starts again a while later; to be joined."""
    server.stop()
    back = threading.Timer(seconds, server.start)
    back.start()
    return back


# Subscriptions

async def found_silent(settings: Settings, proxy: Proxy) -> None:
    listening, heard, number = Subscriptions(settings), [], 0
    listening.add("news", heard.append)
    while not heard:
        await asyncio.sleep(0.01)
    proxy.silence()
    while listening.healthy:
        number += 1
        listening.add(f"more {number}", heard.append)
        await asyncio.sleep(0.02)
    proxy.cut()
    proxy.speak()
    heard.clear()
    while len(heard) <= number:
        await asyncio.sleep(0.01)
    listening._tasks[0].cancel()
    await asyncio.wait(listening._tasks)


def test_a_silent_subscription_is_opened_again_also_where_somebody_begins_to_listen_all_the_time(
        redis_server, monkeypatch):
    monkeypatch.setattr(module, "_SIGN_OF_LIFE", 0.2)
    proxy = Proxy(redis_server.port)
    try:
        asyncio.run(asyncio.wait_for(found_silent(client_settings(redis_server, redis_url=proxy.url), proxy), 20))
    finally:
        proxy.close()


# Results

async def one_subscription() -> bool:
    settings = get_settings()
    return waiter(settings).subscriptions is subscriptions(settings)


def test_results_are_waited_for_on_the_loop_that_the_process_has_now(fleet):
    """Waiting at what belongs to the loop before would raise at once, again and again, and keep a core busy."""
    before = process_loop()
    try:
        for _ in range(2):
            thread = LoopThread().start()
            adopt(thread.loop)
            assert Echo("e").submit(HELLO).get(20).content == "e:x"
            assert wait_on_process_loop(one_subscription())
            assert thread.stop()
    finally:
        adopt(before)


async def unreadable(settings: Settings, client: Any) -> None:
    bad, good, late = (uuid4().hex for _ in range(3))
    client.set(f"celery-task-meta-{bad}", '{"status": "SUCCESS", "result": ' + "[" * 1200 + "]" * 1200 + "}")
    client.set(f"celery-task-meta-{good}", '{"status": "SUCCESS", "result": 1}')
    waits = [asyncio.ensure_future(waiter(settings).wait(one)) for one in (bad, good, late)]
    odd = failure({"status": "FAILURE", "result": {
        "exc_type": "AgentFailed", "exc_module": "callsheet.errors", "exc_message": ["no", 2, [3], 4, 5]}})
    assert str(odd) == "no\n\nRemote traceback:\n4"
    told = failure(await waits[0], "A(a)", bad)
    assert type(told) is JobError
    assert f"The result of job {bad} cannot be read: it is not Celery's JSON" in str(told)
    assert (await waits[1])["result"] == 1
    for unread in (b"\x80\x04N.", '{"status": ["SUCCESS"]}', "5"):
        client.publish(f"celery-task-meta-{late}", unread)
        assert late in str(failure(await waits[2], "A(a)", late))
        waits[2] = asyncio.ensure_future(waiter(settings).wait(late))
        await asyncio.sleep(0)
    waits[2].cancel()


def test_a_result_that_cannot_be_read_is_told_to_who_waits_for_it_and_keeps_up_no_other(redis_server):
    settings = client_settings(redis_server)
    wait_on_process_loop(unreadable(settings, redis_server.client()), 20)


async def broken_off(job: Job, after: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(after):
            async for _ in job.stream():
                pass


async def all_broken_off(job: Job) -> None:
    for _ in range(3):
        await asyncio.gather(*(broken_off(job, 0.01 + number / 250) for number in range(40)))


def test_a_stream_can_be_broken_off_at_any_time(redis_server):
    proxy = Proxy(redis_server.port)
    proxy.delay = 0.05  # so that connections are being opened meanwhile
    try:
        with use_settings(client_settings(redis_server, redis_url=proxy.url)):
            asyncio.run(all_broken_off(Job.from_id(uuid4().hex)))
    finally:
        proxy.close()


# Turns

CLAIM = Claim(agent_id="told", call_id="call", cls="tests:Agent", sent=1_000_000)


async def nothing_sent(messages: list[str]) -> None:
    raise AssertionError(messages)


async def ended_twice(settings: Settings) -> list[Any]:
    store = RedisStore(settings, nothing_sent)
    granted = await store.take(CLAIM, COLD)
    assert isinstance(granted, Granted)
    changes, reply = Changes(said=['{"said": 1}']), json.dumps({"out": "said"})
    return [(await store.end(CLAIM, granted.token, changes, reply)).eager,
            (await store.end(CLAIM, granted.token, changes, reply)).eager, await store.take(CLAIM, COLD)]


def test_whoever_ends_a_turn_whose_end_was_kept_already_learns_which_eager_members_to_tell(redis_server):
    settings = client_settings(redis_server)
    with use_settings(settings):
        member, watcher = Watcher("member", ""), Watcher("watcher", "")
        claim = CLAIM.agent_id
        with MsgHub([member.with_id(claim), watcher], name="told again"), MsgHub([member.with_id(claim)]):
            first, again, delivered = asyncio.run(ended_twice(settings))
    assert len(first) == 2 and first == again
    assert isinstance(delivered, Replied) and sorted(delivered.eager) == sorted(first)


class Leaves(RedisStore):
    """Its server goes away for a moment when a turn was given."""

    server: RedisServer
    back: threading.Timer

    async def _patiently(self, agent_id: str, action: str, claim: Claim, args: Any) -> list[Any]:
        answer = await super()._patiently(agent_id, action, claim, args)
        if action == "take":
            self.back = await asyncio.to_thread(away, self.server, 0.5)
        return answer


async def long_memory(server: RedisServer, settings: Settings) -> int:
    store, leaves = RedisStore(settings, nothing_sent), Leaves(settings, nothing_sent)
    leaves.server = server
    granted = await store.take(CLAIM, COLD)
    assert isinstance(granted, Granted)
    await store.end(CLAIM, granted.token, Changes(entries=[("memory", "{}")] * 1500))
    again = await leaves.take(CLAIM, COLD)
    await asyncio.to_thread(leaves.back.join)
    assert isinstance(again, Granted)
    return len(again.entries)


def test_a_long_memory_is_read_to_its_end_though_redis_restarts_meanwhile(durable):
    assert asyncio.run(long_memory(durable, client_settings(durable))) == 1500


def test_eager_members_are_told_as_soon_as_redis_is_back(durable, monkeypatch):
    with use_settings(client_settings(durable)):
        hub = MsgHub.open("told late", [Watcher("watcher", "")])
        monkeypatch.setattr(patience, "_serves", True)
        back = away(durable, 0.5)
        asyncio.run(tell_eager(["told late"]))
        back.join()
        assert durable.client().llen("io") == 1
        hub.broadcast_nowait(HELLO)
        assert durable.client().llen("io") == 2
