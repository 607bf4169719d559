"""ReActAgent: its loop, structured output, tools side by side, hooks, and a valid history whatever happens."""

import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import callsheet
from callsheet import Msg, ReActAgent, Toolkit
from callsheet.agents.running import run_reply
from callsheet.errors import MessageError, UsageError
from callsheet.formatters import CharTokenCounter, OpenAIChatFormatter
from callsheet.memory import InMemoryMemory, KeepLast, Summarize
from callsheet.models import ChatResponse, EndpointError, OpenAIChatModel
from callsheet.settings import Settings, use_settings
from callsheet.testing import Reply, ScriptedModel, StubModelServer, tool_call
from tests.agents.reacting import Total, roles, wait_at
from tests.agents.tools import add
from tests.fleet import Fleet
from tests.services import ROOT, RedisServer, worker

ASK = Msg("user", "How much is it?", "user")
started: list[str] = []


async def stuck(word: str = "") -> Any:
    """Say something, and never end."""
    started.append(word)
    yield f"so far {word}"
    await asyncio.Event().wait()


async def quick(word: str = "") -> str:
    """Answer at once."""
    started.append(word)
    return f"quick {word}"


async def last_first(number: int, of: int) -> str:
    """Wait until the calls after this one have answered."""
    while len(started) < of - 1 - number:
        await asyncio.sleep(0)
    started.append(str(number))
    return f"{number} after {len(started) - 1}"


@pytest.fixture(autouse=True)
def _fresh() -> None:
    started.clear()


def agent_with(script: list[Any], *tools: Any, stream: bool = False, **options: Any) -> ReActAgent:
    kit = Toolkit()
    for tool in tools:
        kit.register_tool_function(tool)
    formatter = options.pop("formatter", None) or OpenAIChatFormatter()
    agent = ReActAgent("bot", "You add.", ScriptedModel(script, stream=stream), formatter, kit, **options)
    agent.set_console_output_enabled(False)
    return agent


def run(agent: ReActAgent, *args: Any, **kwargs: Any) -> Msg:
    return asyncio.run(run_reply(agent, args or (ASK,), kwargs))


def history(agent: ReActAgent) -> list[Msg]:
    return asyncio.run(agent.memory.get_memory())


def shape(agent: ReActAgent) -> list[str]:
    """The history in short; fails if providers would refuse it: each call must have its result before all else."""
    found, open_calls = [], []
    for msg in history(agent):
        results = msg.get_content_blocks("tool_result")
        assert results or not open_calls, f"{open_calls} not answered before {msg}"
        for result in results:
            assert msg.role == "system" and result["id"] in open_calls, f"{result} answers nothing"
            open_calls.remove(result["id"])
            output = result["output"]
            found.append("= " + (output if isinstance(output, str) else " ".join(one["text"] for one in output)))
        open_calls += [call["id"] for call in msg.get_content_blocks("tool_use")]
        found += [f"> {call['name']}" for call in msg.get_content_blocks("tool_use")]
        found += [f"{msg.role}: {msg.get_text_content()}"] if msg.get_text_content() else []
    assert not open_calls, f"{open_calls} not answered"
    return found


# The loop --------------------------------------------------------------------------------------------------------

def test_tools_are_called_until_the_model_answers_in_plain_text() -> None:
    agent = agent_with([tool_call("add", a=2, b=3), "It is 5."], add)
    reply = run(agent)
    assert (reply.name, reply.role, reply.get_text_content(), reply.metadata) == ("bot", "assistant", "It is 5.", {})
    assert shape(agent) == ["user: How much is it?", "> add", "= 5", "assistant: It is 5."]
    first, second = agent.model.calls  # type: ignore[attr-defined]
    assert [schema["function"]["name"] for schema in first.tools] == ["add"] and first.tool_choice is None
    assert [message["role"] for message in second.messages] == ["system", "user", "assistant", "tool"]


def test_a_tools_error_and_an_unknown_tool_go_to_the_model() -> None:
    agent = agent_with([[tool_call("add", a="x"), tool_call("nothing")], "Sorry."], add)
    assert run(agent).get_text_content() == "Sorry."
    results = [line for line in shape(agent) if line.startswith("=")]
    assert "a:" in results[0] and "no tool 'nothing'" in results[1]


