"""States by id: save, load, fork, export and delete them, in Redis and inline."""

import asyncio
import json

import pytest
from click.testing import CliRunner

import callsheet
from callsheet import Msg, sessions
from callsheet.cli.main import main
from callsheet.errors import StateBusy, StateMismatch, StateMissing, UsageError
from callsheet.memory import InMemoryMemory, RedisMemory
from callsheet.settings import use_settings
from callsheet.tasks.turns import sessions as work
from tests.agents.remembering import Clerk, Other
from tests.fleet import client_settings
from tests.office import say


def run(coro):
    return asyncio.run(coro)


def filled(agent_id, *texts):
    agent = Clerk().with_id(agent_id)
    agent.count = len(texts)
    run(agent.memory.add([Msg("u", text, "user") for text in texts]))
    return agent


def told(agent_id, **options):
    return [msg.content for msg in sessions.messages(agent_id, **options)]


@pytest.fixture(params=["redis", "inline"])
def place(request, redis_server):
    """Where states are kept."""
    with use_settings(client_settings(redis_server)):
        redis_server.client().flushall()
        if request.param == "redis":
            yield request.param
        else:
            with callsheet.inline():
                yield request.param


# Functions ----------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_into_another_object(place):
    sessions.save(filled("alice", "one", "two"))
    other = Clerk()
    assert sessions.load(other, "alice")
    assert (other.count, [msg.content for msg in run(other.memory.get_memory())]) == (2, ["one", "two"])
    sessions.save(filled("alice", "three"))
    assert (told("alice"), sessions.state("alice")["count"]) == (["three"], 1)


def test_in_async_code_and_in_plain_code(place):
    async def main():
        agent = Clerk().with_id("alice")
        await agent.memory.add(Msg("u", "hi", "user"))
        await sessions.asave(agent)
        with pytest.raises(UsageError, match=r"await sessions.aload\(\)"):
            sessions.load(agent)
        return await sessions.amessages("alice"), [one.id for one in await sessions.alist()]

    messages, ids = run(main())
    assert ([msg.content for msg in messages], ids) == (["hi"], ["alice"])


def test_what_is_not_there(place):
    for call in (lambda: sessions.load(Clerk(), "nobody"), lambda: sessions.export("nobody"),
                 lambda: sessions.fork("nobody", "x"), lambda: sessions.state("nobody")):
        with pytest.raises(StateMissing, match=r"'nobody'.*callsheet session list"):
            call()
    assert not sessions.load(Clerk(), "nobody", allow_not_exist=True)
    assert not sessions.delete("nobody")
    assert sessions.list() == []


def test_another_class_is_refused_and_both_are_named(place):
    sessions.save(filled("alice", "one"))
    for call in (lambda: sessions.save(Other().with_id("alice")), lambda: sessions.load(Other(), "alice")):
        with pytest.raises(StateMismatch, match=r"is a tests.*:Other, but the state .* of a tests.*:Clerk"):
            call()
    assert told("alice") == ["one"]


def test_a_fork_goes_its_own_way(place):
    sessions.save(filled("alice", "one"))
    sessions.fork("alice", "bob")
    sessions.save(filled("alice", "other"))
    assert (told("alice"), told("bob")) == (["other"], ["one"])
    with pytest.raises(StateMismatch, match=r"under the id 'bob' already.*replace"):
        sessions.fork("alice", "bob")
    sessions.fork("alice", "bob", replace=True)
    assert told("bob") == ["other"]
    assert {one.id: one.cls for one in sessions.list()} == dict.fromkeys(("alice", "bob"),
                                                                         "tests.agents.remembering:Clerk")


def test_an_export_is_read_by_people_and_comes_back_as_it_was(place):
    sessions.save(filled("alice", "grüße", "two"))
    text = sessions.export("alice")
    head, *lines = map(json.loads, text.splitlines())
    assert (head["id"], head["class"], head["state"]["count"]) == ("alice", "tests.agents.remembering:Clerk", 2)
    assert [entry[0]["content"] for entry in lines[0]["set"]] == ["grüße", "two"]
    assert "grüße" in text
    assert sessions.delete("alice")
    assert sessions.list() == []
    assert sessions.put(text) == "alice"
    again = sessions.export("alice").splitlines()
    assert again[1:] == text.splitlines()[1:]
    assert sessions.put(text, "bob") == "bob"
    assert told("bob") == ["grüße", "two"]
    with pytest.raises(StateMismatch, match="already"):
        sessions.put(text)
    assert sessions.put(text, replace=True) == "alice"


@pytest.mark.parametrize(("text", "wrong"), [
    ("", "first line is not the head"), ("no json", "Line 1 is not JSON"), ('{"callsheet": "state"}', "first line"),
    ('{"callsheet": "state", "format": 9, "id": "a", "class": "c", "state": {}}', "newer version"),
    ('{"callsheet": "state", "format": 1, "id": "a", "class": "c", "state": {}}\n{"memory": "m", "m": {"name": 1}}',
     "Line 2 does not fit"),
    ('{"callsheet": "state", "format": 1, "id": "a", "class": "c", "state": {}}\n[]', "Line 2 is no change"),
    ('{"callsheet": "state", "format": 1, "id": " ", "class": "c", "state": {}}', "cannot be used"),
])
def test_a_text_that_is_no_state_is_refused(place, text, wrong):
    with pytest.raises((StateMismatch, UsageError), match=wrong):
        sessions.put(text)
    assert sessions.list() == []


