"""The Redis transport of our workers: `broker_transport = "callsheet.workers.transport:Transport"`.

On the wire it is kombu's, and works beside stock producers and stock workers on the same queues. It differs in how a
worker consumes: messages are claimed by the batch and registered in the same step, acknowledgements travel once a
turn of the loop, and what is under delivery is under a lease that the worker renews while it lives, so that a long
call is not delivered twice and a killed worker's calls are soon back on their queues.

Transport options beside kombu's:
    lease: seconds after which the calls of a killed worker are back on their queues (60).
    claim_most: messages in one claim (64).
    message_max: bytes of body that are read; of a larger message the consumer gets everything else, and the size in
        the header "oversize". No limit by default.
    eta_horizon: seconds from now; a message that a consumer puts away for longer waits in Redis (3600).
    may_batch: whether messages are claimed at all; without, they are consumed as stock kombu does (True).

Publishing is kombu's too, but for this: a message that is sent again, since the connection broke before the answer
came, is put on its list once.
"""

import logging
import time
from functools import cached_property
from queue import Empty
from typing import Any
from zlib import crc32

from kombu.exceptions import BatchPublishError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from callsheet.resources.trouble import refusal
from callsheet.tasks.patience import MessageId
from callsheet.workers.broker.claims import MOST, TRACK, Claims
from callsheet.workers.broker.later import HORIZON
from callsheet.workers.broker.layout import CLAIM as CLAIM_SCRIPT
from callsheet.workers.broker.layout import PUBLISH, Layout
from callsheet.workers.broker.ledger import ledger_of, shutting_down
from callsheet.workers.broker.poller import CLAIM, Poller, closed_in_children
from callsheet.workers.broker.reading import UNREADABLE, Message, Unreadable, read
from callsheet.workers.broker.stock import json, virtual
from callsheet.workers.broker.stock import redis as stock

logger = logging.getLogger(__name__)

LEASE = 60.0
_OPTIONS = ("lease", "claim_most", "message_max", "eta_horizon", "may_batch")
_encode = json.JSONEncoder().encode  # as kombu's, which makes one for each message
_warned: set[str] = set()


class QoS(stock.QoS):
    """Kombu's, for messages that are registered already when they arrive. Others it leaves to kombu's."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """A message has been delivered."""
        if self._is_ours(delivery_tag):
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge: with the next turn of the loop where there is one, else at once."""
        if self.channel.ledger is None:
            super().ack(delivery_tag)
        else:
            virtual.QoS.ack(self, delivery_tag)
            self.channel.ledger.ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Drop a message, or put it back: behind what is on its queue, or as the next if the worker ends."""
        if self._is_ours(delivery_tag) and requeue:
            self.channel.ledger.give_back([delivery_tag], "next" if shutting_down() else "last")
            virtual.QoS.ack(self, delivery_tag)
        elif requeue or self.channel.ledger is None:
            super().reject(delivery_tag, requeue)
        else:
            self.ack(delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Put back what is not acknowledged."""
        ledger = self.channel.ledger
        if ledger is None:
            super().restore_unacked(client)
            return
        self._flush()
        ours = [tag for tag in self._delivered if self._is_ours(tag)]
        others = self._delivered.keys() - set(ours)
        ledger.give_back(ours)
        for tag in others:
            self.restore_by_tag(tag)
        self._delivered.clear()

    def leave(self) -> None:
        """The channel closes.

        Where a worker has lost its connection, the calls that it runs stay its own. Those that were waiting go back a
        moment later: only then is it known which they are. In all other cases everything goes back at once.
        """
        if self.channel.connection.cycle.hub is not None and not shutting_down():
            self._flush()
            ours = [tag for tag in self._delivered if self._is_ours(tag)]
            self.channel.ledger.keep(ours)
            for tag in ours:
                del self._delivered[tag]
        else:
            self.channel.ledger.give_back(list(self.channel.ledger.kept))
        self.restore_unacked_once()

    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 10) -> None:
        """Kombu's sweep, at kombu's pace, for what stock workers have left; our own have leases."""
        ledger = self.channel.ledger
        if ledger is None:
            if not self.channel.may_batch:
                super().restore_visible(start, num, interval)
            return
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % (interval or 1):
            return
        oldest = time.time() - self.visibility_timeout
        found = ledger.client.zrange(ledger.layout.index, oldest, 0, desc=True, byscore=True, offset=start,
                                     num=num or 1000)
        leases = ledger.client.zmscore(ledger.layout.leases, found) if found else []
        for raw, lease in zip(found, leases, strict=True):
            if lease is None:
                self.restore_by_tag(raw)

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Kombu's, of one message; what cannot be put back is set apart, so that the sweep goes on."""
        try:
            super().restore_by_tag(tag, client, leftmost)
        except (*self.channel.connection_errors, *self.channel.connection.channel_errors):
            raise
        except Exception as exc:
            ledger = self.channel.ledger or ledger_of(self.channel)
            ledger.set_apart(ledger.layout.unacked, ledger.client.hget(ledger.layout.unacked, tag) or b"", exc, tag)

    def _is_ours(self, tag: str) -> bool:
        return self.channel.ledger is not None and tag in self.channel.ledger.held


