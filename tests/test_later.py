"""What is to start much later waits in Redis: it burdens no worker, outlives all of them, and starts on time."""

import contextlib
import json
import os
import statistics
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from celery import chord

from callsheet import Job, Msg
from callsheet.errors import CallRefused, JobCancelled
from callsheet.settings import use_settings
from callsheet.tasks.app import current_app
from callsheet.workers.later import goes_back, start_of
from tests.agents.basic import Echo
from tests.fleet import client_settings
from tests.services import Worker, wait_for
from tests.test_bad_input import envelope

HELLO = Msg("user", "hello", "user")
ENV = {"CALLSHEET_MODULES": "tests.agents.user_tasks,tests.agents,tests.compat_tasks", "CALLSHEET_LEASE": "4"}
FAR = int(os.environ.get("FAR", "2000"))
DECADE = timedelta(days=3653)


@pytest.fixture
def redis(own_redis):
    with use_settings(client_settings(own_redis)):
        yield own_redis.client()


@pytest.fixture
def start(own_redis):
    """Starts workers, side by side if there are several."""
    with contextlib.ExitStack() as stack:
        def begin(*given, app="callsheet.workers.{}", **env):
            found = []
            for kind, *options in given:
                one = Worker(app.format(kind), own_redis.url, *options, "--without-mingle", "--without-gossip",
                             env={**ENV, **env})
                stack.callback(one.remove)
                found.append(one)
            return [one.wait_ready() for one in found]

        yield begin


def waiting(redis):
    return redis.zcard("unacked_later")


