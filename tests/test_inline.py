"""Calls in the caller's process: what holds on workers holds here, without Redis."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

import callsheet
from callsheet import (
    AgentBase,
    AgentFailed,
    AgentTimeout,
    BranchFailed,
    FanoutPipeline,
    JobCancelled,
    Msg,
    ResultTimeout,
    SequentialPipeline,
    Settings,
    fanout_pipeline,
    sequential_pipeline,
    stream_printing_messages,
)
from callsheet.errors import CannotTravel, JobError, PayloadTooLarge, UnknownQueue, UsageError
from callsheet.settings import use_settings
from tests.agents.basic import Compute, Echo, Failing, Sleeper
from tests.hanging import for_ever

CALM = Settings(retry_backoff=0.001, retry_backoff_max=0.002)


@pytest.fixture(autouse=True)
def inline() -> Iterator[None]:
    with use_settings(CALM), callsheet.inline():
        yield


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def say(text: str) -> Msg:
    return Msg("me", text, "user")


def texts(result: Any) -> Any:
    return [texts(one) for one in result] if isinstance(result, list) else result and result.content


async def bounce(target: Any, *args: Any, **kwargs: Any) -> Any:
    return await target(*args, **kwargs)


# One agent ------------------------------------------------------------------------------------------------------

def test_an_agent_replies_in_every_way_of_calling_it() -> None:
    alice = Echo("a")
    assert run(bounce(alice, say("x"))).content == "a:x"
    assert run(alice.reply(say("x"))).content == "a:x"
    assert alice.submit(say("x")).get().content == "a:x"
    assert run(bounce(alice.options(priority=3), say("x"))).content == "a:x"
    assert alice.options(retries=1).submit(say("x")).get(timeout=1).content == "a:x"

    async def awaited() -> Any:
        job = alice.submit(msg=say("x"))
        assert job.status == "PENDING"
        return await job, await job, job.status, job.done

    reply, again, status, done = run(awaited())
    assert (reply.content, again, status, done) == ("a:x", reply, "SUCCESS", True)


def test_the_setting_runs_everything_inline() -> None:
    code = ("import asyncio; from tests.agents.basic import Echo; from callsheet import Msg\n"
            "async def main(): return await Echo('a')(Msg('me', 'x', 'user'))\n"
            "print(asyncio.run(main()).content, Echo('b').submit(Msg('me', 'y', 'user')).get().content)")
    env = {**os.environ, "CALLSHEET_INLINE": "1", "CALLSHEET_REDIS_URL": "redis://127.0.0.1:1/0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "a:x b:y\n"


def test_agents_may_be_defined_anywhere_even_here() -> None:
    class Shouter(AgentBase):
        def __init__(self, tool: Callable[[str], str], kind: type) -> None:
            self.tool = tool
            self.kind = kind

        async def reply(self, msg: Msg) -> Msg:
            return Msg("shouter", self.tool(msg.get_text_content() or "") + self.kind.__name__, "assistant")

    def loud(text: str) -> str:
        return text.upper()

    assert run(bounce(Shouter(loud, Shouter), say("x"))).content == "XShouter"


def test_a_plain_def_runs_off_the_loop() -> None:
    class Where(AgentBase):
        def reply(self, msg: Msg) -> Msg:
            return Msg("w", threading.current_thread().name, "assistant")

    assert run(bounce(Where(), say("x"))).content != threading.main_thread().name
    reply = run(bounce(Compute("c"), say("one two")))
    assert reply.metadata["words"] == 2


def test_the_agent_is_built_anew_for_each_call() -> None:
    class Counter(AgentBase):
        def __init__(self, start: int, seen: list[str]) -> None:
            self.count = start
            self.seen = seen

        async def reply(self, msg: Msg) -> Msg:
            self.count += 1
            self.seen.append("x")
            msg.metadata["touched"] = True
            return Msg("c", f"{self.count} {len(self.seen)}", "assistant")

    seen: list[str] = []
    counter, given = Counter(1, seen), say("x")
    assert [run(bounce(counter, given)).content for _ in range(3)] == ["2 1"] * 3
    assert (counter.count, seen, given.metadata) == (1, [], {})


def test_any_parameters_of_reply() -> None:
    class Odd(AgentBase):
        async def reply(self, *args: Any, **kwargs: Any) -> Msg:
            return Msg("odd", repr((args, kwargs)), "assistant")

    assert run(bounce(Odd())).content == "((), {})"
    assert run(bounce(Odd(), 1, (2,), a={3}, b=b"4")).content == "((1, (2,)), {'a': {3}, 'b': b'4'})"


@pytest.mark.parametrize("reply", [None, [], [say("a"), say("b")], say("c")])
def test_a_reply_is_a_message_a_list_of_them_or_none(reply: Any) -> None:
    class Fixed(AgentBase):
        async def reply(self, value: Any) -> Any:
            return value

    assert run(bounce(Fixed(), reply)) == reply


@pytest.mark.parametrize(("reply", "kind"), [("text", "str"), ({"a": 1}, "dict"), ([say("a"), 5], "list with a int"),
                                             ((), "tuple")])
def test_another_reply_fails_with_what_to_return(reply: Any, kind: str) -> None:
    class Fixed(AgentBase):
        name = "fixed"

        async def reply(self, value: Any) -> Any:
            return value

    with pytest.raises(AgentFailed, match=rf"Fixed\(fixed\)\.reply returned a {kind}.*Wrap the value") as caught:
        run(bounce(Fixed(), reply))
    assert caught.value.remote_type == "callsheet.errors.BadReply"


def test_a_reply_that_nothing_awaited_is_told_what_to_write() -> None:
    class Plain(AgentBase):
        def reply(self, msg: Any) -> Any:
            return Echo("a")(msg)

    with pytest.raises(AgentFailed, match=r"Plain\.reply returned a coroutine.*Write `async def reply`.*submit"):
        run(bounce(Plain(), say("x")))


def test_no_socket_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"connected to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    job = FanoutPipeline([Echo("a"), Echo("b")], reduce=Echo("c")).submit(say("x"))
    assert job.get().content == "c:a:x+b:x"
    assert job.status == "SUCCESS"
    job.cancel()
    assert [record.agent for record in job.calls()] == ["Echo(a)", "Echo(b)", "Echo(c)"]
    assert list(job.stream()) == []


# Errors ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("submitted", [False, True])
def test_what_an_agent_raises_comes_with_type_text_and_traceback(submitted: bool) -> None:
    with pytest.raises(AgentFailed) as caught:
        if submitted:
            Failing("f").submit(say("x")).get()
        else:
            run(bounce(Failing("f"), say("x")))
    error = caught.value
    assert error.message == "Failing(f) raised ValueError: no luck today"
    assert (error.remote_type, error.remote_message) == ("builtins.ValueError", "no luck today")
    assert error.agent == "Failing(f)"
    assert error.job_id
    assert "During handling" not in error.remote_traceback
    assert "in reply" in error.remote_traceback
    assert "ValueError: no luck today" in str(error)
    assert isinstance(error.__cause__, ValueError)


def test_odd_exceptions_come_through() -> None:
    class Odd(Exception):
        def __init__(self, a: int, b: object) -> None:
            super().__init__(a, b)

    class Raiser(AgentBase):
        async def reply(self, msg: Msg) -> Msg:
            raise Odd(1, {2})

    with pytest.raises(AgentFailed, match=r"Raiser raised .*Odd: 1, \{2\}"):
        run(bounce(Raiser(), say("x")))


def test_an_agent_that_fails_inside_another_keeps_its_own_name() -> None:
    class Boss(AgentBase):
        def __init__(self, helper: AgentBase) -> None:
            self.helper = helper

        async def reply(self, msg: Msg) -> Msg:
            return await self.helper(msg)  # type: ignore[no-any-return]

    assert run(bounce(Boss(Echo("e")), say("x"))).content == "e:x"
    with pytest.raises(AgentFailed, match=r"^Failing\(f\) raised ValueError") as caught:
        run(bounce(Boss(Failing("f")), say("x")))
    assert caught.value.agent == "Failing(f)"


def test_a_job_error_inside_an_agent_is_that_agents_failure() -> None:
    class Waiter(AgentBase):
        async def reply(self, msg: Msg) -> Msg:
            raise ResultTimeout("too slow")

    with pytest.raises(AgentFailed, match="Waiter raised ResultTimeout: too slow"):
        run(bounce(Waiter(), say("x")))


def test_an_agent_that_cancels_itself_has_failed() -> None:
    class Selfish(AgentBase):
        async def reply(self, msg: Msg) -> Msg:
            raise asyncio.CancelledError

    with pytest.raises(AgentFailed, match="nobody revoked it") as caught:
        run(bounce(Selfish(), say("x")))
    assert caught.value.remote_type == f"callsheet.errors.{JobError.__name__}"
    with pytest.raises(AgentFailed):
        Selfish().submit(say("x")).get()


def test_what_cannot_be_sent_is_refused_before_anything_runs() -> None:
    ran: list[str] = []

    def note(self: Any, kwargs: Any) -> None:
        ran.append("ran")

    first = Echo("a")
    first.register_instance_hook("pre_reply", "n", note)
    bad = Echo(threading.Lock())  # type: ignore[arg-type]
    for target in (bad, SequentialPipeline([first, bad]), FanoutPipeline([first], reduce=bad)):
        with pytest.raises(CannotTravel, match=r"argument 1 of Echo\(\) is a _thread\.lock"):
            target.submit(say("x"))
        with pytest.raises(CannotTravel, match="lock"):
            run(bounce(target, say("x")))
    with pytest.raises(CannotTravel, match=r"the input of SequentialPipeline\(Echo\(a\)\)"):
        SequentialPipeline([first]).submit(threading.Lock()).get()
    with pytest.raises(CannotTravel, match=r"argument 1 of Echo\(a\)"):
        first.submit(lambda: 1)
    with pytest.raises(UsageError, match=r"Echo\.reply cannot be called so: .*'hint'.* It takes msg"):
        first.submit(say("x"), hint="no such parameter")
    with pytest.raises(UsageError, match=r"It takes msg.* Did you mean the option timeout of the call\?"):
        first.submit(say("x"), timeuot=3)
    with pytest.raises(UsageError, match=r"no such option.* Did you mean the option retries of the call\?"):
        first.options(retrys=3)
    for lost in (first, SequentialPipeline([Echo("b"), first])):
        with pytest.raises(UnknownQueue, match=r"'gpu' of Echo.*known are io, cpu.*CALLSHEET_QUEUES"):
            lost.submit(say("x"), queue="gpu")
        with pytest.raises(UnknownQueue):
            run(bounce(lost.options(queue="gpu"), say("x")))
    assert ran == []


def test_a_class_whose_queue_is_unknown_is_refused() -> None:
    class Scorer(AgentBase, queue="gpu"):
        async def reply(self, msg: Msg) -> Msg:
            return msg

    with pytest.raises(UnknownQueue, match="gpu"):
        Scorer().submit(say("x"))
    with use_settings(Settings(queues=("gpu",))), callsheet.inline():
        assert Scorer().submit(say("x")).calls()[0].queue == "gpu"


def test_messages_over_the_limit_are_refused() -> None:
    class Big(AgentBase):
        async def reply(self, size: int) -> Msg:
            return say("x" * size)

    with use_settings(Settings(payload_max=2048, payload_inline_max=1024)), callsheet.inline():
        with pytest.raises(PayloadTooLarge, match="limit is 2,048"):
            Echo("a").submit(say("x" * 3000))
        with pytest.raises(PayloadTooLarge, match="input of"):
            SequentialPipeline([Echo("a")]).submit(say("x" * 3000)).get()
        with pytest.raises(AgentFailed, match=r"the reply of Big is 3,\d+ bytes"):
            Big().submit(3000).get()


# Options ----------------------------------------------------------------------------------------------------------

def test_retries_try_again() -> None:
    tries: list[int] = []

    def attempt() -> int:
        tries.append(1)
        return len(tries)

    class Flaky(AgentBase):
        def __init__(self, attempt: Callable[[], int], error: type[Exception]) -> None:
            self.attempt = attempt
            self.error = error

        async def reply(self, msg: Msg) -> Msg:
            if self.attempt() < 3:
                raise self.error("not yet")
            return say("at last")

    for error in (ValueError, AgentFailed, TimeoutError):
        tries.clear()
        assert run(bounce(Flaky(attempt, error).options(retries=2), say("x"))).content == "at last"
        tries.clear()
        with pytest.raises(AgentFailed, match="not yet"):
            Flaky(attempt, error).submit(say("x"), retries=1).get()
        assert len(tries) == 2
    tries.clear()
    with pytest.raises(AgentFailed, match="not yet"):
        Flaky(attempt, UsageError).submit(say("x"), retries=5).get()
    assert len(tries) == 1  # trying again cannot mend it


def test_a_timeout_ends_the_reply() -> None:
    start = time.monotonic()
    with pytest.raises(AgentTimeout, match=r"Sleeper\(sleeper\) was ended by its timeout \(0\.02 s\)"):
        Sleeper(30).submit(timeout=0.02).get()
    with pytest.raises(TimeoutError):
        run(bounce(Sleeper(30).options(timeout=0.02)))
    with pytest.raises(BranchFailed, match="timeout"):
        FanoutPipeline([Sleeper(30), Echo("a")]).submit(None, timeout=0.02).get()
    assert time.monotonic() - start < 5


def test_an_agents_own_timeout_error_is_its_failure() -> None:
    class Own(AgentBase):
        async def reply(self) -> Msg:
            async with asyncio.timeout(0.01):
                await for_ever()
            return say("x")

    with pytest.raises(AgentFailed) as caught:
        Own().submit(timeout=5).get()
    assert not isinstance(caught.value, AgentTimeout)
    assert caught.value.remote_type == "builtins.TimeoutError"


def test_countdown_waits() -> None:
    start = time.monotonic()
    assert Echo("a").submit(say("x"), countdown=0.05).get().content == "a:x"
    assert time.monotonic() - start >= 0.05


def test_a_job_has_the_id_it_is_given() -> None:
    assert Echo("a").submit(say("x"), job_id="mine").id == "mine"


# Jobs --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("begun", [False, True])
def test_a_cancelled_job_is_cancelled(begun: bool) -> None:
    async def main() -> None:
        job = Sleeper(30).submit()
        if begun:
            await asyncio.sleep(0.01)
        job.cancel()
        with pytest.raises(JobCancelled, match=r"Sleeper\(sleeper\) was cancelled"):
            await job
        assert job.status == "REVOKED"
        with pytest.raises(JobCancelled):
            async for _ in job.stream():
                pass
        job.cancel()

    run(main())


def test_a_caller_that_is_cancelled_cancels_the_call_and_not_a_job() -> None:
    class Stubborn(AgentBase):
        async def reply(self, msg: Msg | None = None) -> Msg:
            await asyncio.sleep(0.03)
            return say("done")

        async def handle_interrupt(self, *args: Any, **kwargs: Any) -> Msg:
            return say("interrupted")

    async def main() -> Any:
        call = asyncio.create_task(bounce(Stubborn()))
        job = Stubborn().submit()
        waiting = asyncio.create_task(bounce(job._wait))
        await asyncio.sleep(0.01)
        call.cancel()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return await job

    assert run(main()).content == "done"


def test_get_does_not_block_a_running_loop() -> None:
    async def main() -> None:
        job = Echo("a").submit(say("x"))
        with pytest.raises(UsageError, match="await job"):
            job.get()
        assert (await asyncio.to_thread(job.get)).content == "a:x"
        slow = Sleeper(30).submit()
        with pytest.raises(ResultTimeout, match=r"No result of Sleeper\(sleeper\) within 0\.01 s"):
            await asyncio.to_thread(slow.get, 0.01)
        slow.cancel()

    run(main())


def printing_class() -> type[AgentBase]:
    class Printing(AgentBase):
        def __init__(self, name: str) -> None:
            self.name = name

        async def reply(self, msg: Msg) -> Msg:
            growing = Msg(self.name, "", "assistant")
            for word in ("one", "two"):
                growing.content = f"{growing.content}{word}"
                await self.print(growing, last=word == "two")
            if msg.content == "fail":
                raise ValueError("after printing")
            return growing

    return Printing


def test_a_stream_shows_what_is_printed_and_where_it_was_left() -> None:
    printer = printing_class()("p")

    async def main() -> list[Any]:
        return [event async for event in printer.submit(say("x")).stream()]

    plain = list(printer.submit(say("x")).stream())
    for events in (run(main()), plain):
        assert [(event.msg.content, event.last) for event in events] == [("one", False), ("onetwo", True)]
        assert {(event.agent, event.agent_id) for event in events} == {("Printing(p)", printer.id)}
        assert events[0].msg.id == events[1].msg.id
    job = printer.submit(say("x"))
    assert [event.msg.content for event in job.stream(since=next(iter(job.stream())).id)] == ["onetwo"]


def test_a_stream_ends_with_the_jobs_error() -> None:
    seen: list[str] = []
    with pytest.raises(AgentFailed, match="after printing"):
        for event in printing_class()("p").submit(say("fail")).stream():
            seen.append(event.msg.content)
    assert seen == ["one", "onetwo"]


# Pipelines ---------------------------------------------------------------------------------------------------------

A, B, C = Echo("a"), Echo("b"), Echo("c")


@pytest.mark.parametrize(("pipeline", "wanted"), [
    (SequentialPipeline([A, B, C]), "c:b:a:x"),
    (FanoutPipeline([A, B, C]), ["a:x", "b:x", "c:x"]),
    (FanoutPipeline([A, B, C], enable_gather=False), ["a:x", "b:x", "c:x"]),
    (SequentialPipeline([A, FanoutPipeline([B, C]), A]), "a:b:a:x+c:a:x"),
    (SequentialPipeline([A, FanoutPipeline([B, C], enable_gather=False), A]), "a:b:a:x+c:a:x"),
    (FanoutPipeline([SequentialPipeline([A, B]), C]), ["b:a:x", "c:x"]),
    (FanoutPipeline([FanoutPipeline([A, B]), C]), [["a:x", "b:x"], "c:x"]),
    (FanoutPipeline([A, B], reduce=C), "c:a:x+b:x"),
    (FanoutPipeline([A, B], enable_gather=False, reduce=SequentialPipeline([C, A])), "a:c:a:x+b:x"),
    (FanoutPipeline([FanoutPipeline([A, B], reduce=C), B], reduce=A), "a:c:a:x+b:x+b:x"),
    (SequentialPipeline([]), "x"), (FanoutPipeline([]), []), (FanoutPipeline([], reduce=C), "c:"),
    (SequentialPipeline([SequentialPipeline([]), A, SequentialPipeline([])]), "a:x"),
    (FanoutPipeline([SequentialPipeline([]), A]), ["x", "a:x"]),
    (SequentialPipeline([FanoutPipeline([]), A]), "a:"),
    (FanoutPipeline([A, A, A]), ["a:x"] * 3)])
def test_pipelines_at_any_depth(pipeline: Any, wanted: Any) -> None:
    assert texts(run(bounce(pipeline, say("x")))) == wanted
    assert texts(pipeline.submit(say("x")).get()) == wanted


def test_a_pipeline_takes_one_input() -> None:
    for target in (SequentialPipeline([A]), SequentialPipeline([A]).options(priority=1)):
        with pytest.raises(TypeError, match="positional"):
            target.submit(say("x"), say("y"))  # type: ignore[call-arg]
        assert target.submit().get().content == "a:"


def test_the_pipeline_functions() -> None:
    assert run(sequential_pipeline([A, B], say("x"))).content == "b:a:x"
    given = say("x")
    assert run(sequential_pipeline([], given)) == given
    assert run(sequential_pipeline([])) is None
    assert texts(run(fanout_pipeline([A, B], say("x")))) == ["a:x", "b:x"]
    assert texts(run(fanout_pipeline([A, B], say("x"), enable_gather=False))) == ["a:x", "b:x"]
    assert run(fanout_pipeline([], say("x"))) == []


def test_keyword_arguments_go_to_those_that_get_the_input() -> None:
    class Keyed(AgentBase):
        async def reply(self, msg: Any, tag: str = "-") -> Msg:
            return say(tag)

    keyed = Keyed()
    assert texts(run(fanout_pipeline([keyed, SequentialPipeline([keyed])], say("x"), tag="t"))) == ["t", "t"]
    assert SequentialPipeline([keyed, keyed]).submit(say("x"), tag="t").get().content == "-"
    assert SequentialPipeline([SequentialPipeline([]), keyed]).submit(say("x"), tag="t").get().content == "t"


def test_branches_run_side_by_side_or_one_by_one() -> None:
    running: list[int] = []
    most: list[int] = []

    def enter(by: int) -> None:
        running.append(by)
        most.append(sum(running))

    class Busy(AgentBase):
        def __init__(self, enter: Callable[[int], None]) -> None:
            self.enter = enter

        async def reply(self, msg: Msg) -> Msg:
            self.enter(1)
            msg.metadata["mine"] = True  # the others have copies of their own
            await asyncio.sleep(0.01)
            self.enter(-1)
            return msg

    given = say("x")
    run(fanout_pipeline([Busy(enter)] * 4, given))
    assert max(most) == 4
    most.clear()
    run(fanout_pipeline([Busy(enter)] * 4, given, enable_gather=False))
    assert max(most) == 1
    assert given.metadata == {}


@pytest.mark.parametrize("gather", [True, False])
def test_a_branch_that_fails_is_named(gather: bool) -> None:
    finished: list[str] = []

    class Slow(AgentBase):
        def __init__(self, finish: Callable[[str], None]) -> None:
            self.finish = finish

        async def reply(self, msg: Msg) -> Msg:
            await asyncio.sleep(0.02)
            self.finish("slow")
            return msg

    pipeline = FanoutPipeline([A, Failing("f"), Slow(lambda_free(finished))], enable_gather=gather)
    with pytest.raises(BranchFailed, match=r"^branch 2 of 3, Failing\(f\) failed: Failing\(f\) raised ValueError: no "
                                           "luck today") as caught:
        run(bounce(pipeline, say("x")))
    error = caught.value
    assert error.branch == "branch 2 of 3, Failing(f)"
    assert (error.remote_type, error.agent) == ("builtins.ValueError", "Failing(f)")
    assert "no luck today" in error.remote_traceback
    assert "During handling" not in error.remote_traceback
    assert finished == (["slow"] if gather else [])
    with pytest.raises(BranchFailed, match=r"branch 1 of 1, SequentialPipeline\(Echo\(a\), Failing\(f\)\) failed"):
        FanoutPipeline([SequentialPipeline([A, Failing("f")])], enable_gather=gather).submit(say("x")).get()
    with pytest.raises(BranchFailed, match="branch 2 of 2"):  # retries do not mend it
        FanoutPipeline([A, Failing("f")], reduce=C, enable_gather=gather).submit(say("x"), retries=1).get()


def lambda_free(log: list[str]) -> Callable[[str], None]:
    def append(word: str) -> None:
        log.append(word)
    return append


@pytest.mark.parametrize("gather", [True, False])
def test_errors_are_collected_in_the_place_of_their_branch(gather: bool) -> None:
    pipeline = FanoutPipeline([A, Failing("f"), B], enable_gather=gather, on_error="collect")
    first, error, last = run(bounce(pipeline, say("x")))
    assert (first.content, last.content) == ("a:x", "b:x")
    assert (error.name, error.role) == ("f", "assistant")
    assert "no luck today" in error.content
    said = error.metadata["error"]
    assert (said["type"], said["message"]) == ("builtins.ValueError", "no luck today")
    assert (said["agent"], said["branch"]) == ("Failing(f)", "branch 2 of 3, Failing(f)")
    reduced = FanoutPipeline([A, Failing("f")], enable_gather=gather, on_error="collect", reduce=C)
    assert reduced.submit(say("x")).get().content.startswith("c:a:x+Error: branch 2 of 2")


def test_pipelines_refuse_what_is_no_agent() -> None:
    for wrong, match in ((Echo, "the class in place of an object"), (5, "int"), (None, "NoneType")):
        with pytest.raises(UsageError, match=match):
            SequentialPipeline([A, wrong])  # type: ignore[list-item]
        with pytest.raises(UsageError, match=match):
            FanoutPipeline([A, wrong])  # type: ignore[list-item]
    with pytest.raises(UsageError, match=r"write \[Echo\(a\)\]"):
        SequentialPipeline(A)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"on_error='ignore': \"raise\" or \"collect\""):
        FanoutPipeline([A], on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="reduce"):
        FanoutPipeline([A], reduce=Echo)  # type: ignore[arg-type]


# Many inputs --------------------------------------------------------------------------------------------------------

def test_map_gives_results_in_order() -> None:
    inputs = [say(str(i)) for i in range(30)]
    wanted = [f"a:{i}" for i in range(30)]
    assert texts(list(callsheet.map(A, inputs))) == wanted
    assert texts(list(callsheet.map(SequentialPipeline([A, B]), inputs[:2], window=1))) == ["b:a:0", "b:a:1"]
    assert list(callsheet.map(A, [])) == []

    async def main() -> list[Any]:
        return [result async for result in callsheet.map(A, iter(inputs), window=7)]

    assert texts(run(main())) == wanted


def test_map_raises_or_collects() -> None:
    class Picky(AgentBase):
        async def reply(self, msg: Msg) -> Msg:
            if msg.content == "1":
                raise ValueError("one")
            return msg

    inputs = [say(str(i)) for i in range(3)]
    first, second, third = callsheet.map(Picky(), inputs, on_error="collect")
    assert (first.content, third.content) == ("0", "2")
    assert second.metadata["error"] == {"type": "builtins.ValueError", "message": "Picky raised ValueError: one"}
    with pytest.raises(AgentFailed, match="one"):
        list(callsheet.map(Picky(), inputs))

    async def main() -> None:
        async for _ in callsheet.map(Picky(), inputs):
            pass

    with pytest.raises(AgentFailed, match="one"):
        run(main())


def test_map_reads_an_endless_input_as_it_goes() -> None:
    def endless() -> Iterator[Msg]:
        number = 0
        while True:
            yield say(str(number))
            number += 1

    results = iter(callsheet.map(A, endless(), window=5))
    assert [next(results).content for _ in range(12)] == [f"a:{i}" for i in range(12)]


@pytest.mark.parametrize(("target", "options", "match"), [
    (A, {"window": 0}, "window"), (A, {"on_error": "ignore"}, "on_error"), (Echo, {}, "agent or a pipeline"),
    (A, {"retries": -1}, "retries"), (A, {"queue": ""}, "queue")])
def test_map_refuses_what_cannot_be_right(target: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        callsheet.map(target, [], **options)


# Printing -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bound", [0, 1])
def test_what_agents_print_is_streamed_while_they_run(bound: int) -> None:
    printing = printing_class()
    first, second = printing("p"), printing("q")

    async def main() -> list[tuple[str, str, bool]]:
        work = bounce(SequentialPipeline([first, second]), say("x"))
        queue = asyncio.Queue[Any](bound)
        return [(msg.name, msg.content, last)
                async for msg, last in stream_printing_messages([first, second], work, queue)]

    assert run(main()) == [("p", "one", False), ("p", "onetwo", True), ("q", "one", False), ("q", "onetwo", True)]
    assert first.msg_queue is None


def test_the_task_that_prints_may_fail_and_its_reader_may_leave() -> None:
    agent = printing_class()("p")
    seen: list[str] = []

    async def failing() -> None:
        async for msg, _ in stream_printing_messages([agent], bounce(agent, say("fail"))):
            seen.append(msg.content)

    with pytest.raises(AgentFailed, match="after printing"):
        run(failing())
    assert seen == ["one", "onetwo"]

    async def leaving() -> str:
        stream = stream_printing_messages([agent], bounce(agent, say("x")))
        async for msg, _ in stream:
            await stream.aclose()  # type: ignore[attr-defined]
            return msg.content  # type: ignore[no-any-return]
        return ""

    assert run(leaving()) == "one"
    assert agent.msg_queue is None


def test_the_next_try_waits_as_long_as_the_endpoint_asked() -> None:
    from callsheet.errors import CircuitOpen
    from callsheet.tasks.reply import LONGEST_ASKED, retry_pause

    settings = Settings.load(retry_backoff=1.0)
    assert 0.5 <= retry_pause(0, settings, ValueError("x")) <= 1
    assert 7.5 <= retry_pause(0, settings, CircuitOpen("open", "e", 7.0)) <= 8
    assert retry_pause(0, settings, CircuitOpen("open", "e", 1e9)) <= LONGEST_ASKED + 1
