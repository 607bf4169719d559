"""A slow HTTP endpoint in a process of its own: every call is answered after a pause; /stats says what came.

A POST gets a chat completion. /release answers all that wait, at once.

`python -m benchmarks.endpoint PORT SECONDS`. It is written on asyncio's protocols, to take little CPU from what is
measured beside it.
"""

import asyncio
import json
import re
import sys

import uvloop

BODY = b'{"answer": "42"}'
COMPLETION = json.dumps({
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1700000000, "model": "bench",
    "choices": [{"index": 0, "logprobs": None, "finish_reason": "stop",
                 "message": {"role": "assistant", "content": "Whales are mammals that sing.", "refusal": None}}],
    "usage": {"prompt_tokens": 24, "completion_tokens": 7, "total_tokens": 31}}).encode()


LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


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
        self.body = BODY

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            length = LENGTH.search(head)
            if length is not None and len(rest) < int(length[1]):
                return
            self.buffer = rest[int(length[1]):] if length is not None else rest
            self.body = COMPLETION if head.startswith(b"POST") else BODY
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
            self.write(self.body)

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
