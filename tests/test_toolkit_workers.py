"""Toolkits on real workers: they travel whole, and tools run where they are declared to."""

from functools import partial
from typing import Any

import pytest

import callsheet
from callsheet import AgentFailed, AgentTimeout, Toolkit
from callsheet.errors import CannotTravel, ModuleNotAllowed, UnknownQueue
from callsheet.messages.wire import Writer
from tests.agents.tools import Caller, Kit, Shelf, add, counts, fails, forever, mark, shout, where
from tests.fleet import Fleet
from tests.toolbox import plain_add


def ask(kit: Toolkit, tool: str, **arguments: Any) -> Any:
    return Caller("c", kit).submit(tool, arguments).get(30)


def test_what_was_registered_travels(fleet: Fleet) -> None:
    kit = Toolkit()
    kit.create_tool_group("maths", "Sums.", active=True, notes="Carry.")
    kit.create_tool_group("off", "Others.")
    kit.register_tool_function(add, "maths", func_name="sum", postprocess_func=shout, retries=1, timeout=20)
    kit.register_tool_function(partial(add, b=5), func_name="five", func_description="Add five.")
    kit.register_tool_function(Shelf(["Emma", "Ulysses"]).find)
    kit.register_tool_function(counts)
    kit.register_tool_function(fails, "off")
    kit.register_middleware(mark)
    kit.register_tool_function(kit.reset_equipped_tools)
    reply = ask(kit, "sum", a=2, b=3)
    assert reply.content == "5 (marked)"
    assert reply.metadata["schemas"] == kit.get_json_schemas()
    assert reply.metadata["groups"] == ["maths"]
    assert ask(kit, "five", a=1).content == "6 (marked)"
    assert ask(kit, "find", word="Em").content == "Emma (marked)"
    assert ask(kit, "counts", up_to=3).content == "0 1 2  (marked)"
    assert "which is off" in ask(kit, "fails", text="x").content
    assert ask(kit, "reset_equipped_tools", off=True).metadata["groups"] == ["off"]


def test_a_toolkits_own_methods_travel_as_its_own(fleet: Fleet) -> None:
    kit = Kit("Good day")
    kit.register_tool_function(add)
    assert ask(kit, "greet", name="Ann").content == "Good day, Ann"
    assert ask(kit, "add", a=1).content == "1"


def test_a_plain_tool_runs_in_a_thread_of_the_io_worker(fleet: Fleet) -> None:
    kit = Toolkit()
    kit.register_tool_function(where)
    reply = ask(kit, "where")
    assert reply.content == f"{reply.metadata['pid']} callsheet-tool"


def test_a_tool_with_a_queue_runs_on_its_workers(fleet: Fleet) -> None:
    kit = Toolkit()
    kit.register_tool_function(where, queue="cpu", timeout=30)
    kit.register_tool_function(counts, queue="cpu", postprocess_func=shout)
    kit.register_tool_function(add, queue="cpu")
    kit.register_tool_function(Shelf(["Emma"]).find, queue="cpu")
    reply = ask(kit, "where")
    pid, thread = reply.content.split()
    assert int(pid) != reply.metadata["pid"] and thread == "MainThread"
    assert ask(kit, "counts", up_to=2).content == "0 1 "
    assert ask(kit, "add", a="4").content == "4"
    assert ask(kit, "find", word="E").content == "Emma"


def test_many_calls_of_queued_tools_do_not_hold_slots(fleet: Fleet) -> None:
    kit = Toolkit()
    kit.register_tool_function(add, queue="cpu")
    jobs = [Caller("c", kit).submit("add", {"a": number}) for number in range(60)]  # more than the worker's slots
    assert [job.get(60).content for job in jobs] == [str(number) for number in range(60)]


def test_an_error_and_a_wrong_argument_of_a_queued_tool_reach_the_model(fleet: Fleet) -> None:
    kit = Toolkit()
    kit.register_tool_function(fails, queue="cpu")
    assert ask(kit, "fails", text="no good").content == "Error: ValueError: no good"
    assert "text: Field required" in ask(kit, "fails").content


def test_a_queued_tool_that_never_ends_is_broken_off_and_its_process_freed(fleet: Fleet) -> None:
    kit = Toolkit()
    kit.register_tool_function(forever, queue="cpu", timeout=0.5)
    kit.register_tool_function(add, queue="cpu")
    for _ in range(3):  # more than there are processes
        assert "did not end within 0.5 s" in ask(kit, "forever").content
    assert ask(kit, "add", a=1).content == "1"


def test_a_queue_that_is_not_known_is_the_developers_mistake(fleet: Fleet) -> None:
    kit = Toolkit()
    kit.register_tool_function(add, queue="elsewhere")
    with pytest.raises(AgentFailed) as caught:
        ask(kit, "add", a=1)
    assert caught.value.remote_type.endswith(UnknownQueue.__name__)


def test_an_agent_on_a_cpu_worker_runs_its_queues_tools_itself(fleet: Fleet) -> None:
    kit = Toolkit()
    kit.register_tool_function(where, queue="cpu")
    jobs = [Caller("c", kit).submit("where", {}, queue="cpu") for _ in range(4)]  # all processes at once
    for job in jobs:
        reply = job.get(30)
        assert reply.content.split()[0] == str(reply.metadata["pid"])


def test_an_interrupt_gives_an_interrupted_response(fleet: Fleet) -> None:
    kit = Toolkit()
    kit.register_tool_function(forever)
    job = Caller("c", kit).submit("forever", {})
    while not job.interrupt():
        pass
    reply = job.get(30)
    assert reply.metadata["interrupted"] and "interrupted this tool call" in reply.content


def test_a_time_limit_is_no_interrupt(fleet: Fleet) -> None:
    kit = Toolkit()
    kit.register_tool_function(forever)
    with pytest.raises(AgentTimeout):
        Caller("c", kit).submit("forever", {}, timeout=0.5).get(30)


def test_what_cannot_travel_is_refused_when_it_is_submitted(fleet: Fleet, nothing_sent: Any) -> None:
    def closure() -> str:
        """No name."""
        return "x"

    class Local:
        def method(self) -> str:
            """Not to be sent."""
            return "x"

    for function, words in ((lambda: 1, "lambda"), (closure, "inside a function"), (Local().method, "Local")):
        kit = Toolkit()
        kit.register_tool_function(function, func_name="it")
        with pytest.raises(CannotTravel, match=words) as caught:
            ask(kit, "it")
        assert "'it'" in str(caught.value)
    kit = Toolkit()
    kit.register_tool_function(add, preset_kwargs={"b": object()})
    with pytest.raises(CannotTravel, match="preset_kwargs"):
        ask(kit, "add", a=1)
    nothing_sent()


def test_a_function_outside_the_allowed_modules_is_refused_by_the_worker(fleet: Fleet) -> None:
    kit = Toolkit()
    kit.register_tool_function(plain_add)
    with pytest.raises(AgentFailed) as caught:
        ask(kit, "plain_add", a=1)
    assert caught.value.remote_type.endswith(ModuleNotAllowed.__name__)


def test_inline_runs_queued_tools_too() -> None:
    kit = Toolkit()
    kit.register_tool_function(add, queue="cpu")
    with callsheet.inline():
        assert ask(kit, "add", a=1).content == "1"


def test_an_empty_toolkit_costs_nothing_on_the_wire() -> None:
    assert Writer().write(Toolkit(), "it") == {"$new": "callsheet.tools.toolkit:Toolkit", "args": [], "kwargs": {}}
