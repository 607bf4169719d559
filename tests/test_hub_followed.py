"""Workers follow the hubs in which agents sit that they keep warm, and no others."""

from collections.abc import Callable
from typing import Any

import pytest

from callsheet import Msg, MsgHub, Settings
from callsheet.hub.records import Entry
from callsheet.tasks.turns.backlog import Backlog
from tests.agents.hubs import CpuTalker, Talker
from tests.office import Office, say
from tests.services import wait_for


def followed(office: Office) -> list[str]:
    return sorted(str(name).rpartition(":")[2] for name in office.redis.pubsub_channels("*hub-exchange*"))


def read_of_logs(office: Office) -> int:
    """How often a log was read."""
    return int(office.redis.info("commandstats").get("cmdstat_xrange", {}).get("calls", 0))


def test_a_worker_follows_the_hubs_of_its_warm_agents(office):
    io = office.hire("io", "-c", "4")
    office.hire("cpu", "-c", "1")
    alice, bob, plain = Talker("alice"), Talker("bob"), CpuTalker("plain")
    for number in range(200):
        MsgHub.open(f"silent-{number}", [Talker("x")])
    hub = MsgHub.open("followed", [alice, bob, plain])
    plain.submit().get(20)
    assert followed(office) == []
    alice.submit(say("one")).get(20)
    wait_for(lambda: followed(office) == ["followed"], what="the worker to follow")
    [channel] = office.redis.pubsub_channels("*hub-exchange*")
    assert office.redis.pubsub_numsub(channel) == [(channel, 1)]
    bob.submit(say("x", silent=True)).get(20)
    hub.broadcast([Msg("host", str(number), "user") for number in range(50)])
    before = read_of_logs(office)
    # Both hear what was pushed, and nothing of it is read from the log but what the push has not brought yet.
    assert alice.submit(say("", all=True)).get(20).content == "plain: |alice: one|" + "|".join(
        f"host: {number}" for number in range(50))
    hub.set_auto_broadcast(False)
    assert bob.submit(say("", all=True)).get(20).content.startswith("plain: |alice: one|host: 0|")
    assert read_of_logs(office) <= before + 4, "the memories, and at most once the log each"
    assert alice.submit(say("x", silent=True)).get(20) is None
    # The connection that pushes breaks: what is said meanwhile is read.
    office.redis.client_kill_filter(_type="pubsub")
    hub.broadcast(Msg("host", "meanwhile", "user"))
    assert alice.submit(say("", all=True)).get(20).content.endswith("|host: meanwhile")
    wait_for(lambda: followed(office) == ["followed"], what="the worker to follow again")
    hub.broadcast(Msg("host", "afterwards", "user"))
    assert alice.submit(say("", all=True)).get(20).content.endswith("|host: meanwhile|host: afterwards")
    hub.close()
    wait_for(lambda: followed(office) == [], what="the worker to follow it no more")
    assert "Traceback" not in io.log


def test_an_agent_that_is_not_warm_any_more_needs_no_hub_followed(office):
    office.hire("io", "-c", "4", CALLSHEET_WARM_AGENTS="1")
    alice, bob = Talker("alice"), Talker("bob")
    MsgHub.open("of-alice", [alice])
    MsgHub.open("of-bob", [bob])
    alice.submit(say("x")).get(20)
    wait_for(lambda: followed(office) == ["of-alice"], what="the first hub")
    bob.submit(say("x")).get(20)
    wait_for(lambda: followed(office) == ["of-bob"], 25, "the second hub alone")


@pytest.fixture
def backlog(monkeypatch: pytest.MonkeyPatch) -> Backlog:
    class Nothing:
        def add(self, *_: Any, **__: Any) -> None: ...
        def remove(self, *_: Any) -> None: ...

    module = "callsheet.tasks.turns.backlog"
    monkeypatch.setattr(f"{module}.subscriptions", lambda settings: Nothing())
    made = Backlog(Settings.load())
    made.start()
    made.seated("alice", [("hub", "e")])
    return made


def push(backlog: Backlog, *numbers: int, text: str = "x") -> None:
    take: Callable[[str, Entry], None] = backlog._take
    for number in numbers:
        take("e", Entry(f"{1000 + number}-{number}", "bob", text))


def test_only_messages_without_gaps_are_kept(backlog: Backlog):
    push(backlog, 5, 6, 7)
    run = backlog.known("alice")["e"]
    assert (run.first, run.last) == (5, "1007-7")
    push(backlog, 9)
    assert backlog.known("alice")["e"].first == 9
    assert [entry.number for entry in run.between("1005-5", "1007-7")] == [6, 7], "who began with it goes on with it"
    assert [entry.number for entry in run.between("1004-4", "1006-6")] == [5, 6]


def test_the_backlog_is_bounded(backlog: Backlog):
    push(backlog, *range(1, 3001))
    run = backlog.known("alice")["e"]
    assert len(run.entries) <= 1000
    assert run.last == "4000-3000"
    push(backlog, *range(3001, 3020), text="y" * 1_000_000)
    assert backlog._size < 17_000_000
    assert backlog._size == sum(len(entry.text) for one in backlog._runs.values() for entry in one.entries)
