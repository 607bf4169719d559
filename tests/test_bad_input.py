"""What is wrong is said in words, before anything is sent where that is possible; workers survive anything."""

import asyncio
import base64
import json
import socket
import sys
import time
import types
import uuid

import pytest

from callsheet import AgentFailed, FanoutPipeline, Job, Msg, SequentialPipeline
from callsheet.errors import CannotTravel, MessageError, ModuleNotAllowed, RedisUnavailable, UnknownQueue, UsageError
from callsheet.settings import use_settings
from tests.agents import basic
from tests.agents.basic import Compute, Echo
from tests.agents.pipes import Tag
from tests.agents.work import CpuWrong, Known, Wrong
from tests.elsewhere import Outsider
from tests.fleet import client_settings
from tests.services import free_port, wait_for

HELLO = Msg("user", "hello", "user")


# No Redis ----------------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(fleet):
    """Settings that point to a port where nothing listens."""
    url = f"redis://someone:hunter2@127.0.0.1:{free_port()}/0"
    with use_settings(client_settings(fleet.server, redis_url=url)) as settings:
        yield settings


def refused(call):
    """The error of a call without a Redis, once it is checked."""
    began = time.monotonic()
    with pytest.raises(RedisUnavailable, match="No Redis answers at redis://127") as caught:
        call()
    text = str(caught.value)
    assert "hunter2" not in text
    assert "someone" not in text
    assert "CALLSHEET_REDIS_URL" in text
    assert time.monotonic() - began < 11
    assert isinstance(caught.value, ConnectionError)


@pytest.mark.parametrize("call", [
    lambda: Echo("a").submit(HELLO),
    lambda: asyncio.run(Echo("a")(HELLO)),
    lambda: SequentialPipeline([Tag("a"), FanoutPipeline([Tag("b")])]).submit(HELLO),
    lambda: SequentialPipeline([]).submit(HELLO),
    lambda: Known("x" * 100_000).submit(HELLO),
    lambda: Job.from_id("x").get(),
    lambda: Job.from_id("x").get(timeout=20),
    lambda: asyncio.run(Job.from_id("x")._wait()),
    lambda: Job.from_id("x").status,
    lambda: Job.from_id("x").cancel(),
    lambda: list(Job.from_id("x").stream()),
], ids=["submit", "await", "pipeline", "empty pipeline", "large", "get", "get in time", "await job", "status", "cancel",
        "stream"])
def test_no_redis_at_the_address(nowhere, call):
    refused(call)


def test_a_wrong_password_says_so(own_redis):
    own_redis.client().config_set("requirepass", "right")
    url = own_redis.url.replace("redis://", "redis://:hunter2@")
    with use_settings(client_settings(own_redis, redis_url=url)), \
            pytest.raises(RedisUnavailable, match="password") as caught:
        Echo("a").submit(HELLO)
    assert "hunter2" not in str(caught.value)


# What cannot travel ------------------------------------------------------------------------------------


def test_an_agent_outside_the_allowed_modules_is_refused_by_the_worker(fleet):
    for target in (Outsider(), SequentialPipeline([Tag("a"), Outsider()])):
        with pytest.raises(AgentFailed, match=r"tests\.elsewhere:Outsider is outside.*CALLSHEET_MODULES") as caught:
            target.submit(HELLO).get(10)
        assert caught.value.remote_type == "callsheet.errors.ModuleNotAllowed"


def test_and_by_the_submitter_if_its_settings_name_modules(fleet, nothing_sent):
    with use_settings(client_settings(fleet.server, modules="tests.agents")):
        with pytest.raises(ModuleNotAllowed, match=r"tests\.elsewhere:Outsider"):
            Outsider().submit(HELLO)
        with pytest.raises(ModuleNotAllowed):
            FanoutPipeline([Tag("a"), Outsider()]).submit(HELLO)
        nothing_sent()
        assert Echo("a").submit(HELLO).get(10).content == "a:hello"


@pytest.mark.parametrize(("value", "text"), [
    (lambda x: x, "lambda"), (socket.socket(), "socket"), (object(), "object"), (open(__file__), "TextIOWrapper"),  # noqa: SIM115
    (asyncio.Queue(), "Queue"), ([1, {"deep": socket.socket()}], r"\[1\]\['deep'\]"),
])
def test_arguments_that_cannot_travel_are_named_with_the_remedy(nothing_sent, value, text):
    with pytest.raises(CannotTravel, match=f"(?s)argument 1 of Known.*{text}|{text}.*argument 1 of Known"):
        Known(value).submit(HELLO)
    with pytest.raises(CannotTravel, match=text):
        Echo("a").submit(value)
    with pytest.raises(CannotTravel, match=text):
        SequentialPipeline([Echo("a"), Known(value)]).submit(HELLO)
    nothing_sent()


