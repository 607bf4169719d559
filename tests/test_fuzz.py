"""A hundred thousand messages that are not quite right, on the worker's own way from bytes to a decision.

Whatever comes, each is taken or settled, and nothing raises. The mutations are the same at each run.
"""

import base64
import json
import logging
import pickle
import random
from types import SimpleNamespace
from typing import Any

import pytest
from celery.utils.collections import AttributeDict
from celery.worker import state
from kombu import Connection, Consumer, Queue

from callsheet.resources import dead_letters
from callsheet.settings import use_settings
from callsheet.tasks.app import make_app
from callsheet.workers.broker.claims import Claims
from callsheet.workers.broker.ledger import ledger_of
from callsheet.workers.consumer import Consumer as WorkerConsumer
from tests.fleet import client_settings
from tests.test_bad_input import envelope

TRANSPORT = "callsheet.workers.transport:Transport"
DEEP = "[" * 420 + "]" * 420
ODD = [json.dumps(odd) for odd in (
    None, True, 0, -1, 1.5, 10**30, float("inf"), float("nan"), "", "x", "\ud800", "9" * 5000, [], [1], [[], {}, {}],
    {}, {"a": 1}, {"task": 5}, {"__type__": "uuid", "__value__": {"hex": 5}}, {"__type__": "x", "__value__": 1},
    "2026-01-01T00:00:00", "9999-12-31T23:59:59-14:00", ["ten", None], "gzip", "base64", "application/odd")]
NAMES = ["task", "id", "eta", "expires", "timelimit", "retries", "compression", "get", "update", "chain", "chord",
         "shadow",
         "callbacks", "stamps", "deliveries", "poisoned", "oversize", "unreadable", "revoked", "args", "priority"]


def places(data: Any, *above: Any) -> list[tuple[Any, ...]]:
    """The paths to the parts of some data."""
    keys = list(data if isinstance(data, dict) else range(len(data))) if isinstance(data, (dict, list)) else []
    return [path for key in keys for path in ((*above, key), *places(data[key], *above, key))]


def mutated(chance: random.Random, data: Any, paths: list[tuple[Any, ...]]) -> None:
    """Change something of it, if that is there still."""
    *above, key = chance.choice(paths)
    holder = data
    try:
        for one in above:
            holder = holder[one]
        _ = holder[key]
    except (LookupError, TypeError):
        return
    if not isinstance(holder, (dict, list)):
        return
    kind = chance.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[chance.choice(NAMES)] = json.loads(chance.choice(ODD))
    else:
        holder[key] = json.loads(DEEP if chance.randrange(500) == 0 else chance.choice(ODD))


class Mutations:
    """Texts made from one that is right: its envelope, its body or its bytes are changed, once or more."""

    def __init__(self, seed: int, text: str) -> None:
        self.chance, self.text = random.Random(seed), text
        self.body = base64.b64decode(json.loads(text)["body"])
        self.paths, self.within = places(json.loads(text)), places(json.loads(self.body))

    def one(self) -> bytes:
        chance, message = self.chance, json.loads(self.text)
        if chance.randrange(3) == 0:
            body = json.loads(self.body)
            mutated(chance, body, self.within)
            message["body"] = base64.b64encode(json.dumps(body).encode()).decode()
        for _ in range(chance.choice((0, 1, 1, 2, 4))):
            mutated(chance, message, self.paths)
        raw = bytearray(json.dumps(message).encode())
        if chance.randrange(6) == 0:
            for _ in range(chance.choice((1, 3, 20))):
                raw[chance.randrange(len(raw))] = chance.randrange(256)
            del raw[chance.randrange(len(raw)) if chance.randrange(3) == 0 else len(raw):]
        return bytes(raw) or b"{"


@pytest.fixture
def quiet(monkeypatch):
    """Nothing is logged, and no dead letter written but counted: there are too many."""
    letters: list[str] = []
    monkeypatch.setattr(dead_letters, "add", lambda queue, text, why, *_: letters.append(why))
    logging.disable(logging.CRITICAL)
    yield letters
    logging.disable(logging.NOTSET)


@pytest.fixture
def channel(redis_server):
    with use_settings(client_settings(redis_server, key_prefix="fuzz:")), \
            Connection(redis_server.url, transport=TRANSPORT, transport_options={
                "lease": 600, "message_max": 1 << 20, "global_keyprefix": "fuzz:"}) as connection:
        channel = connection.channel()
        channel.ledger = ledger_of(channel)
        channel.claims = Claims(channel, channel.ledger)
        channel.ledger.collector = channel  # acknowledgements are sent by the thousand
        yield channel


