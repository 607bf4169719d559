"""Elastic groups: replicas share a hub's work, come when it waits and go when it does not."""

import asyncio
import time
from collections import Counter
from dataclasses import asdict

import pytest

import callsheet
from callsheet import AgentFailed, ElasticGroup, Msg, MsgHub, ResultTimeout
from callsheet.errors import UsageError
from callsheet.hub.elastic_state import Ledger, Piece
from callsheet.hub.place import the_hubs
from callsheet.scaling import Limits, Load, Policy, Rules
from tests.agents.hubs import Talker
from tests.office import Office, say
from tests.services import wait_for


def piece(text: object, **told: object) -> Msg:
    return Msg("host", str(text), "user", metadata=told)


async def heard_by(agent: Talker, speaker: str) -> list[str]:
    """What an agent has heard of a speaker."""
    lines = str((await agent(say("", all=True))).content).split("|")
    return [line.removeprefix(f"{speaker}: ") for line in lines if line.startswith(f"{speaker}: ")]


def members(hub: str) -> list[str]:
    return sorted(member.id for member in asyncio.run(the_hubs().members(hub)))


# Sharing work

async def shared(count: int) -> tuple[list[str], callsheet.hub.GroupStatus]:
    host, group = Talker("host"), ElasticGroup(Talker("rev"), max=4, target_wait=0.1)
    async with MsgHub([host, group]) as hub:
        for number in range(count):
            await hub.broadcast(piece(number))
        status = await group.join(60)
        return await heard_by(host, "rev"), status


def test_each_message_is_replied_to_by_one_replica_and_the_hub_hears_that(anywhere):
    heard, status = asyncio.run(shared(12))
    assert sorted(map(int, heard)) == list(range(12))
    assert (status.done, status.failed, status.waiting, status.busy) == (12, 0, 0, 0)


def test_in_plain_code(anywhere):
    host, group = Talker("host"), ElasticGroup(Talker("rev"), min=2, max=2)
    with MsgHub([host, group]) as hub:
        for number in range(4):
            hub.broadcast(piece(number))
        assert group.join(60).done == 4
        assert group.status().size == 2
    heard = str(host.submit(say("", all=True)).get(30).content).split("|")
    assert sorted(heard)[-4:] == [f"rev: {number}" for number in range(4)]


async def reply_is_work() -> list[str]:
    host, group = Talker("host"), ElasticGroup(Talker("rev"))
    async with MsgHub([host, group]):
        await host(Msg("u", "said by a member", "user"))
        await group.join(60)
        return await heard_by(host, "rev")


def test_what_a_member_replies_is_work_and_what_replicas_reply_is_not(anywhere):
    assert asyncio.run(reply_is_work()) == ["said by a member"]


async def of_all() -> tuple[list[str], list[str]]:
    host, group = Talker("host"), ElasticGroup(Talker("rev"), min=2, max=5, mailbox="all")
    async with MsgHub([host, group]) as hub:
        await hub.broadcast(piece("first"))
        await group.join(60)
        assert (await group.resize(3)).size == 3
        await hub.broadcast(piece("second"))
        await group.join(60)
        assert (await group.resize(1)).size == 1
        await hub.broadcast(piece("third"))
        await group.join(60)
        return await heard_by(host, "rev"), sorted(member.id for member in await the_hubs().members(hub.name))


def test_with_a_mailbox_for_all_every_replica_replies(anywhere):
    heard, seated = asyncio.run(of_all())
    assert Counter(heard) == {"first": 2, "second": 3, "third": 1}
    assert [member for member in seated if "/replica-" in member] == [one for one in seated if one.endswith("-1")]


async def failing() -> callsheet.hub.GroupStatus:
    group = ElasticGroup(Talker("rev"))
    async with MsgHub([group]) as hub:
        await hub.broadcast([piece("bad", fail=True), piece("good")])
        return await group.join(60)


def test_a_reply_that_raises_is_told_and_the_others_go_on(anywhere):
    status = asyncio.run(failing())
    assert (status.done, status.failed) == (1, 1)
    assert status.failures == ["replica 1: ValueError: no luck today"]


# Growing and shrinking

