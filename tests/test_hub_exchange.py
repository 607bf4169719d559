"""A hub's fanout exchange, as kombu's consumers see it."""

import contextlib
from typing import Any

from kombu import Connection, Consumer, Exchange, Queue

from callsheet import Msg, MsgHub
from tests.agents.hubs import Talker
from tests.office import say
from tests.services import wait_for


def test_a_kombu_consumer_gets_what_is_said(at):
    got: list[tuple[Any, Any]] = []
    alice, bob = Talker("alice"), Talker("bob")
    hub = MsgHub.open('kombu "é"', [alice, bob])
    queue = Queue("listener", Exchange(f"callsheet:hub-exchange:{hub.name}", type="fanout"), exclusive=True,
                  auto_delete=True)

    before = at.redis.pubsub_numpat()

    def heard(body: Any, message: Any) -> None:
        got.append((body, message.headers))

    try:
        with Connection(at.server.url) as connection, Consumer(connection, queue, callbacks=[heard], no_ack=True,
                                                               accept=["json"]):
            def subscribed() -> bool:
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=0.05)  # the subscription begins with the first look
                return at.redis.pubsub_numpat() > before

            wait_for(subscribed, what="the subscription")
            entry = hub.broadcast(Msg("host", "a / \"quoted\" é \\ text", "user"))
            alice.submit(say("x")).get(20)
            while len(got) < 2:
                connection.drain_events(timeout=10)
            hub.close()
            while len(got) < 3:
                connection.drain_events(timeout=10)
    finally:
        if len(got) < 3:
            hub.close()
    (first, headers), (second, others), (nothing, closed) = got
    assert Msg.from_dict(first).content == "a / \"quoted\" é \\ text"
    assert (headers["hub"], headers["id"], headers["sender"]) == (hub.name, entry, "")
    assert (Msg.from_dict(second).content, others["sender"]) == ("x", alice.id)
    assert (nothing, closed["closed"]) == (None, True)


def test_a_broadcast_costs_one_append_and_one_publish_for_any_number_of_members(at):
    def cost(members: int) -> dict[str, int]:
        with MsgHub([Talker(str(number)) for number in range(members)]) as hub:
            hub.broadcast(Msg("host", "warm", "user"))
            before = calls()
            hub.broadcast(Msg("host", "x", "user"))
            after = calls()
        return {name: after[name] - before[name] for name in ("xadd", "publish", "hset")}

    def calls() -> dict[str, int]:
        stats = at.redis.info("commandstats")
        return {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0)
                for name in ("xadd", "publish", "hset")}

    few, many = cost(3), cost(300)
    assert few["xadd"] == few["publish"] == many["xadd"] == many["publish"] == 1
    assert many["hset"] == few["hset"]
