"""Hubs, inline and on real workers with the same expectations: who hears what, when, and in which order."""

import asyncio
import logging
import os
import re
import subprocess
import sys
from threading import Thread

import pytest

import callsheet
from callsheet import AgentBase, AgentFailed, Msg, MsgHub
from callsheet.errors import HubMismatch, HubMissing, MessageError, ObserveFailed, PayloadTooLarge, UsageError
from callsheet.hub.listening import _Events
from callsheet.settings import use_settings
from tests.agents.basic import Echo
from tests.agents.hubs import (
    CpuTalker,
    EagerSpeaker,
    Forgetful,
    Host,
    PlainEar,
    PlainHost,
    Speaker,
    Squeamish,
    SqueamishWatcher,
    Talker,
    Thinker,
    Watcher,
    collected,
)
from tests.fleet import client_settings
from tests.office import Office, office_on, say
from tests.services import ROOT, wait_for


def said(text: str, name: str = "host") -> Msg:
    return Msg(name, text, "user")


async def memory_of(agent: AgentBase) -> str:
    """What an agent remembers by now."""
    return str((await agent(say("", all=True))).content)


# What members hear -------------------------------------------------------------------------------------


async def debate() -> list[str]:
    alice, bob, judge, carol = Talker("alice"), Talker("bob"), CpuTalker("judge"), Talker("carol")
    async with MsgHub([alice, bob, judge], announcement=said("Topic")) as hub:
        assert (await alice()).content == "alice heard 1"
        assert (await bob()).content == "bob heard 2", "a call made after a reply has observed it"
        hub.add(carol)
        hub.delete(alice)
        hub.set_auto_broadcast(False)
        assert (await bob()).content == "bob heard 3", "not shared"
        await hub.broadcast(said("Last round"))
        first = str((await judge()).content)
    return [first, await memory_of(alice), await memory_of(bob), await memory_of(carol), str((await judge()).content)]


def test_a_debate(anywhere):
    judge, alice, bob, carol, later = asyncio.run(debate())
    assert judge == "host: Topic|alice: alice heard 1|bob: bob heard 2|host: Last round"
    assert alice == "host: Topic|alice: alice heard 1|bob: bob heard 2", "said before it left; nothing after"
    assert bob == "host: Topic|alice: alice heard 1|bob: bob heard 2|bob: bob heard 3|host: Last round"
    assert carol == "host: Last round", "said after it came"
    assert later == judge


def test_a_debate_in_plain_code(anywhere):
    alice, judge = Talker("alice"), PlainEar("judge")
    with MsgHub([alice, judge], announcement=said("Topic")) as hub:
        assert alice.submit().get(20).content == "alice heard 1"
        hub.broadcast([said("one"), said("two")])
        assert judge.submit().get(20).content == "plain Topic|plain alice heard 1|plain one|plain two"


def test_a_message_of_several_and_none(anywhere):
    async def talk() -> str:
        alice, bob = Talker("alice"), Talker("bob")
        async with MsgHub([alice, bob]):
            await alice(say("x", twice=True))
            await alice(say("x", silent=True))
            return await memory_of(bob)

    assert asyncio.run(talk()) == "alice: x|alice: and more"


def test_thinking_stays_with_who_thinks(anywhere):
    async def talk() -> str:
        alice, bob = Thinker("alice"), Talker("bob")
        async with MsgHub([alice, bob]) as hub:
            assert (await alice()).has_content_blocks("thinking"), "the caller has it"
            await alice(say("nothing but thoughts"))
            await hub.broadcast(Msg("host", [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "y"}],
                                    "user"))
            return await memory_of(bob)

    assert asyncio.run(talk()) == "alice: hello|host: y"


def test_what_was_said_in_a_hub_is_heard_after_it_was_closed(anywhere):
    async def talk() -> list[str]:
        alice, bob = Talker("alice"), Forgetful("bob")
        async with MsgHub([alice, bob]):
            await alice()
        await alice()
        return [str((await bob()).content), str((await bob()).content)]

    assert asyncio.run(talk()) == ["alice: alice heard 0", ""]


def test_one_who_left_and_came_again_misses_what_was_said_meanwhile(anywhere):
    async def talk() -> str:
        alice = Talker("alice")
        async with MsgHub([alice]) as hub:
            await hub.broadcast(said("before"))
            hub.delete(alice)
            await hub.broadcast(said("meanwhile"))
            hub.add(alice)
            await hub.broadcast(said("after"))
            return await memory_of(alice)

    assert asyncio.run(talk()) == "host: before|host: after"


