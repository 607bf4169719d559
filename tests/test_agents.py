"""AgentBase: what it records, what it says of itself, interrupts, printing, options."""

import asyncio
import copy
import pickle
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import callsheet
from callsheet import AgentBase, CallOptions, Msg, SequentialPipeline
from callsheet.agents.running import run_reply
from callsheet.errors import UsageError
from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Reader, Writer
from tests import travellers
from tests.hanging import for_ever


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def say(text: str) -> Msg:
    return Msg("me", text, "user")


def sent(agent: Any) -> Any:
    """The agent as a worker would build it; its class may be local to the test."""
    local: list[Any] = []
    data = Writer(local=local).write(agent, "the agent")
    return Reader(AllowList(()), local).read(data)


# What a constructor was given --------------------------------------------------------------------------------

class Base(AgentBase):
    def __init__(self, name: str, size: int = 1, *rest: Any, deep: bool = False, **more: Any) -> None:
        super().__init__()
        self.name = name
        self.size = size
        self.rest = rest
        self.deep = deep
        self.more = more


class Sub(Base):
    def __init__(self, colour: str) -> None:
        super().__init__("sub", 2, deep=True)
        self.colour = colour


class Forgetful(Base):
    def __init__(self, colour: str) -> None:  # does not call its base's
        self.colour = colour


@dataclass
class Data(AgentBase):
    name: str
    size: int = 3


class Plain(AgentBase):
    pass


def facts(agent: AgentBase) -> dict[str, Any]:
    return {key: value for key, value in vars(agent).items() if not key.startswith("_")}


@pytest.mark.parametrize("agent", [
    Base("a"), Base("a", 2), Base("a", 2, 3, 4, deep=True, other=[1, {"k": (2,)}]), Base(name="a", size=5), Sub("red"),
    Sub(colour="red"), Forgetful("red"), Data("d"), Data(name="d", size=1), Plain()],
    ids=lambda agent: type(agent).__name__)
def test_the_constructors_arguments_build_an_equal_agent(agent: AgentBase) -> None:
    again = sent(agent)
    assert type(again) is type(agent)
    assert again is not agent
    assert facts(again) == facts(agent)
    assert facts(sent(again)) == facts(agent)


def test_what_is_set_afterwards_does_not_travel() -> None:
    agent = Base("a")
    agent.name = "changed"
    assert sent(agent).name == "a"


def test_a_list_that_the_constructor_or_the_caller_adds_to_travels_as_given() -> None:
    class Adding(AgentBase):
        def __init__(self, items: list[int], options: dict[str, int], tags: set[str]) -> None:
            items.append(9)
            options["k"] = 9
            tags.add("nine")
            self.items = items
            self.options_given = options
            self.tags = tags

    items, options, tags = [1], {"a": 1}, {"one"}
    agent = Adding(items, options, tags=tags)
    items.append(10)
    again = sent(agent)
    assert (again.items, again.options_given, again.tags) == ([1, 9], {"a": 1, "k": 9}, {"one", "nine"})


def test_agents_given_to_agents_travel_with_their_ids() -> None:
    inner = Base("in")
    outer = Base("out", 1, inner, helper=[inner])
    again = sent(outer)
    assert again.id == outer.id
    assert (again.rest[0].id, again.more["helper"][0].name) == (inner.id, "in")


def test_each_agent_has_an_id_of_its_own() -> None:
    assert Plain().id != Plain().id
    assert len(Plain().id) == 32


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda agent: pickle.loads(pickle.dumps(agent))])
def test_a_copy_is_still_an_agent(copied: Any) -> None:
    agent = travellers.Holder("a", tools=[1])
    again = copied(agent)
    assert (again.name, again.tools, again.id) == ("a", [1], agent.id)
    assert sent(again).tools == [1]


# What it says of itself ----------------------------------------------------------------------------------------

