"""A message that a worker cannot take is refused in words, as the call's result and in the log, and stops nothing."""

import json
import re
import time

import pytest
from celery import Celery, chain
from celery.exceptions import NotRegistered

from callsheet import AgentFailed, Job, Msg
from callsheet.errors import CallRefused, PayloadTooLarge
from callsheet.tasks.app import current_app
from tests.agents.basic import Compute, Echo
from tests.agents.user_tasks import add_now, add_soon
from tests.services import wait_for
from tests.test_bad_input import HELLO, call_of, envelope, new

MEGABYTE = 1024 * 1024
QUEUES = {"io": (Echo("a"), "a:hello"), "cpu": (Compute("a"), "a:1")}

REFUSED = {
    "pickle": ({"content-type": "application/x-python-serialize"}, "content type is 'application/x-python-serialize'.*"
                                                                   "JSON only.*serializer='json'"),
    "yaml": ({"content-type": "application/x-yaml"}, "content type is 'application/x-yaml'.*serializer='json'"),
    "an unknown content type": ({"content-type": "application/odd"}, "content type is 'application/odd'.*JSON only"),
    "a body that is no JSON": ({"body": "e3t7"}, "its body is not the application/json that it is said to be"),
    "a body that is no base64": ({"body": "%%%"}, "no message of Celery's task protocol.*Publish it through Celery"),
    "a body of another shape": ({"body": "eyJhIjogMX0="}, "no message of Celery's task protocol.*not enough values"),
}


def worker_of(fleet, queue):
    return fleet.io if queue == "io" else fleet.cpu


def goes_on(queue):
    agent, expected = QUEUES[queue]
    assert agent.submit(HELLO).get(20).content == expected


def peak_of(pid):
    """The most memory that the process ever had, in bytes."""
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read())[1]) * 1024


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("what", REFUSED)
def test_the_caller_and_the_log_are_told_what_was_refused_where_and_what_to_do(fleet, what, queue):
    changes, expected = REFUSED[what]
    task_id, text = envelope("callsheet.carry", [1], **changes)
    fleet.redis.lpush(queue, text.replace('"routing_key": "io"', f'"routing_key": "{queue}"'))
    with pytest.raises(CallRefused, match=expected) as caught:
        Job.from_id(task_id).get(20)
    for part in (f"'{queue}'", f"callsheet.carry[{task_id}]", worker_of(fleet, queue).name):
        assert part in str(caught.value)
    worker_of(fleet, queue).wait_log(str(caught.value))
    goes_on(queue)


@pytest.mark.parametrize("queue", QUEUES)
def test_an_unknown_task_names_the_setting_that_brings_it(fleet, queue):
    task_id, text = envelope("shop.tasks.bill", [])
    fleet.redis.lpush(queue, text)
    with pytest.raises(AgentFailed, match=r"no task named shop\.tasks\.bill.*CALLSHEET_MODULES") as caught:
        Job.from_id(task_id).get(20)
    assert caught.value.remote_type == "celery.exceptions.NotRegistered"
    worker_of(fleet, queue).wait_log(f"shop.tasks.bill[{task_id}]")
    goes_on(queue)


def test_an_unknown_task_ends_the_steps_behind_it(fleet):
    app = current_app()
    steps = [app.signature(name, args=(1,), queue="io") for name in ("shop.tasks.bill", add_soon.name)]
    result = chain(*steps, app=app).apply_async()
    with pytest.raises(NotRegistered):
        result.get(20)


def test_what_is_no_json_is_shown_in_the_log_and_dropped(fleet):
    junk = f"this is no message {time.monotonic_ns()}"
    fleet.redis.lpush("io", junk)
    fleet.io.wait_log(junk)
    assert re.search(rf"Removed from queue 'io' what is no message: b'{junk}'.*have it write elsewhere", fleet.io.log)
    goes_on("io")


@pytest.fixture
def protocol_1(fleet):
    """A program that publishes as Celery 3 did."""
    app = Celery("old", broker=fleet.server.url, backend=fleet.server.url, set_as_current=False)
    app.conf.task_protocol = 1
    yield app
    app.close()


def test_messages_of_celerys_first_protocol_are_taken(protocol_1):
    assert protocol_1.send_task(add_soon.name, (1, 2), queue="io").get(20)[0] == 3
    assert protocol_1.send_task(add_now.name, (1, 2), queue="cpu").get(20)[0] == 3
    reply = protocol_1.send_task("callsheet.reply", (None, call_of(new("tests.agents.basic:Echo", "a"))), queue="io")
    assert reply.get(20)["$msg"]["content"] == "a:"


def test_and_refused_in_words_where_the_task_is_unknown(protocol_1):
    with pytest.raises(NotRegistered):
        protocol_1.send_task("shop.tasks.bill", (), queue="io").get(20)
    goes_on("io")


@pytest.mark.parametrize("queue", QUEUES)
def test_fifty_megabytes_on_the_list_are_refused_and_take_a_small_multiple_of_memory(fleet, queue):
    size, pid = 50 * MEGABYTE, worker_of(fleet, queue).process.pid
    goes_on(queue)
    before = peak_of(pid)
    task_id, text = envelope("callsheet.carry", ["x" * size])
    fleet.redis.lpush(queue, text)
    with pytest.raises(CallRefused, match=r"it is 52,428,\d+ bytes, and a worker takes 33,554,432 at most.*"
                                          r"Send a reference.*CALLSHEET_PAYLOAD_MAX"):
        Job.from_id(task_id).get(60)
    assert peak_of(pid) - before < 5 * size
    wait_for(lambda: not any(task_id in text for text in fleet.redis.hvals("unacked")), what="nothing left of it")
    assert worker_of(fleet, queue).process.poll() is None
    goes_on(queue)


def test_so_are_those_whose_body_is_not_base64(fleet):
    body = json.dumps([["x" * 40 * MEGABYTE], {}, {}])
    task_id, text = envelope("callsheet.carry", [], body=body)
    message = json.loads(text)
    del message["properties"]["body_encoding"]
    fleet.redis.lpush("io", json.dumps(message))
    with pytest.raises(CallRefused, match="a worker takes 33,554,432 at most"):
        Job.from_id(task_id).get(60)
    goes_on("io")


def test_and_those_of_a_users_own_task(fleet):
    with pytest.raises(CallRefused, match="Send a reference"):
        current_app().send_task(add_soon.name, ("x" * 40 * MEGABYTE, "y"), queue="io").get(60)


def test_a_large_message_under_the_limit_is_taken(fleet):
    text = "x" * 20 * MEGABYTE
    assert len(current_app().send_task(add_soon.name, (text, "y"), queue="io").get(60)[0]) == len(text) + 1


def test_fifty_megabytes_are_refused_at_submission(nothing_sent):
    large = Msg("user", "x" * 50 * MEGABYTE, "user")
    with pytest.raises(PayloadTooLarge, match=r"Argument 1 of Echo\(a\) is 52,428,\d+ bytes.*16,777,216.*"
                                              "CALLSHEET_PAYLOAD_MAX"):
        Echo("a").submit(large)
    nothing_sent()
