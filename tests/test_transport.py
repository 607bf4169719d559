"""The batched transport as kombu's users see it, against a real server and beside stock kombu."""

import contextlib
import itertools
import json
import logging
import multiprocessing
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
import trustme
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.exceptions import BatchPublishError

from callsheet.resources.trouble import is_trouble
from callsheet.workers import transport as module
from callsheet.workers.broker import claims, poller
from callsheet.workers.broker import ledger as ledgers_of
from callsheet.workers.broker.layout import PUBLISH
from callsheet.workers.broker.ledger import ledger_of
from tests.proxy import Proxy
from tests.services import Counts, RedisServer, free_port, redis_binary, wait_for

BATCHED = "callsheet.workers.transport:Transport"
_names = itertools.count()


def name(prefix: str = "q") -> str:
    return f"{prefix}{next(_names)}"


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[RedisServer]:
    client = redis_server.client()
    client.flushall()
    yield redis_server
    client.flushall()
    client.close()


class Bench:
    """A connection with a consumer on some queues."""

    def __init__(self, url: str, *queues: str, prefetch: int = 0, no_ack: bool = False, transport: str | None = BATCHED,
                 **options) -> None:
        options = {"lease": 5, **options} if transport else options
        self.connection = Connection(url, transport=transport, transport_options=options)
        self.channel = self.connection.channel()
        self.queues = [Queue(q, Exchange(q), routing_key=q) for q in queues]
        self.messages: list = []
        self.consumer = Consumer(self.channel, self.queues, no_ack=no_ack, accept=["json", "pickle"],
                                 on_message=self.messages.append)
        self.channel.basic_qos(0, prefetch, False)
        self.producer = Producer(self.channel)

    def consume(self) -> "Bench":
        self.consumer.consume()
        return self

    def send(self, queue: str, body, priority: int = 0, **options) -> None:
        self.producer.publish(body, exchange=queue, routing_key=queue, priority=priority,
                              declare=[Queue(queue, Exchange(queue), routing_key=queue)], **options)

    def drain(self, count: int, timeout: float = 5.0) -> list:
        end = time.monotonic() + timeout
        while len(self.messages) < count and time.monotonic() < end:
            with contextlib.suppress(socket.timeout):
                self.connection.drain_events(timeout=0.1)
        return [message.payload for message in self.messages]

    def nothing_more(self) -> bool:
        before = len(self.messages)
        with contextlib.suppress(socket.timeout):
            self.connection.drain_events(timeout=0.1)
        return len(self.messages) == before

    def close(self) -> None:
        self.connection.close()