def test_agentscopes_functions_for_several_modules(place):
    agent, memory = filled("x", "one"), InMemoryMemory()
    run(memory.add(Msg("u", "apart", "user")))
    run(sessions.save_session_state("together", agent=agent, notes=memory))
    other, notes, untouched = Clerk(), InMemoryMemory(), InMemoryMemory()
    run(untouched.add(Msg("u", "stays", "user")))
    run(sessions.load_session_state("together", agent=other, notes=notes, more=untouched))
    assert (other.count, run(notes.size()), run(untouched.size())) == (1, 1, 1)
    run(sessions.load_session_state("nothing", agent=other))
    with pytest.raises(StateMissing):
        run(sessions.load_session_state("nothing", allow_not_exist=False, agent=other))
    sessions.save(filled("alice", "one"))
    with pytest.raises(StateMismatch):
        run(sessions.load_session_state("alice", agent=other))
    with pytest.raises(StateMismatch):
        run(sessions.save_session_state("alice", agent=other))


def test_a_memory_by_its_id_is_shared(place):
    async def main():
        first, second = RedisMemory("notes"), RedisMemory("notes")
        assert await first.get_memory() == []
        await first.add([Msg("u", "a", "user"), Msg("u", "b", "user")], marks="m")
        await second.add(Msg("u", "c", "user"))
        assert await first.delete(0) == 1
        await second.update_messages_mark("n", old_mark="m")
        await first.update_compressed_summary("before")
        assert [msg.content for msg in await second.get_memory()] == ["before", "b", "c"]
        assert [msg.content for msg in await second.get_memory(mark="n")] == ["before", "b"]
        assert await first.delete_by_mark("n") == 1
        assert await second.size() == 1
        await second.clear()
        assert await first.get_memory() == []
        with pytest.raises(TypeError, match="takes messages"):
            await first.add(["text"])

    run(main())


# With agents that reply ---------------------------------------------------------------------------------


def test_states_of_agents_that_reply(at):
    agent = Clerk().with_id("talker")
    assert [agent.submit(say(text)).get(20).content for text in ("one", "two")] == ["1:0", "2:2"]
    assert [text for text in told("talker") if ":" not in text] == ["one", "two"]
    sessions.fork("talker", "what-if")
    assert Clerk().with_id("what-if").submit(say("three")).get(20).content == "3:4"
    assert agent.submit(say("else")).get(20).content == "3:4"
    sessions.fork("what-if", "talker", replace=True)
    assert agent.submit(say("four")).get(20).content == "4:6", "the worker that knows the old one reads anew"
    assert [text for text in told("talker") if ":" not in text] == ["one", "two", "three", "four"]
    assert sessions.delete("talker")
    assert agent.submit(say("five")).get(20).content == "1:0", "and forgets what it knew"
    run(RedisMemory("talker").add(say("from outside")))
    assert agent.submit(say("six")).get(20).content == "2:3"
    assert sessions.list()[0].id == "talker"
    assert at.settled("talker")


def test_who_writes_waits_for_the_reply_that_runs(at, monkeypatch):
    agent, gate = Clerk().with_id("busy"), "gate-busy"
    job = agent.submit(say("one", gate=gate, note="busy-began"))
    at.wait_notes("busy-began", 1)
    monkeypatch.setattr(work, "PATIENCE", 0.3)
    with pytest.raises(StateBusy, match="is replying"):
        sessions.delete("busy")
    at.redis.set(gate, 1)
    assert job.get(20).content == "1:0"
    monkeypatch.setattr(work, "PATIENCE", 20)
    assert sessions.delete("busy")
    assert at.settled("busy")


def test_states_expire_and_are_kept_for_ever_with_0(redis_server):
    client = redis_server.client()
    with use_settings(client_settings(redis_server, state_expires=100)):
        sessions.save(filled("alice", "one"))
        for key in ("state", "memory"):
            assert 90 < client.ttl(f"callsheet:{key}:alice") <= 100
        assert client.ttl("callsheet:turn:alice") > 100
    with use_settings(client_settings(redis_server, state_expires=0)):
        sessions.save(filled("bob", "one"))
        assert client.ttl("callsheet:state:bob") == client.ttl("callsheet:memory:bob") == -1
        assert "bob" in [one.id for one in sessions.list()]


# The command line ---------------------------------------------------------------------------------------


def command(*args):
    return CliRunner().invoke(main, ["session", *args])


def test_the_command_line(redis_server, tmp_path):
    with use_settings(client_settings(redis_server)):
        redis_server.client().flushall()
        sessions.save(filled("alice", "hello there"))
        listed = command("list")
        assert "alice" in listed.stdout
        assert "tests.agents.remembering:Clerk" in listed.stdout
        assert json.loads(command("list", "--json").stdout)["id"] == "alice"
        shown = command("show", "alice").stdout
        assert "count = 1" in shown
        assert "u: hello there" in shown
        path = tmp_path / "a.jsonl"
        assert command("export", "alice", "--output", str(path)).exit_code == 0
        assert path.read_text(encoding="utf-8") == command("export", "alice").stdout
        assert command("import", str(path), "--id", "bob").stdout == "bob\n"
        assert command("fork", "bob", "carol").exit_code == 0
        refused = command("import", str(path))
        assert refused.exit_code == 1
        assert "already" in refused.stderr
        assert command("delete", "alice", "bob").exit_code == 0
        gone = command("delete", "alice")
        assert (gone.exit_code, "'alice'" in gone.stderr) == (1, True)
        assert "carol" in command("list").stdout
