"""A message that a worker cannot take is refused in words, as the call's result and in the log, and stops nothing."""

import base64
import bz2
import json
import lzma
import re
import time
import zlib
from types import SimpleNamespace

import pytest
from celery import Celery, chain
from celery.exceptions import NotRegistered

from callsheet import AgentFailed, Job, Msg
from callsheet.errors import CallRefused, PayloadTooLarge
from callsheet.resources import dead_letters
from callsheet.settings.keys import Keys
from callsheet.tasks.app import current_app
from callsheet.tasks.people.answers import open_questions
from callsheet.workers.consumer import Worker
from callsheet.workers.prefork import MOST_PROCESSES, AsynPool
from tests.agents.basic import Compute, Echo
from tests.agents.user_tasks import add_now, add_soon
from tests.services import kill_connections, wait_for
from tests.test_bad_input import HELLO, call_of, envelope, new

MEGABYTE = 1024 * 1024
QUEUES = {"io": (Echo("a"), "a:hello"), "cpu": (Compute("a"), "a:1")}

DEEP: list = []
for _ in range(450):
    DEEP = [DEEP]


def body(*parts):
    return {"body": base64.b64encode(json.dumps(parts).encode()).decode()}


def squeezed(compress, text=b" " * (40 * MEGABYTE)):
    return base64.b64encode(compress(text)).decode()


#: What is changed of a message: whole parts of it, of its headers, of its properties; and what is said of it.
REFUSED = {
    "pickle": ({"content-type": "application/x-python-serialize"}, {}, {},
               "content type is 'application/x-python-serialize'.*JSON only.*serializer='json'"),
    "stamps that cannot be looked up": ({}, {"stamped_headers": [{}]}, {}, "stamped_headers"),
    "an unknown content type": ({"content-type": "application/odd"}, {}, {}, "content type is 'application/odd'.*JSON"),
    "a body that is no JSON": ({"body": "e3t7"}, {}, {}, "its body is not the application/json that it is said to be"),
    "a body that is no base64": ({"body": "%%%"}, {}, {}, "its body is not the application/json that it is said to be"),
    "half of base64": ({"body": "abc"}, {}, {}, "its body cannot be read.*padding"),
    "a body of another shape": ({"body": "eyJhIjogMX0="}, {}, {},
                                "no message of Celery's task protocol.*no list of arguments"),
    "a body that is nested deep": (body([DEEP], {}, {}), {}, {}, "nested more than 400 deep"),
    "keywords that are a list": (body([], [1], {}), {}, {}, "its keyword arguments are no object"),
    "a step that is a number": (body([1], {}, {"chain": [5]}), {}, {}, r"its chain\.0 is wrong"),
    "an encoding nobody knows": ({}, {}, {"body_encoding": "x"}, r"its properties\.body_encoding is wrong"),
    "an address that is a list": ({}, {}, {"delivery_info": [1]}, r"its properties\.delivery_info is wrong"),
    "no end of priority": ({}, {}, {"priority": float("inf")}, r"its properties\.priority is wrong"),
    "limits in words": ({}, {"timelimit": ["ten", "five"]}, {}, r"its timelimit\.0 is wrong"),
    "one limit": ({}, {"timelimit": [1]}, {}, "its timelimit is wrong"),
    "absurd retries": ({}, {"retries": 10**12}, {}, "its retries is wrong"),
    "a type of kombu's that is none": ({}, {"x": {"__type__": "uuid", "__value__": {"hex": 5}}}, {}, "marks a type"),
    "a method's name": ({}, {"get": 1}, {}, "it has the header 'get'"),
    "40 MB as 40 kB of gzip": ({"body": squeezed(zlib.compress)}, {"compression": "gzip"}, {}, "when it is inflated"),
    "40 MB as 40 B of bzip2": ({"body": squeezed(bz2.compress)}, {"compression": "bzip2"}, {}, "when it is inflated"),
    "half of lzma": ({"body": squeezed(lambda text: lzma.compress(text)[:99], b"[[1], {}, {}]" * 9999)},
                     {"compression": "xz"}, {}, "is half of something compressed"),
    "a coding nobody knows": ({}, {"compression": "snappy"}, {}, "compressed as 'snappy'.*gzip, bzip2 and lzma"),
}
# Each on one kind of worker: both read with the same code, and go on in the same way.
HALF = [(what, queue) for number, what in enumerate(REFUSED) for queue in list(QUEUES)[number % 2:][:1]]


def worker_of(fleet, queue):
    return fleet.io if queue == "io" else fleet.cpu


def goes_on(queue):
    agent, expected = QUEUES[queue]
    assert agent.submit(HELLO).get(20).content == expected


def peak_of(pid):
    """The most memory that the process ever had, in bytes."""
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read())[1]) * 1024


