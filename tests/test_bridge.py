"""Coroutines driven in greenlets, the task class outside a worker, and the loops of a process."""

import asyncio
import contextvars
import gc
import inspect
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import weakref

import pytest
from celery import Celery, current_task
from celery.exceptions import SoftTimeLimitExceeded
from greenlet import getcurrent
from pydantic import BaseModel

from callsheet.errors import JobError, ResultTimeout, UsageError
from callsheet.tasks import loop as loops
from callsheet.tasks.bridge import Crossing, drive, in_strand, parked
from callsheet.workers.mailbox import LoopMailbox, Mailbox
from callsheet.workers.slots import Slots
from callsheet.workers.threads import ThreadCrew
from tests.hanging import for_ever
from tests.services import wait_for


@pytest.fixture
def app():
    made = Celery("bridge", broker="memory://", backend="cache+memory://", set_as_current=False,
                  task_cls="callsheet.tasks.base:Task")
    made.conf.task_always_eager = True
    made.conf.task_eager_propagates = True
    return made


def cross(coroutine_function, *args):
    """Run a coroutine function as the pool does; gives the crossing to interrupt."""
    return Crossing(lambda: drive(coroutine_function(*args)))


# drive


def test_result_and_exceptions_pass():
    async def main():
        async def good():
            await asyncio.sleep(0)
            return 5

        async def bad():
            await asyncio.sleep(0)
            raise KeyError("x")

        assert await cross(good).run() == 5
        with pytest.raises(KeyError):
            await cross(bad).run()

    asyncio.run(main())


def test_one_greenlet_and_one_asyncio_task_throughout():
    async def main():
        async def body():
            before = getcurrent(), asyncio.current_task()
            await asyncio.sleep(0.001)
            assert before == (getcurrent(), asyncio.current_task())
            assert in_strand()
            return True

        assert await asyncio.gather(*(cross(body).run() for _ in range(50))) == [True] * 50
        assert not in_strand()

    asyncio.run(main())


def test_plain_code_below_a_coroutine_may_drive_another():
    async def main():
        async def inner():
            await asyncio.sleep(0.001)
            return "inner"

        async def outer():
            await asyncio.sleep(0)
            return drive(inner())

        assert await cross(outer).run() == "inner"

    asyncio.run(main())


def test_interrupt_is_raised_at_the_await_point_and_can_be_caught():
    async def main():
        async def body():
            try:
                await for_ever()
            except KeyError:
                await asyncio.sleep(0)
                return "caught", asyncio.current_task().cancelling()

        crossing = cross(body)
        task = asyncio.create_task(crossing.run())
        await asyncio.sleep(0)
        crossing.interrupt(KeyError("now"))
        assert await task == ("caught", 0)

    asyncio.run(main())


def test_interrupt_reaches_code_whose_subtask_swallows_cancellation():
    async def main():
        async def deaf():
            try:
                await for_ever()
            except asyncio.CancelledError:
                return "deaf"

        async def body():
            with pytest.raises(KeyError):
                await asyncio.create_task(deaf())
            return "done"

        crossing = cross(body)
        task = asyncio.create_task(crossing.run())
        await asyncio.sleep(0.001)
        crossing.interrupt(KeyError("now"))
        assert await task == "done"

    asyncio.run(main())


@pytest.mark.parametrize("outcome", ["returns", "raises", "propagates"])
def test_cancelled_crossing_never_ends_well(outcome):
    async def main():
        async def body():
            try:
                await for_ever()
            except asyncio.CancelledError:
                if outcome == "returns":
                    return 1
                if outcome == "raises":
                    raise ValueError from None
                raise

        crossing = cross(body)
        task = asyncio.create_task(crossing.run())
        await asyncio.sleep(0)
        crossing.cancel("revoked")
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_cancelled_before_it_began():
    async def main():
        began = []

        async def body():
            began.append(1)

        crossing = cross(body)
        task = asyncio.create_task(crossing.run())
        crossing.cancel("revoked")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not began

    asyncio.run(main())


def test_own_cancellation_is_an_error_with_a_remedy():
    async def main():
        async def body():
            raise asyncio.CancelledError

        with pytest.raises(JobError, match="catch CancelledError there"):
            await cross(body).run()

    asyncio.run(main())


def test_context_variables_stay_inside():
    var = contextvars.ContextVar("var", default="outer")

    async def main():
        async def body(value):
            seen = var.get()
            var.set(value)
            await asyncio.sleep(0)
            child = await asyncio.create_task(child_value())
            return seen, var.get(), child

        async def child_value():
            return var.get()

        results = await asyncio.gather(*(cross(body, str(i)).run() for i in range(5)))
        assert results == [("outer", str(i), str(i)) for i in range(5)]
        assert var.get() == "outer"

    asyncio.run(main())