def test_replicas_join_as_work_waits_and_leave_when_it_does_not(at):
    group, gate = ElasticGroup(Talker("rev"), max=3, target_wait=0.05, cooldown=2), "elastic-grow"
    with MsgHub([group], name="elastic-grows") as hub:
        for number in range(5):
            hub.broadcast(piece(number, gate=gate))
        wait_for(lambda: group.status().busy == 3, 30, "three replicas at work")
        status = group.status()
        assert (status.size, status.waiting) == (3, 2), "and no more than its maximum"
        replicas = [f"{group.id}/replica-{number}" for number in (1, 2, 3)]
        assert members("elastic-grows") == sorted([group.id, *replicas])
        with pytest.raises(ResultTimeout, match="3 replicas are at work, and 2 pieces wait"):
            group.join(0.01)
        at.redis.set(gate, 1)
        assert group.join(30).done == 5
        wait_for(lambda: members("elastic-grows") == sorted([group.id, replicas[0]]), 30, "two to leave")
        assert all(at.redis.exists(f"callsheet:memory:{replica}") for replica in replicas), "their states are kept"


def test_replicas_that_come_back_remember(at):
    group = ElasticGroup(Talker("rev"), min=1, max=2, mailbox="all")
    with MsgHub([group]) as hub:
        for size, text in ((2, "one"), (1, "two"), (2, "three")):
            group.resize(size)
            hub.broadcast(piece(text))
            group.join(30)
    said = [str(group.replica(number).submit(say("", all=True)).get(30).content) for number in (1, 2)]
    assert said == ["rev: one|rev: two|rev: three", "rev: one|rev: three"]


def test_a_group_that_leaves_takes_its_replicas_along(anywhere):
    host, group = Talker("host"), ElasticGroup(Talker("rev"), min=2)
    hub = MsgHub.open("elastic-leaves" + anywhere, [host, group])
    hub.broadcast(piece("first"))
    group.join(30)
    assert len(members(hub.name)) == 4
    hub.delete(group)
    assert members(hub.name) == [host.id]
    hub.broadcast(piece("second"))
    assert group.join(30).done == 1
    assert members(hub.name) == [host.id], "a turn of the group brings nobody back"
    hub.close()


# Deaths

def test_the_death_of_workers_loses_no_work_and_does_none_twice(office: Office):
    host, group = Talker("host"), ElasticGroup(Talker("rev"), max=4, target_wait=0.05)
    first, _ = office.hire(), office.hire()
    with MsgHub([host, group], name="elastic-dies") as hub:
        for number in range(8):
            hub.broadcast(piece(number, gate="elastic-die", note="elastic-begun"))
        office.wait_notes("elastic-begun", 4)
        first.kill()
        office.hire()
        office.redis.set("elastic-die", 1)
        status = group.join(90)
        heard = asyncio.run(heard_by(host, "rev"))
    assert sorted(heard) == [str(number) for number in range(8)]
    assert status.done + status.failed == 8


# Bad input