def test_the_replies_of_one_who_was_removed_reach_nobody(anywhere):
    async def talk() -> tuple[list[str], str, list[str]]:
        alice, bob, carol = Talker("alice"), Talker("bob"), Talker("carol")
        async with MsgHub([alice, bob, carol]) as hub:
            await alice(say("in the hub"))
            hub.delete(alice)
            assert (await alice(say("after she left"))).content == "after she left", "her caller has it"
            await carol(say("of another"))
            hub.set_auto_broadcast(False)  # what they tell below is for us alone
            heard = [await memory_of(bob), await memory_of(carol)]
            hub.set_auto_broadcast(True)
            hub.add(alice)
            await alice(say("back again"))
        return heard, await memory_of(bob), await collected(hub.name, 99)

    heard, later, said_in_it = asyncio.run(talk())
    assert heard == ["alice: in the hub|carol: of another"] * 2
    assert later == "alice: in the hub|carol: of another|alice: back again"
    assert said_in_it == ["in the hub", "of another", "back again"], "those who listen did not hear it either"


def test_nested_hubs_with_one_shared_member(anywhere):
    async def talk() -> list[str]:
        alice, bob, carol = Talker("alice"), Talker("bob"), Talker("carol")
        async with MsgHub([alice, bob]) as outer:
            await outer.broadcast(said("public 1"))
            async with MsgHub([bob, carol]) as inner:
                await inner.broadcast(said("private"))
                await outer.broadcast(said("public 2"))
                await bob()
            await outer.broadcast(said("public 3"))
        return [await memory_of(one) for one in (alice, bob, carol)]

    alice, bob, carol = asyncio.run(talk())
    assert alice == "host: public 1|host: public 2|bob: bob heard 3|host: public 3"
    assert bob == "host: public 1|host: private|host: public 2|bob: bob heard 3|host: public 3", "in the order of time"
    assert carol == "host: private|bob: bob heard 3"


@pytest.mark.parametrize("kind", [Host, PlainHost])
def test_a_hub_that_an_agent_opens(anywhere, kind):
    alice, bob = Talker("alice"), Talker("bob")
    out = kind("host", [alice, bob]).submit(said("go")).get(40)
    assert out.content == ("host: go|alice: alice heard 1|bob: bob heard 2|host: closing / "
                           "host: go|alice: alice heard 1|bob: bob heard 2|host: closing")


def test_in_a_pipeline(anywhere):
    alice, bob = Talker("alice"), Talker("bob")
    with MsgHub([alice, bob], announcement=said("go")):
        callsheet.SequentialPipeline([alice, bob]).submit(said("hand on")).get(20)
        assert alice.submit(say("", all=True)).get(20).content == "host: go|alice: hand on|bob: hand on"


def test_an_agents_own_broadcasts_are_not_news_to_it(anywhere):
    async def talk() -> list[str]:
        alice, bob = Speaker("alice"), Talker("bob")
        hub = MsgHub.open(f"asides-{anywhere}", [alice, bob])
        first = await alice(say("", hub=hub.name))
        second = await alice(say("", hub=hub.name))
        try:
            return [str(first.content), str(second.content), await memory_of(bob)]
        finally:
            hub.close()

    first, second, bob = asyncio.run(talk())
    assert (first, second) == ("after nothing", "after nothing")
    assert bob == "alice: aside|alice: another aside|alice: after nothing" * 1 + \
        "|alice: aside|alice: another aside|alice: after nothing"


def test_a_failed_reply_is_not_shared_and_what_it_heard_is_kept(anywhere):
    async def talk() -> list[str]:
        alice, bob = Talker("alice"), Talker("bob")
        async with MsgHub([alice, bob], announcement=said("Topic")):
            with pytest.raises(AgentFailed, match="no luck"):
                await alice(say("", fail=True))
            return [await memory_of(alice), await memory_of(bob)]

    assert asyncio.run(talk()) == ["host: Topic", "host: Topic|alice: host: Topic"]


# Members that raise, and eager ones --------------------------------------------------------------------


