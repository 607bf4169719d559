"""Hubs while workers are killed, connections are cut and Redis restarts: everything is heard once, and in order."""

import asyncio
import itertools
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis

import callsheet
from callsheet import Msg, MsgHub
from callsheet.settings import use_settings
from tests.agents.hubs import Speaker, Talker, Watcher
from tests.fleet import client_settings
from tests.office import Office, office_on, say
from tests.proxy import Proxy
from tests.services import RedisServer, wait_for


@pytest.fixture
def lasting(redis_server: RedisServer) -> Iterator[RedisServer]:
    """A server that keeps what it holds through a restart."""
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.remove()


def restart(server: RedisServer, pause: float = 0.5) -> None:
    server.stop(signal.SIGKILL)
    time.sleep(pause)
    server.start()


def talk(office: Office, count: int, accidents: dict[int, object]) -> list[Talker]:
    """A conversation of so many messages; what happens while some of them are under way."""
    members, chance = [Talker(str(number)) for number in range(4)], random.Random(7)
    hub = MsgHub.open("conversation", members)
    for number in range(count):
        job = members[number % 4].submit(say(f"m{number}"))
        if number in accidents:
            time.sleep(chance.uniform(0, 0.01))
            accidents[number]()  # type: ignore[operator]
        assert job.get(60).content == f"m{number}"
    hub.close()
    return members


def test_a_conversation_survives_killed_workers_and_a_restart_of_redis(lasting):
    count = 40
    with office_on(lasting) as office:
        workers = [office.hire("io", "-c", "4"), office.hire("io", "-c", "4")]

        def kill(which: int) -> None:
            workers[which].kill()
            workers[which] = office.hire("io", "-c", "4")

        members = talk(office, count, {10: lambda: kill(0), 20: lambda: restart(lasting), 30: lambda: kill(1)})
        for member in members:
            heard = member.submit(say("", all=True)).get(30).content
            assert heard == "|".join(f"{number % 4}: m{number}" for number in range(count)), member.name
        assert all(office.settled(member.id) for member in members)


def test_a_turn_that_is_run_again_hears_and_says_everything_once(office):
    alice, bob, speaker, ear = Talker("alice"), Talker("bob"), Speaker("speaker"), Talker("ear")
    first = office.hire("io", "-c", "2")
    hub = MsgHub.open("again", [alice, bob], Msg("host", "Topic", "user"))
    MsgHub.open("asides", [speaker, ear])
    jobs = [alice.submit(say("x", gate="gate", note="begun")),
            speaker.submit(say("", hub="asides", gate="gate", note="begun"))]
    office.wait_notes("begun", 2)
    hub.broadcast(Msg("host", "meanwhile", "user"))
    first.kill()
    office.hire("io", "-c", "2")
    office.wait_notes("begun", 4)
    office.redis.set("gate", 1)
    assert [job.get(30).content for job in jobs] == ["x", "after nothing"]
    assert bob.submit(say("", all=True)).get(20).content == "host: Topic|host: meanwhile|alice: x"
    assert alice.submit(say("", all=True)).get(20).content == (
        "host: Topic|host: meanwhile|alice: x|bob: host: Topic|host: meanwhile|alice: x")
    # What the reply broadcast by itself before its worker died, it broadcast once.
    assert ear.submit(say("", all=True)).get(20).content == (
        "speaker: aside|speaker: another aside|speaker: after nothing")


def test_an_eager_member_whose_worker_dies_is_told_by_another(office):
    watcher = Watcher("w", "eager")
    hub = MsgHub.open("eager", [watcher])
    hub.broadcast_nowait(Msg("host", "one", "user"))
    wait_for(lambda: office.redis.llen("io") == 1, what="the call that tells")
    office.hire("io", "-c", "2").kill()
    office.hire("io", "-c", "2")
    office.wait_notes("eager", 1)
    hub.broadcast(Msg("host", "two", "user"))
    assert watcher.submit(say("", all=True)).get(20).content == "host: one|host: two"