def test_queue_and_label() -> None:
    class Cpu(AgentBase):
        def reply(self) -> None:
            return None

    class Gpu(Cpu, queue="gpu"):
        pass

    class Under(Gpu):
        pass

    class Back(Under, queue="io"):
        async def reply(self) -> None:  # type: ignore[override]
            return None

    assert [cls.default_queue() for cls in (Plain, Cpu, Gpu, Under, Back)] == ["io", "cpu", "gpu", "gpu", "io"]
    assert [cls.is_async() for cls in (Plain, Cpu, Back)] == [True, False, True]
    assert Base("a").label == "Base(a)"
    assert Plain().label == "Plain"
    assert repr(Base("a")).startswith("<Base(a) ")
    assert SequentialPipeline([Base("a"), Plain()]).label == "SequentialPipeline(Base(a), Plain)"


@pytest.mark.parametrize(("call", "name"), [
    (lambda agent: agent.reply(say("x")), "reply"), (lambda agent: agent.observe(say("x")), "observe"),
    (lambda agent: agent.handle_interrupt(), "handle_interrupt")])
def test_a_missing_method_says_what_to_write(call: Any, name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"Plain has no {name} method.*async def {name}"):
        run(call(Plain()))


# Interrupts ----------------------------------------------------------------------------------------------------

class Long(AgentBase):
    async def reply(self, msg: Msg, seconds: float = 30) -> Msg:
        await asyncio.sleep(seconds)
        return say("finished")

    async def handle_interrupt(self, msg: Msg, seconds: float = 30) -> Msg:
        return say(f"interrupted in {msg.content}")


def test_an_interrupt_is_answered_by_handle_interrupt() -> None:
    async def main() -> list[Any]:
        agent, other = Long(), Long()
        calls = [asyncio.create_task(run_reply(agent, (say(word),), {})) for word in "ab"]
        third = asyncio.create_task(run_reply(other, (say("c"), 0.05), {}))
        await asyncio.sleep(0.01)
        await agent.interrupt()
        out = [(await call).content for call in [*calls, third]]
        await agent.interrupt()  # nothing runs any more
        assert all(call.cancelling() == 0 for call in calls)
        return out

    assert run(main()) == ["interrupted in a", "interrupted in b", "finished"]


def test_a_cancellation_or_a_timeout_is_no_interrupt() -> None:
    async def main() -> None:
        call = asyncio.create_task(run_reply(Long(), (say("x"),), {}))
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await run_reply(Long(), (say("x"),), {})

    run(main())


def test_an_interrupt_without_a_handler_says_what_to_write() -> None:
    class Deaf(AgentBase):
        async def reply(self) -> Msg:
            await self.interrupt()
            await for_ever()
            return say("x")

    with pytest.raises(NotImplementedError, match="Deaf has no handle_interrupt"):
        run(run_reply(Deaf(), (), {}))


def test_an_interrupt_that_comes_too_late_leaves_the_reply() -> None:
    class Late(AgentBase):
        async def reply(self) -> Msg:
            await self.interrupt()
            return say("done")

    async def main() -> Any:
        reply = await run_reply(Late(), (), {})
        await asyncio.sleep(0)  # the task is not cancelled either
        return reply

    assert run(main()).content == "done"


def test_an_agent_may_interrupt_itself_in_a_job() -> None:
    class Self(AgentBase):
        async def reply(self, msg: Msg) -> Msg:
            await self.interrupt()
            await for_ever()
            return msg

        async def handle_interrupt(self, msg: Msg) -> Msg:
            return say(f"stopped {msg.content}")

    with callsheet.inline():
        assert Self().submit(say("x"), timeout=5).get().content == "stopped x"


# Printing ------------------------------------------------------------------------------------------------------

def test_growing_messages_show_once_on_the_console(capsys: pytest.CaptureFixture[str]) -> None:
    agent, msg = Plain(), Msg("bob", "", "assistant")

    async def main() -> None:
        for text, last in (("Hel", False), ("Hello", False), ("Hello!", True)):
            msg.content = text
            await agent.print(msg, last)
        await agent.print(Msg("bob", [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "well"},
                                      {"type": "tool_use", "id": "1", "name": "f", "input": {"ä": 1}}], "assistant"))
        agent.set_console_output_enabled(False)
        await agent.print(say("unseen"))

    run(main())
    out = capsys.readouterr().out
    assert out == 'bob: Hello!\nbob (thinking): hm\nbob: well\nbob: {"type": "tool_use", "id": "1", "name": "f", ' \
                  '"input": {"ä": 1}}\n'