class Batch(stock.PublishBatch):
    """Kombu's, which makes one trip of what it publishes but asks for each message which queues it goes to.

    Here that is asked once for an exchange, and again when this channel binds a queue. A queue that is bound elsewhere
    meanwhile gets what is published after the batch.
    """

    def __init__(self, channel: Any, max_size: int) -> None:
        super().__init__(channel, max_size)
        self._buffered: int
        channel.tables = {}

    def publish(self, message: Any, **options: Any) -> Any:
        """Add a message.

        Raises:
            BatchPublishError: the connection is lost. As kombu tries that again, over another channel, it refuses to.
        """
        try:
            return super().publish(message, **options)
        except RedisConnectionError as exc:
            raise BatchPublishError("The connection was lost within a batch") from exc

    def close(self) -> None:
        """The end of the batch."""
        self.channel.tables = None
        super().close()

    def flush(self) -> None:
        """Send, what goes on lists as one command; once more where the connection broke, if that is all there is.

        Raises:
            BatchPublishError: it failed; nobody knows how much has arrived.
        """
        stack, count = self.pipeline.command_stack, self._buffered
        puts = [args for args, _ in stack if args[0] == "EVALSHA"]
        if puts:
            stack[:] = [command for command in stack if command[0][0] != "EVALSHA"]
            lists: dict[str, int] = {}
            args = [part for *_, name, _, number, text in puts
                    for part in (lists.setdefault(name, len(lists) + 1), number, text)]
            self.pipeline.execute_command(*PUBLISH.command([puts[0][3], *lists], args, by_text=True))
        commands = list(stack)
        try:
            super().flush()
        except BatchPublishError as exc:
            if len(commands) > len(puts[:1]) or not isinstance(exc.__cause__, RedisConnectionError):
                raise
            self._failed, self._buffered = None, count
            self.pipeline.command_stack += commands
            super().flush()