def test_a_member_that_raises_in_observe_tells_its_caller_and_the_others_hear(anywhere):
    async def talk() -> list[str]:
        alice, bob = Squeamish("alice"), Talker("bob")
        async with MsgHub([alice, bob]) as hub:
            await hub.broadcast(said("flowers"))
            await hub.broadcast(said("blood"))
            await hub.broadcast(said("bees"))
            with pytest.raises(AgentFailed, match="I cannot hear of blood"):
                await alice()
        return [await memory_of(bob), await memory_of(alice)]

    bob, alice = asyncio.run(talk())
    assert bob == "host: flowers|host: blood|host: bees"
    assert alice == "host: flowers|host: bees", "each once: what it could not hear does not come again"


def test_eager_members_are_told_at_once_and_an_error_reaches_the_broadcaster(at):
    async def talk() -> None:
        notes = "eager-notes"
        watcher, other, bad = Watcher("w", notes), Watcher("o", notes), SqueamishWatcher("b", notes)
        lazy = Talker("lazy")
        async with MsgHub([watcher, lazy, bad, other]) as hub:
            with pytest.raises(ObserveFailed, match=r"1 of the eager members.*SqueamishWatcher\(b\): ValueError: I do "
                                                    "not want to know") as caught:
                await hub.broadcast(said("one"))
            assert list(caught.value.members) == [bad.id]
            assert sorted(at.notes(notes)) == ["o one", "w one"]
            hub.delete(bad)
            await lazy(say("two"))
            await asyncio.to_thread(at.wait_notes, notes, 4)
            assert sorted(at.notes(notes)[2:]) == ["o two", "w two"]
            hub.broadcast_nowait(said("three"))
            await asyncio.to_thread(at.wait_notes, notes, 6)
            assert await memory_of(watcher) == "host: one|lazy: two|host: three", "and not once more with its next call"

    asyncio.run(talk())


def test_eager_members_inline():
    heard: list[str] = []

    class Ear(AgentBase, observe="eager"):
        async def observe(self, msg: Msg) -> None:
            if msg.content == "bad":
                raise ValueError("no")
            heard.append(str(msg.content))

        async def reply(self) -> Msg:
            return Msg("ear", "I", "assistant")

    with callsheet.inline():
        ear, alice = Ear(), Talker("alice")
        with MsgHub([ear, alice]) as hub:
            hub.broadcast(said("one"))
            assert heard == ["one"]
            with pytest.raises(ObserveFailed, match="ValueError: no"):
                hub.broadcast(said("bad"))
            alice.submit(say("two")).get()
            assert heard == ["one", "two"]


def test_a_hub_whose_announcement_fails_is_left(at: Office):
    async def talk() -> None:
        with pytest.raises(ObserveFailed):
            async with MsgHub([SqueamishWatcher("b", "n")], said("x"), name="never"):
                raise AssertionError("the block is not run")

    asyncio.run(talk())
    with pytest.raises(ObserveFailed), MsgHub([SqueamishWatcher("b", "n")], said("x"), name="never"):
        raise AssertionError("the block is not run")
    assert at.redis.zscore("callsheet:hubs", "never") is None


def test_a_keyword_that_is_no_way_to_observe_is_refused():
    with pytest.raises(UsageError, match=r"eager.*lazy"):
        class Odd(AgentBase, observe="sometimes"):
            pass


# Hubs that outlive who opened them ---------------------------------------------------------------------


def test_an_open_hub_outlives_its_creator_and_is_joined_by_name(anywhere):
    async def talk() -> list[str]:
        name = f"long-{anywhere}"
        alice, bob = Talker("alice"), Talker("bob")
        MsgHub.open(name, [alice])
        async with MsgHub([bob], name=name) as joined:
            await joined.broadcast(said("hello"))
        again = await MsgHub.open(name)
        await again.broadcast(said("bob has left"))
        found = [await memory_of(alice), await memory_of(bob)]
        again.close()
        with pytest.raises(HubMissing, match=r"MsgHub\.open"):
            await again.broadcast(said("too late"))
        return found

    assert asyncio.run(talk()) == ["host: hello|host: bob has left", "host: hello"]


OPENS = """
from callsheet import Msg, MsgHub
from tests.agents.hubs import Talker, Watcher

hub = MsgHub.open("across", [Talker("alice").with_id("across-alice"), Watcher("bob", "across").with_id("across-bob")],
                  Msg("host", "Topic", "user"))
"""
SPEAKS = """
from callsheet import Msg, MsgHub
from tests.agents.hubs import Talker

with MsgHub([carol := Talker("carol")], name="across") as hub:
    hub.broadcast(Msg("guest", "hello", "user"))
    carol.submit(Msg("u", "and hello from carol", "user")).get(30)
"""
CLOSES = """
from callsheet import MsgHub

MsgHub.open("across").close()
"""


