"""A TCP proxy between clients and a server that can be made slow, silent or cut."""

import asyncio
import contextlib
import threading


class Proxy:
    """Hands on what clients send to a port of this machine, and the answers.

    Args:
        port: of the server behind it.

    Attributes:
        port: of the proxy.
        delay: seconds by which answers are late.
    """

    def __init__(self, port: int) -> None:
        self._behind = port
        self.delay = 0.0
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
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
            await asyncio.gather(self._copy(reader, far_writer, False), self._copy(far_reader, writer, True))
            self._writers -= {writer, far_writer}
        writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if answers and self.delay:
                    await asyncio.sleep(self.delay)
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

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