@pytest.fixture
def worker(channel, redis_server, monkeypatch):
    """The consumer of a worker, without its loop; what it takes and what it refuses is noted."""
    app = make_app(client_settings(redis_server))
    taken, told = [], []
    monkeypatch.setattr(type(app.backend), "mark_as_failure", lambda self, task_id, *_, **__: told.append(task_id))
    monkeypatch.setattr(type(app.backend), "mark_as_revoked", lambda self, task_id, *_, **__: told.append(task_id))
    pool = SimpleNamespace(is_green=False, num_processes=1, flush=None, apply_async=None)
    timer = SimpleNamespace(call_at=lambda _eta, _then, args, **_: taken.append(args[0]))
    monkeypatch.setattr(channel, "put_away", lambda tag, *_: channel.ledger.held.pop(tag, None) is not None)
    controller = SimpleNamespace(state=state, semaphore=None, use_eventloop=False, blueprint=None)
    consumer = WorkerConsumer(taken.append, app=app, pool=pool, timer=timer, controller=controller, hostname="w@x",
                              initial_prefetch_count=0)
    consumer.qos, consumer.event_dispatcher = SimpleNamespace(increment_eventually=lambda *_: None), None
    consumer.update_strategies()
    consumer.reset_rate_limits()
    consumer.task_consumer = Consumer(channel, [Queue("io")], on_message=consumer.create_task_handler(),
                                      accept=["json"], on_decode_error=consumer.on_decode_error)
    consumer.task_consumer.consume()
    yield SimpleNamespace(consumer=consumer, taken=taken, told=told)
    for kept in (state.revoked, state.requests, state.reserved_requests, state.scheduled_requests):
        kept.clear()


def test_messages_on_a_queue(channel, worker, quiet):
    task_id, text = envelope("callsheet.carry", [1, {"a": [2]}])
    mutations, taken = Mutations(1, text), 0
    ledger = channel.ledger
    for number in range(48_000):
        tag = f"t{number}"
        text = mutations.one()
        channel.claims._arrive(tag, "io", text)
        channel.claims.deliver()
        assert len(worker.taken) + (tag not in ledger.held) == 1, (number, text)
        for request in worker.taken:
            if number % 10 == 0:
                pickle.dumps((request.request_dict, request.body))  # as for a process
            assert request.time_limits is not None and isinstance(request.id, str)
            taken += 1
            channel.basic_ack(tag)
        worker.taken.clear()
        state.revoked.clear()
    assert taken > 5_000  # many are still right
    assert worker.told.count(task_id) > 5_000  # and of many the id can be read
    assert len(quiet) > 10_000


def test_messages_that_lost_workers_left(channel, quiet):
    """The sweep puts back or sets apart each, whatever the others are."""
    ledger, client = channel.ledger, channel.ledger.client
    mutations, chance = Mutations(2, envelope("callsheet.carry", [1])[1]), random.Random(3)
    for start in range(0, 10_000, 1000):
        with client.pipeline() as pipe:
            for number in range(start, start + 1000):
                text = mutations.one()
                entry = chance.choice([b"[" + text + b',"","io"]', b"[" + text + b',"",5]', text,
                                       b"[" + text + b',"","\\ud800"]'])
                tag = f"lost{number}" if number % 50 else b"\xff%d" % number
                pipe.hset(ledger.layout.unacked, tag, entry)
                pipe.zadd(ledger.layout.leases, {tag: 1})
            pipe.execute()
        while ledger.sweep():
            pass
        ledger.sweep()
    ledger.flush()
    assert [client.hlen(ledger.layout.unacked), client.zcard(ledger.layout.leases)] == [0, 0]
    back = sum(client.llen(ledger.layout.list_of("io", step)) for step in ledger.layout.steps)
    assert back > 1_000 and back + len(quiet) == 10_000
    client.flushall()


def test_commands_over_the_channel_of_the_fleet(channel, redis_server, quiet):
    app = make_app(client_settings(redis_server))
    heard: list[Any] = []
    grown: list[Any] = []
    handlers = {"ping": lambda state, **_: heard.append("ping"), "pool_grow": lambda state, n=1: grown.append(n),
                "rate_limit": lambda state, task_name, rate_limit: heard.append("rate")}
    node = app.control.mailbox.Node("w@x", state=AttributeDict(), handlers=handlers, channel=channel)
    node.mailbox.connection = channel.connection.client
    node.listen(callback=node.handle_message).on_decode_error = lambda *_: None
    for seed, (method, arguments) in enumerate((("ping", {}), ("pool_grow", {"n": 2}),
                                                ("rate_limit", {"task_name": "x", "rate_limit": "5/s"}))):
        text = json.loads(envelope("x", [])[1])
        text["headers"] = {"clock": 5, "expires": 0}
        whole = {"destination": ["w@x"], "pattern": None, "matcher": None, "ticket": None, "method": method,
                 "arguments": arguments}
        text["body"] = base64.b64encode(json.dumps(whole).encode()).decode()
        mutations = Mutations(10 + seed, json.dumps(text))
        for _ in range(14_000):
            reply = [b"pmessage", b"/0.celery.pidbox", b"/0.celery.pidbox", mutations.one()]
            channel._receive_one(SimpleNamespace(parse_response=lambda reply=reply: reply))
    assert min(heard.count("ping"), heard.count("rate"), grown.count(2)) > 1000
    assert all(one is None or (type(one) is int and 0 < one <= 100_000) for one in grown)
    assert 0 <= app.clock.value < 1 << 54
