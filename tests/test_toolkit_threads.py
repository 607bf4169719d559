"""The threads of plain tools: so many and no more, each with its caller's context."""

import asyncio
import os
import threading
from concurrent.futures import Future
from contextvars import ContextVar

from callsheet import Settings, Toolkit
from callsheet.settings import use_settings
from callsheet.tools import threads
from callsheet.tools.threads import ToolThreads, in_thread
from tests.services import wait_for
from tests.toolbox import called, text_of

VAR: ContextVar[int] = ContextVar("VAR", default=0)


def test_so_many_run_at_once_and_the_rest_wait_their_turn() -> None:
    crew, gate, running = ToolThreads(3), threading.Event(), threading.Semaphore(0)

    def work() -> int:
        running.release()
        gate.wait(20)
        return threading.get_ident()

    futures = [crew.submit(work) for _ in range(10)]
    for _ in range(3):
        assert running.acquire(timeout=20)
    assert not running.acquire(blocking=False) and crew.count == 3
    gate.set()
    assert len({future.result(20) for future in futures}) <= 3


def test_idle_threads_are_used_again_and_end() -> None:
    crew = ToolThreads(5, idle=0.05)
    for _ in range(20):
        crew.submit(lambda: None).result(20)
    assert crew.count <= 2  # a thread that has given its result may not wait again yet
    wait_for(lambda: crew.count == 0, 20, "threads that end when they are idle")
    assert crew.submit(lambda: 7).result(20) == 7


def test_work_that_is_cancelled_before_it_begins_never_runs() -> None:
    crew, gate = ToolThreads(1), threading.Event()
    first = crew.submit(lambda: gate.wait(20))
    ran: list[int] = []
    second: Future[None] = crew.submit(lambda: ran.append(1))
    third = crew.submit(lambda: ran.append(2))
    assert second.cancel()
    gate.set()
    first.result(20)
    third.result(20)
    assert ran == [2]


def test_each_runs_in_its_callers_context() -> None:
    async def one(number: int) -> int:
        VAR.set(number)
        return await in_thread(VAR.get)

    async def main() -> list[int]:
        return await asyncio.gather(*(one(number) for number in range(50)))

    assert asyncio.run(main()) == list(range(50))


def test_a_tool_that_gets_no_thread_is_told_to_the_model() -> None:
    gate, begun = threading.Event(), threading.Event()

    def blocks() -> None:
        """Block."""
        begun.set()
        gate.wait(20)

    async def main(kit: Toolkit) -> str:
        first = asyncio.create_task(called(kit, "blocks"))
        assert await asyncio.to_thread(begun.wait, 20)
        text = text_of(await called(kit, "late"))
        gate.set()
        await first
        return text

    with use_settings(Settings.load(tool_threads=1)):
        threads._of_process.clear()
        try:
            kit = Toolkit()
            kit.register_tool_function(blocks)
            kit.register_tool_function(lambda: "x", func_name="late", timeout=0.05)
            assert "did not end within 0.05 s" in asyncio.run(main(kit))
        finally:
            threads._of_process.clear()


def test_a_forked_child_has_threads_of_its_own() -> None:
    asyncio.run(in_thread(lambda: None))
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, b"%d" % asyncio.run(in_thread(os.getpid)))
        finally:
            os._exit(0)
    os.close(writing)
    assert int(os.read(reading, 20)) == child
    os.waitpid(child, 0)


def test_a_process_ends_though_a_tool_does_not() -> None:
    child = os.fork()
    if not child:
        asyncio.run(_abandon())
        threading._shutdown()  # what the interpreter waits for at its end
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


async def _abandon() -> None:
    threads.tool_threads().submit(threading.Event().wait)
