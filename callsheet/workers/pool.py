"""The asyncio worker pool: `app.conf.worker_pool = "callsheet.workers.pool:AsyncioPool"`.

`async def` tasks run by the thousand on one event loop in a thread, plain `def` tasks in threads beside it, both
within the worker's `--concurrency`. Celery's own tracer runs both, and all of Celery's callbacks run on the thread
of its hub.
"""

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Awaitable
from typing import Any

from celery import signals
from celery._state import _task_stack
from celery.concurrency.base import BasePool
from celery.concurrency.prefork import _run_ready_callbacks
from celery.utils.threads import LocalManager
from celery.worker import state

from callsheet.resources.context import current_call, provide_fence
from callsheet.settings import get_settings
from callsheet.tasks.bridge import call_ident
from callsheet.tasks.loop import LoopThread, adopt
from callsheet.tasks.people.asker import provide_leaving
from callsheet.tasks.request import FIRST_PID
from callsheet.workers.broker import ledger
from callsheet.workers.calls import Call, CoroutineCall, Fate, ThreadCall, trace_lightly
from callsheet.workers.mailbox import HubMailbox, LoopMailbox
from callsheet.workers.prefetch import Prefetch
from callsheet.workers.slots import Slots
from callsheet.workers.threads import ThreadCrew
from callsheet.workers.watch import Growth, LoopWatch, spare_collector

logger = logging.getLogger(__name__)

THREAD_PATIENCE = 1.0  # seconds that a cold shutdown waits for threads, which may never end

# Calls begun in one turn of the loop. With all at once, none would send its request before all had made theirs up.
BEGIN_TOGETHER = 64

# What Celery's command line takes for pools of processes: the pool's option, and the flag.
_OF_PROCESSES = {"maxtasksperchild": "--max-tasks-per-child", "max_memory_per_child": "--max-memory-per-child"}


