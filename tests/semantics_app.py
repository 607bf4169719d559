"""The pool's test app with the tasks that show what Celery promises its tasks."""

import asyncio
import contextvars
import threading
import time

from celery import current_task
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_task_logger

from tests.hanging import for_ever
from tests.pool_app import app, note, opened, store

logger = get_task_logger(__name__)
word: contextvars.ContextVar[str] = contextvars.ContextVar("word", default="unset")


# Where a task is told that it is


def here(task):
    return [task.request.id, current_task.name if current_task else None]


@app.task(bind=True)
async def told_everywhere(self):
    """What `self.request` and `current_task` are in each kind of code that a coroutine starts."""

    async def child(depth=0):
        await asyncio.sleep(0.001)
        if depth:
            async with asyncio.TaskGroup() as group:
                return await group.create_task(child(depth - 1))
        return here(self)

    async def numbers():
        await asyncio.sleep(0)
        yield here(self)

    async with asyncio.TaskGroup() as group:
        grouped = group.create_task(child())
    async with asyncio.timeout(5):
        timed = await child()
    called = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: called.set_result(here(self)))
    logger.info("said in the task")
    await asyncio.gather(log_in_child())
    return {
        "body": here(self), "group": grouped.result(), "gather": (await asyncio.gather(child(), child()))[1],
        "nested": await asyncio.create_task(child(3)), "timeout": timed, "wait_for": await asyncio.wait_for(child(), 5),
        "generator": await anext(numbers()), "callback": await called,
        "shield": await asyncio.shield(child()), "after": here(self),
        "thread": await asyncio.to_thread(here, self),
    }


async def log_in_child():
    logger.info("said in a subtask")


@app.task(bind=True)
async def child_updates_state(self, gate):
    async def child():
        self.update_state(state="PROGRESS", meta={"done": 1})
        await opened(gate)

    await asyncio.gather(child())


@app.task(bind=True, max_retries=2)
async def child_retries(self):
    async def child():
        await asyncio.sleep(0)
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return self.request.retries

    return (await asyncio.gather(child()))[0]


@app.task(bind=True)
async def applies_in_child(self, x):
    """An eager task in a subtask has its own request, and leaves the outer one as it was."""

    async def child():
        return request_id.apply(task_id="inner").get(disable_sync_subtasks=False), here(self)[0]

    inner, after = (await asyncio.gather(child()))[0]
    return [inner, after, here(self)[0]]


@app.task(bind=True)
async def request_id(self):
    await asyncio.sleep(0)
    return [self.request.id, current_task.request.id]


@app.task(bind=True)
async def request_fields(self, *args, **kwargs):
    request = self.request
    await asyncio.sleep(0)
    return {"args": request.args, "kwargs": request.kwargs, "retries": request.retries, "eager": request.is_eager,
            "hostname": request.hostname, "queue": request.delivery_info["routing_key"], "root": request.root_id,
            "parent": request.parent_id, "direct": request.called_directly, "limits": request.timelimit,
            "headers": (request.headers or {}).get("tenant")}


# Errbacks


@app.task
def noted_error(request, exc, traceback):
    note(f"error:{request.id}", repr(exc))


@app.task
async def noted_error_async(request, exc, traceback):
    await asyncio.sleep(0)
    note(f"error:{request.id}", repr(exc))


@app.task
async def error_by_id(task_id):
    """An errback of one argument, which runs as a task of its own."""
    note(f"error:{task_id}", "by id")


# Retries


@app.task(bind=True, autoretry_for=(KeyError,), retry_backoff=1, retry_jitter=False, max_retries=2)
async def backs_off(self, key):
    note(key, str(time.time()))
    await asyncio.sleep(0)
    if self.request.retries < 2:
        raise KeyError("again")
    return "done"


@app.task(bind=True, max_retries=1)
async def gives_up(self):
    try:
        await asyncio.sleep(0)
        raise ValueError("the cause")
    except ValueError as exc:
        raise self.retry(exc=exc, countdown=0) from exc


# Acknowledgement


@app.task(bind=True, acks_on_failure_or_timeout=False, time_limit=0.1)
async def hangs_first(self, key, cleaning):
    """Its message comes again while the first run still cleans up."""
    note(key, "in")
    if not self.request.delivery_info["redelivered"]:
        try:
            await for_ever()
        finally:
            await asyncio.sleep(cleaning)
            note(key, "out")
    return "second time"


