"""callsheet.map over thousands of inputs on real workers."""

import asyncio
import io

import pytest
from rich.console import Console

import callsheet
from callsheet import AgentFailed, Msg, SequentialPipeline
from callsheet.errors import PayloadTooLarge, UsageError
from callsheet.settings import use_settings
from callsheet.tasks import batches
from tests.agents.basic import Compute, Echo
from tests.agents.pipes import Broken, Gated, Tag
from tests.agents.work import Flaky
from tests.services import wait_for


def inputs(count, start=0):
    return [Msg("u", str(number), "user") for number in range(start, start + count)]


def test_thousands_of_inputs_come_back_in_order(fleet):
    results = list(callsheet.map(Echo("m"), inputs(1500)))
    assert [msg.content for msg in results] == [f"m:{number}" for number in range(1500)]


def test_pipelines_and_cpu_agents(fleet):
    results = list(callsheet.map(SequentialPipeline([Tag("a"), Tag("b")]), inputs(150), window=50))
    assert [msg.content for msg in results] == [f"b(a({number}))" for number in range(150)]
    assert [msg.content for msg in callsheet.map(Compute("c"), inputs(50))] == ["c:1"] * 50


def test_async_for_leaves_the_loop_free(fleet):
    async def main():
        ticks = 0

        async def ticker():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticking = asyncio.create_task(ticker())
        found = [msg.content async for msg in callsheet.map(Echo("m"), inputs(500), window=100)]
        ticking.cancel()
        return found, ticks

    found, ticks = asyncio.run(main())
    assert found == [f"m:{number}" for number in range(500)]
    assert ticks >= 5


@pytest.mark.parametrize("window", [1, 7, 200])
def test_inputs_are_read_as_results_are_taken(fleet, window):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield Msg("u", str(read), "user")

    results = iter(callsheet.map(Echo("m"), endless(), window=window))
    for taken in range(1, 20):
        assert next(results).content == f"m:{taken}"
        assert read <= taken + window
    results.close()


def test_no_more_than_the_window_is_under_way(fleet):
    gate, notes = fleet.key(), fleet.key()
    results = callsheet.map(Gated("g", gate, notes), inputs(12), window=4)
    seen = []

    async def main():
        async for msg in results:
            seen.append(msg)

    async def watched():
        running = asyncio.create_task(main())
        await asyncio.to_thread(fleet.wait_notes, notes, 4)
        await Echo("e")(inputs(1)[0])  # behind whatever was sent before
        assert fleet.notes(notes) == ["g began"] * 4
        fleet.open(gate)
        await running

    asyncio.run(watched())
    assert len(seen) == 12


def test_on_error_raise_cancels_the_rest(fleet):
    notes = fleet.key()
    with pytest.raises(AgentFailed, match="b broke"):
        list(callsheet.map(Broken("b"), inputs(5)))

    key = fleet.key()

    def mixed():
        yield Msg("u", "fails", "user")
        yield from inputs(5)

    with pytest.raises(AgentFailed, match="try 1 fails"):
        list(callsheet.map(Flaky(key, 1), mixed()))
    waiting = callsheet.map(SequentialPipeline([Gated("g", "never", notes), Broken("x")]), inputs(3), timeout=0.5)
    with pytest.raises(AgentFailed, match="timeout"):
        list(waiting)
    wait_for(lambda: fleet.notes(notes).count("g cancelled") == fleet.notes(notes).count("g began"), 10)


def test_on_error_collect_puts_a_message_in_the_place(fleet):
    key = fleet.key()
    results = list(callsheet.map(Flaky(key, 2), inputs(6), on_error="collect", window=1))
    types = [msg.metadata.get("error", {}).get("type") for msg in results]
    assert types == ["builtins.ConnectionError"] * 2 + [None] * 4
    assert "try 1 fails" in results[0].content
    assert results[0].metadata["error"]["message"].endswith("try 1 fails")


def test_retries_and_other_options_hold_for_each(fleet):
    key = fleet.key()
    results = list(callsheet.map(Flaky(key, 2), inputs(2), retries=3, queue="io", priority=3))
    assert sorted(msg.content for msg in results) == ["3", "4"]


def test_an_input_that_cannot_travel(fleet):
    with use_settings(fleet.settings.model_copy(update={"payload_max": 2000})):
        def mixed():
            yield from inputs(3)
            yield Msg("u", "x" * 3000, "user")
            yield from inputs(3, 4)

        collected = list(callsheet.map(Echo("m"), mixed(), on_error="collect"))
        assert [msg.content for msg in collected[:3]] == ["m:0", "m:1", "m:2"]
        assert collected[3].metadata["error"]["type"] == "PayloadTooLarge"
        assert [msg.content for msg in collected[4:]] == ["m:4", "m:5", "m:6"]
        seen = []
        with pytest.raises(PayloadTooLarge):
            for msg in callsheet.map(Echo("m"), mixed()):
                seen.append(msg.content)
        assert seen == ["m:0", "m:1", "m:2"]


def test_no_inputs(fleet):
    assert list(callsheet.map(Echo("m"), [])) == []


def test_the_progress_bar_shows_how_far_it_is(fleet, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(batches, "Console", lambda **_: Console(file=out, force_terminal=True, width=100))
    assert len(list(callsheet.map(Echo("m"), inputs(30), progress=True))) == 30
    assert "Echo(m)" in out.getvalue()
    assert "30/30" in out.getvalue()
    quiet = io.StringIO()
    monkeypatch.setattr(batches, "Console", lambda **_: Console(file=quiet, force_terminal=True))
    list(callsheet.map(Echo("m"), inputs(3), progress=False))
    assert quiet.getvalue() == ""


@pytest.mark.parametrize(("given", "text"), [
    ({"window": 0}, "window=0"), ({"on_error": "ignore"}, "on_error='ignore'"), ({"timeout": -1}, "timeout=-1")])
def test_wrong_arguments_are_refused(given, text):
    with pytest.raises(UsageError, match=text):
        callsheet.map(Echo("m"), [], **given)
    with pytest.raises(UsageError, match="a str"):
        callsheet.map("m", [])
