"""Control commands of the fleet, and the answers: Celery's, read within bounds. Whatever comes, both sides go on.

One of them interrupts calls: here is also what a process knows of its calls that can be interrupted.
"""

import asyncio
import contextlib
import logging
import math
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, cast

from celery import Celery
from celery.app import control
from celery.utils.time import rate
from kombu import pidbox
from kombu.clocks import LamportClock
from kombu.messaging import Consumer

from callsheet.agents import AgentBase
from callsheet.errors import UsageError
from callsheet.messages import Msg
from callsheet.messages.wire import Writer
from callsheet.resources.redis import sync_client, translated
from callsheet.resources.trouble import is_trouble
from callsheet.settings import Settings

logger = logging.getLogger(__name__)

UNREAD = "unread"
"""Key of why an answer was not read."""

PATIENCE = 2.0
"""Seconds that workers are given to answer."""

COMMAND = "interrupt_calls"
"""The workers' command that interrupts calls; they answer {"interrupted": ids, "refused": ids}."""

Said = Msg | list[Msg] | None

_INTERRUPTED_WITHIN = 1.0  # seconds without another worker's answer

_NODE = re.compile(rb"[\w.-]+@[\w.-]+")  # a worker's name is the first thing in its answer
_LOOKED_AT = 1000  # bytes

_MOST_SIZE = 100_000  # slots or processes that one command may name; pools have bounds of their own
_LONGEST = 1e9  # seconds
_LATEST = 1 << 53  # of a logical clock
_NUMBERS: dict[str, dict[str, tuple[float, float]]] = {
    "pool_grow": {"n": (1, _MOST_SIZE)}, "pool_shrink": {"n": (1, _MOST_SIZE)},
    "autoscale": {"max": (-_MOST_SIZE, _MOST_SIZE), "min": (-_MOST_SIZE, _MOST_SIZE)},  # the autoscaler has its own
    "time_limit": {"hard": (0, _LONGEST), "soft": (0, _LONGEST)},
    "memdump": {"samples": (1, 1000)}, "objgraph": {"num": (1, 10_000), "max_depth": (1, 100)},
}
_LONGEST_NAME = 1000
_NAMES = {"add_consumer": ("queue", "exchange", "exchange_type", "routing_key"), "cancel_consumer": ("queue",)}


class Clock(LamportClock):
    """Celery's logical clock, which nobody can set to what is no number, or to one that it cannot count on from."""

    def adjust(self, other: Any) -> int:
        """Be later than `other`."""
        sound = type(other) is int and 0 <= other < _LATEST
        return super().adjust(other) if sound else self.forward()


class Node(pidbox.Node):
    """A worker's mailbox."""

    def handle_message(self, body: Any, message: Any = None) -> Any:
        """Carry a command out; what is none is told in one line."""
        try:
            return super().handle_message(body, message)  # type: ignore[no-untyped-call]
        except Exception as exc:
            if is_trouble(exc):
                raise
            logger.error("A control command was refused by %s (%.300r): %.200r", self.hostname, exc, body)
            return None

    def handle(self, method: str, arguments: Any = None) -> Any:
        """Celery's.

        Raises:
            ValueError: it names a number out of bounds, or a queue by what is no name; whoever asked is told.
        """
        check_numbers(method, arguments or {})
        check_names(method, arguments or {})
        return super().handle(method, arguments)  # type: ignore[no-untyped-call]


def check_numbers(method: str, arguments: dict[str, Any]) -> None:
    """Refuse a command with a number that no worker could do anything with."""
    kinds, what = ((int, float), "a number") if method == "time_limit" else ((int,), "a whole number")
    for name, (least, most) in _NUMBERS.get(method, {}).items():
        given = arguments.get(name)
        if given is not None and not (type(given) in kinds and least <= given <= most):
            raise ValueError(f"{name} of {method} must be {what} from {least:,.0f} to {most:,.0f}, not {given!r:.40}.")
    if method == "rate_limit":
        given = arguments.get("rate_limit")
        try:
            per_second = rate(given)
            sound = math.isfinite(per_second) and per_second >= 0
        except (ValueError, KeyError, TypeError, OverflowError):
            sound = False
        if not sound:
            raise ValueError(f"rate_limit must be a number with /s, /m or /h, such as 10/m, not {given!r:.50}.")


def check_names(method: str, arguments: dict[str, Any]) -> None:
    """Refuse a command about a queue that none can have: the worker's loop carries it out, and would end over it."""
    for name in _NAMES.get(method, ()):
        given = arguments.get(name)
        text = given if isinstance(given, str) else ""
        if (given is not None or name == "queue") and not (text.isprintable() and 0 < len(text) <= _LONGEST_NAME):
            raise ValueError(f"{name} of {method} must be a name of up to {_LONGEST_NAME} letters, not {given!r:.50}.")
    if method == "add_consumer" and arguments.get("exchange_type") not in (None, "direct", "topic", "fanout"):
        raise ValueError("exchange_type of add_consumer must be direct, topic or fanout.")