@pytest.fixture
def bench() -> Iterator:
    made: list[Bench] = []

    def make(*args, **options) -> Bench:
        made.append(Bench(*args, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def registered(client: redis.Redis, key: str = "unacked") -> tuple[int, int, int]:
    return client.hlen(key), client.zcard("unacked_index"), client.zcard("unacked_lease")


def test_a_lost_consumers_lease_ends_and_is_swept_before_its_time(server, bench):
    for lease in (1, 60, 600):
        ledger = ledger_of(bench(server.url, name(), lease=lease, global_keyprefix=f"{lease}:").channel)
        assert ledger.term + ledger.interval < lease


def test_a_forked_child_keeps_no_connection_open(server, bench):
    queue = name()
    one = bench(server.url, queue).consume()
    one.send(queue, {"n": 1})
    one.drain(1)
    mine = {sock.getsockname()[1] for sock in poller._sockets if sock.fileno() >= 0}
    with multiprocessing.get_context("fork").Pool(1) as pool:
        theirs = pool.apply(local_ports)
    assert mine and not mine & theirs
    one.send(queue, {"n": 2})  # and its parent goes on
    assert one.drain(2) == [{"n": 1}, {"n": 2}]


def local_ports() -> set[int]:
    return {found.laddr.port for found in psutil.Process().net_connections("tcp")}


def test_a_poll_that_is_wrong_about_a_connection_holds_nothing_up(server, bench):
    queue = name()
    one = bench(server.url, queue).consume()
    one.send(queue, {"n": 1})
    one.drain(1)
    began = time.monotonic()
    one.channel.claims.on_readable()
    assert not one.channel._receive()
    assert time.monotonic() - began < 1


def test_a_worker_whose_loop_does_not_turn_breaks_its_connections_and_then_renews_no_lease(server, bench, monkeypatch):
    """As one that reads where nothing comes any more."""
    ledger, broken = ledger_of(bench(server.url, name(), lease=600).channel), []
    monkeypatch.setattr(ledgers_of, "break_off", lambda: broken.append("broken"))
    ledger.channels.add("a channel")

    def goes_on(seconds: float) -> bool:
        ledger._ticked, ledger.turned = time.monotonic(), time.monotonic() - seconds
        return ledger._goes_on()

    assert ledger._goes_on()  # no loop of Celery's
    assert (goes_on(50), broken) == (True, [])
    assert (goes_on(61), broken) == (True, ["broken"])
    assert (goes_on(121), len(broken)) == (False, 2)
    monkeypatch.setattr(ledgers_of, "shutting_down", lambda: True)
    assert goes_on(121)
    monkeypatch.setattr(ledgers_of, "shutting_down", lambda: False)
    ledger._ticked -= 61  # it was suspended
    assert ledger._goes_on()
    ledger.turned = time.monotonic() - 5
    ledger._recovered = time.monotonic() - 4  # the broker answers again, and the loop waits for what it asked before
    assert ledger._goes_on() and ledger._goes_on() and len(broken) == 3
    ledger.channels.discard("a channel")


@pytest.mark.parametrize(("sender", "receiver"), [(None, BATCHED), (BATCHED, None), (BATCHED, BATCHED)])
def test_messages_pass_between_stock_kombu_and_ours(server, bench, sender, receiver):
    queue = name()
    out, into = bench(server.url, transport=sender), bench(server.url, queue, transport=receiver).consume()
    for i in range(100):
        out.send(queue, {"i": i})
    assert into.drain(100) == [{"i": i} for i in range(100)]
    for message in into.messages:
        message.ack()
    assert registered(server.client()) == (0, 0, 0)


def test_a_claim_is_registered_as_stock_kombu_would(server, bench):
    queue, client = name(), server.client()
    ours = bench(server.url, queue).consume()
    ours.send(queue, {"a": 1})
    ours.drain(1)
    (value,) = client.hvals("unacked")
    message, exchange, key = json.loads(value)
    assert (exchange, key) == ("", queue)
    assert message["properties"]["delivery_info"]["routing_key"] == queue
    (tag, score), = client.zrange("unacked_index", 0, -1, withscores=True)
    assert client.hkeys("unacked") == [tag]
    assert abs(score - time.time()) < 5
    assert client.zscore("unacked_lease", tag) > score


def test_what_ours_held_a_stock_consumer_can_restore(server, bench):
    """A stock sweep, long after, treats a registration of ours like one of its own."""
    queue, client = name(), server.client()
    ours, stock = bench(server.url, queue).consume(), bench(server.url, queue, transport=None)
    ours.send(queue, {"a": 1}, priority=9)
    ours.drain(1)
    (tag,) = client.hkeys("unacked")
    stock.channel.qos.restore_by_tag(tag)
    assert registered(client)[:2] == (0, 0)
    stock.consume()
    assert stock.drain(1) == [{"a": 1}]
    assert stock.messages[0].delivery_info["redelivered"]
    ours.messages[0].ack()  # late: it is the stock consumer's message now
    assert client.hlen("unacked") == 1


@pytest.mark.parametrize("transport", [None, BATCHED])
def test_priorities_come_first_across_queues(server, bench, transport):
    """The same order as stock kombu's."""
    one, two = name(), name()
    ours = bench(server.url, one, two, transport=transport)
    for priority in (9, 6, 3, 0):
        for queue in (one, two):
            for i in range(2):
                ours.send(queue, [priority, queue, i], priority)
    ours.consume()
    order = ours.drain(16)
    assert [item[0] for item in order] == [0] * 4 + [3] * 4 + [6] * 4 + [9] * 4
    assert [item[1] for item in order[:4]] == [one, two, one, two]


@pytest.mark.parametrize("strategy", ["priority", "sorted"])
def test_the_order_of_queues_can_be_fixed(server, bench, strategy):
    one, two = "b" + name(), "a" + name()
    ours = bench(server.url, one, two, queue_order_strategy=strategy)
    for queue in (one, two):
        for _ in range(3):
            ours.send(queue, [queue])
    ours.consume()
    first = one if strategy == "priority" else two
    assert ours.drain(6)[:3] == [[first]] * 3


def test_no_more_than_the_prefetch_count_is_claimed(server, bench):
    queue, client = name(), server.client()
    ours = bench(server.url, queue, prefetch=10).consume()
    for i in range(50):
        ours.send(queue, i)
    assert ours.drain(10) == list(range(10))
    assert ours.nothing_more()
    assert client.llen(queue) == 40
    for message in ours.messages[:3]:
        message.ack()
    assert ours.drain(13) == list(range(13))
    assert ours.nothing_more()
    assert registered(client) == (10, 10, 10)


def test_reject_drops_and_requeue_puts_last(server, bench):
    queue, client = name(), server.client()
    ours = bench(server.url, queue, prefetch=1).consume()
    for i in range(3):
        ours.send(queue, i)
    ours.drain(1)
    ours.messages[0].requeue()
    ours.drain(2)
    ours.messages[1].reject()
    ours.drain(3)
    ours.messages[2].ack()
    assert ours.drain(4) == [0, 1, 2, 0]
    assert ours.messages[3].delivery_info["redelivered"]
    assert [m.headers["deliveries"] for m in ours.messages] == [1, 1, 1, 2]
    ours.messages[3].ack()
    assert registered(client) == (0, 0, 0)
    assert client.llen(queue) == 0


def test_recover_gives_everything_back(server, bench):
    queue = name()
    ours = bench(server.url, queue, prefetch=3).consume()
    for i in range(3):
        ours.send(queue, i)
    ours.drain(3)
    ours.channel.basic_recover(requeue=True)
    assert ours.drain(6) == [0, 1, 2, 0, 1, 2]


def test_closing_puts_back_what_is_unacknowledged_in_its_order(server, bench):
    queue, client = name(), server.client()
    ours = bench(server.url, queue, prefetch=5).consume()
    for i in range(8):
        ours.send(queue, i)
    ours.drain(5)
    ours.messages[0].ack()
    ours.close()
    assert registered(client) == (0, 0, 0)
    again = bench(server.url, queue, transport=None).consume()
    assert again.drain(7) == [1, 2, 3, 4, 5, 6, 7]


def test_cancelling_a_queue_puts_back_what_nobody_has_seen(server, bench):
    queue, client = name(), server.client()
    ours = bench(server.url, queue).consume()
    for i in range(20):
        ours.send(queue, i)
    ours.drain(1)
    ours.consumer.cancel()
    assert client.llen(queue) == 19
    assert registered(client) == (1, 1, 1)


def test_a_queue_without_acknowledgement_registers_nothing(server, bench):
    queue, client = name(), server.client()
    ours = bench(server.url, queue, no_ack=True, prefetch=1).consume()
    for i in range(5):
        ours.send(queue, i)
    assert ours.drain(5) == list(range(5))
    assert registered(client) == (0, 0, 0)


def test_basic_get(server, bench):
    queue, client = name(), server.client()
    ours = bench(server.url)
    ours.send(queue, 1)
    message = ours.channel.basic_get(queue)
    assert message.payload == 1
    assert registered(client) == (1, 1, 0)  # as stock kombu does
    message.ack()
    assert registered(client) == (0, 0, 0)
    assert ours.channel.basic_get(queue) is None
    ours.send(queue, 2)
    assert ours.channel.basic_get(queue, no_ack=True).payload == 2


def test_fanout_and_a_queue_on_one_channel(server, bench):
    queue, exchange = name(), Exchange(name("x"), type="fanout")
    ours = bench(server.url, queue, prefetch=1)
    news: list = []
    listener = Consumer(ours.channel, [Queue(name("f"), exchange)], no_ack=True, callbacks=[
        lambda body, message: news.append(body)])
    listener.consume()
    ours.consume()
    ours.send(queue, ["full"])
    ours.drain(1)  # the prefetch count is used up: broadcasts come all the same
    other = bench(server.url, transport=None)

    def told() -> bool:
        other.producer.publish(["hello"], exchange=exchange, declare=[exchange])
        ours.nothing_more()
        return bool(news)

    wait_for(told, what="the broadcast")
    ours.messages[0].ack()
    ours.send(queue, ["next"])
    assert ours.drain(2) == [["full"], ["next"]]


def test_a_consumer_that_raises_loses_nothing(server, bench):
    queue = name()
    ours = bench(server.url, queue)
    seen: list = []

    def fails(message) -> None:
        seen.append(message.payload)
        message.ack()
        if len(seen) == 2:
            raise ZeroDivisionError

    ours.consumer.on_message = fails
    for i in range(5):
        ours.send(queue, i)
    ours.consume()
    failures = 0
    while len(seen) < 5:
        try:
            ours.connection.drain_events(timeout=2)
        except ZeroDivisionError:
            failures += 1
    assert seen == [0, 1, 2, 3, 4]
    assert failures == 1


def test_scripts_are_loaded_again(server, bench):
    queue, client = name(), server.client()
    ours = bench(server.url, queue).consume()
    for i in range(3):
        client.script_flush()
        ours.send(queue, i)
        ours.drain(i + 1)
        ours.messages[-1].ack()
    assert ours.drain(3) == [0, 1, 2]
    client.script_flush()
    ours.send(queue, 3)
    ours.drain(4)
    client.script_flush()
    ours.close()
    assert client.llen(queue) == 1


def test_large_and_binary_bodies(server, bench):
    queue = name()
    ours = bench(server.url, queue).consume()
    big = {"text": "x" * 50_000_000}
    ours.send(queue, big)
    ours.send(queue, {1: b"\0\xff", "set": {1, 2}}, serializer="pickle")
    ours.send(queue, b"\0raw\xff", content_type="application/data", content_encoding="binary")
    ours.drain(3, timeout=30)
    assert ours.messages[0].payload == big
    assert ours.messages[1].payload == {1: b"\0\xff", "set": {1, 2}}
    assert ours.messages[2].body == b"\0raw\xff"
    ours.messages[0].requeue()
    ours.drain(4, timeout=30)
    assert ours.messages[3].payload == big


def test_what_is_no_message_is_dropped(server, bench, caplog):
    queue, client = name(), server.client()
    ours = bench(server.url, queue)
    client.lpush(queue, "{not json", '{"a": 1}', "[1]")
    ours.send(queue, ["fine"])
    ours.consume()
    with caplog.at_level(logging.CRITICAL):
        assert ours.drain(1) == [["fine"]]
    assert "what is no message" in caplog.text
    ours.messages[0].ack()
    wait_for(lambda: registered(client) == (0, 0, 0), what="nothing registered")


@pytest.mark.parametrize("named", [True, False], ids=["by its exchange", "by its name"])
def test_a_batch_is_published_in_one_pipeline(own_redis, bench, named):
    queue, client = name(), own_redis.client()
    ours = bench(own_redis.url, queue, lease=600).consume()
    assert ours.producer.supports_batch_publish
    ours.send(queue, 0)
    ours.drain(1)  # the queue is declared, and the connections are there
    before = Counts.of(client)
    with ours.producer.batch():
        for i in range(1, 101):
            if named:
                ours.send(queue, i)
            else:
                ours.producer.publish(i, exchange="", routing_key=queue)
        assert client.llen(queue) == 0
    made = Counts.of(client).since(before)
    # A trip that arrives in pieces, and a few: the look above, which queues the exchange has, a new connection.
    assert made.reads < made.received / 5000 + 10 < 50
    assert made.connections <= 1
    assert ours.drain(101) == list(range(101))


def test_a_queue_that_is_declared_in_a_batch_gets_what_follows(server, bench):
    one, two, exchange, client = name(), name(), Exchange(name("x")), server.client()
    ours = bench(server.url)
    with ours.producer.batch():
        for queue in (one, two):
            ours.producer.publish([queue], exchange=exchange, routing_key="k",
                                  declare=[Queue(queue, exchange, routing_key="k")])
    assert [client.llen(queue) for queue in (one, two)] == [2, 1]


@pytest.mark.parametrize("prefix", ["", "own:"])
@pytest.mark.parametrize("together", [False, True])
def test_a_message_whose_answer_is_lost_is_sent_again_and_there_once(server, bench, together, prefix):
    proxy, queue, client = Proxy(server.port), name(), server.client()
    try:
        ours = bench(proxy.url, global_keyprefix=prefix)
        ours.send(queue, "first")
        with ours.producer.batch() if together else contextlib.nullcontext():
            for i in range(3):
                proxy.break_at(-1 if together else 1, after=True)
                ours.producer.publish(i, exchange="", routing_key=queue, priority=i, retry=True)
            proxy.break_at(1 if together else -1, after=True)
        assert [client.llen(prefix + key) for key in (queue, f"{queue}\x06\x163")] == [4, 0]
        for _ in range(2):  # the same message on purpose: that is another one
            ours.producer.publish("again", exchange="", routing_key=queue, correlation_id="one")
        assert client.llen(prefix + queue) == 6
    finally:
        proxy.close()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_a_connection_that_breaks_as_queues_are_declared_publishes_once_or_says_so(server, bench, together, after):
    proxy, client = Proxy(server.port), server.client()
    policy = {"retry": True, "retry_policy": {"max_retries": 3, "interval_start": 0, "interval_step": 0}}
    try:
        number = 0
        while not number or proxy.broken:
            number += 1
            queues = name(), name()
            ours = bench(proxy.url)
            proxy.break_at(number, after)
            told = False
            try:
                with ours.producer.batch() if together else contextlib.nullcontext():
                    for queue in queues:
                        ours.producer.publish("x", exchange="", routing_key=queue, declare=[Queue(queue)], **policy)
            except BatchPublishError as exc:
                assert together and is_trouble(exc)
                told = True
            assert all(client.llen(queue) == 1 or (told and not client.llen(queue)) for queue in queues), number
        assert number > 5
    finally:
        proxy.close()


def test_what_was_claimed_as_the_connection_broke_is_back_at_once_whoever_connects_first(server, bench):
    proxy, queue, client = Proxy(server.port), name(), server.client()
    try:
        ours = bench(proxy.url, queue, lease=60).consume()
        assert ours.nothing_more()
        bench(server.url).send(queue, {"n": 1})
        proxy.break_at(1, after=True, skip=(b"TRACKING",))
        with contextlib.suppress(redis.ConnectionError, OSError):
            ours.drain(1, 2)
        assert client.hlen("unacked") == 1 and not ours.messages
        bench(proxy.url, name(), lease=60).consume().nothing_more()  # such as that of the answers to a command
        assert bench(server.url, queue, lease=60).consume().drain(1, 5) == [{"n": 1}]
    finally:
        proxy.close()


def test_what_a_redis_that_comes_back_empty_has_lost_is_registered_anew(own_redis, bench, caplog):
    queue = name()
    ours = bench(own_redis.url, queue).consume()
    ours.send(queue, 1)
    assert ours.drain(1) == [1]
    ledger = ledger_of(ours.channel)
    ledger.renew()
    client, layout = own_redis.client(), ledger.layout
    [(tag, entry)] = client.hgetall(layout.unacked).items()
    assert "left in Redis" not in caplog.text
    client.flushall()
    ledger.renew()
    assert "Of 1 calls that this worker holds nothing was left in Redis" in caplog.text
    assert not ledger.slipped()
    assert abs(client.zscore(layout.leases, tag) - time.time() - ledger.term) < 5
    again = json.loads(client.hget(layout.unacked, tag))
    assert again[0]["body"] == json.loads(entry)[0]["body"]
    assert again[1:] == json.loads(entry)[1:]
    ledger.give_back([tag])
    assert ours.drain(1) == [1]


def test_what_is_remembered_of_published_messages_is_bounded_and_expires(server):
    client = server.client()
    for number in range(1, 602):
        for answer in (1, 0):
            assert PUBLISH.run(client, ["ids:", "q"], [1, f"{number}0000", f"m{number}"]) == answer
    assert client.lrange("q", 0, -1) == [f"m{number}" for number in range(601, 0, -1)]
    assert [client.scard(key) for key in ("ids:0000", "ids:0000:old")] == [601 - 512, 256]
    assert all(0 < client.ttl(key) <= 86400 for key in ("ids:0000", "ids:0000:old"))
    assert client.memory_usage("ids:0000:old") < 256 * 10
    client.set("text", "no list")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        PUBLISH.run(client, ["ids:", "text"], [1, "1", "m"])
    assert not client.exists("ids:1")


def test_what_waits_is_claimed_by_one_script_up_to_the_prefetch_count(own_redis, bench):
    queue, client = name(), own_redis.client()
    sender, ours = bench(own_redis.url, transport=None), bench(own_redis.url, queue, prefetch=50, lease=600)
    other = name()
    sender.send(other, ["first"])
    bench(own_redis.url, other, lease=600).consume().drain(1)  # the scripts are there, and the leases' thread runs
    for i in range(60):
        sender.send(queue, i)
    before = Counts.of(client)
    ours.consume()
    assert ours.drain(50, 30) == list(range(50))
    assert ours.nothing_more()
    assert Counts.of(client).since(before).scripts <= 3  # one of them asks whether the server is able
    assert registered(client) == (51, 51, 51)


def test_all_that_a_channel_does_is_done_by_one_client(server, bench):
    ours = bench(server.url, name()).consume()
    with ours.channel.conn_or_acquire() as one, ours.channel.conn_or_acquire() as other:
        assert one is other


def test_a_global_prefix(server, bench):
    queue, client = name(), server.client()
    ours = bench(server.url, queue, global_keyprefix="here:", prefetch=2).consume()
    other = bench(server.url, transport=None, global_keyprefix="here:")
    for i in range(3):
        other.send(queue, i)
    assert ours.drain(2) == [0, 1]
    ours.messages[0].ack()
    ours.close()
    assert client.llen(f"here:{queue}") == 2
    assert all(key.startswith("here:") for key in client.scan_iter())


@pytest.mark.parametrize("prefix", ["", "here:"])
def test_what_is_put_away_comes_back_whole_and_in_its_order(server, bench, prefix):
    queue, client = name(), server.client()
    ours = bench(server.url, queue, global_keyprefix=prefix, prefetch=3, eta_horizon=1).consume()
    body, later = {"text": "ä\"headers\": {", "data": "x" * 100_000}, time.time() + 1.5
    for _ in range(2):
        ours.send(queue, body, priority=6)
    ours.send(queue, {"other": 1}, priority=6)
    ours.drain(3)
    # Two messages of one task, the second of them to come back first.
    assert ours.channel.put_away(ours.messages[0].delivery_tag, "task", later + 1)
    assert ours.channel.put_away(ours.messages[1].delivery_tag, "task", later)
    assert ours.channel.put_away(ours.messages[2].delivery_tag, "third", time.time() + 3600)
    assert not ours.channel.put_away("unknown", "task", later)
    wait_for(lambda: not client.hlen(f"{prefix}unacked"), what="none under delivery")
    assert registered(client, f"{prefix}unacked") == (0, 0, 0)
    assert client.zcard(f"{prefix}unacked_later") == client.hlen(f"{prefix}unacked_later_messages") == 2
    ours.messages.clear()
    assert ours.drain(1, 10) == [body]
    assert time.time() >= later
    assert ours.drain(2, 10) == [body, body]
    for message in ours.messages:
        assert (message.delivery_info.get("redelivered"), message.headers.get("deliveries")) == (None, 1)
        assert message.properties["priority"] == 6
        message.ack()

    ours.channel.ledger.later.revoke(["third", "nobody"])
    assert ours.drain(3)[2] == {"other": 1}
    assert ours.messages[2].headers["revoked"] is True
    ours.close()
    assert not client.exists(f"{prefix}unacked_later", f"{prefix}unacked_later_messages")


def test_two_consumers_share_what_comes(server, bench):
    queue = name()
    two = [bench(server.url, queue, prefetch=10).consume() for _ in range(2)]
    sender = bench(server.url, transport=None)
    for i in range(20):
        sender.send(queue, i)
    wait_for(lambda: sum(len(one.drain(10, 0.1)) for one in two) == 20, what="all messages")
    assert [len(one.messages) for one in two] == [10, 10]


def test_a_waiting_consumer_is_woken_by_notices_alone(own_redis, bench, monkeypatch):
    """No poll ends and no look falls due within this test: what comes, came because the server said so."""
    monkeypatch.setattr(claims, "LOOK_ANYWAY", 3600.0)
    monkeypatch.setattr(poller, "LONGEST_WAIT", 3600.0)
    queue, client = name(), own_redis.client()
    ours, sender = bench(own_redis.url, queue).consume(), bench(own_redis.url, transport=None)

    def looks() -> int:
        return int(client.info("commandstats")["cmdstat_exists"]["calls"])  # one behind each claim

    with contextlib.suppress(socket.timeout):
        ours.connection.drain_events(timeout=0.001)  # claims, in vain
    wait_for(lambda: client.info("clients")["tracking_clients"] == 1, what="the server to watch the queue")
    before = looks()
    for i in range(20):
        thread = threading.Timer(0.02, sender.send, (queue, i))
        thread.start()
        ours.connection.drain_events(timeout=60)
        assert [message.payload for message in ours.messages] == list(range(i + 1))
        thread.join()
    assert looks() - before == 20


def test_a_lost_connection_loses_nothing(server, bench):
    queue, client = name(), server.client()
    ours = bench(server.url, queue, prefetch=20).consume()
    sender = bench(server.url, transport=None)
    for i in range(200):
        sender.send(queue, i)
    got = []
    for round_ in range(1000):
        if round_ % 10 == 5:
            client.client_kill_filter(_type="normal", skipme=True)
        with contextlib.suppress(redis.ConnectionError, OSError):
            ours.connection.drain_events(timeout=0.05)
        while ours.messages:
            message = ours.messages.pop()
            got.append(message.payload)
            message.ack()
        if len(got) >= 200 and not registered(client)[0]:
            break
    assert sorted(got) == list(range(200))
    assert registered(client) == (0, 0, 0)


@pytest.mark.parametrize(("transport", "kept"), [(BATCHED, True), (None, False)])
def test_what_was_on_its_way_when_the_connection_broke_is_kept(server, bench, transport, kept):
    queue, client, proxy = name(), server.client(), Proxy(server.port)

    def cut_when_popped() -> None:
        wait_for(lambda: not client.llen(queue), what="the message to be taken")
        proxy.cut()

    try:
        options = {"lease": 1} if transport else {}
        receiver = bench(proxy.url, queue, transport=transport, **options).consume()
        receiver.nothing_more()
        with contextlib.suppress(redis.ConnectionError, OSError):
            proxy.delay = 1.5
            bench(server.url, transport=None).send(queue, {"on": "its way"})
            threading.Thread(target=cut_when_popped, daemon=True).start()
            receiver.drain(1, 20)
        assert not receiver.messages
        again = bench(server.url, queue, transport=transport, **options).consume()
        # Stock kombu pops a message, and notes who has it only when it has come.
        assert again.drain(1, 10 if kept else 0.5) == ([{"on": "its way"}] if kept else [])
        assert kept or (client.llen(queue), *registered(client)) == (0, 0, 0, 0)
    finally:
        proxy.close()


def test_another_server_is_left_to_stock_kombu(own_redis, bench, caplog):
    client, queue = own_redis.client(), name()
    client.acl_setuser("poor", enabled=True, passwords=["+pw"], keys=["*"], channels=["*"],
                       commands=["+@all", "-eval", "-evalsha"])
    module._warned.clear()
    url = own_redis.url.replace("redis://", "redis://poor:pw@")
    with caplog.at_level(logging.WARNING):
        ours, more = bench(url, queue, prefetch=2).consume(), bench(url, queue).consume()
    assert caplog.text.count("as stock kombu does") == 1
    more.close()
    client.lpush(queue, "{not json", '{"a": 1}')
    for i in range(3):
        ours.send(queue, i)
    assert ours.drain(2) == [0, 1]
    ours.messages[0].ack()
    ours.messages[1].requeue()
    assert ours.drain(4) == [0, 1, 2, 1]
    assert not client.exists("unacked_lease")
    assert caplog.text.count("what is no message") == 2
    ours.close()
    assert client.llen(queue) == 2


def test_a_unix_socket(bench):
    server = RedisServer("--unixsocket", f"/tmp/callsheet-{os.getpid()}.sock")
    try:
        queue = name()
        ours = bench(f"redis+socket:///tmp/callsheet-{os.getpid()}.sock?virtual_host=0", queue).consume()
        ours.send(queue, 1)
        assert ours.drain(1) == [1]
        ours.close()
        assert server.client().llen(queue) == 1
    finally:
        server.remove()


def test_sentinel(bench):
    server = RedisServer()
    conf = f"{server.folder}/sentinel.conf"
    Path(conf).write_text(f"sentinel monitor main 127.0.0.1 {server.port} 1\n")
    port = free_port()
    process = subprocess.Popen([redis_binary(), conf, "--sentinel", "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        sentinel = redis.Redis(port=port, decode_responses=True)

        def up() -> bool:
            with contextlib.suppress(redis.RedisError):
                return bool(sentinel.sentinel_masters())
            return False

        wait_for(up, what="sentinel")
        queue = name()
        ours = bench(f"sentinel://127.0.0.1:{port}", queue, transport="callsheet.workers.transport:SentinelTransport",
                     master_name="main").consume()
        ours.send(queue, 1)
        assert ours.drain(1) == [1]
        assert server.client().zcard("unacked_lease") == 1
        ours.close()
        assert server.client().llen(queue) == 1
    finally:
        process.kill()
        process.wait(10)
        server.remove()


def test_tls(own_redis, bench, tmp_path):
    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").configure_cert(context)
    proxy, queue, client = Proxy(own_redis.port, tls=context), name(), own_redis.client()
    url = f"rediss://127.0.0.1:{proxy.port}/0?ssl_cert_reqs=required&ssl_ca_certs={tmp_path}/ca.pem"
    ours = bench(url, queue).consume()
    sender = bench(own_redis.url, transport=None)
    for i in range(300):
        sender.send(queue, [i, "x" * 3000])
    assert [body[0] for body in ours.drain(300)] == list(range(300))
    ours.nothing_more()
    sender.send(queue, [300, "x"])
    assert len(ours.drain(301)) == 301
    ours.messages[0].ack()
    ours.close()
    assert client.llen(queue) == 300
    proxy.close()
