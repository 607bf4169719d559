"""State modules and memories as objects, without workers."""

import asyncio
import json

import pytest

from callsheet import AgentBase, Msg
from callsheet.errors import CannotTravel, StateMismatch, StateMissing, UsageError
from callsheet.memory import InMemoryMemory
from callsheet.memory.journal import apply, original
from callsheet.messages import StateModule
from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Reader, Writer


def run(coro):
    return asyncio.run(coro)


def msgs(*texts):
    return [Msg("u", text, "user") for text in texts]


def texts(memory, **options):
    return [msg.content for msg in run(memory.get_memory(**options))]


class Notes(StateModule):
    def __init__(self):
        self.lines = ["one"]
        self.register_state("lines")


class Counter(AgentBase):
    """Calls no super().__init__()."""

    def __init__(self, name="c"):
        self.name = name
        self.count = 0
        self.seen = {"a", "b"}
        self.notes = Notes()
        self.memory = InMemoryMemory()
        self.register_state("count")
        self.register_state("seen", custom_to_json=sorted, custom_from_json=set)


# StateModule -------------------------------------------------------------------------------------------


def test_the_state_is_what_is_registered_and_that_of_the_modules_in_it():
    agent = Counter()
    run(agent.memory.add(Msg("u", "hi", "user")))
    state = json.loads(json.dumps(agent.state_dict()))
    assert (state["count"], state["seen"], state["notes"]) == (0, ["a", "b"], {"lines": ["one"]})
    other = Counter()
    other.load_state_dict({**state, "count": 7, "seen": ["z"]})
    assert (other.count, other.seen, other.notes.lines) == (7, {"z"}, ["one"])
    assert texts(other.memory) == ["hi"]


def test_a_missing_part_is_an_error_only_if_strict():
    agent = Counter()
    with pytest.raises(StateMissing, match="lacks notes, memory, seen; it has count") as caught:
        agent.load_state_dict({"count": 1})
    assert isinstance(caught.value, KeyError)
    assert agent.count == 0
    agent.load_state_dict({"count": 1}, strict=False)
    assert agent.count == 1
    with pytest.raises(UsageError, match="a dictionary, not list"):
        agent.load_state_dict([])


def test_what_is_not_json_is_refused_when_it_is_registered_and_named():
    agent = Counter()
    agent.lock = object()
    with pytest.raises(TypeError, match=r"'lock' of Counter.*custom_to_json") as caught:
        agent.register_state("lock")
    assert isinstance(caught.value, CannotTravel)
    with pytest.raises(ValueError, match="a state module itself"):
        agent.register_state("memory")
    with pytest.raises(AttributeError):
        agent.register_state("nothing")


def test_agents_with_state_are_those_with_attributes_or_modules_that_have_some():
    class Plain(AgentBase):
        def __init__(self, *others):
            self.others = others
            self.one = others[0] if others else None

    assert Counter().has_state()
    assert not Plain().has_state()
    assert not Plain(Counter()).has_state(), "an agent in an attribute has its own"
    remembers = Plain()
    remembers.memory = InMemoryMemory()
    assert remembers.has_state()


# InMemoryMemory ----------------------------------------------------------------------------------------


def test_messages_come_back_in_order_once_each_and_as_copies():
    memory, [a, b] = InMemoryMemory(), msgs("a", "b")
    run(memory.add([a, b]))
    run(memory.add(a))
    run(memory.add(None))
    run(memory.add([b, b], allow_duplicates=True))
    a.content = "changed"
    assert texts(memory) == ["a", "b", "b", "b"]
    assert run(memory.size()) == 4


@pytest.mark.parametrize("wrong", ["text", 7, {"name": "a"}, [1], [Msg("a", "b", "user"), "c"]])
def test_what_is_no_message_is_refused(wrong):
    memory = InMemoryMemory()
    with pytest.raises(TypeError, match=r"Msg\(name, text, role\)"):
        run(memory.add(wrong))
    assert run(memory.size()) == 0


def test_delete_takes_ids_and_positions():
    memory, given = InMemoryMemory(), msgs(*"abcdef")
    run(memory.add(given))
    assert run(memory.delete(0)) == 1
    assert run(memory.delete([-1, 1])) == 2
    assert run(memory.delete([given[1].id, "unknown"])) == 1
    assert texts(memory) == ["d", "e"]
    for wrong, error in ((9, IndexError), (1.5, TypeError), ([None], TypeError)):
        with pytest.raises(error):
            run(memory.delete(wrong))
    run(memory.clear())
    assert run(memory.size()) == 0