class Channel(stock.Channel):
    """Kombu's Redis channel, with claims."""

    from_transport_options = (*stock.Channel.from_transport_options, *_OPTIONS)

    QoS = QoS
    Message = Message
    lease = LEASE
    claim_most = MOST
    message_max: int | None = None
    eta_horizon = HORIZON

    claims: Any = None  # Claims, once it consumes
    ledger: Any = None  # Ledger, likewise
    may_batch = True
    tables: dict[str, Any] | None = None  # what is bound to exchanges, while a batch publishes
    _sync_client: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.handlers[CLAIM] = self._on_claim_readable

    # Consuming

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Consume from a queue; the first one starts the claims."""
        if queue not in self._fanout_queues and self._batches():
            if no_ack:
                self.claims.no_ack.add(queue)
            else:
                self.claims.no_ack.discard(queue)
            self.claims.rearm()
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def _batches(self) -> bool:
        if self.claims is None and self.may_batch:
            self.may_batch = self.ack_emulation and self._is_able()
            if self.may_batch:
                self.ledger = ledger_of(self)
                self.claims = Claims(self, self.ledger)
                self.ledger.attach(self)
        return self.claims is not None

    def _is_able(self) -> bool:
        layout = Layout.of(self)
        keys = [*layout.registry, layout.list_of("callsheet.none", 0)]
        connection = self.pool.get_connection()
        try:
            if str(connection.get_protocol()) != "3":
                raise ResponseError("the connection does not speak RESP3")
            for command in (TRACK, CLAIM_SCRIPT.command(keys, ["", 0, 0, 1, 0, 1, ""], by_text=True),
                            ("CLIENT", "TRACKING", "OFF")):
                connection.send_command(*command)
                connection.read_response()
        except ResponseError as exc:
            name = self.connection.client.as_uri()
            if name not in _warned:
                _warned.add(name)
                logger.warning("Messages from %s are consumed one by one, without leases, as stock kombu does: the "
                               "server lacks client tracking or scripts (%s). Redis 6.2 or later has both.", name, exc)
            return False
        finally:
            self.pool.release(connection)
        return True

    def _brpop_read(self, **options: Any) -> bool:
        """Kombu's, which takes whatever comes for a message."""
        try:
            found = self.client.parse_response(self.client.connection, "BRPOP", **options)
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        if not found:
            raise Empty
        queue = found[0].decode().rsplit(self.sep, 1)[0]
        self._queue_cycle.rotate(queue)
        try:
            message = read(found[1], self.message_max)
        except Unreadable as exc:
            ledger_of(self).set_apart(queue, found[1], exc)
        else:
            self.connection._deliver(message, queue)
        return True

    def _on_claim_readable(self) -> bool:
        self.claims.on_readable()
        in_loop = self.connection.cycle.hub is not None
        if not self.claims.deliver(None if in_loop else 1):
            raise Empty
        return True

    def _poll_error(self, type: str, **options: Any) -> None:
        if type == CLAIM:
            self._on_claim_readable()
        else:
            super()._poll_error(type, **options)

    def _basic_cancel(self, consumer_tag: str) -> Any:
        answer = super()._basic_cancel(consumer_tag)
        if self.claims is not None:
            self.claims.rearm()
            if not self.active_queues:
                self.claims.settle()
                self.claims.leave()
        return answer

    def put_away(self, tag: str, task_id: str, at: float) -> bool:
        """Have a message that was delivered wait in Redis, to go back to its queue later.

        Args:
            tag: of its delivery.
            task_id: under which `Later.revoke` finds it.
            at: when it goes back, in unix seconds.

        Returns:
            False where it cannot: it is not under a lease of ours.
        """
        delivery = self.ledger.held.get(tag) if self.ledger is not None else None
        if delivery is None:
            return False
        self.ledger.later.put_away(delivery, task_id, at)
        virtual.QoS.ack(self.qos, tag)  # it counts no more
        return True

    # Publishing

    def create_publish_batch(self, max_size: int) -> Batch:
        """Kombu's producer asks for it when it publishes together."""
        self._check_open()
        return Batch(self, max_size)

    def _check_open(self) -> None:
        if self.connection is None:
            raise RedisConnectionError("The channel is closed: its connection was lost.")

    def _next_delivery_tag(self) -> MessageId:
        return MessageId.new()

    def _inplace_augment_message(self, message: dict[str, Any], exchange: str, routing_key: str) -> None:
        """Kombu's; a message that is sent again keeps its delivery tag.

        On a closed channel it raises what has it sent over the next one: kombu's producer goes on with the channel
        that it had where it connects anew as it declares a queue.
        """
        self._check_open()
        known = message["properties"].get("delivery_tag")
        super()._inplace_augment_message(message, exchange, routing_key)
        if isinstance(known, MessageId):
            message["properties"]["delivery_tag"] = known

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        """Kombu's; a message that is there already is not put there again."""
        tag = message["properties"]["delivery_tag"]
        if not isinstance(tag, MessageId) or (self._expires and queue in self._expires) or not self._takes_once:
            super()._put(queue, message, **kwargs)
            return
        layout = self._layout
        name = layout.list_for(queue, message)
        # A message may go to several queues.
        keys, args = [layout.taken, name], [1, tag.number ^ crc32(name.encode()), _encode(message)]
        # To the first key of what is sent by its hash kombu's client adds the prefix itself.
        known = PUBLISH.command([layout.taken.removeprefix(layout.prefix), name], args)
        if "_publish_batch" in kwargs:
            kwargs["_publish_batch"].add("execute_command", *known)
            return
        with self.conn_or_acquire() as client:
            try:
                client.execute_command(*known)
            except NoScriptError:
                client.execute_command(*PUBLISH.command(keys, args, by_text=True))

    @cached_property
    def _takes_once(self) -> bool:
        """Whether the server runs scripts for this user; else it takes messages as stock kombu sends them."""
        with self.conn_or_acquire() as client:
            try:
                client.execute_command("EVAL", "return 1", 0)
            except ResponseError as exc:
                if refusal(exc) not in ("", "NOPERM"):
                    raise
                return False
        return True

    @cached_property
    def _layout(self) -> Layout:
        return Layout.of(self)

    def get_table(self, exchange: str) -> Any:
        """What is bound to an exchange; in a batch, asked for once."""
        if self.tables is None:
            return super().get_table(exchange)
        if exchange not in self.tables:
            self.tables[exchange] = super().get_table(exchange)
        return self.tables[exchange]

    def _queue_bind(self, *args: Any) -> None:
        super()._queue_bind(*args)
        if self.tables is not None:
            self.tables.clear()

    def _put_fanout(self, exchange: str, message: dict[str, Any], routing_key: str, **kwargs: Any) -> None:
        """Kombu's; a body in base64 is not searched for what JSON escapes, which took longer than all the rest."""
        if "_publish_batch" in kwargs or message["properties"].get("body_encoding") != "base64":
            super()._put_fanout(exchange, message, routing_key, **kwargs)
            return
        payload = json.dumps({**message, "body": ""}).replace('"body": ""', f'"body": "{message["body"]}"', 1)
        with self.conn_or_acquire() as client:
            for topic in self._get_publish_topics(exchange, routing_key):
                client.publish(topic, payload)

    # Broadcasts

    def _receive_one(self, c: Any) -> Any:
        """Kombu's; what cannot be read, or makes its consumer raise, is told in one line and dropped."""
        try:
            response = c.parse_response()
        except self.connection_errors:
            self._in_listen = None
            raise
        heard = self._handle_message(c, response) if isinstance(response, (list, tuple)) else {"type": b""}
        if not heard["type"].endswith(b"message") or not heard["data"]:
            return None
        topic, data = heard["channel"].decode(errors="replace"), heard["data"]
        exchange = (topic.partition(".")[2] if topic.startswith("/") else topic).split("/", 1)[0]
        try:
            if self.message_max and len(data) > self.message_max:
                raise Unreadable(f"it is {len(data):,} bytes")
            message = read(data)
            if UNREADABLE in message["headers"]:
                raise Unreadable(message["headers"][UNREADABLE])
            return exchange in self._fanout_to_queue and self._deliver_fanout_message(message, exchange)
        except (*self.connection_errors, *self.connection.channel_errors):
            raise
        except Exception as exc:
            logger.error("What came over the channel %r was dropped (%s: %s): %r. Something other than Celery or "
                         "Callsheet publishes there: have it publish elsewhere.", topic, type(exc).__name__, exc,
                         data[:200])
            return None

    # Connections

    def _connparams(self, asynchronous: bool = False) -> Any:
        params = super()._connparams(asynchronous)
        if not asynchronous:
            params["connection_class"] = closed_in_children(params["connection_class"])
        return params

    def _receive(self) -> Any:
        """Kombu's, where there is something to read."""
        connection = self.subclient.connection
        return connection is not None and connection.can_read(timeout=0) and super()._receive()

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous)
        if self._sync_client is None or self._sync_client.connection_pool is not self.pool:
            self._sync_client = super()._create_client()
        return self._sync_client

    def ledger_pool(self) -> Any:
        """Connections that outlive the channel, and do not wait for a dead server for ever."""
        pool = self._get_pool()
        pool.connection_kwargs["socket_timeout"] = max(1.0, min(5.0, self.lease / 4))
        return pool

    def _on_connection_disconnect(self, connection: Any) -> None:
        if self.claims is not None:
            self.claims.on_disconnect(connection)
        super()._on_connection_disconnect(connection)

    def _disconnect_pools(self) -> None:
        self._sync_client = None
        super()._disconnect_pools()

    def close(self) -> None:
        """Acknowledge what is to be, put back what has not been started, and end."""
        if self.claims is not None and not self.closed:
            self._closing = True
            self.claims.settle()
            self.claims.leave()
            self.qos.leave()
            self.ledger.flush()
            self.ledger.detach(self)
            self._in_poll = None
        super().close()


class SentinelChannel(Channel, stock.SentinelChannel):
    """Kombu's Sentinel channel, with claims."""

    from_transport_options = (*stock.SentinelChannel.from_transport_options, *_OPTIONS)


class Transport(stock.Transport):
    """Kombu's Redis transport, with claims.

    Kombu takes any KeyError for a lost connection, as one of its own may mean that. It may as well come of what a
    message says, which no new connection mends.
    """

    Channel = Channel
    connection_errors = tuple(kind for kind in stock.Transport.connection_errors if kind is not KeyError)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let Celery's loop poll."""
        self.cycle.hub = loop
        super().register_with_event_loop(connection, loop)


class SentinelTransport(Transport):
    """The same where Sentinel names the server."""

    default_port = stock.SentinelTransport.default_port
    Channel = SentinelChannel