def test_ended_crossing_leaves_no_garbage():
    async def main():
        class Thing:
            pass

        async def body(thing):
            await asyncio.sleep(0)
            return weakref.ref(thing)

        gc.collect()
        gc.disable()
        try:
            assert (await cross(body, Thing()).run())() is None
        finally:
            gc.enable()

    asyncio.run(main())


def test_parked_outside_a_pool_does_nothing():
    async def main():
        async with parked():
            return 1

    assert asyncio.run(main()) == 1


# The task class


def test_eager_task_gives_its_result(app):
    @app.task(shared=False)
    async def double(x):
        await asyncio.sleep(0)
        return 2 * x

    assert double.is_async
    assert double.delay(2).get() == 4
    assert double(3) == 6  # a plain call, in code that is not async


def test_call_in_async_code_is_a_plain_await(app):
    @app.task(shared=False, bind=True)
    async def double(self, x):
        return 2 * x

    async def main():
        assert await double(2) == 4
        return double.delay(3).get()  # eager, although a loop runs in this thread

    assert asyncio.run(main()) == 6


def test_plain_task_is_not_async(app):
    @app.task(shared=False)
    def double(x):
        return 2 * x

    assert not double.is_async
    assert double.delay(2).get() == 4


def test_signature_and_names_are_the_users(app):
    @app.task(shared=False, bind=True)
    async def double(self, x: int, *, y: str = "") -> int:
        """Twice."""
        return 2 * x

    assert list(inspect.signature(double.run).parameters) == ["x", "y"]
    assert (double.__doc__, double.run.__name__, double.run.__doc__) == ("Twice.", "double", "Twice.")
    with pytest.raises(TypeError):
        double.apply_async((1, 2, 3))
    app.conf.task_always_eager = False
    with pytest.raises(TypeError):
        double.apply_async((1, 2, 3))


def test_eager_task_in_async_code_has_its_request(app):
    @app.task(shared=False, bind=True)
    async def told(self):
        async def child():
            return self.request.id, current_task.name

        return [(self.request.id, current_task.name), (await asyncio.gather(child()))[0]]

    async def main():
        return told.apply(task_id="mine").get()

    assert asyncio.run(main()) == told.apply(task_id="mine").get() == [("mine", told.name)] * 2
    assert not current_task


def test_handlers_of_a_task_may_be_async(app):
    seen = []

    class Told(app.Task):
        name = "told"

        async def before_start(self, *args):
            await asyncio.sleep(0)
            seen.append("before_start")

        async def on_failure(self, exc, *args):
            await asyncio.sleep(0)
            seen.append(repr(exc))

        async def run(self):
            raise KeyError("x")

    app.register_task(Told()).apply(throw=False)
    assert seen == ["before_start", "KeyError('x')"]


def test_autoretry_wraps_an_async_task(app):
    app.conf.task_eager_propagates = False
    tries = []

    @app.task(shared=False, autoretry_for=(KeyError,), retry_kwargs={"countdown": 0, "max_retries": 3})
    async def flaky():
        tries.append(1)
        await asyncio.sleep(0)
        if len(tries) < 3:
            raise KeyError
        return len(tries)

    assert flaky.apply().get() == 3


def test_pydantic_task(app):
    class Point(BaseModel):
        x: int

    @app.task(shared=False, pydantic=True)
    async def moved(point: Point) -> Point:
        await asyncio.sleep(0)
        return Point(x=point.x + 1)

    assert moved.delay({"x": 1}).get() == {"x": 2}


def test_async_generator_is_refused(app):
    with pytest.raises(UsageError, match="async generator"):
        @app.task(shared=False, lazy=False)
        async def stream():
            yield 1


# Loops


def test_process_loop_from_anywhere():
    async def where():
        return asyncio.get_running_loop()

    loop = loops.process_loop()
    assert loops.process_loop() is loop
    assert loops.wait_on_process_loop(where, 5) is loop
    assert asyncio.run(loops.on_process_loop(where())) is loop

    async def wait_there():
        coro = where()
        try:
            loops.wait_on_process_loop(coro, 1)
        finally:
            coro.close()

    with pytest.raises(UsageError, match="on_process_loop"):
        loops.wait_on_process_loop(wait_there, 5)
    with pytest.raises(ResultTimeout):
        loops.wait_on_process_loop(for_ever(), 0.02)


def test_cancelling_on_process_loop_cancels_the_work():
    begun, cancelled = threading.Event(), threading.Event()

    async def work():
        begun.set()
        try:
            await for_ever()
        finally:
            cancelled.set()

    async def main():
        task = asyncio.create_task(loops.on_process_loop(work))
        assert await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert cancelled.wait(5)


def _in_child(parent_loop, answers):
    async def where():
        return asyncio.get_running_loop()

    loop = loops.wait_on_process_loop(where, 5)
    answers.put((os.getpid(), id(loop) != parent_loop))