class Mailbox(pidbox.Mailbox):
    """Kombu's, with that node. An answer in another form, such as a pickle, is told of as one, and ends nothing."""

    node_cls = Node

    def _collect(self, ticket: str, limit: int | None = None, timeout: float = 1,
                 callback: Callable[[Any], None] | None = None, channel: Any = None, accept: Any = None) -> list[Any]:
        answers, connection, make = list[Any](), cast(Any, self.connection), cast(Any, Consumer)
        channel = channel or connection.default_channel

        def heard(body: Any, message: Any) -> None:
            self.clock.adjust(message.headers.get("clock") or 0)
            expires = message.headers.get("expires")
            if message.headers.get("ticket", ticket) == ticket and not (
                    isinstance(expires, (int, float)) and 0 < expires < time.time()):
                if callback:
                    callback(body)
                answers.append(body)

        def unreadable(message: Any, error: Exception) -> None:
            body = message.body if isinstance(message.body, bytes) else str(message.body).encode()
            node = _NODE.search(body[:_LOOKED_AT])
            name = node[0].decode() if node else "a worker"
            heard({name: {UNREAD: f"it answers as {message.content_type}, which is not read here"}}, message)

        with contextlib.suppress(socket.timeout), contextlib.ExitStack() as stack:
            stack.callback(channel.after_reply_message_received, self.reply_queue.name)
            stack.enter_context(make(channel, [self.reply_queue], accept=accept or self.accept, no_ack=True,
                                         callbacks=[heard], on_decode_error=unreadable))
            for _ in range(limit) if limit else count():
                connection.drain_events(timeout=timeout)
        return answers


class Control(control.Control):
    """Celery's, over that mailbox: `App.control_cls`."""

    Mailbox = Mailbox


def ask(app: Celery, settings: Settings, command: str, patience: float = PATIENCE, **arguments: Any) -> dict[str, Any]:
    """What each worker answers to a command, by the worker's name.

    Those that do not know the command answer with {"error": ...}.
    """
    with translated(settings):
        # How many hear an empty text, which kombu passes over. Its bindings go with what Redis loses, and with the
        # first of two workers of one name; those of killed workers stay.
        client = sync_client(settings)
        database = client.connection_pool.connection_kwargs.get("db") or 0
        count = int(client.publish(f"/{database}.{app.control.mailbox.exchange.name}", ""))
        if not count:
            return {}
        answers = app.control.broadcast(command, arguments=arguments, reply=True, timeout=patience, limit=count) or []
    return {str(name): answer for one in answers if isinstance(one, dict) for name, answer in one.items()}


def ask_workers(app: Celery, calls: Sequence[str], msg: Said, label: str, settings: Settings) -> bool:
    """Have the workers interrupt those of the calls that run; whether any did.

    Raises:
        UsageError: one of them runs as plain code, and none could be interrupted.
    """
    data = None if msg is None else Writer().write(msg, "the message of an interrupt")
    answers = ask(app, settings, COMMAND, _INTERRUPTED_WITHIN, calls=list(calls), msg=data).values()
    told = [answer for answer in answers if isinstance(answer, dict)]
    interrupted = any(answer.get("interrupted") for answer in told)
    if not interrupted and any(answer.get("refused") for answer in told):
        raise UsageError(plain_code(label))
    return interrupted


def plain_code(label: str) -> str:
    """Why a reply is not interrupted."""
    return (f"{label} runs as plain code, or in a process of a cpu worker, and cannot be interrupted: only an async "
            "reply on an io worker can. Use cancel(), which ends the process, or write `async def reply`.")


class Running:
    """A call that runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, agent: AgentBase | None = None) -> None:
        self._loop = loop
        self._agent = agent
        self._pending: list[Said] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def interrupt(self, said: Said) -> bool:
        """Interrupt it; False for plain code. Any thread."""
        if self._agent is not None and not self._agent.is_async():
            return False
        self._loop.call_soon_threadsafe(self._deliver, said)
        return True

    def begin(self, agent: AgentBase) -> None:
        """The agent's reply begins now."""
        self._agent = agent
        for said in self._pending:
            self._deliver(said)

    def _deliver(self, said: Said) -> None:
        if self._agent is None:
            self._pending.append(said)
        else:
            task = self._loop.create_task(self._agent.interrupt(said))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


_running: dict[str, Running] = {}


def running(call_id: str) -> Running | None:
    """The call of this id, if it runs on a loop of this process."""
    return _running.get(call_id)


@contextmanager
def interruptible(call_id: str) -> Iterator[Running]:
    """A call runs in the block, on the running loop."""
    _running[call_id] = entry = Running(asyncio.get_running_loop())
    try:
        yield entry
    finally:
        if _running.get(call_id) is entry:
            del _running[call_id]
