"""The broker's connections of this process: waited on, closed in its children, broken off where they are dead."""

import contextlib
import functools
import os
import socket
import weakref
from typing import Any

from callsheet.workers.broker.stock import redis as stock

CLAIM = "CLAIM"
LONGEST_WAIT = 1.0  # seconds in one poll without a loop, as with stock kombu


class Poller(stock.MultiChannelPoller):
    """Kombu's, for channels that claim; channels that have fallen back to BRPOP are left to kombu's.

    Attributes:
        hub: Celery's loop, once it polls for us.
    """

    hub: Any = None

    def on_poll_start(self) -> None:
        """Before each poll: send what is due."""
        self._update_brpop_polling()
        for channel in list(self._channels):
            if channel.claims is not None:
                self._claim(channel)
            elif channel.active_queues and channel.qos.can_consume():
                self._register_BRPOP(channel)
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)

    def _claim(self, channel: Any) -> None:
        claims = channel.claims
        if self.hub is not None:
            claims.check_leases()
            claims.deliver()
        if not claims.due():
            return
        try:
            self._send(channel)
        except channel.connection_errors:
            self._send(channel)  # over a new connection, once; then the worker's own reconnecting takes over

    def _send(self, channel: Any) -> None:
        client = channel.client
        if not self._client_registered(channel, client, CLAIM):
            self._register(channel, client, CLAIM)
        channel.claims.send(client.connection)

    def on_readable(self, fileno: int) -> Any:
        """Something has come on a connection."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind == CLAIM or (kind == "LISTEN" and channel.claims is not None):
            # Broadcasts are read whatever the prefetch count: left unread they would keep the loop spinning.
            return channel.handlers[kind]()
        return super().on_readable(fileno)

    def get(self, callback: Any, timeout: float | None = None) -> None:
        """Deliver one message, or whatever one event brings, where nobody runs a loop.

        Raises:
            Empty: there was none.
        """
        for channel in list(self._channels):
            if channel.claims is not None and channel.claims.deliver(1):
                return
        super().get(callback, LONGEST_WAIT if timeout is None else min(timeout, LONGEST_WAIT))


_sockets: "weakref.WeakSet[Any]" = weakref.WeakSet()


@functools.cache
def closed_in_children(kind: Any) -> Any:
    """A class of redis-py's connections, of which forked processes keep none open.

    What a child keeps open stays connected when its parent has closed it; and the parent's epoll goes on reporting it,
    under a number that another connection has by then.
    """
    class Connection(kind):
        def connect(self) -> None:
            super().connect()
            _sockets.add(self._sock)

    return Connection


def _close_inherited() -> None:
    for sock in list(_sockets):
        sock.close()


os.register_at_fork(after_in_child=_close_inherited)


def break_off() -> None:
    """Have whatever waits for the broker get an error; any thread."""
    for sock in list(_sockets):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
