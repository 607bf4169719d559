"""Our queues beside what others have: redis-cli, KEDA, Flower, stock producers and stock workers."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery import Celery

from tests.flower_process import flower
from tests.sentinels import Watched
from tests.services import ROOT, RedisServer, Worker, wait_for, worker

LISTS = ("io", "io\x06\x163", "io\x06\x166", "io\x06\x169")  # what a queue's messages wait in, by priority


@contextmanager
def io_worker(server: RedisServer, *options: str, **env: str) -> Iterator[Worker]:
    with worker("callsheet.workers.io", server.url, *options,
                env={"CALLSHEET_MODULES": "tests.compat_tasks", **env}) as process:
        yield process


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("transport", ["batched", "stock"])
def test_what_waits_is_in_the_lists_and_what_is_held_is_not(own_redis, tmp_path, transport):
    client = own_redis.client()
    stock = Celery(broker=own_redis.url, set_as_current=False)

    def waiting() -> list[int]:
        return [int(client.execute_command("LLEN", name)) for name in LISTS]

    def send(count: int, **options: int) -> None:
        for number in range(count):
            stock.send_task("compat.hold", (str(tmp_path), number), queue="io", **options)

    with io_worker(own_redis, "-c", "3", CALLSHEET_TRANSPORT=transport), flower(own_redis.url) as page:
        send(3)
        wait_for(lambda: len(lines(tmp_path / "held")) == 3, what="every slot to be taken")
        wait_for(lambda: waiting() == [0, 0, 0, 0], what="the running ones to be off the lists")
        send(4)
        for priority in range(10):
            send(1, priority=priority)
        assert sum(waiting()) + client.hlen("unacked") == 3 + 14
        held = client.hlen("unacked") - 3  # a worker may hold one more than it has slots for
        assert held <= 1
        assert waiting() == [7 - held, 3, 3, 1]
        assert bool(client.exists("unacked_lease")) == (transport == "batched")
        assert page.get("/api/queues/length")["active_queues"] == [{"name": "io", "messages": 14 - held}]
        row = page.get("/broker").partition('<tr id="io">')[2].partition("</tr>")[0]
        assert f">{14 - held}<" in row
        (tmp_path / "go").touch()
        wait_for(lambda: waiting() == [0, 0, 0, 0] and not client.hlen("unacked"), what="all worked off")
        assert page.get("/api/queues/length")["active_queues"] == [{"name": "io", "messages": 0}]
        assert len(lines(tmp_path / "held")) == 17
    stock.close()


def test_flower_shows_the_lengths_behind_sentinels(monkeypatch):
    watched = Watched()
    try:
        url = watched.url.removesuffix("/2") + "/0"  # Flower looks at no other database there
        for name, value in watched.env.items():
            monkeypatch.setenv(name, value)
        watched.master.client().lpush("io", "one", "two")
        with flower(url) as page:
            assert page.get("/api/queues/length")["active_queues"] == [{"name": "io", "messages": 2}]
            assert "hunter2" not in page.get("/broker") + page.log_path.read_text()
    finally:
        watched.remove()


PRODUCER = """
import sys
from celery import Celery
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
result = app.send_task("compat.mark", (sys.argv[2], 7), queue="io")
print(result.get(timeout=30), [name for name in sys.modules if name.startswith("callsheet")])
"""


def test_a_producer_that_knows_only_celery(own_redis, tmp_path):
    with io_worker(own_redis, "-c", "3"):
        done = subprocess.run([sys.executable, "-c", PRODUCER, own_redis.url, str(tmp_path)], cwd=tmp_path,
                              capture_output=True, text=True, check=False)
        assert done.stdout == "7 []\n", done.stderr
        assert lines(tmp_path / "marks") == ["7 ours"]


@pytest.mark.parametrize("transport", ["batched", "stock"])
def test_a_worker_that_knows_only_celery_takes_its_share_and_each_message_runs_once(own_redis, tmp_path, transport):
    stock = Celery(broker=own_redis.url, backend=own_redis.url, set_as_current=False)
    with io_worker(own_redis, "-c", "3", CALLSHEET_TRANSPORT=transport), \
            worker("tests.stock_app", own_redis.url, "-Q", "io", "-c", "2", env={"KIND": "stock"}):
        results = [stock.send_task("compat.mark", (str(tmp_path), number), queue="io", priority=number % 10)
                   for number in range(300)]
        assert [result.get(timeout=60) for result in results] == list(range(300))
        client = own_redis.client()
        wait_for(lambda: not client.hlen("unacked"), what="all acknowledged")
    ran = [line.split() for line in lines(tmp_path / "marks")]
    assert sorted(int(number) for number, _ in ran) == list(range(300))
    assert set(Counter(kind for _, kind in ran)) == {"ours", "stock"}
    stock.close()


def test_a_plain_worker_imports_nothing_of_ours():
    text = "import sys, tests.stock_app; tests.stock_app.app.loader.import_default_modules(); " \
           "print([name for name in sys.modules if name.startswith('callsheet')], " \
           "sorted(name for name in tests.stock_app.app.tasks if name.startswith('compat')))"
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[] ['compat.hold', 'compat.mark']\n"