def test_agents_of_the_main_file_and_of_functions_are_refused(fleet):
    class Local(Echo):
        pass

    with pytest.raises(CannotTravel, match="inside a function"):
        Local("a").submit(HELLO)
    main = type("InMain", (Echo,), {"__module__": "__main__", "__qualname__": "InMain"})
    with pytest.raises(CannotTravel, match="callsheet run"):
        main("a").submit(HELLO)


def test_an_agent_that_only_the_submitter_has(fleet, monkeypatch):
    ghost = type("Ghost", (Echo,), {"__module__": "tests.agents.basic", "__qualname__": "Ghost"})
    monkeypatch.setattr(basic, "Ghost", ghost, raising=False)
    with pytest.raises(AgentFailed, match=r"Ghost does not exist here.*older version"):
        ghost("a").submit(HELLO).get(10)
    gone = type("Gone", (Echo,), {"__module__": "tests.agents.nowhere", "__qualname__": "Gone"})
    module = types.ModuleType("tests.agents.nowhere")
    module.Gone = gone
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(AgentFailed, match=r"'tests\.agents\.nowhere'.*cannot be imported"):
        gone("a").submit(HELLO).get(10)


# Wrong calls and replies -------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", [*(Wrong(kind) for kind in ("str", "dict", "int", "generator", "object", "list")),
                                   CpuWrong("str"), CpuWrong("dict")], ids=lambda agent: type(agent).__name__)
def test_a_reply_that_is_no_message(fleet, agent):
    with pytest.raises(AgentFailed, match=r"reply returned a .*Msg\(self\.name, text") as caught:
        agent.submit(HELLO).get(10)
    assert caught.value.remote_type == "callsheet.errors.BadReply"


def test_an_unknown_queue_is_refused_before_sending(nothing_sent):
    for target in (Echo("a"), SequentialPipeline([Echo("a")]), SequentialPipeline([FanoutPipeline([])])):
        with pytest.raises(UnknownQueue, match=r"'gpu'.*CALLSHEET_QUEUES"):
            target.submit(HELLO, queue="gpu")
    nothing_sent()


@pytest.mark.parametrize("options", [{"priority": 10}, {"timeout": 0}, {"retries": -1}, {"expires": -1},
                                     {"countdown": -1}])
def test_options_that_cannot_be_right(fleet, options):
    with pytest.raises(UsageError, match=next(iter(options))):
        Echo("a").submit(HELLO, **options)


def test_arguments_that_reply_does_not_take_are_refused(nothing_sent):
    with pytest.raises(UsageError, match="missing a required argument: 'msg'"):
        Compute("a").submit()
    with pytest.raises(UsageError, match="nonsense"):
        Echo("a").submit(HELLO, nonsense=1)
    nothing_sent()


def test_a_message_that_is_none_of_its_kind():
    with pytest.raises(MessageError, match="role"):
        Msg("a", "b", "boss")


# Forged and broken messages ----------------------------------------------------------------------------