def ran(path):
    """What ran, and when."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [(name, float(at)) for name, at in (line.split() for line in lines)]


def send(count, path, at, queue="io", name="t"):
    app = current_app()
    with app.producer_or_acquire() as producer:
        return [app.send_task("tests.note_time", (str(path), f"{name}{number}"), eta=at, queue=queue,
                              producer=producer) for number in range(count)]


def note(path, name, **options):
    return current_app().signature("tests.note_time", (str(path), name), immutable=True, queue="io", **options)


def in_seconds(seconds):
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize(("away", "crowded", "expected"), [
    (-5, False, None), (0.5, False, None), (3600, False, None), (3601, False, 3591), (1e9, False, 1e9 - 10),
    (-5, True, None), (0.9, True, None), (2, True, 2), (19, True, 19), (21, True, 11),
])
def test_what_goes_back_when(away, crowded, expected):
    now = 1_800_000_000.0
    at = goes_back(now + away, now, 3600.0, 10.0, crowded)
    assert at == (None if expected is None else now + expected)


@pytest.mark.parametrize("given", [None, "tomorrow", "", 5, 5.5, [], {"a": 1}, True, "10000-01-01T00:00:00"])
def test_a_time_that_is_none_is_left_to_celery(given):
    assert start_of({"eta": given}, UTC) is None


@pytest.mark.parametrize("given", ["1970-01-01T01:00:00", "1970-01-01T01:00:00Z", "1970-01-01T03:00:00+02:00"])
def test_a_time_with_a_zone_or_without(given):
    assert start_of({"eta": given}, UTC) == 3600.0


def test_thousands_that_start_in_ten_years_burden_no_worker(redis, start, tmp_path):
    io, cpu = start(("io", "-c", "2"), ("cpu", "-c", "1"))
    control = current_app().control

    def prefetch(one):
        return control.inspect([one.name], timeout=10, limit=1).stats()[one.name]["prefetch_count"]

    process = psutil.Process(io.process.pid)
    before, memory = [prefetch(io), prefetch(cpu)], process.memory_info().rss
    results = send(FAR, tmp_path / "ran", datetime.now(UTC) + DECADE) \
        + send(100, tmp_path / "ran", datetime.now(UTC) + DECADE, "cpu")
    assert Echo("a").submit(HELLO).get(20).content == "a:hello"
    wait_for(lambda: waiting(redis) == FAR + 100, 30 + FAR / 500, "all put away")
    wait_for(lambda: redis.hlen("unacked") == redis.zcard("unacked_lease") == 0, what="none held")
    assert [redis.llen("io"), redis.llen("cpu")] == [0, 0]
    assert [prefetch(io), prefetch(cpu)] == before
    grown, used = (process.memory_info().rss - memory) / 1e6, sum(process.cpu_times()[:2])
    print(f"{FAR} put away: {grown:.0f} MB more, {used:.1f} s of CPU in all")
    assert grown < 30

    # Revoked ones are dropped as others are: their results tell, and chains and chords that they are in.
    control.revoke([results[0].id, results[-1].id])
    path = tmp_path / "ran"
    part = chord([note(path, "part", eta=datetime.now(UTC) + DECADE), note(path, "other")], note(path, "body"),
                 app=current_app()).apply_async()
    wait_for(lambda: waiting(redis) == FAR + 99, 20, "two dropped, one more")
    control.revoke(part.parent[0].id)
    wait_for(lambda: part.state == "FAILURE", 20, "the chord's end")
    wait_for(lambda: results[0].state == results[-1].state == "REVOKED", 20, "both told")
    job = Echo("late").submit(HELLO, eta=datetime.now(UTC) + DECADE)
    wait_for(lambda: waiting(redis) == FAR + 99, 20, "one more")
    job.cancel()
    with pytest.raises(JobCancelled):
        job.get(20)

    wait_for(lambda: waiting(redis) == FAR + 98, 20, "the one to be dropped")

    # Cancelled while no worker listens.
    io.kill()
    cpu.kill()
    assert waiting(redis) == FAR + 98
    Job.from_id(results[1].id).cancel()
    start(("io", "-c", "2"))
    wait_for(lambda: waiting(redis) == FAR + 97 and not redis.llen("io"), 20, "one dropped")
    assert Echo("a").submit(HELLO).get(20).content == "a:hello"
    assert [name for name, _ in ran(tmp_path / "ran")] == ["other"]


def test_they_outlive_workers_and_start_on_time(redis, start, tmp_path):
    near = {"CALLSHEET_ETA_HORIZON": "1"}
    [first] = start(("io", "-c", "20"), **near)
    at = in_seconds(10)
    results = send(200, tmp_path / "ran", at)
    wait_for(lambda: waiting(redis) == 200, 10, "all put away")
    revoked = [result.id for result in results[:20]]
    assert current_app().control.revoke(revoked, reply=True, timeout=10, limit=1)
    first.kill()
    assert waiting(redis) == 180
    start(("io", "-c", "20"), **near)
    wait_for(lambda: len(ran(tmp_path / "ran")) >= 180, 40, "all to run")
    wait_for(lambda: not redis.hlen("unacked") and not redis.llen("io") and not waiting(redis), what="nothing left")
    times = dict(ran(tmp_path / "ran"))
    assert len(ran(tmp_path / "ran")) == len(times) == 180
    assert min(times.values()) >= at.timestamp()
    assert not {f"t{number}" for number in range(20)} & set(times)
    assert all(result.state == "REVOKED" for result in results[:20])

    at = in_seconds(4)
    send(20, tmp_path / "more", at)
    wait_for(lambda: len(ran(tmp_path / "more")) == 20, 20, "all to run")
    late = [when - at.timestamp() for _, when in ran(tmp_path / "more")]
    assert min(late) >= 0
    assert statistics.median(late) < 2


def test_a_worker_holds_a_thousand_and_no_more_and_runs_all(redis, start, tmp_path):
    [io] = start(("io", "-c", "20"))
    at = in_seconds(15)
    send(1300, tmp_path / "ran", at)
    wait_for(lambda: not redis.llen("io") and waiting(redis) >= 200, 15, "some put away")
    assert 900 < redis.hlen("unacked") <= 1100
    held = current_app().control.inspect([io.name], timeout=10, limit=1).scheduled()[io.name]
    assert len(held) == redis.hlen("unacked")  # as Celery tells of what is near
    wait_for(lambda: len(ran(tmp_path / "ran")) >= 1300, 40, "all to run")
    wait_for(lambda: not redis.hlen("unacked") and not waiting(redis), what="nothing left")
    assert Counter(name for name, _ in ran(tmp_path / "ran")).most_common(1)[0][1] == 1
    assert min(when for _, when in ran(tmp_path / "ran")) >= at.timestamp()


def test_beside_a_stock_worker_each_runs_once(redis, start, own_redis, tmp_path):
    start(("io", "-c", "2"), CALLSHEET_ETA_HORIZON="1")
    start(("stock_app", "-Q", "io", "-c", "1"), app="tests.{}", KIND="stock")
    app, at = current_app(), in_seconds(4)
    results = [app.send_task("compat.mark", (str(tmp_path), number), queue="io", eta=at) for number in range(60)]
    assert [result.get(timeout=40) for result in results] == list(range(60))
    marks = [line.split() for line in (tmp_path / "marks").read_text().splitlines()]
    assert sorted(int(number) for number, _ in marks) == list(range(60))


WRONG = ["tomorrow", "", 5, [], {"a": 1}, True, "10000-01-01T00:00:00", "2026-13-45T00:00:00"]
PAST = ["1999-01-01T00:00:00", "1999-01-01T00:00:00+00:00", "1969-01-01T00:00:00Z"]
YEAR_9999 = ["9999-12-31T23:59:59", "9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59.999999+00:00"]


def test_times_that_are_none_past_or_absurd(fleet, tmp_path):
    """Refused in words, run now, or kept; the consumer goes on."""
    def put(eta):
        task_id, text = envelope("tests.note_time", [str(tmp_path / "ran"), "x"])
        fleet.redis.lpush("io", text.replace('"eta": null', f'"eta": {json.dumps(eta)}'))
        return task_id

    wrong, past, far = [[put(eta) for eta in etas] for etas in (WRONG, PAST, YEAR_9999)]
    try:
        for task_id in wrong:
            with pytest.raises(CallRefused, match=r"no message of Celery's task protocol"):
                Job.from_id(task_id).get(20)
        for task_id in past:
            assert current_app().AsyncResult(task_id).get(timeout=20) == "x"
        # As far in the past as a date can be: it runs or fails, but ends.
        first = put("0001-01-01T00:00:00+14:00")
        wait_for(lambda: current_app().AsyncResult(first).ready(), 20, "an end")
        wait_for(lambda: all(fleet.redis.zscore("unacked_later", task_id) for task_id in far), 20, "the year 9999")
    finally:  # else they are there for the next test, too
        current_app().control.revoke(far)
    wait_for(lambda: not fleet.redis.exists("unacked_later"), 20, "those dropped")
    assert Echo("a").submit(HELLO).get(20).content == "a:hello"


def test_what_is_near_is_held_as_celery_does(fleet, tmp_path):
    began = time.time()
    [near] = send(1, tmp_path / "ran", in_seconds(30))
    inspect = current_app().control.inspect([fleet.io.name], timeout=10, limit=1)
    held = wait_for(lambda: (inspect.scheduled() or {}).get(fleet.io.name), 30, "it to be listed")
    assert [entry["request"]["id"] for entry in held] == [near.id]
    assert not fleet.redis.exists("unacked_later")
    current_app().control.revoke(near.id)
    retried = Job.from_id(send(1, tmp_path / "soon", in_seconds(1))[0].id)
    assert retried.get(20) is not None
    assert ran(tmp_path / "soon")[0][1] >= began + 1
