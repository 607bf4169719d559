"""The broker's connections of this process: closed in its children, broken off where its loop waits in vain."""

import contextlib
import functools
import os
import socket
import weakref
from typing import Any

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
