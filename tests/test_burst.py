"""Calls that are published together travel as those that are published one by one."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import group
from celery.signals import after_task_publish, before_task_publish

import callsheet
from callsheet import FanoutPipeline, Msg
from callsheet.agents import CallOptions
from callsheet.agents.dispatch import dispatcher
from callsheet.errors import CannotTravel
from callsheet.settings import use_settings
from callsheet.tasks.app import current_app
from callsheet.workers.broker.reading import Message
from tests.agents.basic import Echo
from tests.fleet import client_settings
from tests.services import Counts

OPTIONS = [
    CallOptions(),
    CallOptions(queue="cpu", priority=6, timeout=3.0, retries=2),
    CallOptions(countdown=600.0, expires=900.0, priority=0),
]


def sent(server: Any, queue: str, priority: int | None) -> dict[str, Any]:
    step = {None: 0, 0: 0, 6: 6}[priority]
    text = server.client().lpop(f"{queue}\x06\x16{step}" if step else queue)
    message: dict[str, Any] = json.loads(text)
    message["body"] = json.loads(base64.b64decode(message["body"]))
    return message


def without_times(message: dict[str, Any]) -> dict[str, Any]:
    for name in ("eta", "expires"):
        assert (message["headers"][name] is None) or message["headers"].pop(name)
    message["body"][0][1].pop("sent")
    message["properties"].pop("delivery_tag")
    for name in ("expiration", "argsrepr", "kwargsrepr"):  # left by the way through `apply_async`
        message["properties"].pop(name, None)
    return message


@pytest.mark.parametrize("options", OPTIONS)
def test_a_message_of_many_is_the_same_as_a_message_alone(own_redis, options):
    with use_settings(client_settings(own_redis)):
        agent, msg, queue = Echo("e"), Msg("u", "text", "user"), options.queue or "io"
        agent.options(**{**vars(options), "job_id": "one"}).submit(msg)
        alone = without_times(sent(own_redis, queue, options.priority))
        jobs = dispatcher().submit_many(agent, [msg], options, ["one"])
        among = without_times(sent(own_redis, queue, options.priority))
    assert [job.id for job in jobs] == ["one"]
    assert among == alone


def test_the_queue_is_known_to_the_broker_and_celerys_signals_are_sent_for_each(own_redis):
    seen = []

    @before_task_publish.connect
    def before(sender: Any = None, headers: Any = None, **_: Any) -> None:
        seen.append(("before", headers["id"]))

    @after_task_publish.connect
    def after(sender: Any = None, headers: Any = None, **_: Any) -> None:
        seen.append(("after", headers["id"]))

    with use_settings(client_settings(own_redis)):
        messages = [Msg("u", str(number), "user") for number in range(3)]
        dispatcher().submit_many(Echo("e"), messages, CallOptions(), ["a", "b", "c"])
    client = own_redis.client()
    assert client.llen("io") == 3 and client.exists("_kombu.binding.io")
    assert seen == [(when, name) for name in "abc" for when in ("before", "after")]


def test_when_one_cannot_travel_none_is_sent(own_redis):
    with use_settings(client_settings(own_redis)), pytest.raises(CannotTravel):
        dispatcher().submit_many(Echo("e"), [Msg("u", "1", "user"), object()], CallOptions())
    assert not own_redis.client().exists("io")


def by_map(app: Any) -> None:
    def inputs() -> Iterator[Msg]:
        yield from (Msg("u", str(number), "user") for number in range(200))
        raise EOFError  # ends the iteration where it would wait for the first result

    with pytest.raises(EOFError):
        next(iter(callsheet.map(Echo("e"), inputs(), progress=False)))


def by_fan_out(app: Any) -> None:
    FanoutPipeline([Echo(f"e{number}") for number in range(200)]).submit(Msg("u", "text", "user"))


def by_group(app: Any) -> None:
    with app.together():
        group((app.tasks["callsheet.carry"].s(number).set(queue="io") for number in range(200)), app=app).apply_async()


@pytest.mark.parametrize("publish", [by_map, by_fan_out, by_group])
def test_many_are_published_in_few_trips(own_redis, publish):
    settings, client = client_settings(own_redis), own_redis.client()
    with use_settings(settings):
        Echo("e").submit(Msg("u", "text", "user"))  # connections are there, and the queue is known
        before = Counts.of(client)
        publish(current_app(settings))
        made = Counts.of(client).since(before)
    assert client.llen("io") == 201
    assert made.reads < made.received / 5000 + 15 < 150  # one by one, it would be 200 at least
    assert made.connections <= 3


@pytest.mark.parametrize("body", [[["plain", 1, None], {}, {"chain": None}], [[{"__type__": "uuid"}], {}, {}]])
def test_our_reading_of_a_body_is_kombus(body):
    class Channel:
        no_ack_consumers = None

        def decode_body(self, body: Any, encoding: Any) -> Any:
            return base64.b64decode(body)

    def message(kind: Any, text: str) -> Any:
        return kind({"body": base64.b64encode(text.encode()).decode(), "properties": {"delivery_tag": "1"},
                     "content-type": "application/json", "content-encoding": "utf-8", "headers": {}},
                    channel=Channel())

    kombus = Message.__mro__[1]
    for text in (json.dumps(body), "{", "[[" * 100_000):
        outcome = []
        for kind in (Message, kombus):
            try:
                outcome.append(message(kind, text).payload)
            except Exception as exc:
                outcome.append(type(exc))
        assert outcome[0] == outcome[1]