class AsyncioPool(BasePool):
    """Celery's pool interface over one event loop, threads and slots.

    Settings of the Celery app that it reads besides Celery's own:
        callsheet_cancel_grace: seconds after which a cancelled call that goes on is logged and cancelled again, and
            that a cold shutdown waits for cancelled calls (5).
        callsheet_parked_grace: seconds that a warm shutdown waits with nothing but parked calls left, before their
            messages go back to the broker (30).
    """

    signal_safe = True
    is_green = False
    uses_semaphore = False
    task_join_will_block = True
    body_can_be_buffer = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = get_settings()
        conf = self.app.conf
        self.cancel_grace = float(conf.get("callsheet_cancel_grace", 5.0))
        self.parked_grace = float(conf.get("callsheet_parked_grace", 30.0))
        self.slots: Slots[Call] = Slots(int(self.limit or 0), settings.max_parked, self._start_call)
        self.crew = ThreadCrew(self.app.set_current)
        self.to_hub = HubMailbox()
        self.prefetch = Prefetch(lambda: self.slots.limit, self.to_hub.post)
        self.consumer: Any = None
        self.hub: Any = None
        self.finished = 0
        self._block_limit = settings.loop_block_warning
        self._pids = itertools.count(FIRST_PID)
        self._hostname = (self.options.get("initargs") or (None, None))[1]
        self._tasks: Any = {}
        self._calls: dict[int, Call] = {}
        self._by_key: dict[tuple[Any, ...], Call] = {}
        self._started = False
        self._shutdown = Shutdown(self)

    # Life

    def on_start(self) -> None:
        """Start the loop's thread and its watch."""
        for option, flag in _OF_PROCESSES.items():
            if self.options.get(option):
                logger.warning("%s does nothing here: this pool has no processes to replace. Leave it out, and bound "
                               "the worker's memory where it is started (systemd's MemoryMax, a container's limit).",
                               flag)
        self._tasks = self.app.tasks
        self._loop_thread = LoopThread(self.app.set_current)
        self.loop = self._loop_thread.loop
        self.to_loop = LoopMailbox(self.loop)
        self.begins = LoopMailbox(self.loop, BEGIN_TOGETHER)
        self.watch = LoopWatch(self._loop_thread, self._block_limit, Growth().look)
        self._loop_thread.start()
        self.watch.start()
        spare_collector()
        LocalManager([_task_stack], call_ident)  # `current_task` in subtasks, as Task.on_bound for `self.request`
        self._started = True
        adopt(self.loop)
        signals.worker_process_init.send(sender=self._hostname)  # as in each of prefork's processes
        ledger.begun = self._begun
        provide_leaving(ledger.shutting_down)
        provide_fence(self._fence)

    def did_start_ok(self) -> bool:
        """Whether the loop's thread runs."""
        return self._started and self._loop_thread.thread.is_alive()

    def register_with_event_loop(self, hub: Any) -> None:
        """Have the consumer's hub run Celery's callbacks; at each (re)connection."""
        self.hub = hub
        self.to_hub.register(hub)

    def on_stop(self) -> None:
        """Warm shutdown, or the end of a cold one: wait for what runs."""
        if self._started:
            self._shutdown.stop()

    def finish_within(self, seconds: float, idle: bool) -> None:
        """Soft shutdown: let what runs end, for `seconds` at most, and for all of them if `idle`."""
        if self._started:
            self._shutdown.finish_within(seconds, idle)

    def on_terminate(self) -> None:
        """Cold shutdown: cancel what runs and leave its messages to be delivered again."""
        if self._started:
            self._shutdown.terminate()

    def halt(self) -> None:
        """End the threads."""
        signals.worker_process_shutdown.send(sender=self._hostname, pid=os.getpid(), exitcode=0)
        adopt(None)
        self.watch.stop()
        if not self._loop_thread.stop():
            logger.warning("The event loop's thread does not end; it is left behind.")

    def attach(self, consumer: Any) -> None:
        """A consumer has started."""
        self.consumer = consumer
        trace_lightly(self.app, consumer.hostname)
        self.prefetch.attach(consumer)

    def detach(self) -> None:
        """The consumer has stopped."""
        self.prefetch.detach()

    def _begun(self) -> set[str] | None:
        """Delivery tags of the calls that have begun; None while Celery has yet to hear of some that have ended."""
        with self.slots.lock:
            tags = {call.request.message.delivery_tag for call in self._calls.values() if call.request is not None}
        return None if len(self.to_hub) else tags

    def _fence(self) -> Awaitable[None] | None:
        return self._end_if_taken() if any(one.doubtful() for one in ledger.ledgers()) else None

    async def _end_if_taken(self) -> None:
        """End the call that is about to send a request, if its lease ran out and another worker has it by now."""
        known = ledger.ledgers()
        for one in known:
            await asyncio.to_thread(one.look)
        mine = current_call().call
        call = next((call for call in self.running if call.id == mine and call.request is not None), None)
        if call is not None and any(call.request.message.delivery_tag in one.taken for one in known) and \
                self.end(call, Fate.TAKEN):
            logger.warning("Task %s is not gone on with: its lease has run out, and another worker has it.", call.name)
            await asyncio.sleep(self.cancel_grace)  # until it is cancelled

    # Calls

    def on_apply(self, target: Any, args: Any = (), kwargs: dict[str, Any] | None = None, **options: Any
                 ) -> Call | None:
        """Queue one task; None when the pool is closed, and the message stays unacknowledged."""
        if self._state in (self.CLOSE, self.TERMINATE):
            return None
        task = self._tasks.get(args[0]) if args else None
        kind = CoroutineCall if getattr(task, "is_async", False) else ThreadCall
        request = getattr(options.get("accept_callback"), "__self__", None)
        if request is not None:  # Celery has taken the task's limits when it started; `control time_limit` changes them
            (hard, soft), now = request.time_limits, request.task
            options["soft_timeout"], options["timeout"] = soft or now.soft_time_limit, hard or now.time_limit
        options["soft_timeout"] = options.get("soft_timeout") or self.options.get("soft_timeout")
        options["timeout"] = options.get("timeout") or self.options.get("timeout")
        call = kind(self, target, read_once(tuple(args), request), kwargs or {}, options)
        if task is not None and len(args) > 2:
            self._submit(call, args[2])
        else:
            self._ask(call)
        return call

    def _submit(self, call: Call, request: dict[str, Any]) -> None:
        """Queue a call, unless its message was delivered before and that delivery is still here."""
        call.key = (call.id, request.get("retries"), request.get("replaced_task_nesting"))
        with self.slots.lock:
            first = self._by_key.get(call.key)
            if first is not None and (request.get("delivery_info") or {}).get("redelivered"):
                logger.info("Task %s was delivered again while it runs: the second delivery waits for the first.",
                            call.name)
                call.first = first
                first.twins.append(call)
                return
            self._by_key.setdefault(call.key, call)
            self._ask(call)

    def _ask(self, call: Call) -> None:
        with self.slots.lock:
            self.slots.ask(call)
            call.waited = not call.pid

    def _start_call(self, call: Call) -> None:
        call.pid = next(self._pids)
        self._calls[call.pid] = call
        if len(self._calls) == 1:
            self.watch.wake()
        if call.may_be_stale():
            self.to_hub.post(self._launch_unless_stale, call)
        else:
            call.launch()

    def _launch_unless_stale(self, call: Call) -> None:
        # Celery asked when it handed the task over, and would again before it runs, as with its prefork pool.
        if call.request.revoked():
            call.fate = Fate.DROPPED
            self.finish(call)
        else:
            call.launch()

    def finish(self, call: Call) -> None:
        """A started call has ended: report it and free its slot; any thread."""
        with self.slots.lock:
            call.done = True  # its fate is settled
        try:
            call.clear_timers()
            call.report()  # while it still counts as running: a shutdown waits for that
        finally:
            with self.slots.lock:
                self.finished += 1
                self._calls.pop(call.pid, None)
                if not self._calls:
                    self.watch.rest()
                call.release()
                self._forget(call)
            call.value = call.failure = None  # a traceback would keep the call, and the call the traceback

    def _forget(self, call: Call) -> None:
        if call.key is not None and self._by_key.get(call.key) is call:
            del self._by_key[call.key]
        twins, call.twins = call.twins, []
        for twin in twins:
            twin.first = None
            if twin.fate is Fate.TERMINATED:
                twin.done = True
                twin.report()
            elif call.settles_its_message():
                twin.done = True
                twin.pid = next(self._pids)
                twin.report_as(call)
            elif self._state == self.RUN and not self.cold:
                self._submit(twin, twin.args[2])  # the first was broken off: the message has yet to be worked off

    def end(self, call: Call, fate: Fate, signum: int = 0) -> bool:
        """End a call, wherever it is; False when it has ended, or is ending, already. Any thread."""
        with self.slots.lock:
            if call.done or call.fate is not None:
                return False
            call.fate, call.signum = fate, signum
            if call.first is not None:
                self.end(call.first, fate, signum)
            elif call.pid:
                call.cancel()
            else:
                self.slots.withdraw(call)
                call.done = True
                call.report()
                self._forget(call)
            return True

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End the call that was accepted under `pid`."""
        call = self._calls.get(pid)
        if call is not None:
            self.end(call, Fate.TERMINATED, int(signal or 0))

    def give_up(self, request: Any) -> bool:
        """End a call to have its message delivered again, as a shutdown does; False when it has ended meanwhile."""
        self.to_hub.drain()
        call = self._calls.get(request.worker_pid)
        if call is None or call.done or request not in state.active_requests:
            return False
        self.end(call, Fate.DROPPED)
        return True

    def flush(self) -> None:
        """After a lost connection, or as the worker ends: drop what has not started; it is delivered again."""
        with self.slots.lock:
            self.drop_line()
            if self._state == self.RUN:  # else these messages are under delivery still, and end with the first ones
                for call in self._calls.values():
                    call.twins.clear()

    def drop_line(self) -> None:
        """Forget the calls that wait for a slot; their messages stay unacknowledged."""
        with self.slots.lock:
            for call in self.slots.clear():
                call.fate, call.done = Fate.DROPPED, True
                self._forget(call)

    @property
    def line(self) -> list[Call]:
        """The calls that wait for a slot, the next one first."""
        with self.slots.lock:
            return list(self.slots.waiting)

    # Size

    @property
    def num_processes(self) -> int:
        """Slots."""
        return self.slots.limit

    @property
    def running(self) -> list[Call]:
        """The calls that have started and not ended, parked ones included."""
        with self.slots.lock:
            return list(self._calls.values())

    def grow(self, n: int = 1) -> None:
        """Add `n` slots."""
        self._resize(n)

    def shrink(self, n: int = 1) -> None:
        """Remove `n` slots.

        Raises:
            ValueError: more calls run than slots would be left.
        """
        self._resize(-n)

    def _resize(self, by: int) -> None:
        self.slots.resize(by)
        self.limit = self.slots.limit
        self.prefetch.resized()

    def restart(self) -> None:
        """Nothing to restart: there are no processes."""

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        slots = self.slots
        with slots.lock:
            info.update({
                "max-concurrency": slots.limit,
                "processes": [os.getpid()],
                "running": slots.used,
                "queued": len(slots.waiting),
                "parked": slots.parked,
                "max-parked": slots.max_parked,
                "threads": self.crew.count,
                "finished": self.finished,
                "loop": type(self.loop).__module__.partition(".")[0],
                "loop-lag": round(self.watch.lag, 4),
                "loop-blocked": self.watch.blocked,
                "timeouts": [self.options.get("soft_timeout") or 0, self.options.get("timeout") or 0],
            })
        return info

    @property
    def cold(self) -> bool:
        """Whether Celery is in a cold shutdown."""
        return state.should_terminate is not None and state.should_terminate is not False

    @staticmethod
    def pause() -> None:
        """Wait a little, in a way that a signal handler may interrupt and use itself."""
        time.sleep(0.01)


class Shutdown:
    """The end of one pool."""

    def __init__(self, pool: "AsyncioPool") -> None:
        self._pool = pool
        self._over = False
        self._terminating = False
        self._last_busy = 0.0
        self._handed_back = False

    def stop(self) -> None:
        """Wait for the running calls, acknowledging as they end. Waiting ones go back to the broker.

        While calls are parked the waiting ones run, because they may be what the parked ones wait for.
        """
        pool = self._pool
        self._last_busy = time.monotonic()
        while not self._over and not pool.cold:
            if not pool.slots.parked:
                pool.drop_line()
            if not pool.running:
                break
            self._hand_back_stranded()
            self._pump()
            pool.pause()
        if pool.cold:
            self.terminate()
        else:
            self._finish()

    def finish_within(self, seconds: float, idle: bool) -> None:
        """Let what runs end, acknowledging as it does, for `seconds` at most; if `idle`, also when nothing runs."""
        pool, end = self._pool, time.monotonic() + seconds
        with pool.slots.lent():
            while time.monotonic() < end and (idle or pool.running):
                self._pump(timers=False)
                pool.pause()
            self._pump(timers=False)

    def terminate(self) -> None:
        """Cancel what runs, without a word to Celery, so that unacknowledged messages are delivered again."""
        with self._pool.slots.lent():
            self._terminate()

    def _terminate(self) -> None:
        pool = self._pool
        if self._over:
            return
        hard, self._terminating = self._terminating, True  # an exception of Celery's has left the wait below
        pool.drop_line()
        pool.to_hub.drain()
        started = time.monotonic()
        for call in pool.running:
            pool.end(call, Fate.DROPPED)
        while not self._over and not hard and pool.running:
            self._pump()
            waited = time.monotonic() - started
            threads_only = all(isinstance(call, ThreadCall) for call in pool.running)
            if waited > pool.cancel_grace or (threads_only and waited > THREAD_PATIENCE):
                names = ", ".join(call.name for call in pool.running[:10])
                logger.warning("Shutting down although %d cancelled calls go on: %s", len(pool.running), names)
                break
            pool.pause()
        self._finish()

    def _finish(self) -> None:
        if not self._over:
            self._over = True
            self._pump()
            self._pool.halt()
            self._pump()

    def _pump(self, timers: bool = True) -> None:
        pool = self._pool
        pool.to_hub.drain()
        if pool.hub is None:
            return
        try:
            if timers and not pool.cold:  # a signal handler may have interrupted the timers
                pool.hub.fire_timers()
            _run_ready_callbacks(pool.hub)  # the acknowledgements that Celery's callbacks left for the hub
        except Exception:
            logger.exception("A callback of the hub raised during shutdown")

    def _hand_back_stranded(self) -> None:
        """Give up on calls that wait for what nobody here will run."""
        pool = self._pool
        if pool.slots.used or pool.slots.waiting:
            self._last_busy = time.monotonic()
        elif not self._handed_back and time.monotonic() - self._last_busy > pool.parked_grace:
            self._handed_back = True
            logger.warning("%d calls have only waited for %g s, for other workers or for nobody: their messages go "
                           "back to the broker.", pool.slots.parked, pool.parked_grace)
            if pool.consumer is not None:
                pool.consumer.cancel_active_requests()


def read_once(args: tuple[Any, ...], request: Any) -> tuple[Any, ...]:
    """The tracer's arguments with the body that the consumer has read already; the tracer would read it again.

    Args:
        args: task name, id, request, body, content type, content encoding.
        request: Celery's Request, or None.
    """
    if request is None or len(args) != 6 or not args[4]:
        return args
    positional, keywords, embed = request.message.payload
    # The tracer takes from these lists what it has done, which the Request has yet to look at.
    embed = {key: list(item) if isinstance(item, list) else item for key, item in (embed or {}).items()}
    return (*args[:3], (positional, keywords, embed), None, None)