@pytest.mark.parametrize(("make", "words"), [
    (lambda: ElasticGroup("rev"), "takes an agent as its template"),
    (lambda: ElasticGroup(ElasticGroup(Talker("rev"))), "takes an agent as its template"),
    (lambda: ElasticGroup(Talker("rev"), min=3, max=2), "maximum of 2 and a minimum of 3"),
    (lambda: ElasticGroup(Talker("rev"), max=0), "maximum of at least 1"),
    (lambda: ElasticGroup(Talker("rev"), mailbox="some"), '"share" or "all" is needed'),
    (lambda: ElasticGroup(Talker("rev"), min=0, mailbox="all"), "Give a min over 0"),
    (lambda: ElasticGroup(Talker("rev"), cooldown=-1), "cooldown=-1"),
    (lambda: ElasticGroup(Talker("rev")).resize(2), "finds its size itself"),
    (lambda: ElasticGroup(Talker("rev"), mailbox="all").resize(21), "1 to 20"),
])
def test_groups_that_cannot_be_are_refused(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def test_a_group_is_given_its_work_through_a_hub(anywhere):
    with pytest.raises(AgentFailed, match="broadcast the message there"):
        ElasticGroup(Talker("rev")).submit(piece("x")).get(30)


# The ledger

def waiting(*takers: int | None) -> list[Piece]:
    return [Piece(0.0, taker, {}) for taker in takers]


def test_work_is_handed_to_free_replicas_in_order():
    ledger = Ledger(size=2)
    assert ledger.hand_out(waiting(None, None, None)) == [(0, 1, 1), (1, 2, 2)]
    assert ledger.hand_out(waiting(None)) == []
    ledger.ended(1, 0.5, "")
    ledger.ended(1, 0.5, "")
    assert (ledger.done, ledger.hand_out(waiting(None))) == (1, [(0, 3, 1)])


def test_one_that_is_to_leave_finishes_what_is_meant_for_it():
    ledger = Ledger(size=1, seated=[1, 2])
    assert ledger.to_seat({2}) == ([], [])
    assert ledger.hand_out(waiting(2, None, 2)) == [(0, 1, 2), (1, 2, 1)]
    assert ledger.to_seat(set()) == ([], []), "it is at work"
    ledger.ended(1, 0.1, "")
    assert ledger.to_seat(set()) == ([], [2])


def test_a_piece_that_was_given_back_and_has_run_since_is_done():
    ledger = Ledger(size=1)
    ledger.hand_out(waiting(None))
    ledger.ended(1, 0.1, "cancelled")
    assert (ledger.done, ledger.failed) == (0, 1)
    ledger.ended(1, 0.1, "")
    ledger.ended(1, 0.1, "")
    assert (ledger.done, ledger.failed) == (1, 0)


def decided(seconds: float | None, waited: float | None, age: float = 0.0) -> int:
    """The size that a group of one, whose replica is at work, decides on for ten pieces of so many seconds' age."""
    group, ledger = ElasticGroup(Talker("rev"), max=20, target_wait=1.0), Ledger(
        size=1, busy={"1": 1}, handed=1, seconds=seconds, waited=waited)
    for _ in range(10):
        told = asdict(Piece(at=time.time() - age, taker=None, msg={}))
        asyncio.run(group.work.add(Msg("host", "", "user", metadata=told)))
    group._decide(ledger)
    return ledger.size


def test_of_the_same_backlog_more_is_begun_at_once_where_work_takes_or_waits_longer():
    quick = decided(seconds=0.05, waited=0.01)
    assert quick == 2, "one more has all ten begun within the second"
    assert decided(seconds=5.0, waited=0.01) == 4, "slow work"
    assert decided(seconds=0.05, waited=5.0) == 4, "what was begun last had waited"
    assert decided(seconds=0.05, waited=0.01, age=60.0) == 4, "what waits has waited"
    assert decided(seconds=None, waited=None) == 4, "nothing is known"
    assert decided(seconds=0.2, waited=0.0) == 3, "in between"


def test_a_group_measures_how_long_its_work_takes(at):
    group, gate, begun = ElasticGroup(Talker("rev"), max=1), "elastic-slow", "elastic-slow-begun"
    with MsgHub([group]) as hub:
        hub.broadcast(piece("quick"))
        quick = group.join(30).seconds
        hub.broadcast(piece("slow", gate=gate, note=begun))
        at.wait_notes(begun, 1)
        held, since = 5 * quick + 0.5, time.monotonic()
        wait_for(lambda: time.monotonic() - since > held, held + 10, "it to have taken long")
        at.redis.set(gate, 1)
        assert group.join(30).seconds > quick, "lately, so not at once all of it"


def test_a_policy_goes_on_where_another_stopped():
    limits, rules = Limits(minimum=1, maximum=10), Rules(cooldown=10)
    loads = [Load(size=1, busy=1, backlog=9), Load(size=4, busy=4, backlog=6), *[Load(size=10)] * 12]
    one, sizes = Policy(limits, rules), []
    for second, load in enumerate(loads):
        sizes.append(one.decide(load, float(second)).size)
    kept, again = None, []
    for second, load in enumerate(loads):
        other = Policy(limits, rules)
        if kept:
            other.recall(kept)
        again.append(other.decide(load, float(second)).size)
        kept = other.remembered
    assert again == sizes
    assert max(sizes) == 10 > sizes[-1]
