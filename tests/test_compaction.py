"""Memories that grow too long: what the policies do, also on workers, and that the original stays readable."""

import asyncio

import pytest

import callsheet
from callsheet import Msg, sessions
from callsheet.errors import UsageError
from callsheet.formatters.base import TokenCounterBase
from callsheet.memory import InMemoryMemory, KeepLast, Summarize
from callsheet.testing import ScriptedModel
from tests.agents.remembering import AsyncOnCpu, Clerk, halves, raises
from tests.office import say


def run(coro):
    return asyncio.run(coro)


def msgs(*texts):
    return [Msg("u", text, "user") for text in texts]


def called(name, text):
    block = {"type": "tool_use", "id": name, "name": "f", "input": {}}
    result = {"type": "tool_result", "id": name, "name": "f", "output": text}
    return [Msg("a", [block], "assistant"), Msg("system", [result], "system")]


# Policies ----------------------------------------------------------------------------------------------


def test_within_the_budget_nothing_happens():
    assert run(KeepLast(1, 1000)(msgs("a" * 40, "b" * 40), "")) is None


def test_as_many_stay_as_said_or_as_half_the_budget_holds():
    long = msgs(*("x" * 400 for _ in range(10)))  # 104 tokens each
    assert run(KeepLast(3, 1000)(long, "s")) == ("s", 3)
    assert run(KeepLast(8, 1000)(long, "s")) == ("s", 4)
    assert run(KeepLast(8, 10)([*long, Msg("a", "z" * 400, "assistant")], "s")) == ("s", 0)


def test_a_tools_result_stays_with_its_call():
    history = [*msgs("x" * 400), *called("one", "y" * 200), *called("two", "z" * 40)]
    asked = "What was asked last: " + "x" * 200  # by whom the reply that is under way was
    assert run(KeepLast(1, 120)(history, "")) == (asked, 2)
    assert run(KeepLast(4, 240)([*history, *msgs("y")], asked)) == ("", 5)
    side_by_side = [*msgs("x" * 400), called("a", "")[0], called("b", "")[0], called("a", "r")[1], called("b", "r")[1]]
    assert run(KeepLast(1, 120)(side_by_side, "")) == (asked, 4)


def test_ids_that_come_again_do_not_part_a_result_from_its_call():
    history = [*called("0", "x" * 400), *called("0", "y" * 400), *msgs("z" * 40)]
    assert run(KeepLast(2, 400)(history * 2, "")) == ("", 3)


def test_a_counter_of_tokens_counts():
    class Words(TokenCounterBase):
        async def count(self, messages, **_):
            return len(messages[0]["content"].split())

    assert run(KeepLast(1, 3, counter=Words())(msgs("one", "two"), "")) is None
    assert run(KeepLast(1, 3, counter=Words())(msgs("one two three", "four"), "")) == ("", 1)


@pytest.mark.parametrize("stream", [False, True])
def test_the_model_is_given_what_goes_and_the_summary_before(stream):
    model = ScriptedModel(["They talked about tea."], stream=stream)
    policy = Summarize(model, 30, keep=1)
    history = [*msgs("Shall we have tea?" + "x" * 200), *called("one", "green"), *msgs("Yes.")]
    assert run(policy(history, "They met.")) == ("They talked about tea.", 1)
    asked = model.calls[0].messages[0]["content"]
    for part in ("What was before: They met.", "u: Shall we have tea?", "[calls f with {}]", "[f gave: green]"):
        assert part in asked
    assert "Yes." not in asked


def test_a_model_without_words_and_numbers_that_cannot_be_right():
    with pytest.raises(UsageError, match="gave no text"):
        run(Summarize(ScriptedModel([" "]), 1, keep=0)(msgs("x" * 100), ""))
    for wrong in ({"max_tokens": 0}, {"max_tokens": "7"}, {"max_tokens": True}, {"max_tokens": 5, "keep": -1}):
        with pytest.raises(UsageError, match="a whole number is needed"):
            KeepLast(**{"keep": 1, **wrong})


def test_a_memory_outside_of_jobs_is_compacted_when_told():
    async def main():
        memory = InMemoryMemory(compaction=halves)
        await memory.add(msgs(*"abcdefgh"))
        await memory.compact()
        first = [msg.content for msg in await memory.get_memory()]
        await memory.add(msgs(*"ijklm"))
        await memory.compact()
        return first, [msg.content for msg in await memory.get_memory()]

    assert run(main()) == (["6 messages before", "g", "h"], ["11 messages before", "l", "m"])


# In jobs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["io", "cpu", "inline"])
def test_after_each_turn_the_policy_looks_and_the_original_stays(at, place):
    cls = AsyncOnCpu if place == "cpu" else Clerk

    def talk():
        agent = cls("a", InMemoryMemory(compaction=halves)).with_id(f"compact-{place}")
        found = [agent.submit(say(f"m{number}")).get(20).content for number in range(7)]
        return (found, sessions.state(agent.id)["memory._compressed_summary"],
                [msg.content for msg in sessions.messages(agent.id)],
                [msg.content for msg in sessions.messages(agent.id, original=True)])

    if place == "inline":
        with callsheet.inline():
            found, summary, now, original = talk()
    else:
        found, summary, now, original = talk()
    # Two messages a turn; after the fourth there are eight: six go, and a summary stands for them.
    assert found == ["1:0", "2:2", "3:4", "4:6", "5:3", "6:5", "7:7"]
    assert (summary, now) == ("12 messages before", ["m6", "7:7"])
    assert original == [text for number in range(7) for text in (f"m{number}", found[number])]


def test_a_summary_by_a_model_is_what_another_worker_finds(office):
    model = ScriptedModel(["Bob likes tea."], then="last")
    agent = Clerk("a", InMemoryMemory(compaction=Summarize(model, 40, keep=2))).with_id("bob")
    first = office.hire("io", "-c", "2")
    assert agent.submit(say("x" * 100)).get(20).content == "1:0"
    assert agent.submit(say("y" * 100)).get(20).content == "2:2"
    first.kill()
    office.hire("io", "-c", "2")
    assert agent.submit(say("z")).get(30).content == "3:2", "a summary and a message"
    assert sessions.state("bob")["memory._compressed_summary"] == "Bob likes tea."
    assert [msg.content for msg in sessions.messages("bob")] == ["2:2", "z", "3:2"]
    assert [msg.content[0] for msg in sessions.messages("bob", original=True)] == ["x", "1", "y", "2", "z", "3"]


def test_a_policy_that_raises_changes_nothing_and_fails_no_call(at):
    agent = Clerk("a", InMemoryMemory(compaction=raises)).with_id("bad-day")
    assert [agent.submit(say(str(number))).get(20).content for number in range(3)] == ["1:0", "2:2", "3:4"]
    assert len(sessions.messages("bad-day")) == 6
