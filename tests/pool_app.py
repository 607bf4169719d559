"""A plain Celery app on the asyncio pool, with many small tasks, for the pool's tests."""

import asyncio
import contextlib
import os
import threading
import time

import redis
from celery import Celery, current_task
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from celery.signals import before_task_publish
from celery.worker.autoscale import Autoscaler
from celery.worker.control import control_command

from callsheet.tasks.bridge import parked
from tests.hanging import for_ever

URL = os.environ.get("CALLSHEET_REDIS_URL", "redis://127.0.0.1:6379/0")

app = Celery("pool_app", broker=URL, backend=URL, task_cls="callsheet.tasks.base:Task")
app.conf.update(
    worker_pool="callsheet.workers.pool:AsyncioPool",
    worker_autoscaler=os.environ.get("AUTOSCALER", "celery.worker.autoscale:Autoscaler"),
    worker_prefetch_multiplier=int(os.environ.get("PREFETCH", "1")),
    task_default_queue=os.environ.get("POOL_QUEUE", "pool"),
    worker_enable_prefetch_count_reduction=False,
    worker_cancel_long_running_tasks_on_connection_loss="CANCEL_ON_LOSS" in os.environ,
    task_acks_late=True,
    broker_connection_retry_on_startup=True,
    worker_soft_shutdown_timeout=float(os.environ.get("SOFT_SHUTDOWN", "0")),
    worker_enable_soft_shutdown_on_idle="SOFT_ON_IDLE" in os.environ,
    callsheet_cancel_grace=float(os.environ.get("CANCEL_GRACE", "0.4")),
    callsheet_parked_grace=float(os.environ.get("PARKED_GRACE", "30")),
)
app.steps["consumer"].add("callsheet.workers.steps:AttachPool")
if os.environ.get("PARTS") == "callsheet":  # Celery's and kombu's own otherwise
    app.conf.update(broker_transport="callsheet.workers.transport:Transport", result_backend_thread_safe=True,
                    result_backend=f"callsheet.tasks.results:ResultBackend+{URL}",
                    worker_consumer="callsheet.workers.consumer:Consumer")
    app.Worker = app.subclass_with_self("callsheet.workers.consumer:Worker")


class OnRequest(Autoscaler):
    """Leaves the pool as it is, but for what `resize_pool` and `autoscale` ask."""

    def _maybe_scale(self, req=None):
        return False


@control_command(args=[("n", int)])
def resize_pool(state, n=1):
    pool = state.consumer.pool
    (pool.grow if n > 0 else pool.shrink)(abs(n))


store = redis.Redis.from_url(URL, decode_responses=True)


def connect(url: str) -> Celery:
    """Use another Redis than the environment's, in the process of the tests."""
    if app.conf.broker_url != url:
        app.conf.update(broker_url=url, result_backend=url)
        app._after_fork()  # no connection to the one before
        app._backend_cache = None
        app._local.__dict__.pop("backend", None)
    return app


def note(key: str, value: str = "x") -> None:
    """Leave a mark for the test."""
    store.rpush(key, value)


async def opened(gate: str) -> None:
    """Wait until the test sets the key; also while it cuts the connections, this one among them."""
    while True:
        with contextlib.suppress(redis.ConnectionError):
            if store.exists(gate):
                return
        await asyncio.sleep(0.02)


async def result_of(result):
    while not result.ready():
        await asyncio.sleep(0.02)
    return result.get(disable_sync_subtasks=False)


@app.task
async def add(x, y):
    await asyncio.sleep(0)
    return x + y


@app.task
def plain_add(x, y):
    return x + y


@app.task
def plain_memory():
    raise MemoryError("12 GiB")


class Clumsy(app.Task):
    """Its handler raises what Celery lets pass; that is after its result is stored."""

    def on_success(self, *args):
        raise MemoryError("in on_success")

    def on_failure(self, *args):
        raise MemoryError("in on_failure")


@app.task(base=Clumsy)
async def clumsy(fails=False):
    await asyncio.sleep(0)
    if fails:
        raise ValueError("why")


@app.task
async def keeps(key, megabytes):
    """Fails together with others, and has much in its hands."""
    hoard = [bytearray(1 << 20) for _ in range(megabytes)]
    note(key)
    await opened(f"{key}:gate")
    try:
        raise KeyError(len(hoard))
    except KeyError as exc:
        raise ValueError("all at once") from exc


@app.task
async def stamp(key):
    note(key, str(time.time()))


@app.task
async def total(numbers):
    await asyncio.sleep(0)
    return sum(numbers)


@app.task(bind=True)
async def who(self, pause=0.02):
    before = [current_task.request.id, self.request.id, asyncio.current_task().get_name()]
    await asyncio.sleep(pause)
    after = [current_task.request.id, self.request.id, asyncio.current_task().get_name()]
    assert before == after, (before, after)
    return [self.request.id, current_task.name, threading.current_thread().name]


@app.task(bind=True, max_retries=5)
async def flaky(self, succeed_at, countdown=0):
    await asyncio.sleep(0)
    if self.request.retries < succeed_at:
        raise self.retry(countdown=countdown)
    return self.request.retries


@app.task(bind=True)
async def retries_elsewhere(self, queue):
    """Its next try goes to a queue that nobody consumes: what was published when Retry is raised, by which thread."""
    threads = []

    def seen(**_):
        threads.append(threading.current_thread().name)

    before_task_publish.connect(seen)
    try:
        self.retry(countdown=0, queue=queue)
    except Retry:
        return [store.llen(queue), threads, self.request.id, current_task.name]
    finally:
        before_task_publish.disconnect(seen)