def envelope(task, args, kwargs=None, **changes):
    """A message as Celery writes it."""
    task_id = str(uuid.uuid4())
    body = json.dumps([args, kwargs or {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    message = {
        "body": base64.b64encode(body.encode()).decode(), "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": task, "id": task_id, "root_id": task_id, "parent_id": None, "group": None,
                    "argsrepr": "", "kwargsrepr": "", "origin": "forged", "timelimit": [None, None], "retries": 0,
                    "eta": None, "expires": None},
        "properties": {"correlation_id": task_id, "reply_to": str(uuid.uuid4()), "delivery_mode": 2,
                       "delivery_info": {"exchange": "", "routing_key": "io"}, "priority": 0,
                       "body_encoding": "base64", "delivery_tag": str(uuid.uuid4())},
    }
    message |= changes
    return task_id, json.dumps(message)


def call_of(agent, **more):
    return {"agent": agent, "label": "Forged", "job": "forged", **more}


def new(ref, *args):
    return {"$new": ref, "args": list(args), "kwargs": {}}


FORGED = [
    new("os:system", "redis-cli"), new("posix:system", "true"), new("subprocess:Popen", ["true"]),
    new("builtins:eval", "1"), new("builtins:exec", "1"), new("builtins:__import__", "os"),
    new("tests.agents.outside:mark"), new("tests.agents.outside:NoAgent"), new("tests.agents.side:redis.Redis"),
    new("tests.agents.side:os.system", "true"), new("tests.agents.basic:Echo.reply"),
    new("tests.agents.basic:Echo.__init__.__globals__"), new("callsheet.tasks.app:make_app"),
    {"$fn": "tests.agents.outside:mark"}, {"$call": [{"$fn": "tests.agents.outside:mark"}, [], {}]},
    {"$call": [{"$fn": "os:system"}, ["true"], {}]}, {"$type": "subprocess:Popen"}, {"$model": "os:system", "data": {}},
    {"$data": "tests.agents.outside:NoAgent", "fields": {}}, {"$enum": ["os:system", "x"]}, {"$odd": 1}, {"$new": 5},
    {"$new": None, "args": [], "kwargs": {}}, {"$payload": "../../etc/passwd"}, {"$payload": ["x"]}, [],
    "text", 7, None, {"$new": "tests.agents.basic:Echo"}, {"$msg": {"name": 1}},
    new("tests.agents.basic:Echo", new("os:system", "true")),
]


@pytest.mark.parametrize("queue", ["io", "cpu"])
def test_forged_agents_run_nothing(fleet, queue):
    sent = [envelope("callsheet.reply", [None, call_of(agent)]) for agent in FORGED]
    sent += [envelope("callsheet.reply", [agent, call_of(new("tests.agents.basic:Echo", "a"), piped=True)])
             for agent in FORGED if isinstance(agent, dict)]
    fleet.redis.lpush(queue, *(text for _, text in sent))
    for task_id, _ in sent:
        record = wait_for(lambda task_id=task_id: fleet.redis.get(f"celery-task-meta-{task_id}"), 20, "a result")
        assert json.loads(record)["status"] == "FAILURE", record
    assert fleet.redis.llen("marks") == 0
    assert Echo("a").submit(HELLO).get(10).content == "a:hello"
    assert Compute("a").submit(HELLO).get(10).content == "a:1"


BROKEN = {
    "an empty object": "{}",
    "no headers": json.dumps({"body": "", "properties": {}}),
    "no delivery tag": json.dumps({"body": "e30=", "content-type": "application/json", "content-encoding": "utf-8",
                                   "headers": {}, "properties": {"delivery_info": {}}}),
    "body not base64": envelope("callsheet.reply", [], body="%%%")[1],
    "body not JSON": envelope("callsheet.reply", [], body=base64.b64encode(b"{{{").decode())[1],
    "body of another kind": envelope("callsheet.reply", [], body=base64.b64encode(b'{"a": 1}').decode())[1],
    "pickle": envelope("callsheet.reply", [], **{"content-type": "application/x-python-serialize"})[1],
    "unknown content": envelope("callsheet.reply", [], **{"content-type": "application/odd"})[1],
    "unknown task": envelope("os.system", ["true"])[1],
    "another protocol": envelope("callsheet.reply", [], headers={}, body=base64.b64encode(
        json.dumps({"id": "x", "task": "os.system", "args": ["true"]}).encode()).decode())[1],
    "no arguments": envelope("callsheet.reply", [])[1],
    "arguments of another kind": envelope("callsheet.reply", ["a", "b"])[1],
    "too many arguments": envelope("callsheet.reply", [1, 2, 3, 4])[1],
    "gather of nonsense": envelope("callsheet.gather", ["a", "b", "c"])[1],
    "merge of nonsense": envelope("callsheet.merge", [1, 2, 3, 4])[1],
    "limits of another kind": envelope("callsheet.reply", [None, {}], headers={
        "task": "callsheet.reply", "id": "y", "timelimit": "odd", "eta": "odd", "expires": "odd"})[1],
}


@pytest.mark.parametrize("queue", ["io", "cpu"])
def test_broken_messages_among_good_ones_cost_none_of_them_and_no_worker(fleet, queue):
    others = set(fleet.redis.hkeys("unacked"))  # calls that wait for a person, say
    agent, said = (Echo("a"), "a:hello") if queue == "io" else (Compute("a"), "a:1")
    jobs = []
    for text in BROKEN.values():
        jobs.append(agent.submit(HELLO))
        fleet.redis.lpush(queue, text)
    jobs.append(agent.submit(HELLO))
    assert [job.get(20).content for job in jobs] == [said] * len(jobs)
    assert (fleet.io if queue == "io" else fleet.cpu).process.poll() is None
    wait_for(lambda: set(fleet.redis.hkeys("unacked")) <= others, what="the broken messages to be dropped")