@app.task(acks_on_failure_or_timeout=False)
async def fails_unacked(key):
    note(key)
    raise ValueError("dropped")


@app.task
async def exits(key):
    note(key)
    raise SystemExit(3)


# Results


@app.task(ignore_result=True)
async def ignored(key):
    note(key)
    return "nobody asks"


@app.task(track_started=True)
async def tracked(gate):
    await opened(gate)
    return "tracked"


# Context variables and asyncio's own tools


@app.task
async def context_everywhere(value):
    before = word.get()
    word.set(value)

    async def child():
        await asyncio.sleep(0.01)
        return word.get()

    async with asyncio.TaskGroup() as group:
        grouped = group.create_task(child())
    return [before, word.get(), grouped.result(), (await asyncio.gather(child()))[0],
            await asyncio.to_thread(word.get), (await asyncio.create_task(child()))]


@app.task
def context_in_thread(value, seconds=0.05):
    before = word.get()
    word.set(value)
    time.sleep(seconds)
    return [before, word.get()]


@app.task
async def leaves_a_generator_open(key):
    async def numbers():
        try:
            for number in range(10):
                yield number
        finally:
            await asyncio.sleep(0)
            note(key, "closed")

    async for number in numbers():
        if number:
            break
    return number


@app.task
async def in_a_generator(key, gate):
    async def numbers():
        try:
            yield 1
            note(f"{key}:in")
            await opened(gate)
            yield 2
        finally:
            note(key, "closed")

    return [number async for number in numbers()]


@app.task
async def group_with_a_failure(key):
    async def long():
        try:
            await for_ever()
        finally:
            note(key, "cancelled")

    async def fails():
        await asyncio.sleep(0.01)
        raise KeyError("in the group")

    caught = []
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(long())
            group.create_task(fails())
    except* KeyError as exc:
        caught += exc.exceptions
    return repr(caught)


@app.task
async def leaves_a_subtask_behind(key, gate):
    """The subtask outlives its task and must not see another call's request."""

    async def later():
        await opened(gate)
        note(key, repr(here(leaves_a_subtask_behind)))

    kept.append(asyncio.create_task(later()))


kept: list = []


# Threads


@app.task
def thread_hold(key, gate):
    note(f"{key}:in", threading.current_thread().name)
    now = store.incr(f"{key}:now")
    store.eval("if tonumber(ARGV[1]) > tonumber(redis.call('get', KEYS[1]) or 0) then "
               "redis.call('set', KEYS[1], ARGV[1]) end", 1, f"{key}:most", now)
    while not store.exists(gate):
        time.sleep(0.02)
    store.decr(f"{key}:now")


# Time limits


async def until_broken_off(key, seconds=30):
    started = time.monotonic()
    try:
        await asyncio.sleep(seconds)
    except SoftTimeLimitExceeded as exc:
        note(key, "soft")
        return ["soft", time.monotonic() - started, *exc.args]  # with the limit that struck
    except asyncio.CancelledError:
        note(key, "hard")
        raise
    return ["over", time.monotonic() - started]


@app.task
async def unlimited(key, seconds=30):
    return await until_broken_off(key, seconds)


@app.task(soft_time_limit=0.2, time_limit=30)
async def limited(key, seconds=30):
    return await until_broken_off(key, seconds)


@app.task(soft_time_limit=0.1, time_limit=0.4)
async def goes_on_after_the_soft_limit(key):
    try:
        await for_ever()
    except SoftTimeLimitExceeded:
        note(key, "soft")
    await until_broken_off(key)


@app.task(soft_time_limit=0.1)
async def cleans_up_in_a_group(key):
    async def part(number):
        try:
            await for_ever()
        finally:
            note(key, f"part {number}")

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(2):
                group.create_task(part(number))
    except SoftTimeLimitExceeded:
        await asyncio.sleep(0.05)  # the limit strikes once
        return "cleaned up"


@app.task
def unlimited_thread(key):
    try:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            time.sleep(0.01)
    except SoftTimeLimitExceeded:
        note(key, "soft")
        return "soft"