def test_printed_messages_go_to_the_queue_as_copies(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        agent, msg = Plain(), say("one")
        assert agent.msg_queue is None
        agent.set_msg_queue_enabled(True)
        queue = agent.msg_queue
        assert queue is not None
        await agent.print(msg, last=False)
        msg.content = "two"
        agent.set_msg_queue_enabled(True)
        assert agent.msg_queue is queue
        first, last = queue.get_nowait()
        assert (first.content, last) == ("one", False)
        own: asyncio.Queue[Any] = asyncio.Queue()
        agent.set_msg_queue_enabled(True, own)
        await agent.print(msg)
        assert own.get_nowait()[1] is True
        agent.set_msg_queue_enabled(False)
        assert agent.msg_queue is None

    run(main())


# Options -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("options", "match"), [
    ({"priority": 10}, "priority=10"), ({"priority": -1}, "priority"), ({"priority": "high"}, "'high'"),
    ({"priority": 1.5}, "whole number"), ({"priority": True}, "priority=True"), ({"timeout": 0}, "timeout=0"),
    ({"timeout": "5"}, "timeout='5'"), ({"timeout": float("nan")}, "timeout=nan"), ({"timeout": float("inf")}, "inf"),
    ({"countdown": -1}, "countdown"), ({"countdown": 1, "eta": datetime.now(UTC)}, "give one"), ({"eta": 5}, "eta=5"),
    ({"expires": 0}, "expires"), ({"expires": "1h"}, "expires='1h'"), ({"retries": -1}, "retries"),
    ({"retries": None}, "retries"), ({"retries": 1.5}, "retries"), ({"queue": ""}, "queue=''"), ({"queue": 5}, "queue"),
    ({"countdown": 1e12}, "a billion"), ({"expires": 10**400}, "a billion"), ({"timeout": 1e300}, "a billion"),
    ({"tenant": "\n"}, "printable"), ({"job_id": "x" * 256}, "1 to 255"), ({"job_id": "\ud800"}, "printable"),
    ({"job_id": ""}, "job_id"), ({"job_id": 7}, "job_id=7"), ({"prio": 3}, "prio: no such option.*priority")])
def test_options_that_cannot_be_right_are_refused(options: dict[str, Any], match: str) -> None:
    for target in (Plain(), SequentialPipeline([Plain()])):
        with pytest.raises(UsageError, match=match):
            target.options(**options)
    if "prio" not in options:
        with pytest.raises(UsageError, match=match):
            Plain().submit(say("x"), **options)


def test_options_say_when_to_start() -> None:
    now = datetime.now(UTC)
    assert CallOptions().start_time() is None
    assert CallOptions(countdown=0).start_time() is None
    assert CallOptions(eta=now).start_time() == now
    start = CallOptions(countdown=10).start_time()
    assert start is not None
    assert timedelta(seconds=9) < start - now < timedelta(seconds=11)


def test_an_option_that_is_a_parameter_of_reply_has_to_be_told_apart() -> None:
    class Timer(AgentBase):
        async def reply(self, msg: Msg, timeout: float = 1) -> Msg:
            return say(str(timeout))

    with callsheet.inline():
        for target in (Timer(), SequentialPipeline([Timer()])):
            with pytest.raises(UsageError, match=r"timeout: an option of submit and a parameter of Timer\.reply"):
                target.submit(say("x"), timeout=5)
            assert target.options(timeout=30).submit(say("x"), timeout=5).get().content == "5"
            assert target.submit(say("x"), retries=1).get().content == "1"

        async def main() -> Any:
            return await Timer()(say("x"), timeout=7)

        assert run(main()).content == "7"


def test_a_reply_with_a_yield_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(UsageError, match=r"Yields\.reply has a yield"):
        class Yields(AgentBase):
            async def reply(self, msg: Msg) -> Any:
                yield msg


def test_submit_on_the_class_says_to_make_an_agent_first() -> None:
    class Quiet(AgentBase):
        async def reply(self, msg: Msg) -> Msg:
            return msg

    with pytest.raises(UsageError, match="make an agent first"):
        Quiet.submit(say("x"))