def in_a_process_of_its_own(program: str, at: Office) -> None:
    """Run it to its end."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("CALLSHEET_")}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, capture_output=True, text=True,
                          check=False, env={**env, "CALLSHEET_REDIS_URL": at.server.url})
    assert done.returncode == 0, done.stderr


def test_a_hub_outlives_the_process_that_opened_it_and_is_joined_and_closed_from_another(at: Office):
    heard = ["bob Topic", "bob hello", "bob and hello from carol"]
    in_a_process_of_its_own(OPENS, at)
    assert at.wait_notes("across", 1) == heard[:1]
    told: list[object] = []
    watching = Thread(target=lambda: told.extend([event.msg.content for event in callsheet.hub.listen("across")]),
                      daemon=True)
    watching.start()
    in_a_process_of_its_own(SPEAKS, at)
    assert at.wait_notes("across", 3) == heard
    in_a_process_of_its_own(CLOSES, at)
    watching.join(30)
    assert told == ["Topic", "hello", "and hello from carol"], "watched from here, until it was closed there"
    assert asyncio.run(memory_of(Talker("alice").with_id("across-alice"))) == (
        "host: Topic|guest: hello|carol: and hello from carol")
    with pytest.raises(HubMissing):
        asyncio.run(callsheet.hub.say("across", said("too late")))


def test_hubs_of_one_name_are_joined_or_refused(anywhere):
    async def talk() -> None:
        alice, bob = Talker("alice"), Talker("bob")
        async with MsgHub([alice], name="twice") as one:
            async with MsgHub([alice, bob], name="twice") as other:
                await other.broadcast(said("x"))
            await one.broadcast(said("y"))
            assert await memory_of(alice) == "host: x|host: y", "it stays, as another brought it too"
            assert await memory_of(bob) == "host: x", "it went with who brought it"
            with pytest.raises(HubMismatch, match=r"enable_auto_broadcast=True.*cannot be joined with False"):
                async with MsgHub([bob], enable_auto_broadcast=False, name="twice"):
                    pass
        async with MsgHub([bob], enable_auto_broadcast=False, name="twice"):
            pass  # closed meanwhile: another life

    asyncio.run(talk())


# Bad input ---------------------------------------------------------------------------------------------


def test_the_same_agent_twice_is_one_member(anywhere):
    async def talk() -> str:
        alice = Talker("alice")
        async with MsgHub([alice, alice]) as hub:
            hub.add([alice])
            assert hub.participants == [alice]
            await hub.broadcast(said("x"))
            return await memory_of(alice)

    assert asyncio.run(talk()) == "host: x"


def test_a_stranger_is_deleted_with_a_warning(anywhere, caplog):
    async def talk() -> None:
        alice, bob = Talker("alice"), Talker("bob")
        async with MsgHub([alice]) as hub:
            hub.delete([bob, alice])
            hub.delete(alice)

    with caplog.at_level(logging.WARNING, "callsheet.hub"):
        asyncio.run(talk())
    assert [record.getMessage().count("no agent of this id is in the hub") for record in caplog.records] == [1, 1]


def test_leaving_twice_is_harmless(anywhere, caplog):
    async def talk() -> None:
        hub = MsgHub([Talker("alice")])
        async with hub:
            pass
        await hub.__aexit__(None, None, None)
        kept = MsgHub.open(f"leave-{anywhere}")
        kept.close()
        kept.close()

    with caplog.at_level(logging.WARNING, "callsheet.hub"):
        asyncio.run(talk())
    assert len(caplog.records) == 2


@pytest.mark.parametrize("wrong", ["text", None, {"name": "x"}, [said("x"), "y"]])
def test_what_is_no_message_is_refused(anywhere, wrong):
    with MsgHub([Talker("alice")]) as hub, pytest.raises(UsageError, match="Wrap"):
        hub.broadcast(wrong)


def test_a_message_that_was_spoilt_is_refused(anywhere):
    msg = said("x")
    msg.metadata["x"] = object()  # type: ignore[assignment]
    with MsgHub([Talker("alice")]) as hub, pytest.raises(MessageError, match="not JSON"):
        hub.broadcast(msg)


def test_wrong_participants_and_names_are_refused():
    for wrong in (["alice"], [Talker], Talker, "alice", None):
        with pytest.raises(UsageError):
            MsgHub(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no observe method"):
        MsgHub([Echo("e")])
    for name in ("", "a/b", "a*", " x", "x" * 200, 7):
        with pytest.raises(UsageError, match="name"):
            MsgHub([], name=name)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="announcement"):
        MsgHub([], announcement="x")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"since='yesterday'"):
        callsheet.hub.listen("x", since="yesterday")


def test_plain_with_in_async_code_is_refused(anywhere):
    async def talk() -> None:
        with pytest.raises(UsageError, match="async with"), MsgHub([]):
            pass

    asyncio.run(talk())


# Listening ---------------------------------------------------------------------------------------------


def test_listening_from_the_start_from_now_and_after_an_event(anywhere, monkeypatch):
    begun: list[str] = []
    begin = _Events._begin

    async def noted(events: _Events) -> None:
        await begin(events)
        begun.append(events._since)

    monkeypatch.setattr(_Events, "_begin", noted)

    async def listening(count: int) -> None:
        async with asyncio.timeout(10):
            while len(begun) < count:
                await asyncio.sleep(0.01)

    async def talk() -> None:
        alice = Talker("alice")
        async with MsgHub([alice], announcement=said("one"), name=f"listen-{anywhere}") as hub:
            second = await hub.broadcast(said("two"))
            now = asyncio.ensure_future(collected(hub.name, 2, "now"))
            start = asyncio.ensure_future(collected(hub.name, 4))
            after = asyncio.ensure_future(collected(hub.name, 2, second))
            await listening(3)
            await alice(say("three"))
            await hub.broadcast(said("four"))
            assert await asyncio.wait_for(now, 10) == ["three", "four"]
            assert await asyncio.wait_for(start, 10) == ["one", "two", "three", "four"]
            assert await asyncio.wait_for(after, 10) == ["three", "four"]
            rest = asyncio.ensure_future(collected(hub.name, 99))
            await listening(4)
        assert len(await asyncio.wait_for(rest, 10)) == 4, "it ends with the hub"
        assert len(await asyncio.wait_for(collected(hub.name, 99), 10)) == 4, "and can be listened to afterwards"

    asyncio.run(talk())


def test_listening_in_plain_code(anywhere):
    with MsgHub([], name=f"plain-{anywhere}") as hub:
        hub.broadcast([said("one"), said("two")])
        found = []
        for event in callsheet.hub.listen(hub.name):
            found.append((event.msg.content, event.number, event.sender, event.hub))
            if len(found) == 2:
                break
    assert found == [("one", 1, "", hub.name), ("two", 2, "", hub.name)]


def test_a_hub_that_is_not_there_cannot_be_listened_to(anywhere):
    with pytest.raises(HubMissing, match="'nowhere'"):
        asyncio.run(collected("nowhere", 1))


# Bounds ------------------------------------------------------------------------------------------------


def behind(count: int) -> tuple[str, list[tuple[str, int]]]:
    alice = Talker("alice")
    with MsgHub([alice], name="behind") as hub:
        for number in range(count):
            hub.broadcast(said(str(number)))
        events = []
        for event in callsheet.hub.listen("behind"):
            events.append((str(event.msg.get_text_content()), event.missing))
            if event.number == count:
                break
        return str(alice.submit(say("", all=True)).get(20).content), events


def test_what_is_missing_begins_after_what_was_heard(own_redis):
    """Also where the worker keeps nothing between the agent's turns, and so nothing of what was pushed."""
    def heard() -> str:
        alice = Talker("alice")
        with MsgHub([alice]) as hub:
            hub.broadcast(said("0"))
            alice.submit(say("", silent=True)).get(20)
            for number in range(1, 10):
                hub.broadcast(said(str(number)))
            return re.sub("'.*'", "it", str(alice.submit(say("", all=True)).get(20).content))

    expected = "host: 0|hub: [Missing here: 6 messages of the hub it, numbers 2 to 7, are no longer kept.]" + "".join(
        f"|host: {number}" for number in (7, 8, 9))
    with use_settings(callsheet.Settings.load(hub_length=3)), callsheet.inline():
        assert heard() == expected
    with office_on(own_redis) as office, use_settings(client_settings(own_redis, hub_length=3)):
        office.hire("io", CALLSHEET_WARM_AGENTS="0")
        assert heard() == expected


