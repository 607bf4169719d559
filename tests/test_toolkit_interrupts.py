"""Cancellation of a tool's call: an interrupt, a time limit, or the tool's own doing."""

import asyncio
from typing import Any

import pytest

import callsheet
from callsheet import AgentBase, Msg, Toolkit, ToolResponse
from callsheet.errors import AgentTimeout, JobCancelled
from callsheet.tasks.app import current_app
from tests.agents.tools import Caller, add, forever
from tests.fleet import Fleet
from tests.services import wait_for
from tests.toolbox import called, text_of, texts


async def sleeps() -> Any:
    """Never end."""
    await asyncio.Event().wait()


async def grows() -> Any:
    """Begin, and never end."""
    yield "so far"
    await asyncio.Event().wait()


async def cancels_itself() -> None:
    """Raise what nobody asked for."""
    raise asyncio.CancelledError


async def add_one(a: int = 0) -> int:
    """Add one."""
    return a + 1


def kit_of(*functions: Any) -> Toolkit:
    kit = Toolkit()
    for function in functions:
        kit.register_tool_function(function)
    return kit


class Parallel(AgentBase):
    """Calls a tool twice at once; ends as its `handle_interrupt` says."""

    def __init__(self, kit: Toolkit, tool: str) -> None:
        self.kit = kit
        self.tool = tool
        self.got: list[ToolResponse] = []

    async def reply(self) -> Msg:
        seen: list[list[ToolResponse]] = await asyncio.gather(called(self.kit, self.tool), called(self.kit, self.tool))
        return Msg("p", f"ended {[text_of(one) for one in seen]}", "assistant")

    async def handle_interrupt(self) -> Msg:
        return Msg("p", "interrupted", "assistant")


async def begun(count: int = 1) -> None:
    for _ in range(20 * count):
        await asyncio.sleep(0)


def test_outside_of_replies_the_interrupted_response_comes_before_the_cancellation() -> None:
    async def main() -> list[ToolResponse]:
        seen: list[ToolResponse] = []

        async def consume() -> None:
            async for response in await kit_of(grows).call_tool_function(
                    {"type": "tool_use", "id": "1", "name": "grows", "input": {}}):
                seen.append(response)

        task = asyncio.create_task(consume())
        await begun()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return seen

    seen = asyncio.run(main())
    assert texts(seen)[0] == "so far" and texts(seen)[1].startswith("so far<system-info>")
    assert (seen[1].is_interrupted, seen[1].is_last) == (True, True)
    assert not seen[0].is_interrupted


def test_outside_of_replies_a_timeout_around_the_call_is_one() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await called(kit_of(sleeps), "sleeps")

    asyncio.run(main())


def test_outside_of_replies_a_tool_that_cancels_itself_counts_as_interrupted() -> None:
    [response] = asyncio.run(called(kit_of(cancels_itself), "cancels_itself"))
    assert response.is_interrupted


def test_in_a_reply_a_tool_that_cancels_itself_has_failed() -> None:
    with callsheet.inline():
        reply = Caller("c", kit_of(cancels_itself)).submit("cancels_itself", {}).get()
    assert "broke off" in reply.content and not reply.metadata["interrupted"]


def test_an_interrupted_reply_gets_interrupted_responses() -> None:
    async def main() -> Msg:
        with callsheet.inline():
            job = Caller("c", kit_of(grows)).submit("grows", {})
            await begun()
            job.interrupt()
            return await job

    reply = asyncio.run(main())
    assert reply.metadata["interrupted"] and str(reply.content).startswith("so far")


def test_an_interrupt_reaches_calls_that_run_side_by_side() -> None:
    async def main() -> Msg:
        with callsheet.inline():
            job = Parallel(kit_of(sleeps), "sleeps").submit()
            await begun()
            job.interrupt()
            return await job

    assert asyncio.run(main()).content == "interrupted"


class Goes(AgentBase):
    """Goes on after an interrupted tool."""

    def __init__(self, kit: Toolkit, rest: str) -> None:
        self.kit = kit
        self.rest = rest

    async def reply(self) -> Msg:
        first = await called(self.kit, "sleeps")
        again = await called(self.kit, self.rest)
        return Msg("g", f"{first[-1].is_interrupted} {again[-1].is_interrupted} {text_of(again)}", "assistant")