def test_marks_choose_and_change():
    memory, [a, b, c] = InMemoryMemory(), msgs("a", "b", "c")
    run(memory.add(a, marks="x"))
    run(memory.add(b, marks=["x", "y"]))
    run(memory.add(c))
    assert texts(memory, mark="x") == ["a", "b"]
    assert texts(memory, mark="x", exclude_mark="y") == ["a"]
    assert run(memory.update_messages_mark("z", old_mark="y")) == 1
    assert run(memory.update_messages_mark("all")) == 3
    assert run(memory.update_messages_mark(None, old_mark="all", msg_ids=[c.id])) == 1
    assert [marks for _, marks in memory.content] == [["x", "all"], ["x", "z", "all"], []]
    assert run(memory.delete_by_mark(["z"])) == 1
    assert texts(memory) == ["a", "c"]
    for call in (memory.add(a, marks=[1]), memory.get_memory(mark=1), memory.delete_by_mark(7)):
        with pytest.raises(TypeError):
            run(call)


def test_a_summary_comes_first():
    memory = InMemoryMemory()
    run(memory.add(msgs("a")))
    run(memory.update_compressed_summary("so far"))
    assert texts(memory) == ["so far", "a"]
    assert texts(memory, prepend_summary=False) == ["a"]


def test_old_and_broken_content():
    memory = InMemoryMemory()
    memory.load_state_dict({"content": [Msg("u", "old", "user").to_dict()]})
    assert texts(memory) == ["old"]
    with pytest.raises(StateMismatch, match=r"Entry 2 .* not a message"):
        memory.load_state_dict({"content": [Msg("u", "a", "user").to_dict(), {"role": "user"}]})
    with pytest.raises(KeyError, match="lacks content"):
        memory.load_state_dict({})


def test_what_is_in_it_when_it_is_sent_travels():
    memory = InMemoryMemory()
    run(memory.add(msgs("before"), marks="k"))
    run(memory.update_compressed_summary("s"))
    arrived = Reader(AllowList(())).read(json.loads(json.dumps(Writer().write(memory, "m"))))
    assert (texts(arrived), arrived.content[0][1]) == (["s", "before"], ["k"])
    assert "extras" not in Writer().write(InMemoryMemory(), "m")


# Its log -----------------------------------------------------------------------------------------------


def replay(changes, content=()):
    found = list(content)
    for change in json.loads(json.dumps(changes)):
        found = apply(found, change)
    return found


async def _work(memory):
    a, b, c, d = msgs(*"abcd")
    await memory.add([a, b], marks="m")
    await memory.delete(0)
    await memory.add([c, d])
    await memory.update_messages_mark("n", msg_ids=[c.id])


def test_the_changes_add_up_to_the_content():
    memory = InMemoryMemory()
    memory.note_changes()
    run(_work(memory))
    changes = memory.take_changes()
    assert len(changes) == 6
    assert replay(changes) == memory.content
    memory.note_changes()
    assert memory.take_changes() == []
    memory.note_changes()
    run(memory.clear())
    run(memory.add(msgs("new")))
    assert [list(change) for change in memory.take_changes()] == [["set"], ["m"]]


def test_a_list_that_was_changed_directly_is_written_whole():
    memory = InMemoryMemory()
    memory.note_changes()
    memory.content.append((Msg("u", "x", "user"), []))
    [change] = memory.take_changes()
    assert replay([change], msgs("old")) == memory.content


def test_the_original_is_as_if_nothing_had_been_summarised():
    memory = InMemoryMemory()
    memory.note_changes()
    run(memory.add(msgs(*"abcd")))
    changes = memory.take_changes()
    kept = memory.content[2:]
    changes.append({"compact": [[msg.to_dict(), marks] for msg, marks in kept], "drop": [0, 1]})
    memory.content = kept
    memory.note_changes()
    run(memory.add(msgs("e")))
    run(memory.delete(0))
    run(memory.update_messages_mark("m", msg_ids=[memory.content[0][0].id]))
    changes += memory.take_changes()
    assert replay(changes) == memory.content
    assert [(msg.content, marks) for msg, marks in original(changes)] == [
        ("a", []), ("b", []), ("d", ["m"]), ("e", [])]
    assert [msg.content for msg, _ in original([*changes, {"set": []}])] == []


def test_a_change_of_a_newer_version_is_refused():
    with pytest.raises(StateMismatch, match="newer version"):
        apply([], {"fold": 3})