def expected_behind(heard: str, events: list[tuple[str, int]]) -> None:
    assert heard == ("hub: [Missing here: 7 messages of the hub 'behind', numbers 1 to 7, are no longer kept.]"
                     "|host: 7|host: 8|host: 9")
    assert [missing for _, missing in events] == [7, 0, 0, 0]
    assert "numbers 1 to 7" in events[0][0]


def test_a_member_too_far_behind_gets_a_summary_of_the_gap(at: Office):
    with use_settings(client_settings(at.server, hub_length=3)):
        expected_behind(*behind(10))


def test_the_same_inline():
    with use_settings(callsheet.Settings.load(hub_length=3)), callsheet.inline():
        expected_behind(*behind(10))


def test_messages_grow_old(at: Office):
    alice = Talker("alice")
    with use_settings(client_settings(at.server, hub_age=1)), MsgHub([alice]) as hub:
        hub.broadcast([said("old"), said("older")])
        began = at.redis.time()[0]
        wait_for(lambda: at.redis.time()[0] > began + 2, what="messages to be old")
        hub.broadcast(said("new"))
        assert alice.submit(say("", all=True)).get(20).content.endswith(
            "numbers 1 to 2, are no longer kept.]|host: new")


def test_hundreds_of_messages_are_heard_in_order(at: Office):
    alice = Talker("alice")
    with MsgHub([alice]) as hub:
        for start in range(0, 2500, 500):
            hub.broadcast([said(str(number)) for number in range(start, start + 500)])
        heard = alice.submit(say("", all=True)).get(60).content
    assert heard == "|".join(f"host: {number}" for number in range(2500))