@contextmanager
def listening(name: str) -> Iterator[list[str]]:
    """What a listener gets, in a thread."""
    found: list[str] = []

    def listen() -> None:
        found.extend(str(event.msg.content) if not event.missing else f"{event.missing} missing"
                     for event in iter_events())

    def iter_events() -> Iterator[callsheet.hub.HubEvent]:
        for event in callsheet.hub.listen(name):
            found_live.append(event.id)
            yield event

    found_live: list[str] = []
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    wait_for(lambda: found_live, what="the first event")
    yield found
    thread.join(30)
    assert not thread.is_alive()


def test_a_listener_misses_nothing_when_its_connection_is_cut_and_redis_restarts(lasting):
    proxy = Proxy(lasting.port)
    try:
        with use_settings(client_settings(lasting)):
            hub = MsgHub.open("listened", (), Msg("host", "first", "user"))
            with use_settings(client_settings(lasting, redis_url=proxy.url)), listening("listened") as found:
                for number in itertools.count():
                    if number == 100:
                        break
                    hub.broadcast(Msg("host", str(number), "user"))
                    if number in (20, 21, 50):
                        proxy.cut()
                    if number == 70:
                        restart(lasting, 0.1)
                    time.sleep(0.002)
                hub.close()
        assert found == ["first", *map(str, range(100))]
    finally:
        proxy.close()


def test_a_listener_hears_what_is_said_after_redis_came_back_without_the_last_messages(own_redis):
    with use_settings(client_settings(own_redis)):
        raw = redis.Redis.from_url(own_redis.url)
        hub = MsgHub.open("back", (), Msg("host", "0", "user"))
        heard: list[str] = []

        async def hear() -> None:
            async for event in callsheet.hub.listen("back"):
                heard.append(event.msg.content)

        thread = threading.Thread(target=lambda: asyncio.run(hear()), daemon=True)
        thread.start()
        hub.broadcast(Msg("host", "1", "user"))
        wait_for(lambda: heard == ["0", "1"], what="the first two")
        kept = {key: raw.dump(key) for key in raw.scan_iter("callsheet:hub*")}
        for text in "abc":
            hub.broadcast(Msg("host", text, "user"))
        wait_for(lambda: heard[2:] == ["a", "b", "c"], what="three more")
        for key, value in kept.items():
            raw.restore(key, 0, value, replace=True)
        hub.broadcast(Msg("host", "2", "user"))
        wait_for(lambda: heard[5:] == ["2"], what="what is said next")
        for text in "3456":
            hub.broadcast(Msg("host", text, "user"))
        hub.close()
        thread.join(20)
    assert heard == [*"01abc23456"]


def test_a_listener_that_is_slow_gets_all_and_is_told_what_is_gone(own_redis):
    with use_settings(client_settings(own_redis, hub_length=500)):
        hub = MsgHub.open("slow", (), Msg("host", "0", "user"))

        async def slow() -> list[tuple[int, int]]:
            found = []
            async for event in callsheet.hub.listen("slow"):
                if not found:
                    await asyncio.to_thread(said)
                found.append((event.number, event.missing))
                assert event.msg.name in ("host", "hub")
            return found

        def said() -> None:
            for start in range(1, 5001, 250):
                hub.broadcast([Msg("host", str(number), "user") for number in range(start, start + 250)])
            hub.close()

        found = asyncio.run(slow())
    assert found[0] == (1, 0)
    heard = 0
    for number, missing in found:
        assert number == heard + max(missing, 1), "in order, and each gap is told"
        heard = number
    assert heard == 5001


def test_a_call_whose_id_names_its_work_is_run_once_however_often_it_is_sent(at):
    alice, bob = Talker("alice"), Talker("bob")
    with MsgHub([alice, bob]):
        alice._once = True
        jobs = [alice.submit(say("x", note="once"), job_id="work-7") for _ in range(3)]
        assert [job.get(20).content for job in jobs] == ["x"] * 3
        jobs = [alice.submit(say("y", gate="once-gate", note="once"), job_id="work-8") for _ in range(2)]
        at.wait_notes("once", 2)
        at.redis.set("once-gate", 1)
        assert [job.get(20).content for job in jobs] == ["y"] * 2
        assert alice.submit(say("x", note="once"), job_id="work-7").get(20).content == "x"
        assert bob.submit(say("", all=True)).get(20).content == "alice: x|alice: y"
        assert len(at.notes("once")) == 2
        wait_for(lambda: at.settled(alice.id), what="no trace of turns")
