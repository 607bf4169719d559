"""A TCP proxy between clients and a server that can be made slow, silent or cut."""

import asyncio
import contextlib
import ssl
import threading


class Proxy:
    """Hands on what clients send to a port of this machine, and the answers.

    Args:
        port: of the server behind it.
        tls: how it meets its clients; without, in the clear.

    Attributes:
        port: of the proxy.
        delay: seconds by which answers are late.
        writes: pieces that clients have sent, each some commands in one write, since `break_at` was called last.
        broken: what was in the piece at which it broke a connection.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._behind = port
        self.delay = 0.0
        self.writes = 0
        self.broken = b""
        self._at = -1
        self._after = False
        self._skip: tuple[bytes, ...] = ()
        self._losing: dict[asyncio.StreamWriter, bool] = {}
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls))
        self.port = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._behind)
            self._writers |= {writer, far_writer}
            self._losing[writer] = False
            await asyncio.gather(self._copy(reader, far_writer, writer), self._copy(far_reader, writer, None))
            self._writers -= {writer, far_writer}
        self._losing.pop(writer, None)
        writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
                    client: asyncio.StreamWriter | None) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if client is None and self.delay:
                    await asyncio.sleep(self.delay)
                await self._open.wait()
                if client is not None and self._breaks(data):
                    if self._after:  # Redis gets it, and the client no answer
                        self._losing[client] = True
                        writer.write(data)
                        await writer.drain()
                        await asyncio.sleep(0.05)
                    client.transport.abort()
                    break
                if client is None and self._losing.get(writer):
                    continue
                writer.write(data)
                await writer.drain()
        writer.close()

    def _breaks(self, data: bytes) -> bool:
        if self._skip and any(word in data for word in self._skip):
            return False
        self.writes += 1
        if self.writes != self._at:
            return False
        self.broken = data
        return True

    def break_at(self, number: int, after: bool, skip: tuple[bytes, ...] = ()) -> None:
        """Count pieces anew, and break the connection of the one with this number; -1: of none.

        Args:
            number: the first is 1.
            after: once Redis has it, and before its answer; else before Redis has it.
            skip: words of pieces that do not count.
        """
        self.writes, self.broken, self._after, self._skip, self._at = 0, b"", after, skip, number

    def silence(self) -> None:
        """Hand on nothing until `speak`; connections stay open, and new ones are accepted."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def speak(self) -> None:
        """Hand on what has come meanwhile, and what comes from now on."""
        self._loop.call_soon_threadsafe(self._open.set)

    def cut(self) -> None:
        """Break all connections."""
        def close() -> None:
            for writer in self._writers:
                writer.transport.abort()

        self._loop.call_soon_threadsafe(close)

    def close(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