def test_forked_child_has_a_loop_of_its_own():
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    child = fork.Process(target=_in_child, args=(id(loops.process_loop()), answers))
    child.start()
    assert answers.get(timeout=10) == (child.pid, True)
    child.join(10)


def test_private_loop_ends_the_coroutine_when_a_signal_handler_raises():
    ended = []

    async def work():
        try:
            await for_ever()
        finally:
            await asyncio.sleep(0)
            ended.append(1)

    def strike(*_):
        raise SoftTimeLimitExceeded(1)

    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(SoftTimeLimitExceeded):
            loops.run_private(work())
    finally:
        signal.signal(signal.SIGALRM, before)
    assert ended == [1]
    assert loops.run_private(asyncio.sleep(0, 5)) == 5


# Parts of the pool


def test_slots_start_in_order_and_those_that_come_back_go_first():
    log = []
    slots = Slots(1, 1, log.append)
    slots.ask("a")
    slots.ask("b")
    assert log == ["a"]
    assert slots.leave()
    assert log == ["a", "b"]
    assert not slots.leave()  # one parked at most
    slots.ask("c")
    slots.come_back(lambda: log.append("a is back"))
    slots.free()
    slots.free()
    assert log == ["a", "b", "a is back", "c"]


def test_slots_refuse_to_shrink_below_what_runs():
    slots = Slots(2, 0, lambda call: None)
    slots.ask("a")
    slots.resize(-1)
    with pytest.raises(ValueError, match="in use"):
        slots.resize(-1)
    slots.resize(2)
    assert slots.limit == 3


def test_slots_lend_their_lock_to_others_while_a_signal_handler_waits():
    slots = Slots(1, 1, lambda call: None)

    def ends_elsewhere():
        thread = threading.Thread(target=slots.free)
        thread.start()
        thread.join(5)
        return not thread.is_alive()

    with slots.lock, slots.lock, slots.lent():
        assert ends_elsewhere()
    with slots.lent():  # not held
        assert ends_elsewhere()
    with slots.lock:
        with slots.lent():
            pass
        blocked = threading.Thread(target=slots.free)
        blocked.start()
        blocked.join(0.05)
        assert blocked.is_alive()  # it is held again
    blocked.join(5)


def test_mailbox_keeps_order_and_survives_exceptions():
    woken = []
    mailbox = Mailbox(lambda: woken.append(1))
    seen = []
    for i in range(3):
        mailbox.post(seen.append, i)
        mailbox.post(lambda: 1 / 0)

    def leave():
        raise SystemExit

    mailbox.post(leave)
    mailbox.post(seen.append, "last")
    assert woken == [1]
    with pytest.raises(SystemExit):
        mailbox.drain()
    assert woken == [1, 1]
    mailbox.drain()
    assert seen == [0, 1, 2, "last"]


def test_what_has_begun_goes_on_before_more_begins():
    async def main():
        loop, ahead, most, gone_on = asyncio.get_running_loop(), 0, 0, []
        mailbox = LoopMailbox(loop, 10)

        def begin(number):
            nonlocal ahead, most
            ahead += 1
            most = max(most, ahead)
            loop.call_soon(go_on, number)

        def go_on(number):
            nonlocal ahead
            ahead -= 1
            gone_on.append(number)

        for number in range(95):
            mailbox.post(begin, number)
        while len(gone_on) < 95:
            await asyncio.sleep(0)
        assert gone_on == list(range(95))
        return most

    assert asyncio.run(asyncio.wait_for(main(), 10)) == 10


def test_threads_are_reused_and_end_when_idle():
    crew = ThreadCrew(lambda: None, idle=0.05)
    names = []
    for _ in range(3):
        done = threading.Event()
        crew.submit(lambda: names.append(threading.get_ident()), done.set)
        assert done.wait(5)
    assert len(set(names)) == 1
    wait_for(lambda: crew.count == 0, what="idle threads to end")


def test_what_follows_a_thread_call_may_use_its_thread():
    crew = ThreadCrew(lambda: None, idle=0.05)
    names, done = [], threading.Event()

    def run():
        names.append(threading.get_ident())

    def then():
        crew.submit(run, then if len(names) < 20 else done.set)

    crew.submit(run, then)
    assert done.wait(5)
    assert len(set(names)) == 1 and len(names) == 21
    wait_for(lambda: crew.count == 0, what="idle threads to end")


def test_the_process_loop_ends_before_the_interpreter(tmp_path):
    """A thread that still ran then could take the process with it."""
    script = f"""
import asyncio, pathlib
from callsheet.tasks.loop import process_loop, wait_on_process_loop

async def last():
    try:
        await asyncio.Event().wait()
    finally:
        pathlib.Path({str(tmp_path / "ended")!r}).touch()

async def begin():
    global kept
    kept = asyncio.create_task(last())
    await asyncio.sleep(0)

wait_on_process_loop(begin)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "ended").exists()