@pytest.mark.parametrize(("what", "queue"), HALF)
def test_the_caller_and_the_log_are_told_what_was_refused_where_and_what_to_do(fleet, what, queue):
    whole, headers, properties, expected = REFUSED[what]
    task_id, text = envelope("callsheet.carry", [1], **whole)
    message = json.loads(text.replace('"routing_key": "io"', f'"routing_key": "{queue}"'))
    message["headers"] |= headers
    message["properties"] |= properties
    fleet.redis.lpush(queue, json.dumps(message))
    with pytest.raises(CallRefused, match=expected) as caught:
        Job.from_id(task_id).get(20)
    for part in (f"callsheet.carry[{task_id}]", worker_of(fleet, queue).name):
        assert part in str(caught.value)
    worker_of(fleet, queue).wait_log(str(caught.value))
    letter = wait_for(lambda: [one for one in dead_letters.read() if one["task_id"] == task_id], what="its letter")[0]
    assert re.search(expected.partition(".*")[0], letter["reason"] + str(caught.value))
    assert task_id in letter["text"]
    goes_on(queue)


@pytest.mark.parametrize("queue", QUEUES)
def test_what_has_no_id_or_is_no_message_is_kept_and_stops_nothing(fleet, queue):
    """Nobody takes it for a lost connection, either."""
    lost = worker_of(fleet, queue).log.count("Connection to broker lost")
    mark = f"mark {time.monotonic_ns()}"
    nameless = json.loads(envelope("callsheet.carry", [mark])[1])
    for name in ("id", "root_id"):
        del nameless["headers"][name]
    deep = f'["{mark}", ' + "[" * 5000 + "]" * 5000 + "]"
    texts = [json.dumps(nameless | {"mark": mark}), deep, json.dumps({"headers": mark}), f'"{mark}"', f"{mark} {{",
             json.dumps({"headers": {"task": [mark]}, "properties": {"delivery_tag": "x"}}), f"\udcff{mark}"]
    fleet.redis.lpush(queue, *(text.encode(errors="surrogateescape") for text in texts))
    goes_on(queue)
    wait_for(lambda: sum(mark in letter["text"] for letter in dead_letters.read()) == len(texts), what="all letters")
    wait_for(lambda: not fleet.redis.hlen("unacked"), what="nothing left of them")
    assert worker_of(fleet, queue).log.count("Connection to broker lost") == lost


def test_steps_that_raise_where_they_would_be_sent_fail_the_call(fleet):
    """What the reader cannot know of a message is told by the tracer."""
    task_id, text = envelope("callsheet.carry", [], **body([1], {}, {"chain": [{"task": "celery.chain", "args": [],
                                                                                 "kwargs": {"tasks": 5}, "options": {},
                                                                                 "subtask_type": "chain"}]}))
    fleet.redis.lpush("io", text)
    with pytest.raises(AgentFailed):
        Job.from_id(task_id).get(20)
    goes_on("io")


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
    assert re.search(rf"Removed from 'io' what is no message \(it is no JSON.*\): b'{junk}'.*elsewhere", fleet.io.log)
    assert any(letter["text"] == junk for letter in dead_letters.read())
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


def test_what_is_no_command_is_told_in_a_line_and_dropped(fleet):
    channel, junk = "/0.celery.pidbox", f"junk {time.monotonic_ns()}"
    deep = "[" * 1200 + "]" * 1200
    for text in ("5", f'"{junk}"', deep, f'{{"headers": "{junk}"}}', json.dumps({"body": "abc", "properties": {
            "delivery_tag": junk, "body_encoding": "base64", "delivery_info": {}}})):
        assert fleet.redis.publish(channel, text) >= 2
    for command in (5, {"arguments": {}}, {"method": [junk]}, {"method": "ping", "destination": junk}, {
            "method": "ping", "pattern": "(", "matcher": "pcre"}):
        text = envelope("", [], body=base64.b64encode(json.dumps(command).encode()).decode(),
                        headers={"clock": 10**40, "expires": 0})[1]
        fleet.redis.publish(channel, text)
    inspect = current_app().control.inspect(timeout=10, limit=2)
    assert inspect.ping().keys() == {fleet.io.name, fleet.cpu.name}
    for worker in (fleet.io, fleet.cpu):
        worker.wait_log(junk)
        wait_for(lambda worker=worker: worker.log.count("A control command was refused by") >= 3, 20, worker.log)
        assert inspect.clock()[worker.name]["clock"] < 1 << 53
    goes_on("io")


