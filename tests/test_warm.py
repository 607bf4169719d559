"""Agents that a worker keeps ready between their turns: how many, how large, and of which state."""

import os

import pytest

from callsheet import AgentBase
from callsheet.memory import InMemoryMemory
from callsheet.tasks.turns.binding import Binding
from callsheet.tasks.turns.desk import Warm, WarmAgents
from tests.agents.remembering import Built
from tests.office import say


class Small(AgentBase):
    def __init__(self):
        self.memory = InMemoryMemory()

    async def reply(self):
        """Is not called."""


def warm(spec="spec", size=0):
    found = Warm(spec, Binding(Small(), None), 1, {})
    found.binding.size = size
    return found


# The shelf ---------------------------------------------------------------------------------------------


def test_the_least_recently_used_goes_first():
    shelf = WarmAgents(2, 1_000_000)
    for name in "ab":
        shelf.keep(name, warm(name))
    kept = shelf.take("a", "a")
    shelf.keep("a", kept)
    shelf.keep("c", warm("c"))
    assert (shelf.take("b", "b"), len(shelf)) == (None, 2)
    assert shelf.take("a", "a") is kept


def test_they_take_no_more_memory_than_they_may():
    shelf = WarmAgents(100, 100_000)  # an agent counts 20,000 bytes and its state twice
    for name in "abc":
        shelf.keep(name, warm(name, 10_000))
    assert [bool(shelf.take(name, name)) for name in "abc"] == [False, True, True]
    assert shelf.size == 0
    shelf.keep("d", warm("d", 10_000))
    shelf.keep("large", warm("large", 50_000))
    assert shelf.take("large", "large") is None
    assert shelf.take("d", "d") is not None, "what is too large by itself pushes nobody out"
    shelf.keep("e", warm("e", 10_000))
    shelf.keep("e", warm("e", 20_000))
    assert (len(shelf), shelf.size) == (1, 60_000)


def test_an_agent_that_is_built_of_something_else_now_is_not_taken():
    shelf = WarmAgents(2, 1_000_000)
    shelf.keep("a", warm("old"))
    assert (shelf.take("a", "new"), len(shelf), shelf.size) == (None, 0, 0)
    empty = WarmAgents(0, 1_000_000)
    empty.keep("a", warm())
    assert len(empty) == 0


# On workers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "again"), [
    ({"CALLSHEET_WARM_AGENTS": "2"}, ["a"]), ({"CALLSHEET_WARM_BYTES": "60000"}, ["a"])])
def test_a_worker_keeps_as_many_agents_as_the_settings_say(office, limit, again):
    worker = office.hire("io", "-c", "2", **limit)
    agents = {name: Built(name, "built").with_id(f"{name}-id") for name in "abc"}
    for name in "abc":
        assert agents[name].submit(say("x")).get(20).content == "1:0"
    office.redis.delete("built")
    told = [agents[name].submit(say("x")).get(20).content for name in "cca"]
    assert told == ["2:2", "3:4", "2:2"], "whoever is built anew finds its state"
    here = [text.split() for text in office.notes("built")]
    assert [name for name, pid in here if int(pid) == worker.process.pid] == again
    assert not [pid for _, pid in here if int(pid) == os.getpid()]


def test_a_warm_agent_whose_state_another_worker_wrote_reads_what_is_new(office):
    one, two = office.hire("io", "-c", "2"), office.hire("io", "-c", "2", "-Q", "extra")
    agent = Built("a", "built").with_id("moves")
    pids = []
    for number, queue in enumerate(["io", "io", "extra", "io", "extra"]):
        reply = agent.submit(say("x"), queue=queue).get(20)
        assert reply.content == f"{number + 1}:{2 * number}"
        pids.append(reply.metadata["pid"])
    assert pids == [one.process.pid] * 2 + [two.process.pid, one.process.pid, two.process.pid]
    workers = [int(text.split()[1]) for text in office.notes("built")]
    assert (workers.count(one.process.pid), workers.count(two.process.pid)) == (1, 1), "neither was built anew"