def test_without_message_and_without_tools_it_answers_from_what_it_observed() -> None:
    agent = agent_with(["Yes."])
    asyncio.run(agent.observe([ASK]))
    assert run(agent, None).get_text_content() == "Yes."
    assert shape(agent) == ["user: How much is it?", "assistant: Yes."]


def test_after_max_iters_the_model_sums_up() -> None:
    agent = agent_with([tool_call("add", a=1), tool_call("add", a=2), "So far 2."], add, max_iters=2)
    assert run(agent).get_text_content() == "So far 2."
    assert shape(agent)[-3:] == ["> add", "= 2", "assistant: So far 2."]
    last = agent.model.calls[-1]  # type: ignore[attr-defined]
    assert last.tool_choice == "none" and "sum up" in str(last.messages[-1])


def test_a_model_that_calls_tools_even_then_is_asked_without() -> None:
    agent = agent_with([tool_call("add", a=1), tool_call("add", a=2), "So far 1."], add, max_iters=1)
    assert run(agent).get_text_content() == "So far 1."
    assert shape(agent)[-2:] == ["= 1", "assistant: So far 1."]
    assert agent.model.calls[-1].tools is None  # type: ignore[attr-defined]


def test_an_answer_that_was_cut_and_asked_for_anew_leaves_no_mark() -> None:
    block: Any = {"type": "tool_use", "id": "1", "name": "add", "input": {"a": 2}}
    cut_call = ChatResponse([block], finish_reason="length")
    agent = agent_with([tool_call("add", a=1), cut_call, "Whole."], add, max_iters=1, on_cut="refuse")
    reply = run(agent)
    assert (reply.get_text_content(), reply.metadata) == ("Whole.", {})


@pytest.mark.parametrize("wrong", [0, -1, True, "10", 2.0])
def test_max_iters_is_a_positive_number(wrong: Any) -> None:
    with pytest.raises(UsageError, match="max_iters"):
        agent_with([], max_iters=wrong)


