"""An HTTP server whose answers never end, and that knows when each of their sockets was closed.

`python -m tests.streams PORT` serves in a process of its own; `GET /open` and `GET /closed` give JSON, path ->
time.monotonic().
"""

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator

from tests.services import wait_for

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"d\r\ndata: hello\n\n\r\n"
EVERY = 0.1  # seconds between two chunks


class Streams:
    """What is open, and when the rest was closed, by path."""

    def __init__(self) -> None:
        self.open: dict[str, float] = {}
        self.closed: dict[str, float] = {}
        self.chunks: dict[str, int] = {}

    def wait_open(self, path: str) -> None:
        """Until it is read, chunk after chunk."""
        wait_for(lambda: self.chunks.get(path, 0) >= 3, what=f"{path} to be read")
        assert path not in self.closed

    def wait_closed(self, path: str) -> None:
        wait_for(lambda: path in self.closed, what=f"the socket of {path} to be closed")


class Connection(asyncio.Protocol):
    """One request, whose answer goes on until the client leaves."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.path = ""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        path = data.split(b" ", 2)[1].decode()
        if path in ("/open", "/closed"):
            body = json.dumps(getattr(self.streams, path[1:])).encode()
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            return
        self.path = path
        self.streams.open[path] = time.monotonic()
        self.transport.write(HEAD)
        self.go_on()

    def go_on(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(CHUNK)
            self.streams.chunks[self.path] = self.streams.chunks.get(self.path, 0) + 1
            asyncio.get_running_loop().call_later(EVERY, self.go_on)

    def eof_received(self) -> None:
        self.left()

    def connection_lost(self, _: Exception | None) -> None:
        self.left()

    def left(self) -> None:
        if self.path:
            self.streams.closed.setdefault(self.path, time.monotonic())


async def serve(streams: Streams, port: int, ready: threading.Event | None = None,
                stop: asyncio.Event | None = None, bound: list[int] | None = None) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Connection(streams), "127.0.0.1", port)
    if bound is not None:
        bound.append(server.sockets[0].getsockname()[1])
    if ready is not None:
        ready.set()
    await (stop or asyncio.Event()).wait()
    server.close()


@contextlib.contextmanager
def stream_server() -> Iterator[tuple[str, Streams]]:
    """The server in a thread: its address, and what it knows."""
    streams, ready, bound, stop = Streams(), threading.Event(), [], asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve(streams, 0, ready, stop, bound)))
    thread.start()
    try:
        assert ready.wait(10)
        yield f"http://127.0.0.1:{bound[0]}", streams
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


if __name__ == "__main__":
    asyncio.run(serve(Streams(), int(sys.argv[1])))
