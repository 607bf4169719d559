"""A slow HTTP endpoint in a process of its own: every GET is answered after a pause; /stats says what came.

/release answers all that wait, at once.

`python -m benchmarks.endpoint PORT SECONDS`. It is written on asyncio's protocols, to take little CPU from what is
measured beside it.
"""

import asyncio
import json
import sys

import uvloop

BODY = b'{"answer": "42"}'


class Served:
    """What has come so far."""

    def __init__(self) -> None:
        self.requests = 0
        self.connections = 0
        self.in_flight = 0
        self.most_in_flight = 0


class Answers(asyncio.Protocol):
    """One connection, kept open; requests on it come one after another."""

    def __init__(self, served: Served, seconds: float, waiting: "set[Answers]") -> None:
        self.served = served
        self.seconds = seconds
        self.waiting = waiting
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            if head.startswith(b"GET /stats"):
                self.write(json.dumps(vars(self.served)).encode())
            elif head.startswith(b"GET /release"):
                for waiting in list(self.waiting):
                    waiting.end()
                self.write(b"{}")
            else:
                self.begin()

    def begin(self) -> None:
        served = self.served
        if not hasattr(self, "counted"):
            self.counted = True
            served.connections += 1
        served.requests += 1
        served.in_flight += 1
        served.most_in_flight = max(served.most_in_flight, served.in_flight)
        self.waiting.add(self)
        self.pause = asyncio.get_running_loop().call_later(self.seconds, self.end)

    def end(self) -> None:
        self.pause.cancel()
        self.waiting.discard(self)
        self.served.in_flight -= 1
        if not self.transport.is_closing():
            self.write(BODY)

    def write(self, body: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


async def serve(port: int, seconds: float) -> None:
    served = Served()
    waiting: set[Answers] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: Answers(served, seconds, waiting), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2])))
