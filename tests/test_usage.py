"""What calls took: by job, agent, tenant and endpoint, on workers and inline; complete when the result is there."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import callsheet
from callsheet import AgentFailed, FanoutPipeline, Job, Msg, SequentialPipeline, Usage
from callsheet.cli.main import main
from callsheet.cli.progress import in_words
from callsheet.errors import UsageError
from callsheet.models.stub import StubModelServer
from callsheet.resources import accounts, books
from callsheet.resources.accounts import NAMES, OTHERS, JobUsage, add_numbers, grouped, local_account, snapshot
from callsheet.resources.books import Batch, Books, job_usage
from callsheet.resources.context import MOST_PARENTS, CallContext, call_context, child_context
from callsheet.resources.record import CallRecord
from callsheet.resources.tokens import Tokens
from callsheet.settings import Settings, use_settings
from tests.agents.spenders import Idle, Spends, SpendsInProcess
from tests.services import RedisServer, Worker, wait_for, worker

DEMO = Path(__file__).parent / "demo_files"
HELLO = Msg("u", "hello", "user")
PRICES = '{"gpt-*": {"input": 2, "output": 8}}'


class Stage:
    """Workers, their Redis and the model server that they call."""

    def __init__(self, redis: RedisServer, server: StubModelServer, io: Worker) -> None:
        self.redis, self.server, self.io = redis, server, io


@pytest.fixture(scope="module")
def stage(redis_server: RedisServer) -> Iterator[Stage]:
    own = RedisServer()
    with StubModelServer() as server:
        env = {"CALLSHEET_MODULES": "tests.agents", "CALLSHEET_ENDPOINTS__OPENAI__BASE_URL": server.base_url,
               "CALLSHEET_PRICES": PRICES, "CALLSHEET_RETRY_BACKOFF": "0.05"}
        try:
            with (worker("callsheet.workers.io", own.url, "--autoscale=50,5", env=env) as io,
                  worker("callsheet.workers.cpu", own.url, "-c", "1", env=env),
                  use_settings(Settings.load(redis_url=own.url))):
                yield Stage(own, server, io)
        finally:
            own.remove()


def told(result: Any) -> tuple[int, int]:
    """The tokens that agents were told of."""
    tokens = (result.metadata or {})["tokens"]
    return tokens[0], tokens[1]


def spent(job: Job) -> tuple[int, int]:
    return job.usage.input_tokens, job.usage.output_tokens


# On workers -------------------------------------------------------------------------------------------------------

def test_a_jobs_usage_is_there_with_its_result(stage: Stage) -> None:
    for _ in range(20):
        job = Spends("a", 3).submit(HELLO)
        tokens = told(job.get(timeout=20))
        usage = job.usage
        assert (usage.input_tokens, usage.output_tokens) == tokens
        assert (usage.calls, usage.errors, usage.retries, usage.unpriced) == (3, 0, 0, 0)
        assert usage.cost == pytest.approx((tokens[0] * 2 + tokens[1] * 8) / 1e6)
        assert usage.seconds > 0 and usage.latency == pytest.approx(usage.seconds / 3)
    assert Job.from_id(job.id).usage == usage


def test_in_a_process_of_a_cpu_worker_too(stage: Stage) -> None:
    job = SpendsInProcess("p", 2).submit(HELLO)
    assert told(job.get(timeout=20)) == spent(job)
    assert job.usage.calls == 2


def test_every_step_and_branch_of_a_pipeline_counts(stage: Stage) -> None:
    pipeline = SequentialPipeline([
        Spends("first"), FanoutPipeline([Spends("left", 2), SpendsInProcess("right")], reduce=Spends("reduce")),
        Spends("last")])
    for _ in range(5):
        job = pipeline.submit(HELLO)
        job.get(timeout=30)
        usage = job.usage
        assert {agent: part.calls for agent, part in usage.by("agent").items()} == {
            "Spends(first)": 1, "Spends(left)": 2, "SpendsInProcess(right)": 1, "Spends(reduce)": 1, "Spends(last)": 1}
        assert set(usage.by("endpoint")) == {"openai"} and set(usage.by("model")) == {"gpt-small"}


@pytest.mark.parametrize("submit", [False, True])
def test_what_children_use_is_in_their_parents_total(stage: Stage, submit: bool) -> None:
    leaf = Spends("leaf", 2)
    job = Spends("top", 1, [Spends("middle", 1, [leaf, leaf], submit), Idle("idle")], submit).submit(HELLO)
    assert told(job.get(timeout=30)) == spent(job)
    assert {agent: part.calls for agent, part in job.usage.by("agent").items()} == {
        "Spends(top)": 1, "Spends(middle)": 1, "Spends(leaf)": 4}


def test_tries_that_failed_are_paid_for(stage: Stage) -> None:
    job = Spends("f", 1, fail=True).submit(HELLO, retries=2)
    with pytest.raises(AgentFailed):
        job.get(timeout=30)
    assert job.usage.calls == 3


def test_the_fleet_is_counted_by_agent_tenant_and_endpoint(stage: Stage) -> None:
    before = callsheet.usage("tenant").get("acme", Usage())
    for name in ("x", "y"):
        Spends(name, 2).submit(HELLO, tenant="acme").get(timeout=20)
    Spends("z").submit(HELLO, tenant="other").get(timeout=20)
    after = callsheet.usage("tenant", days=1)
    assert after["acme"].calls - before.calls == 4 and after["other"].calls >= 1
    assert callsheet.usage("agent")["Spends(x)"].calls == 2
    assert callsheet.usage()["openai"].total_tokens >= after["acme"].total_tokens > 0
    with pytest.raises(UsageError, match="'colour'"):
        callsheet.usage("colour")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="days=0"):
        callsheet.usage(days=0)


def test_who_calls_nothing_pays_nothing(stage: Stage) -> None:
    client = stage.redis.client()

    def trips() -> set[str]:
        return set(client.scan_iter("callsheet:usage-batch:*"))  # a mark of each, for two minutes

    Spends("s").submit(HELLO).get(timeout=20)
    before = trips()
    assert before
    jobs = [Idle("i").submit(HELLO) for _ in range(50)]
    for job in jobs:
        job.get(timeout=20)
    assert trips() <= before
    assert jobs[0].usage == JobUsage() and not client.exists(f"callsheet:usage:{jobs[0].id}")


def test_counts_of_many_calls_share_their_trips(stage: Stage) -> None:
    client = stage.redis.client()
    before = int(client.info("commandstats").get("cmdstat_eval", {}).get("calls", 0))
    results = list(callsheet.map(Spends("m", 2), [HELLO] * 200, progress=False))
    assert len(results) == 200
    after = int(client.info("commandstats")["cmdstat_eval"]["calls"])
    assert after - before <= 200  # one a call at most, of two requests each; together under load


def test_of_a_killed_worker_what_had_ended_is_counted(own_redis: RedisServer) -> None:
    """It dies within a call: what ended a moment before is kept, and the second run is paid for too."""
    with StubModelServer() as server:
        env = {"CALLSHEET_MODULES": "tests.agents", "CALLSHEET_ENDPOINTS__OPENAI__BASE_URL": server.base_url,
               "CALLSHEET_LEASE": "1"}
        with use_settings(Settings.load(redis_url=own_redis.url, lease=1)):
            with worker("callsheet.workers.io", own_redis.url, "--autoscale=1,1",
                        env={**env, "SPENDERS_HOLD": "1"}) as first:
                job = Spends("k", 2).submit(HELLO)
                wait_for(lambda: job.usage.calls == 2, what="the calls that ended")
                first.kill()
            with worker("callsheet.workers.io", own_redis.url, "--autoscale=5,5", env=env):
                job.get(timeout=60)
            assert job.usage.calls == 4


def test_a_run_ends_with_what_it_used(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('"one"\n"two"\n"three"\n')
    done = CliRunner().invoke(main, ["run", str(DEMO / "spending.py"), "--input", "in.jsonl"])
    assert done.exit_code == 0, done.output
    [used] = [line for line in done.stdout.splitlines() if line.startswith("Used:")]
    assert used.startswith("Used: 6 model calls, ") and " tokens in, " in used and ", cost 0." in used


# Inline -----------------------------------------------------------------------------------------------------------

@pytest.fixture
def inline_endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StubModelServer]:
    with StubModelServer() as server:
        settings = Settings.load(endpoints={"openai": {"base_url": server.base_url}}, inline=True,
                                 prices={"gpt-small": {"input": 1, "output": 1}},
                                 redis_url="redis://127.0.0.1:1/0")
        with use_settings(settings):
            yield server


@pytest.mark.parametrize("submit", [False, True])
def test_inline_jobs_have_their_usage(inline_endpoint: StubModelServer, submit: bool) -> None:
    async def steps() -> None:
        job = Spends("top", 1, [Spends("child", 2)], submit).submit(HELLO, tenant="t")
        assert told(await job) == spent(job)
        assert job.usage.calls == 3 and job.usage.cost > 0
        assert list(job.usage.by("tenant")) == ["t"]

    asyncio.run(steps())
    job = Spends("plain").submit(HELLO)
    assert told(job.get()) == spent(job)
    assert callsheet.usage("agent")["Spends(plain)"].calls >= 1


def test_a_pipeline_inline(inline_endpoint: StubModelServer) -> None:
    middle = FanoutPipeline([Spends("b"), Spends("c")], reduce=Spends("d"))
    job = SequentialPipeline([Spends("a"), middle]).submit(HELLO)
    job.get()
    assert {agent: part.calls for agent, part in job.usage.by("agent").items()} == {
        "Spends(a)": 1, "Spends(b)": 1, "Spends(c)": 1, "Spends(d)": 1}


def test_nothing_is_kept_of_inline_jobs_that_are_gone(inline_endpoint: StubModelServer) -> None:
    import gc

    job = Spends("a").submit(HELLO)
    job.get()
    assert job.id in accounts._local
    gone = job.id
    del job
    gc.collect()
    assert gone not in accounts._local


# The parts ----------------------------------------------------------------------------------------------------------

def record(job: str | None = "j", **more: Any) -> CallRecord:
    parents = more.pop("parents", ())
    given = {"endpoint": "e", "model": "m", "started": 100.0, "finished": 101.5, "status": 200,
             "tokens": Tokens(10, 5), **more}
    return CallRecord(context=CallContext(job=job, call=job, agent="A(a)", tenant="t", parents=parents), **given)


NUMBERS = st.lists(st.integers(0, 10**12), min_size=len(NAMES), max_size=len(NAMES))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), NUMBERS), max_size=20))
def test_parts_add_up_to_the_whole(entries: list[tuple[str, str, list[int]]]) -> None:
    rows: accounts.Rows = {}
    for agent, endpoint, numbers in entries:
        add_numbers(rows, (agent, "", endpoint, "m"), numbers)
    total = JobUsage.of(rows)
    for what in ("agent", "endpoint", "tenant"):
        parts = grouped(total.rows, what).values()  # type: ignore[arg-type]
        assert sum(part.calls for part in parts) == total.calls
        assert sum(part.cost for part in parts) == pytest.approx(total.cost)


def test_many_rows_end_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "MOST_ROWS", 3)
    rows: accounts.Rows = {}
    for number in range(10):
        add_numbers(rows, (f"A({number})", "", "e", "m"), [1] * len(NAMES))
    assert len(rows) == 4 and rows[OTHERS, "", "e", OTHERS] == [7] * len(NAMES)


def test_what_a_record_counts() -> None:
    with use_settings(Settings.load(prices={"m": {"input": 2, "output": 4, "cached": 1}})):
        numbers = accounts.numbers_of(record(tokens=Tokens(10, 5, 4), retries=2, queued=0.25, paused=0.5))
        assert Usage.from_numbers(numbers) == Usage(
            calls=1, retries=2, input_tokens=10, output_tokens=5, cached_tokens=4, cost=(6 * 2 + 4 + 20) / 1e6,
            waited=0.75, seconds=1.5)
        assert Usage.from_numbers(accounts.numbers_of(record(model="other"))).unpriced == 1
        nothing = record(tokens=Tokens(), status=None, error="ConnectError", fallback="f")
        assert Usage.from_numbers(accounts.numbers_of(nothing)) == Usage(
            calls=1, errors=1, fallbacks=1, seconds=1.5)


def test_a_process_tells_its_counts() -> None:
    accounts._count(record(job=None, endpoint="told", finished=100.3))
    accounts._count(record(job=None, endpoint="told", finished=9999.0))
    found = snapshot()
    [usage] = [row for row in found["usage"] if row["endpoint"] == "told"]
    assert (usage["agent"], usage["calls"], usage["input_tokens"]) == ("A(a)", 2, 20)
    counted = found["latency"]["told"]
    assert sum(counted["counts"]) == 2 and len(counted["counts"]) == len(counted["bounds"]) + 1
    assert counted["counts"][-1] == 1
    assert {"name", "endpoint", "detail", "value"} == set(found["counters"][0]) if found["counters"] else True


def test_a_batch_is_added_once_and_full_hashes_count_under_others(redis_server: RedisServer,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.load(redis_url=redis_server.url, key_prefix="once:")
    client = redis_server.client()
    batch = Batch()
    batch.add(("job", "j"), ("a", "t", "e", "m"), [10**15 + 1] * len(NAMES))
    for _ in range(3):
        client.execute_command(*batch.command(settings))
    assert job_usage(["j"], settings).calls == 10**15 + 1
    again = Batch()
    again.add(("job", "j"), ("a", "t", "e", "m"), [2] * len(NAMES))
    client.execute_command(*again.command(settings))
    assert job_usage(["j"], settings).calls == 10**15 + 3
    assert 0 < client.ttl("once:usage:j") <= settings.result_expires
    monkeypatch.setattr(books, "MOST_ROWS", 1)
    more = Batch()
    for name in "bcd":
        more.add(("job", "j"), (name, "", "e", "m"), [1] * len(NAMES))
    client.execute_command(*more.command(settings))
    assert job_usage(["j"], settings).by("agent")[OTHERS].calls == 3


def test_counts_wait_for_a_redis_that_is_away(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch,
                                              caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(books, "AGAIN", 0.05)
    monkeypatch.setattr(books, "TOGETHER", 0.01)
    settings = Settings.load(redis_url=own_redis.url)

    async def steps() -> None:
        mine, loop = Books(), asyncio.get_running_loop()
        monkeypatch.setattr(books, "on_lasting_loop", lambda work: loop.call_soon(lambda: tasks.append(
            loop.create_task(work()))))
        tasks: list[asyncio.Task[None]] = []
        failures: list[Exception] = []
        keep = mine._keep_for_later
        monkeypatch.setattr(mine, "_keep_for_later", lambda exc: (failures.append(exc), keep(exc)))
        own_redis.stop()
        for _ in range(3):
            mine.post(record(parents=("top",)), ("a", "", "e", "m"), [1] * len(NAMES))
            await mine.settled()
        assert not mine.idle
        before = len(failures)
        async with asyncio.timeout(20):
            while len(failures) < before + 2:  # it tries by itself
                await asyncio.sleep(0.02)
        await asyncio.to_thread(own_redis.start)
        async with asyncio.timeout(20):
            while not mine.idle:
                await asyncio.sleep(0.02)
        assert len(tasks) == 1

    with use_settings(settings):
        asyncio.run(steps())
    assert job_usage(["j"], settings).calls == job_usage(["top"], settings).calls == 3
    assert caplog.text.count("usage_unsent") == 1


def test_counts_of_many_threads_are_all_there(redis_server: RedisServer) -> None:
    settings = Settings.load(redis_url=redis_server.url, key_prefix="threads:")
    mine = Books()

    async def steps() -> None:
        def post() -> None:
            for _ in range(500):
                mine.post(record(), ("a", "", "e", "m"), [1] * len(NAMES))

        mine._timed = True  # this test sends
        threads = [threading.Thread(target=post) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            await mine.settled()
        await mine.settled()
        assert mine.idle

    with use_settings(settings):
        asyncio.run(steps())
    assert job_usage(["j"], settings).calls == 2000


def test_an_endless_chain_of_jobs_remembers_its_beginning_and_its_end() -> None:
    context = CallContext(job="0", call="0")
    for number in range(1, 50):
        with call_context(context):
            child = child_context(None, None, awaited=False)
        context = CallContext(job=str(number), call=str(number), parents=child.parents)
    assert len(context.parents) == MOST_PARENTS
    assert context.parents[0] == "0" and context.parents[-1] == "48"
    with call_context(context):
        assert child_context(None, None, awaited=True).parents == context.parents


def test_an_account_is_shared_while_it_is_held() -> None:
    account = local_account("held")
    assert local_account("held") is account


@pytest.mark.parametrize(("usage", "words"), [
    (Usage(), ""),
    (Usage(calls=2, input_tokens=1200, output_tokens=30), "2 model calls, 1,200 tokens in, 30 out"),
    (Usage(calls=3, errors=1, retries=2, fallbacks=1, input_tokens=10, output_tokens=1, cached_tokens=4, cost=0.5,
           unpriced=1), "3 model calls, 1 failed, 2 retries, 1 fallbacks, 10 tokens in (4 cached), 1 out, cost 0.5000, "
                        "without 1 calls that have no price")])
def test_usage_in_words(usage: Usage, words: str) -> None:
    assert in_words(usage) == words


def test_time_is_not_lost_when_it_is_added_up() -> None:
    rows: accounts.Rows = {}
    for _ in range(1000):
        add_numbers(rows, ("a", "", "e", "m"), accounts.numbers_of(record(finished=100.001)))
    assert JobUsage.of(rows).seconds == pytest.approx(1.0)
