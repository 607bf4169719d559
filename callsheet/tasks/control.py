"""Workers' answers to commands, of which one may be in a form that is not read here."""

import contextlib
import re
import socket
import time
from collections.abc import Callable
from itertools import count
from typing import Any, cast

from celery.app.control import Control as CeleryControl
from kombu.messaging import Consumer
from kombu.pidbox import Mailbox as KombuMailbox

UNREAD = "unread"
"""Key of why an answer was not read."""

_NODE = re.compile(rb"[\w.-]+@[\w.-]+")  # a worker's name is the first thing in its answer
_LOOKED_AT = 1000  # bytes


class Mailbox(KombuMailbox):
    """kombu's, but an answer in another form, such as a pickle, is one of which that is told; it ends nothing."""

    def _collect(self, ticket: str, limit: int | None = None, timeout: float = 1,
                 callback: Callable[[Any], None] | None = None, channel: Any = None, accept: Any = None) -> list[Any]:
        answers, connection, make = list[Any](), cast(Any, self.connection), cast(Any, Consumer)
        channel = channel or connection.default_channel

        def heard(body: Any, message: Any) -> None:
            self.clock.adjust(message.headers.get("clock") or 0)
            expires = message.headers.get("expires")
            if message.headers.get("ticket", ticket) == ticket and not (expires and time.time() > expires):
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


class Control(CeleryControl):
    """Celery's, with our mailbox."""

    Mailbox = Mailbox