def test_an_interrupt_counts_once() -> None:
    async def main(rest: str, **options: Any) -> str:
        with callsheet.inline():
            job = Goes(kit_of(sleeps, cancels_itself, add_one), rest).submit(**options)
            await begun()
            job.interrupt()
            await begun()
            if rest == "sleeps" and not options:
                job.interrupt()
            return str((await job).content)

    assert asyncio.run(main("add_one")) == "True False 1"
    assert asyncio.run(main("cancels_itself")).startswith("True False Error: the tool broke off")
    assert asyncio.run(main("sleeps")).startswith("True True")
    with pytest.raises(AgentTimeout):  # what ends the second call is the time limit
        asyncio.run(main("sleeps", timeout=0.3))


class Tidies(AgentBase):
    """Calls a tool while it handles an interrupt."""

    def __init__(self, kit: Toolkit) -> None:
        self.kit = kit

    async def reply(self) -> Msg:
        await asyncio.Event().wait()
        return Msg("t", "never", "assistant")

    async def handle_interrupt(self) -> Msg:
        return Msg("t", text_of(await called(self.kit, "sleeps")), "assistant")


def test_a_time_limit_while_an_interrupt_is_handled_is_one() -> None:
    async def main() -> None:
        with callsheet.inline():
            job = Tidies(kit_of(sleeps)).submit(timeout=0.3)
            await begun()
            job.interrupt()
            with pytest.raises(AgentTimeout):
                await job

    asyncio.run(main())


def test_a_time_limit_and_a_cancelled_job_are_no_interrupts() -> None:
    async def main() -> None:
        with callsheet.inline():
            with pytest.raises(AgentTimeout):
                await Caller("c", kit_of(sleeps)).submit("sleeps", {}, timeout=0.05)
            job = Caller("c", kit_of(sleeps)).submit("sleeps", {})
            await begun()
            job.cancel()
            with pytest.raises(JobCancelled):
                await job

    asyncio.run(main())


def test_a_consumer_that_stops_early_ends_the_tool() -> None:
    ended: list[str] = []

    async def tidy() -> Any:
        """Give, and tidy up."""
        try:
            yield "one"
            yield "two"
        finally:
            ended.append("tidied")

    async def main() -> None:
        found = await kit_of(tidy).call_tool_function({"type": "tool_use", "id": "1", "name": "tidy", "input": {}})
        assert text_of([await anext(found)]) == "one"
        await found.aclose()

    asyncio.run(main())
    assert ended == ["tidied"]


def test_an_interrupt_ends_the_job_of_a_queued_tool(fleet: Fleet) -> None:
    kit = Toolkit()
    kit.register_tool_function(forever, queue="cpu")
    kit.register_tool_function(add, queue="cpu")
    for _ in range(3):  # more than there are processes
        job = Caller("c", kit).submit("forever", {})
        while not job.interrupt():
            pass
        reply = job.get(30)
        assert reply.metadata["interrupted"]
    assert Caller("c", kit).submit("add", {"a": 2}).get(30).content == "2"


def test_a_time_limit_within_a_tools_own_is_the_jobs(fleet: Fleet) -> None:
    kit = Toolkit()
    kit.register_tool_function(forever, timeout=60, retries=3)
    with pytest.raises(AgentTimeout):
        Caller("c", kit).submit("forever", {}, timeout=0.5).get(30)
    with pytest.raises(AgentTimeout):
        Caller("c", kit).submit("forever", {}, timeout=0.5, queue="cpu").get(30)


def test_a_cancelled_job_ends_a_tools_call_and_its_job(fleet: Fleet) -> None:
    kit = Toolkit()
    kit.register_tool_function(forever, queue="cpu")
    kit.register_tool_function(add, queue="cpu")
    for _ in range(3):  # more than there are processes
        job = Caller("c", kit).submit("forever", {})
        fleet_busy(fleet)
        job.cancel()
        with pytest.raises(JobCancelled):
            job.get(30)
    assert Caller("c", kit).submit("add", {"a": 2}).get(30).content == "2"


def fleet_busy(fleet: Fleet) -> None:
    """Wait until a tool runs on the cpu worker."""
    inspect = current_app(fleet.settings).control.inspect(timeout=1)
    wait_for(lambda: any("ToolCall" in str(calls) for calls in (inspect.active() or {}).values()), 30, "a tool's job")