@app.task(bind=True)
async def retries_what_cannot_travel(self, x=None):
    try:
        self.retry(kwargs={"x": object()}, countdown=0)
    except Reject as exc:
        return [type(exc.reason).__name__, exc.requeue]


@app.task
async def fail(text="boom"):
    await asyncio.sleep(0)
    raise ValueError(text)


@app.task
async def reject():
    raise Reject("no", requeue=False)


@app.task
async def ignore():
    raise Ignore


@app.task
async def leave():
    raise SystemExit(3)


@app.task
async def grouped(n):
    async with asyncio.TaskGroup() as group:
        parts = [group.create_task(asyncio.sleep(0.01, i)) for i in range(n)]
    return [part.result() for part in parts]


@app.task
async def timed():
    try:
        async with asyncio.timeout(0.02):
            await for_ever()
    except TimeoutError:
        return "timeout"


@app.task
async def generator_sum(n):
    async def numbers():
        for i in range(n):
            await asyncio.sleep(0)
            yield i

    return sum([i async for i in numbers()])


@app.task
async def awaits_task(x, y):
    return await add(x, y)


@app.task
async def applies_eagerly(x, y):
    return add.apply((x, y)).get(disable_sync_subtasks=False)


@app.task(bind=True)
def in_thread(self, gate):
    note(f"{gate}:in")
    while not store.exists(gate):
        time.sleep(0.02)
    return [threading.current_thread().name, current_task.request.id == self.request.id]


@app.task
def sleep_thread(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    return "slept"


@app.task
async def hold(key, gate):
    """Mark the start in `key`, wait for `gate`, mark the end."""
    note(f"{key}:in")
    now = store.incr(f"{key}:now")
    store.eval("if tonumber(ARGV[1]) > tonumber(redis.call('get', KEYS[1]) or 0) then "
               "redis.call('set', KEYS[1], ARGV[1]) end", 1, f"{key}:most", now)
    try:
        await opened(gate)
        note(f"{key}:out")
    except asyncio.CancelledError:
        note(f"{key}:cancelled")
        raise
    finally:
        store.decr(f"{key}:now")
        note(f"{key}:finally")
    return "held"


@app.task
async def hold_and_clean_up(key, gate, until):
    """Broken off, it takes until the key `until` is set to end."""
    note(f"{key}:in")
    try:
        await opened(gate)
    except asyncio.CancelledError:
        note(f"{key}:cancelled")
        await opened(until)
        raise
    note(f"{key}:out")
    return "held"


@app.task(acks_late=False)
async def hold_early(key, gate):
    note(f"{key}:in")
    await opened(gate)
    return "held"


@app.task(soft_time_limit=0.1)
async def soft(key):
    try:
        await for_ever()
    except SoftTimeLimitExceeded:
        note(key)
        return "softened"


@app.task(soft_time_limit=0.1)
async def soft_uncaught():
    await for_ever()


@app.task(soft_time_limit=0.1)
async def soft_lock(key):
    """The limit strikes a subtask's gather; nothing may be left running."""
    async def part():
        try:
            await for_ever()
        finally:
            note(key)

    await asyncio.gather(part(), part())


@app.task(time_limit=0.1)
async def hard(key):
    try:
        await for_ever()
    finally:
        note(f"{key}:finally")


@app.task(time_limit=0.1)
async def hard_swallowed(key, gate):
    while not store.exists(gate):
        try:
            await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            note(f"{key}:swallowed")
    note(f"{key}:end")
    return "never stored"


@app.task(soft_time_limit=0.1)
def soft_thread():
    try:
        sleep_thread.run(30)
    except SoftTimeLimitExceeded:
        return "softened"


@app.task(time_limit=0.1)
def hard_thread():
    sleep_thread.run(30)


@app.task
async def cancels_itself():
    asyncio.current_task().cancel()
    await for_ever()


@app.task
async def raises_cancelled():
    raise asyncio.CancelledError


@app.task
async def swallow_and_return(key):
    try:
        note(f"{key}:in")
        await for_ever()
    except asyncio.CancelledError:
        return "swallowed"


@app.task
async def tree(depth):
    """A chain of calls, each of which waits for the next one's result."""
    if depth <= 1:
        return 1
    child = tree.delay(depth - 1)
    async with parked():
        below = await result_of(child)
    return below + 1


@app.task
async def parks(key, gate, width=1):
    """Subtasks that park at the same time."""
    async def part():
        async with parked():
            note(f"{key}:parked")
            await opened(gate)

    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(part())
    note(f"{key}:back")
    return "back"


@app.task
async def block(seconds):
    time.sleep(seconds)


@app.task(bind=True)
async def run_once(self, seconds):
    """Say in a file when it starts and ends: Redis may be out of reach."""
    with open(os.environ["RUNS"], "a", buffering=1) as runs:
        runs.write(f"start {self.request.id}\n")
        try:
            await asyncio.sleep(seconds)
        finally:
            runs.write(f"end {self.request.id}\n")


class ByClass(app.Task):
    name = "tests.pool_app.ByClass"

    async def run(self, x):
        await asyncio.sleep(0)
        return [x, self.request.id]


by_class = app.register_task(ByClass())


@app.task
async def stubborn(key):
    note(f"{key}:in")
    while True:
        try:
            await for_ever()
        except asyncio.CancelledError:
            note(f"{key}:swallowed")


@app.task(bind=True)
async def hold_counted(self, key, gate):
    """Count the runs of each task, in three trips."""
    store.hincrby(f"{key}:runs", self.request.id, 1)
    note(f"{key}:in")
    await opened(gate)
    note(f"{key}:out")
    return "held"


@app.task
async def stubborn_for(key, seconds):
    """Swallows whatever breaks it off, for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(BaseException):
            await asyncio.sleep(0.05)
    note(key)
