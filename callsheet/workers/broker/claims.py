"""One channel's conversation with the broker: claims, acknowledgements and wake-ups over one connection.

A claim is one script that takes as many messages as the channel has room for. Behind it goes an EXISTS of the
queues' lists on a connection with client tracking on: the server then says, once, when one of them changes. So the
connection never blocks, nothing polls, a wake-up takes no message, and every command of a turn of the loop travels
in one write whose answers are read when they come.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

from kombu.utils.scheduling import round_robin_cycle
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from callsheet.resources.trouble import refusal
from callsheet.workers.broker.layout import CLAIM, Delivery
from callsheet.workers.broker.ledger import Ledger, Tag
from callsheet.workers.broker.reading import UNREADABLE, Unreadable, read

logger = logging.getLogger(__name__)

MOST = 64  # messages in one claim: what arrives is shared between workers claim by claim
MOST_EVER = 1000  # what the script's stack holds
MOST_BYTES = 4 * 1024 * 1024
LOOK_ANYWAY = 5.0  # seconds without a word from the server after which to look, which also shows a dead connection
OVERDUE = 15.0  # seconds that an answer may take
SETTLE = 1.0  # seconds to wait for an answer that is under way when the channel closes
IN_VAIN = 4  # wake-ups without a message, as other workers were quicker, after which to be slower
SLOWEST = 0.016

TRACK = ("CLIENT", "TRACKING", "ON", "OPTIN", "NOLOOP")
TRACK_NEXT = ("CLIENT", "CACHING", "YES")


class _Push:
    """What reading gives where the server spoke unasked."""


_PUSH = _Push()


class Claims:
    """Claims messages for one channel of the transport."""

    def __init__(self, channel: Any, ledger: Ledger) -> None:
        self.channel = channel
        self.ledger = ledger
        self.arrived: deque[Delivery] = deque()
        self.no_ack: set[str] = set()
        self._name = uuid4().hex
        self._count = 0
        self._replies: deque[tuple[Callable[[Any], None] | None, list[Tag]]] = deque()
        self._under_way: tuple[str, int, list[str]] | None = None
        self._connection: Any = None
        self._armed = False
        self._armed_at = 0.0
        self._heard = 0.0  # when the last answer came, or the first of those that are awaited was asked for
        self._by_text = False
        self._in_vain = 0
        self._not_before = 0.0
        self._resumed = False

    # Sending

    def due(self) -> bool:
        """Whether there is anything to send."""
        return self._wants() or self.has_acks()

    def has_acks(self) -> bool:
        """Whether this channel has acknowledgements to send."""
        return self.ledger.collector is self.channel and self.ledger.has_acks

    def room(self) -> int:
        """How many messages the channel may take."""
        qos = self.channel.qos
        if "can_consume" in vars(qos):  # Celery's worker_disable_prefetch
            return 1 if qos.can_consume() and not self.arrived else 0
        most: int = min(self.channel.claim_most, MOST_EVER)
        free = qos.can_consume_max_estimate()
        if free is not None:
            most = min(most, free - len(self.arrived) - len(self.ledger.kept))
        return most

    def _wants(self) -> bool:
        if self._under_way is not None or not self.channel.active_queues:
            return False
        now = time.monotonic()
        if self._armed and now - self._armed_at < LOOK_ANYWAY:
            return False
        return now >= self._not_before and self.room() > 0

    def send(self, connection: Any) -> None:
        """Send what is due."""
        commands: list[tuple[Any, ...]] = []
        if not self._replies:
            self._heard = time.monotonic()
        if connection is not self._connection:
            self._begin(connection, commands)
        acks = self.ledger.take_acks() if self.has_acks() else []
        if acks:
            commands += self.ledger.ack_commands(acks)
            self._replies.extend([(None, []), (None, []), (None, acks)])
        if self._wants():
            self._claim(commands)
        if commands:
            self.channel._in_poll = connection
            self.channel._brpop_sent_at = time.monotonic()
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)

    def _begin(self, connection: Any, commands: list[tuple[Any, ...]]) -> None:
        self._connection = connection
        parser = connection._parser
        parser.invalidation_push_handler_func = self._on_change
        commands.append(TRACK)
        self._replies.append((None, []))
        for claim in self.ledger.unseen:
            commands.append(("HMGET", self.ledger.layout.unacked, *claim))
            self._replies.append((partial(self._found, claim), []))

    def _claim(self, commands: list[tuple[Any, ...]]) -> None:
        channel, layout = self.channel, self.ledger.layout
        queues = channel._queue_cycle.consume(len(channel.active_queues))
        lists = [layout.list_of(queue, step) for step in layout.steps for queue in queues]
        rests = ["" if queue in self.no_ack else layout.rest(queue) for queue in queues]
        self._count += 1
        prefix, room = f"{self._name}.{self._count}.", self.room()
        in_turn = int(type(channel._queue_cycle) is round_robin_cycle)
        args = [prefix, room, MOST_BYTES, self.ledger.term, in_turn, len(queues), *rests]
        commands += [CLAIM.command([*layout.registry, *lists], args, self._by_text), TRACK_NEXT, ("EXISTS", *lists)]
        self._under_way = (prefix, room, queues)
        self._by_text = False
        self._armed = False
        self._replies.extend([(self._claimed, []), (None, []), (self._watched, [])])

    # Reading

    def on_readable(self) -> None:
        """Read what has come and deliver it; leaves the rest for later should a consumer raise.

        Raises:
            ConnectionError: the connection is lost, or the server refuses to serve.
        """
        connection = self.channel.client.connection
        try:
            while connection.can_read(0):
                self._read_one(connection)
        except self.channel.connection_errors:
            connection.disconnect()
            raise

    def _read_one(self, connection: Any) -> None:
        try:
            answer = connection.read_response(push_request=True, disconnect_on_error=False)
        except ResponseError as exc:
            answer = exc
        if answer is _PUSH or answer is None or not self._replies:
            return
        self._heard = time.monotonic()
        then, acks = self._replies.popleft()
        if not self._replies:
            self.channel._in_poll = None
        if isinstance(answer, NoScriptError):
            self._under_way, self._by_text = None, True
        elif isinstance(answer, Exception):
            self.ledger.untake_acks(acks)
            raise RedisConnectionError(f"The broker refuses ({refusal(answer) or 'error'}): {answer}") from answer
        elif then is not None:
            then(answer)

    def _on_change(self, _: Any) -> _Push:
        self._armed = False
        if self._in_vain >= IN_VAIN:
            pause = min(0.0005 * 2 ** (self._in_vain - IN_VAIN), SLOWEST)
            self._not_before = time.monotonic() + pause
            if self.channel.connection.cycle.hub is not None:  # whose loop turns again then, should nothing else happen
                self.channel.connection.cycle.hub.call_later(pause, lambda: None)
        return _PUSH

    def _watched(self, there: int) -> None:
        self._armed, self._armed_at = there == 0 and not self._by_text, time.monotonic()

    def _claimed(self, answer: list[Any]) -> None:
        assert self._under_way is not None
        prefix, _, queues = self._under_way
        self._under_way = None
        self._in_vain = 0 if answer else self._in_vain + 1
        for number in range(0, len(answer), 2):
            queue = queues[answer[number] - 1]
            self.channel._queue_cycle.rotate(queue)
            self._arrive(f"{prefix}{number // 2 + 1}", queue, answer[number + 1])

    def _found(self, tags: list[str], values: list[Any]) -> None:
        if tags in self.ledger.unseen:
            self.ledger.unseen.remove(tags)
        self.ledger.restore([found for found in zip(tags, values, strict=True) if found[1] is not None])

    def _arrive(self, tag: str, queue: str, text: bytes) -> None:
        """Keep a message to deliver it; what is none is set apart."""
        taken = queue not in self.no_ack
        try:
            payload = read(text, self.channel.message_max)
            if not taken and UNREADABLE in payload["headers"]:
                raise Unreadable(payload["headers"][UNREADABLE])
        except Unreadable as exc:
            self.ledger.set_apart(queue, text, exc, tag if taken else None)
            return
        if taken:
            self.ledger.held[tag] = delivery = Delivery.of(tag, queue, payload, text)
        else:
            delivery = Delivery("", queue, payload, "")
        self.arrived.append(delivery)

    # Delivering

    def deliver(self, most: int | None = None) -> bool:
        """Hand what has arrived to the consumers."""
        transport, delivered = self.channel.connection, 0
        while self.arrived and (most is None or delivered < most):
            item = self.arrived.popleft()
            if item.queue in transport._callbacks:
                transport._callbacks[item.queue](item.payload)
                delivered += 1
            else:  # its consumer was cancelled meanwhile
                self.ledger.give_back([item.tag])
        return delivered > 0

    def check_leases(self) -> None:
        """Begin anew where leases have run out, as after the process was suspended.

        Raises:
            ConnectionError: so that Celery forgets the calls that have not started, which are another worker's now.
        """
        self.ledger.turned = now = time.monotonic()
        if self._replies and now - self._heard > OVERDUE and not self._connection.can_read(0):
            logger.warning("The broker has not answered for %g s: connecting anew.", OVERDUE)
            self._connection.disconnect()
        if self.channel.active_queues:
            self.ledger.collector = self.channel
        if not self._resumed:
            self._resumed = True
            self.ledger.resume()
        self.ledger.review()
        if self.ledger.slipped():
            logger.warning("The leases of calls that had not started have run out: they are other workers' now.")
            raise RedisConnectionError("leases have run out")

    # Ends

    def leave(self) -> None:
        """Gather no more acknowledgements: the loop may not turn again."""
        if self.ledger.collector is self.channel:
            self.ledger.collector = None
        self.ledger.flush()

    def rearm(self) -> None:
        """The queues have changed."""
        self._armed = False

    def on_disconnect(self, connection: Any) -> None:
        """The connection is gone, with the answers that were under way."""
        if connection is not self._connection:
            return
        self._connection = None
        for _, acks in self._replies:
            self.ledger.untake_acks(acks)
        self._replies.clear()
        if self._under_way is not None:
            prefix, count, _ = self._under_way
            self.ledger.unseen.append([f"{prefix}{i}" for i in range(1, count + 1)])
            self._under_way = None
        self._armed = False

    def settle(self) -> None:
        """Wait for the answers that are under way and put back what was not delivered."""
        connection, end = self._connection, time.monotonic() + SETTLE
        try:
            while self._replies and connection is not None and connection.can_read(max(0.0, end - time.monotonic())):
                self._read_one(connection)
        except self.channel.connection_errors as exc:
            logger.debug("No last answer from the broker: %s", exc)
            connection.disconnect()
        tags = [item.tag for item in self.arrived]
        self.arrived.clear()
        self.ledger.give_back(tags)