def test_large_messages_are_stored_once_and_heard_whole(at: Office):
    text = "x" * 200_000
    alice, bob, plain = Talker("alice"), Talker("bob"), CpuTalker("plain")
    with MsgHub([alice, bob, plain], name="large") as hub:
        hub.broadcast([said(text), said("small")])
        alice.submit(say("y" * 100_000)).get(20)
        assert at.redis.memory_usage(f"callsheet:hub-log:{hub._epoch}") < 10_000
        heard = f"host: {text}|host: small|alice: {'y' * 100_000}"
        assert bob.submit(say("", all=True)).get(20).content == heard
        assert plain.submit().get(20).content.startswith(heard)
        events = []
        for event in callsheet.hub.listen("large"):
            events.append(str(event.msg.content))
            if len(events) == 3:
                break
        assert [len(text) for text in events] == [200_000, 5, 100_000]
        carol = Talker("carol")
        hub.set_auto_broadcast(False)
        hub.add(carol)
        hub.broadcast(said(text))
        at.redis.delete(*at.redis.keys("callsheet:payload:*"))
        assert carol.submit(say("", all=True)).get(20).content.startswith("hub: [Missing here: message ")


def test_a_message_over_the_limit_is_refused(anywhere):
    with MsgHub([Talker("alice")]) as hub, pytest.raises(PayloadTooLarge, match="CALLSHEET_PAYLOAD_MAX"):
        hub.broadcast(said("x" * 17_000_000))


def test_an_eager_member_that_broadcasts_in_its_reply_hears_the_others(at: Office):
    notes = "eager-host"
    host, other = Speaker("host"), Watcher("other", notes)

    async def talk() -> str:
        eager = EagerSpeaker("eager", notes)
        MsgHub.open("eager-asides", [host, other, eager])
        await asyncio.wait_for(eager(say("", hub="eager-asides")), 20)
        return str((await other(say("", all=True))).content)

    assert asyncio.run(talk()).startswith("eager: aside|eager: another aside|eager: after")


def test_a_hub_that_nobody_uses_is_closed_and_what_was_said_is_heard(at: Office):
    alice = Talker("alice")
    with use_settings(client_settings(at.server, hub_expires=1)):
        hub = MsgHub.open("unused", [alice], said("one"))
        began = at.redis.time()[0]
        wait_for(lambda: at.redis.time()[0] > began + 2, what="the hub to be old")
        MsgHub.open("another").close()
        with pytest.raises(HubMissing):
            hub.broadcast(said("two"))
        assert alice.submit(say("", all=True)).get(20).content == "host: one"
        assert not at.redis.exists(f"callsheet:seats:{alice.id}")
