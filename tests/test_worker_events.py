"""Celery's events of tasks, which our workers send together."""

import contextlib
import signal
import threading
from decimal import Decimal

import pytest
from celery import Celery
from celery.events.dispatcher import EventDispatcher as CeleryDispatcher
from kombu import Connection

from callsheet import get_settings
from callsheet.tasks.app import current_app
from callsheet.workers.events import MOST, Events
from tests.agents.gated import CpuGated, Gated
from tests.celery_events import events
from tests.office import Office, say
from tests.proxy import Proxy
from tests.services import RedisServer, wait_for

AGENTS = {"io": Gated, "cpu": CpuGated}
KINDS = ["task-received", "task-started", "task-succeeded"]
RECEIVED = {"name": "a.task", "args": "(1, 'ä\"')", "kwargs": "{}", "root_id": "1", "parent_id": None, "retries": 0,
            "eta": None, "expires": None}


class Channel:
    """Redis's pub/sub channel of events, and two dispatchers for it."""

    def __init__(self, server: RedisServer, transport: str | None) -> None:
        self.app = Celery("told", broker=server.url, set_as_current=False)
        self.app.events_cls = "callsheet.workers.events:Events"
        self.app.conf.broker_transport = transport
        self.connection = self.app.connection_for_write()
        self.stock = Celery("stock", broker=server.url, set_as_current=False)
        self.heard: list[object] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._ready = threading.Event()
        self._thread.start()
        assert self._ready.wait(10)

    def _listen(self) -> None:
        # Stock kombu hears it, whoever sends.
        with self.stock.connection_for_read() as connection:
            queue = self.stock.events.Receiver(connection).queue
            with connection.Consumer([queue], callbacks=[lambda body, _: self.heard.append(body)], no_ack=True,
                                     accept=["json"]):
                self._ready.set()
                while not self._over.is_set():
                    with contextlib.suppress(TimeoutError):
                        connection.drain_events(timeout=0.1)

    def dispatcher(self, cls: type[CeleryDispatcher], **options) -> CeleryDispatcher:
        return cls(self.connection, hostname="w@here", buffer_group=["task"], app=self.app, **options)

    def close(self) -> None:
        self._over.set()
        self._thread.join(10)
        self.connection.close()


@pytest.fixture(params=[None, "callsheet.workers.transport:Transport"], ids=["stock", "batched"])
def channel(own_redis, request):
    found = Channel(own_redis, request.param)
    # What is published before the listener's first read is lost.
    probe = found.dispatcher(CeleryDispatcher)
    wait_for(lambda: probe.send("worker-probe") or found.heard, every=0.1, what="the listener to hear")
    yield found
    found.close()


def batches(channel: Channel) -> list[list[dict]]:
    return [heard for heard in channel.heard if isinstance(heard, list)]


def of_tasks(channel: Channel) -> list[dict]:
    return [event for batch in batches(channel) for event in batch]


def told(dispatcher: CeleryDispatcher) -> None:
    dispatcher.send("task-received", uuid="1", **RECEIVED)
    dispatcher.send("task-started", uuid="1")
    dispatcher.send("task-succeeded", uuid="1", result="'x'", runtime=0.25)
    dispatcher.flush()
    dispatcher.send("task-started", uuid="\ud800")
    dispatcher.flush()
    dispatcher.send("task-revoked", uuid="2", timestamp=17.0, signum=15)
    dispatcher.send("task-of-my-own", uuid="2", amount=Decimal("1.50"))
    dispatcher.flush()


def test_what_is_sent_is_what_celery_sends(channel):
    ours, stock = channel.dispatcher(Events(channel.app).Dispatcher), channel.dispatcher(CeleryDispatcher)
    for dispatcher in (ours, stock):
        told(dispatcher)
    wait_for(lambda: len(of_tasks(channel)) == 12, what="twelve events")
    mine, theirs = of_tasks(channel)[:6], of_tasks(channel)[6:]
    assert [event["clock"] for event in mine + theirs] == sorted(event["clock"] for event in mine + theirs)
    assert [event["timestamp"] for event in (mine[4], theirs[4])] == [17.0, 17.0]
    for one, other in zip(mine, theirs, strict=True):
        assert one.keys() == other.keys()
        assert abs(one["timestamp"] - other["timestamp"]) < 60
        for event in (one, other):
            del event["clock"], event["timestamp"]
        assert one == other


def test_events_wait_for_others_and_go_together(channel):
    asked = []
    ours = channel.dispatcher(Events(channel.app).Dispatcher, on_send_buffered=lambda: asked.append(1))
    for number in range(2 * MOST + 7):
        ours.send("task-started", uuid=str(number))
    assert len(asked) == 3, "to be sent soon, once for those that wait"
    ours.flush()
    wait_for(lambda: len(of_tasks(channel)) == 2 * MOST + 7, what="all of them")
    assert [event["uuid"] for event in of_tasks(channel)] == [str(number) for number in range(2 * MOST + 7)]
    assert [len(batch) for batch in batches(channel)] == [MOST, MOST, 7]


def test_what_nobody_asked_for_is_not_kept(channel):
    ours = channel.dispatcher(Events(channel.app).Dispatcher, groups=["worker"])
    told(ours)
    ours.groups.add("task")
    ours.send("task-started", uuid="heard")
    ours.disable()
    ours.send("task-started", uuid="not heard")
    ours.enable()
    ours.flush()
    wait_for(lambda: of_tasks(channel), what="the one")
    assert [event["uuid"] for event in of_tasks(channel)] == ["heard"]


def test_what_waits_or_could_not_be_sent_is_sent_by_the_next_connection(channel, own_redis):
    cls, proxy = Events(channel.app).Dispatcher, Proxy(own_redis.port)
    with Connection(proxy.url, transport=channel.app.conf.broker_transport) as lost:
        old = cls(lost, hostname="w@here", buffer_group=["task"], app=channel.app)
        old.send("task-started", uuid="sent too late")
        proxy.close()
        old.flush()
        old.send("task-succeeded", uuid="waits", result="", runtime=1.0)
    new = channel.dispatcher(cls)
    new.extend_buffer(old)
    new.flush()
    wait_for(lambda: len(of_tasks(channel)) == 2, what="both")
    assert [event["uuid"] for event in of_tasks(channel)] == ["sent too late", "waits"]


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_the_events_of_calls_that_end_with_their_worker_are_heard(office: Office, tmp_path, kind):
    one = office.hire(kind, "-c", "4", "-E")
    app = current_app(get_settings())
    with events(app) as seen:
        jobs = [AGENTS[kind](str(tmp_path), str(number)).submit(say("x")) for number in range(4)]
        begun = tmp_path / "started"
        wait_for(lambda: begun.exists() and len(begun.read_text().split()) == 4, what="all at work")
        one.send_signal(signal.SIGTERM)
        one.wait_log("hutdown (MainProcess)")
        (tmp_path / "gate").touch()
        assert one.process.wait(30) == 0
        assert [job.get(20).content for job in jobs] == ["through"] * 4
        for job in jobs:
            wait_for(lambda job=job: [e["type"] for e in seen if e.get("uuid") == job.id] == KINDS,
                     what=lambda: f"the events of a call, not {seen}")