@pytest.mark.parametrize(("command", "arguments"), [
    ("pool_grow", {"n": 10**9}), ("pool_grow", {"n": "2"}), ("pool_shrink", {"n": -5}),
    ("autoscale", {"max": 10**9, "min": 1}),
    ("time_limit", {"task_name": "callsheet.carry", "hard": -1, "soft": 1e300}),
    ("rate_limit", {"task_name": "callsheet.carry", "rate_limit": "nan/s"}),
    ("rate_limit", {"task_name": "callsheet.carry", "rate_limit": "-1/m"}),
    ("rate_limit", {"task_name": "callsheet.carry", "rate_limit": 1e309}),
    *(("add_consumer", {"queue": name}) for name in (5, None, ["a"], {"a": 1}, "", "a\0b", "\ud800")),
    ("add_consumer", {"queue": "odd", "exchange_type": "odd"}), ("add_consumer", {"queue": "odd", "routing_key": [1]}),
    ("cancel_consumer", {"queue": {"a": 1}}),
])
def test_commands_with_absurd_numbers_or_names_are_refused_in_words(fleet, command, arguments):
    [reply] = current_app().control.broadcast(command, arguments, destination=[fleet.cpu.name], reply=True, timeout=10)
    assert re.search("must be (a|direct)", reply[fleet.cpu.name]["error"])


def test_what_else_a_command_says_of_a_queue_ends_no_worker(fleet):
    name = f"odd{time.monotonic_ns()}"
    current_app().control.broadcast("add_consumer", {"queue": name, "bindings": [5], "max_length": "x"})
    for worker in (fleet.io, fleet.cpu):
        worker.wait_log(f"The queue '{name}' cannot be consumed from")
    assert name not in str(current_app().control.inspect(timeout=10, limit=2).active_queues())
    goes_on("io")


def test_what_others_wrote_into_lists_of_ids_stops_nobody(fleet, redis_server):
    """A worker reads what was cancelled when it connects anew; turns pass on, whatever else is to be looked after."""
    keys, agent = Keys(fleet.settings.key_prefix), f"agent{time.monotonic_ns()}"
    for key in (keys.revoked(), keys.waiting(), keys.lines(), keys.states(), keys.hubs()):
        fleet.redis.zadd(key, {b"\xff\xfe": 1})
    fleet.redis.set(keys.line(agent), "no zset")
    fleet.redis.zadd(keys.lines(), {agent: 1})
    kill_connections(redis_server, ("normal",))
    wait_for(lambda: not fleet.redis.exists(keys.lines()), what="what cannot be passed on to be removed")
    goes_on("io")
    assert open_questions(fleet.settings) == []
    fleet.redis.delete(keys.revoked(), keys.waiting(), keys.states(), keys.hubs(), keys.line(agent))


def test_a_request_that_cannot_be_begun_is_refused_and_its_place_is_free():
    refused, free = [], []
    worker = object.__new__(Worker)
    worker.pool, worker._quick_release = None, lambda: free.append(1)
    worker.consumer = SimpleNamespace(on_invalid_task=lambda body, message, exc: refused.append((message, str(exc))))

    class Request:
        id, message = "a", "text"

        def execute_using_pool(self, pool):
            raise TypeError("unhashable")

    worker._process_task(Request())
    assert (refused, free) == ([("text", "unhashable")], [1])


def test_an_id_writes_no_lines_into_a_log_and_moves_no_cursor(fleet):
    mark = f"mark{time.monotonic_ns()}"
    message = json.loads(envelope("callsheet.carry", [1])[1])
    message["headers"]["id"] = f"a\x1b[2J\n{mark} CRITICAL"
    fleet.redis.lpush("io", json.dumps(message))
    goes_on("io")
    fleet.io.wait_log(f"␛[2J␊{mark} CRITICAL")
    assert not [line for line in fleet.io.log.splitlines() if line.startswith(mark)] and "\x1b[2J" not in fleet.io.log


def test_no_worker_makes_more_processes_than_its_machine_runs():
    with pytest.raises(ValueError, match="this machine runs"):
        AsynPool.grow(SimpleNamespace(_processes=1), MOST_PROCESSES)


def test_what_starts_later_comes_back_whatever_else_is_kept_there(fleet):
    junk = f"junk {time.monotonic_ns()}".encode()
    nan = b"\x91\x93\xcb\x7f\xf8" + b"\x00" * 6 + b"\xa2io\xa1x"
    for name, value in ((b"\xff", junk), (b"number", b"\x05"), (b"list", b"\x91\x93\x01\x02" + junk), (b"nan", nan)):
        fleet.redis.hset("unacked_later_messages", name, value)
        fleet.redis.zadd("unacked_later", {name: 1})
    wait_for(lambda: not fleet.redis.exists("unacked_later", "unacked_later_messages"), what="nothing kept")
    assert any(junk.decode() in letter["text"] for letter in dead_letters.read())