@pytest.mark.parametrize(("model", "formatter", "said"), [
    ("gpt-4o-mini", OpenAIChatFormatter(), "model='gpt-4o-mini': a chat model is needed"),
    (ScriptedModel([]), None, "formatter=None: the formatter of the model's provider is needed.*OpenAIChatFormatter"),
])
def test_what_is_no_model_or_formatter_is_refused_where_it_is_given(model: Any, formatter: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ReActAgent("friday", "You help.", model, formatter)


def test_an_error_of_the_model_is_raised_and_the_next_reply_finds_a_valid_history() -> None:
    agent = agent_with([tool_call("add", a=1), EndpointError("busy"), "Back."], add)
    with pytest.raises(EndpointError):
        run(agent)
    assert run(agent, Msg("user", "Again", "user")).get_text_content() == "Back."
    assert shape(agent)[-2:] == ["user: Again", "assistant: Back."]


TOO_LONG = EndpointError("too long", status=400, too_long=True)


def dump(size: int) -> str:
    """Give rows.

    Args:
        size: characters.
    """
    return "row " * (size // 4)


@pytest.mark.parametrize(("options", "calls", "most"), [
    ({"memory": InMemoryMemory(KeepLast(10, max_tokens=1000))}, 1, 2000),
    ({"memory": InMemoryMemory(KeepLast(10, max_tokens=1000))}, 4, 500),
    ({"formatter": OpenAIChatFormatter(token_counter=CharTokenCounter(), max_tokens=2000)}, 1, 1000), ({}, 1, 100_000)])
def test_what_a_tool_gives_leaves_room_in_the_context(options: dict[str, Any], calls: int, most: int) -> None:
    agent = agent_with([[tool_call("dump", size=400_000)] * calls, "Done."], dump, **options)
    assert run(agent).get_text_content() == "Done."
    [*_, prompt] = agent.model.calls  # type: ignore[attr-defined]
    results = [message["content"] for message in prompt.messages if message["role"] == "tool"]
    assert len(results) == calls and all("cut: the answer has 400,000" in text for text in results)
    assert all(most - 400 < len(text) < most + 400 for text in results)


def test_a_memory_is_compacted_before_the_model_is_asked_and_the_question_stays() -> None:
    memory = InMemoryMemory(KeepLast(2, max_tokens=300))
    asyncio.run(memory.add([Msg("user", f"old {number} " + "x" * 400, "user") for number in range(9)]))
    agent = agent_with([tool_call("add", a=1), tool_call("add", a=2), tool_call("dump", size=900), "Done."], add, dump,
                       memory=memory)
    assert run(agent).get_text_content() == "Done."
    for call in agent.model.calls:  # type: ignore[attr-defined]
        assert len(json.dumps(call.messages)) < 3000 and "How much is it?" in json.dumps(call.messages)


@pytest.mark.parametrize("times", [1, 3, 9])
def test_a_prompt_that_the_model_refuses_for_its_length_is_made_shorter(times: int) -> None:
    memory = InMemoryMemory(KeepLast(50, max_tokens=10_000_000))
    asyncio.run(memory.add([Msg("user", f"old {number} " + "x" * 4000, "user") for number in range(40)]))
    agent = agent_with([*[TOO_LONG] * times, "Done."], memory=memory)
    if times == 9:
        with pytest.raises(EndpointError):
            run(agent)
    else:
        assert run(agent).get_text_content() == "Done."
        sizes = [len(json.dumps(call.messages)) for call in agent.model.calls]  # type: ignore[attr-defined]
        assert all(late < early * 0.7 for early, late in itertools.pairwise(sizes))
        assert "How much is it?" in json.dumps(agent.model.calls[-1].messages)  # type: ignore[attr-defined]


def test_a_summary_is_of_what_its_model_can_read() -> None:
    policy = Summarize(ScriptedModel([TOO_LONG]), max_tokens=100, keep=1)
    old = [Msg("user", "x" * 100_000, "user"), Msg("bob", "So.", "assistant")]
    assert asyncio.run(policy(old, "before")) == ("before", 1)
    [call] = policy.model.calls  # type: ignore[attr-defined]
    assert len(json.dumps(call.messages)) < 2000


def test_without_a_compaction_a_prompt_that_is_too_long_is_an_error_and_forgotten() -> None:
    agent = agent_with(["Hello.", tool_call("add", a=1), TOO_LONG, "Here."], add)
    run(agent, Msg("user", "Hi", "user"))
    with pytest.raises(EndpointError):
        run(agent)
    assert shape(agent) == ["user: Hi", "assistant: Hello."]
    assert run(agent, Msg("user", "And?", "user")).get_text_content() == "Here."


def shows() -> Any:
    """Show what no provider takes."""
    return [{"type": "image", "source": {"type": "url", "url": "/gone/for/ever.png"}}]


def test_a_medium_that_cannot_be_sent_does_not_break_the_agent() -> None:
    gone = Msg("user", [{"type": "audio", "source": {"type": "base64", "media_type": "audio/ogg", "data": "T2dnUwA="}}],
               "user")
    agent = agent_with([tool_call("shows"), "Seen.", "Well."], shows,
                       formatter=OpenAIChatFormatter(promote_tool_result_images=True))
    asyncio.run(agent.observe(gone))
    assert run(agent).get_text_content() == "Seen."
    said = json.dumps(agent.model.calls[-1].messages)  # type: ignore[attr-defined]
    assert "audio that cannot be shown: Sound of type 'audio/ogg'" in said and "image that cannot be shown" in said
    with pytest.raises(MessageError, match="audio/ogg"):  # whoever asks with one is told
        run(agent, gone.model_copy(update={"id": "other"}))
    assert run(agent, Msg("user", "And?", "user")).get_text_content() == "Well."


def test_ids_of_calls_are_unique_in_a_memory() -> None:
    same = {"type": "tool_use", "id": "call_0", "name": "add", "input": {"a": 1}}
    agent = agent_with([[same, same], [same], "Done."], add)
    run(agent)
    ids, results = ([block["id"] for msg in history(agent) for block in msg.get_content_blocks(kind)]
                    for kind in ("tool_use", "tool_result"))
    assert len(ids) == 3 and ids == results and ids[2] != "call_0"


def cut(text: str, why: str = "length") -> ChatResponse:
    return ChatResponse([{"type": "text", "text": text}] if text else [], finish_reason=why)


@pytest.mark.parametrize("why", ["length", "content_filter"])
def test_an_answer_in_which_the_model_was_stopped_is_marked(why: str, caplog: pytest.LogCaptureFixture) -> None:
    agent = agent_with([cut("It is 1", why), "Whole."])
    reply = run(agent)
    assert (reply.get_text_content(), reply.metadata) == ("It is 1", {"_finish_reason": why})
    assert f"model_answer_cut agent=ReActAgent(bot) reason={why}" in caplog.text
    assert run(agent).metadata == {} and history(agent)[1].metadata == reply.metadata


@pytest.mark.parametrize(("script", "on_cut"), [([cut("")], "mark"), ([cut("", "content_filter")], "continue"),
                                                ([cut("It is 1")], "refuse")])
def test_an_answer_that_is_none_or_not_wanted_is_an_error_and_not_remembered(script: list[Any], on_cut: Any) -> None:
    agent = agent_with(script, on_cut=on_cut)
    with pytest.raises(EndpointError, match=r"ReActAgent\(bot\) was stopped (before|in) its answer"):
        run(agent)
    assert shape(agent) == ["user: How much is it?"]


def test_an_answer_in_which_the_model_was_stopped_can_go_on() -> None:
    agent = agent_with([cut("It is tw"), cut("enty-f"), "ive."], on_cut="continue")
    reply = run(agent)
    assert (reply.content, reply.metadata) == ([{"type": "text", "text": "It is twenty-five."}], {})
    last = agent.model.calls[-1].messages  # type: ignore[attr-defined]
    assert [message["role"] for message in last[2:]] == ["assistant", "assistant", "user"]
    assert "repeat nothing" in str(last[-1])
    with pytest.raises(UsageError, match="on_cut='no'"):
        agent_with([], on_cut="no")


# Structured output -----------------------------------------------------------------------------------------------

def test_data_and_text_of_one_answer_are_the_reply() -> None:
    agent = agent_with([[{"type": "text", "text": "Five."}, tool_call("generate_response", amount=5)]], add)
    reply = run(agent, ASK, structured_model=Total)
    assert (reply.get_text_content(), reply.metadata) == ("Five.", {"amount": 5, "currency": "EUR"})
    [call] = agent.model.calls  # type: ignore[attr-defined]
    assert call.tool_choice == "required"
    schema = call.tools[-1]["function"]
    assert schema["name"] == "generate_response" and set(schema["parameters"]["properties"]) == {"amount", "currency"}
    assert shape(agent)[-1] != "> generate_response"


def test_data_alone_are_followed_by_an_answer_in_words() -> None:
    agent = agent_with([tool_call("add", a=2), tool_call("generate_response", amount=2), "It is 2."], add)
    reply = run(agent, ASK, structured_model=Total)
    assert (reply.get_text_content(), reply.metadata["amount"]) == ("It is 2.", 2)
    calls = agent.model.calls  # type: ignore[attr-defined]
    assert [call.tool_choice for call in calls] == ["required", "required", "none"]
    assert "system-hint" in str(calls[2].messages[-1]) and not any("hint" in line for line in shape(agent))


def test_data_that_do_not_fit_and_text_instead_of_data_are_answered() -> None:
    agent = agent_with([tool_call("generate_response", amount=-1), "It is 2.",
                        [{"type": "text", "text": "Well, 2."}, tool_call("generate_response", amount=2)]])
    assert run(agent, ASK, structured_model=Total).metadata["amount"] == 2
    assert "amount" in shape(agent)[2] and "fit" in shape(agent)[2]
    assert "generate_response" in str(agent.model.calls[2].messages[-1])  # type: ignore[attr-defined]


def test_a_reply_without_the_data_that_it_needs_says_so() -> None:
    agent = agent_with([tool_call("add", a=1), tool_call("add", a=2), "I know none."], add, max_iters=1)
    reply = run(agent, ASK, structured_model=Total)
    assert (reply.get_text_content(), reply.metadata) == ("I know none.", {"_no_data": True})


def test_the_finish_tool_exists_only_while_data_are_asked_for() -> None:
    agent = agent_with([tool_call("generate_response", amount=1), "One.", tool_call("generate_response", amount=2),
                        "Two."])
    run(agent, ASK, structured_model=Total)
    reply = run(agent, Msg("user", "And now?", "user"))
    assert (reply.get_text_content(), reply.metadata) == ("Two.", {})
    assert not agent.model.calls[-1].tools and "no tool 'generate_response'" in " ".join(shape(agent))  # type: ignore[attr-defined]
    assert agent.toolkit.tools == {}


def test_agents_that_share_a_toolkit_do_not_share_the_finish_tool() -> None:
    kit = Toolkit()
    one, two = (ReActAgent(name, "s", ScriptedModel(script), OpenAIChatFormatter(), kit) for name, script in (
        ("one", [tool_call("generate_response", amount=1), "One."]), ("two", ["Two."])))

    async def main() -> list[Msg]:
        return await asyncio.gather(one.reply(ASK, structured_model=Total), two.reply(ASK))

    assert [reply.metadata.get("amount") for reply in asyncio.run(main())] == [1, None]
    assert not two.model.calls[0].tools  # type: ignore[attr-defined]


def test_a_form_that_is_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="structured_model"):
        run(agent_with(["x"]), ASK, structured_model=dict)


# Tools side by side ----------------------------------------------------------------------------------------------

def test_parallel_calls_run_at_once_and_their_results_stand_in_the_order_of_the_calls() -> None:
    calls = [tool_call("last_first", number=number, of=4) for number in range(4)]
    agent = agent_with([calls, "Done."], last_first, parallel_tool_calls=True)
    assert run(agent).get_text_content() == "Done."
    assert started == ["3", "2", "1", "0"]
    assert shape(agent)[5:9] == ["= 0 after 3", "= 1 after 2", "= 2 after 1", "= 3 after 0"]


def test_other_calls_run_one_after_the_other() -> None:
    agent = agent_with([[tool_call("quick", word="a"), tool_call("quick", word="b")], "Done."], quick)
    run(agent)
    assert started == ["a", "b"]


# Interrupts ------------------------------------------------------------------------------------------------------

async def interrupted(agent: ReActAgent, when: Callable[[], Any], *args: Any) -> Msg:
    """The reply of a run that is interrupted once `when` holds."""
    with callsheet.inline():
        task = asyncio.create_task(run_reply(agent, args or (ASK,), {}))
        async with asyncio.timeout(20):
            while not when():
                await asyncio.sleep(0)
        await agent.interrupt()
        reply = await task
    assert isinstance(reply, Msg)
    return reply


def check_interrupted(agent: ReActAgent, reply: Msg) -> list[str]:
    """The history without question and answer; a further reply must find it in order."""
    assert reply.metadata == {"_is_interrupted": True} and reply.role == "assistant"
    found = shape(agent)
    assert found[-1] == f"assistant: {reply.get_text_content()}"
    return found[1:-1]


def test_an_interrupt_while_the_model_thinks() -> None:
    agent = agent_with(["never"])
    agent.model.delay = 60  # type: ignore[attr-defined]
    reply = asyncio.run(interrupted(agent, lambda: agent.model.calls))  # type: ignore[attr-defined]
    assert check_interrupted(agent, reply) == []


@pytest.mark.parametrize("parallel", [False, True])
def test_an_interrupt_of_tool_calls_answers_each(parallel: bool) -> None:
    calls = [tool_call("quick", word="1"), tool_call("stuck", word="2"), tool_call("stuck", word="3")]
    agent = agent_with([calls, "Later."], quick, stuck, parallel_tool_calls=parallel)
    reply = asyncio.run(interrupted(agent, lambda: len(started) == 2 + parallel))
    found = check_interrupted(agent, reply)
    assert found[3] == "= quick 1" and found[4].startswith("= so far 2") and "interrupted" in found[4]
    assert "interrupted" in found[5] and ("so far 3" in found[5]) is parallel
    assert run(agent, Msg("user", "Go on", "user")).get_text_content() == "Later."
    shape(agent)


def test_an_interrupt_while_the_answer_streams_keeps_what_was_said() -> None:
    agent = agent_with([[{"type": "text", "text": "one two three"}, tool_call("quick")]], quick, stream=True)
    chunks: list[str | None] = []

    async def watch(self: Any, kwargs: dict[str, Any]) -> None:
        chunks.append(kwargs["msg"].get_text_content())
        if kwargs["msg"].has_content_blocks("tool_use") and not kwargs["last"]:
            await asyncio.Event().wait()

    agent.register_instance_hook("pre_print", "watch", watch)
    reply = asyncio.run(interrupted(agent, lambda: "one two three" in chunks))
    found = check_interrupted(agent, reply)
    assert found[:2] == ["> quick", "assistant: one two three"] and "interrupted" in found[2] and not started


@pytest.mark.parametrize("kind", ["pre_reasoning", "post_reasoning", "pre_acting", "post_acting", "pre_print"])
@pytest.mark.parametrize("parallel", [False, True])
def test_an_interrupt_anywhere_else_leaves_a_valid_history(kind: str, parallel: bool) -> None:
    seen: list[str] = []

    async def wait(self: Any, *_: Any) -> None:
        if not seen:
            seen.append(kind)
            await asyncio.Event().wait()

    agent = agent_with([[tool_call("quick", word="1"), tool_call("quick", word="2")], "Later."], quick,
                       parallel_tool_calls=parallel)
    agent.register_instance_hook(kind, "wait", wait)
    check_interrupted(agent, asyncio.run(interrupted(agent, lambda: seen)))


class Slow(InMemoryMemory):
    """A memory elsewhere: each call of it takes a while, and may be cancelled before or after it has done its work."""

    async def add(self, *args: Any, **kwargs: Any) -> None:
        await asyncio.sleep(0)
        await super().add(*args, **kwargs)
        await asyncio.sleep(0)

    async def get_memory(self, *args: Any, **kwargs: Any) -> list[Msg]:
        await asyncio.sleep(0)
        return await super().get_memory(*args, **kwargs)


async def steps(word: str = "") -> Any:
    """Say a word in two steps."""
    for part in range(2):
        await asyncio.sleep(0)
        yield f"{word}{part} "


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("memory", [InMemoryMemory, Slow])
def test_an_interrupt_after_any_number_of_steps_leaves_a_valid_history(memory: Any, parallel: bool) -> None:
    calls = [{"type": "text", "text": "let me see"}, tool_call("steps", word="a"), tool_call("steps", word="b")]

    async def main(after: int) -> tuple[ReActAgent, bool]:
        agent = agent_with([calls, calls, "Done."], steps, parallel_tool_calls=parallel, stream=True, memory=memory())
        with callsheet.inline():
            task = asyncio.create_task(run_reply(agent, (ASK,), {}))
            for _ in range(after):
                await asyncio.sleep(0)
            await agent.interrupt()
            reply = await task
        assert isinstance(reply, Msg)
        return agent, bool(reply.metadata)

    seen = []
    for after in range(1, 200):
        agent, was_interrupted = asyncio.run(main(after))
        assert shape(agent)[0] == "user: How much is it?"
        seen.append(was_interrupted)
        if not any(seen[-3:]):
            break
    assert sum(seen) >= 10 and not seen[-1]  # it was interrupted all along its way, and at last too late


def test_a_hook_that_raises_leaves_a_valid_history() -> None:
    def fail(self: Any, kwargs: dict[str, Any]) -> None:
        raise ValueError("no")

    agent = agent_with([[tool_call("quick"), tool_call("quick")]], quick, parallel_tool_calls=True)
    agent.register_instance_hook("pre_acting", "fail", fail)
    with pytest.raises(ValueError, match="no"):
        run(agent)
    assert [line for line in shape(agent) if "broken off" in line] == [
        "= <system-info>This tool call was broken off: there is no result.</system-info>"] * 2


# Hooks, printing, tool groups ------------------------------------------------------------------------------------

def test_hooks_see_and_change_reasoning_and_acting() -> None:
    async def cheaper(self: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"tool_call": {**kwargs["tool_call"], "id": "other", "input": {"a": 1}}}

    def without_second(self: Any, kwargs: dict[str, Any], output: Msg) -> Msg:
        output.content = output.get_content_blocks()[:1]
        return output

    agent = agent_with([[tool_call("add", a=5), tool_call("add", a=6)], "Done."], add)
    assert {"pre_reasoning", "post_acting"} <= set(agent.supported_hook_types)
    agent.register_instance_hook("pre_acting", "cheaper", cheaper)
    agent.register_instance_hook("post_reasoning", "without_second", without_second)
    run(agent)
    assert shape(agent)[1:3] == ["> add", "= 1"]  # the history has what was done


def test_a_subclass_may_remember_results_itself() -> None:
    class Own(ReActAgent):
        async def _acting(self, tool_call: Any) -> None:
            result: Any = {"type": "tool_result", "id": tool_call["id"], "name": tool_call["name"], "output": "own"}
            if tool_call["input"]:
                await self.memory.add(Msg("system", [result], "system"))

    agent = Own("bot", "s", ScriptedModel([[tool_call("a", x=1), tool_call("b")], "Done."]), OpenAIChatFormatter())
    run(agent)
    found = shape(agent)
    assert found[3] == "= own" and "broken off" in found[4]


def test_what_grows_is_printed_as_it_grows_and_its_end_is_marked() -> None:
    agent = agent_with(["one two three"], stream=True)

    async def main() -> list[tuple[str | None, bool, str]]:
        agent.set_msg_queue_enabled(True)
        await agent.reply(ASK)
        queue: Any = agent.msg_queue
        got = [queue.get_nowait() for _ in range(queue.qsize())]
        return [(msg.get_text_content(), last, msg.id) for msg, last in got]

    got = asyncio.run(main())
    assert [text for text, _, _ in got][:3] == ["one", "one two", "one two three"]
    assert [last for _, last, _ in got] == [False] * (len(got) - 1) + [True] and len({one for *_, one in got}) == 1


def test_tool_results_and_hints_are_printed_if_asked_for() -> None:
    agent = agent_with([tool_call("generate_response", amount=2), "Two."], print_hint_msg=True)
    printed: list[Msg] = []
    agent.register_instance_hook("pre_print", "note", lambda self, kwargs: printed.append(kwargs["msg"]))
    run(agent, ASK, structured_model=Total)
    assert [msg.role for msg in printed] == ["assistant", "system", "user", "assistant"]


def test_the_model_switches_tool_groups_with_the_meta_tool() -> None:
    kit = Toolkit()
    kit.create_tool_group("sums", "Adding.", notes="Add with care.")
    kit.register_tool_function(add, group_name="sums")
    model = ScriptedModel([tool_call("reset_equipped_tools", sums=True), tool_call("add", a=1), "1"])
    agent = ReActAgent("bot", "You add.", model, OpenAIChatFormatter(), kit, enable_meta_tool=True)
    ReActAgent("other", "You add.", model, OpenAIChatFormatter(), kit, enable_meta_tool=True)  # the same toolkit
    run(agent)
    assert [len(call.tools or ()) for call in model.calls] == [1, 2, 2]
    assert "Add with care." not in str(model.calls[0].messages[0]) and "Add with care." in agent.sys_prompt


def test_calls_that_share_an_id_each_get_a_result() -> None:
    twice = [{**tool_call("quick", word=word), "id": "call_0"} for word in "ab"]
    agent = agent_with([twice, twice, "Done."], quick)
    run(agent)
    assert [line for line in shape(agent) if line.startswith("=")] == ["= quick a", "= quick b"] * 2


def test_a_call_that_was_cut_off_before_its_name_is_not_remembered() -> None:
    nameless = {"type": "tool_use", "id": "1", "name": "", "input": {}}
    agent = agent_with([[{"type": "text", "text": "a b"}, nameless]], stream=True)
    seen: list[Msg] = []

    async def wait(self: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["msg"].has_content_blocks("tool_use"):
            seen.append(kwargs["msg"])
            await asyncio.Event().wait()

    agent.register_instance_hook("pre_print", "wait", wait)
    assert check_interrupted(agent, asyncio.run(interrupted(agent, lambda: seen))) == ["assistant: a b"]


def test_what_a_tool_gave_before_a_cancellation_is_remembered() -> None:
    agent = agent_with([[tool_call("stuck", word="a"), tool_call("quick")]], stuck, quick)

    async def main() -> None:
        task = asyncio.create_task(run_reply(agent, (ASK,), {}))
        while not started:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert shape(agent)[3].startswith("= so far a")


# Whole paths -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stream", [False, True])
def test_over_http(stream: bool) -> None:
    agent = ReActAgent("bot", "You add.", OpenAIChatModel("m", stream=stream), OpenAIChatFormatter(), Toolkit())
    agent.toolkit.register_tool_function(add)
    with StubModelServer() as server:
        server.plan(Reply(text="Wait.", tools=[("add", {"a": 2, "b": 3}), ("add", {"a": 1})]),
                    Reply(tools=[("generate_response", {"amount": 6})]), Reply(text="It is 6."))
        with use_settings(Settings.load(endpoints={"openai": {"base_url": server.base_url}})), callsheet.inline():
            reply = agent.submit(ASK, structured_model=Total).get()
        bodies = [call.body for call in server.calls]
    assert (reply.get_text_content(), reply.metadata) == ("It is 6.", {"amount": 6, "currency": "EUR"})
    assert [body.get("tool_choice") for body in bodies] == ["required", "required", "none"]
    roles = [message["role"] for message in bodies[1]["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "tool"]
    assert [message["content"] for message in bodies[1]["messages"][3:]] == ["5", "1"]


def test_on_a_worker(fleet: Fleet) -> None:
    agent = agent_with([tool_call("add", a=2, b=3), tool_call("generate_response", amount=5), "It is 5."], add,
                       enable_meta_tool=True, memory=InMemoryMemory(), stream=True)
    job = agent.submit(ASK, structured_model=Total)
    ends = [event.msg for event in job.stream() if event.last]
    reply = job.get(30)
    assert (reply.name, reply.get_text_content(), reply.metadata["amount"]) == ("bot", "It is 5.", 5)
    assert [msg.role for msg in ends] == ["assistant", "system", "assistant", "system", "assistant"]
    assert ends[1].get_content_blocks("tool_result")[0]["output"] == [{"type": "text", "text": "5"}]


def test_the_turn_after_an_interrupt_on_a_worker_finds_a_valid_history(fleet: Fleet) -> None:
    notes = fleet.key()
    calls = [tool_call("wait_at", gate=fleet.key("never"), notes=notes)] * 2
    agent = agent_with([calls, roles], wait_at, parallel_tool_calls=True)
    job = agent.submit(ASK)
    fleet.wait_notes(notes, 2)
    assert job.interrupt()
    assert job.get(30).metadata == {"_is_interrupted": True}
    shown = agent.submit(Msg("user", "Go on", "user")).get(30).get_text_content()
    assert shown == "system user assistant tool tool assistant user"


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    text = (ROOT / "docs/agents.md").read_text()
    [program] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "clerk" in block]
    (tmp_path / "shop.py").write_text(program)
    with StubModelServer() as server:
        server.plan(Reply(tools=[("price_of", {"item": "apple"}), ("price_of", {"item": "pear"})]),
                    Reply(text="2.40 euros.", tools=[("generate_response", {"amount": 2.4})]))
        assert run_python(str(tmp_path / "shop.py"), OPENAI_BASE_URL=server.base_url) == (
            "2.40 euros. {'amount': 2.4, 'currency': 'EUR'}\n")
        assert [message["content"] for message in server.calls[1].body["messages"][-2:]] == ["0.4", "0.6"]


def test_the_example_runs_here_and_on_workers(redis_server: RedisServer) -> None:
    said = "That is 2.40 euros.\n{'amount': 2.4, 'currency': 'EUR'}\n"
    assert run_python("-m", "examples.react_tools") == said
    with worker("callsheet.workers.io", redis_server.url, env={"CALLSHEET_MODULES": "examples"}):
        assert run_python("-m", "examples.react_tools", "--workers", CALLSHEET_REDIS_URL=redis_server.url) == said


def run_python(*args: str, **env: str) -> str:
    """What a program says, in an environment without a key."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("CALLSHEET_", "OPENAI_"))}
    done = subprocess.run([sys.executable, *args], cwd=ROOT, env={**kept, "PYTHONPATH": str(ROOT), **env}, text=True,
                          capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
