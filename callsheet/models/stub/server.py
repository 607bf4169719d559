"""The stub model as an HTTP server."""

import asyncio
import threading
from typing import Any, Self

from aiohttp import web

from callsheet.models.stub.app import StubApp
from callsheet.models.stub.behaviour import Behaviour
from callsheet.models.stub.planned import Received, Reply


async def start(stub: StubApp, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Serve on the running loop; returns what to `cleanup()`, and the port.

    Raises:
        OSError: the address cannot be had.
    """
    # No access log: at thousands of calls a second it would be the slowest part.
    runner = web.AppRunner(stub.app(), access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=4096).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner, int(runner.addresses[0][1])


class StubModelServer:
    """A stub model server in a thread of its own, for tests.

    ```python
    with StubModelServer() as server:
        settings = Settings.load(endpoints={"openai": {"base_url": server.base_url}})
    ```

    It speaks the APIs of OpenAI (`base_url`), and of Anthropic, Gemini and Ollama (`url`). Also an asynchronous
    context manager.

    Args:
        host: to listen on.
        port: 0 for any that is free.
        behaviour: the fields of `Behaviour`: latency, jitter, error_rate, tokens_per_second, seed, rpm, tpm, window,
            max_concurrent, break_rate, api_key.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, **behaviour: Any) -> None:
        self.stub = StubApp(Behaviour(**behaviour), keep=True)
        self.host = host
        self.port = port
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        """For the `base_url` of an endpoint that speaks OpenAI's API."""
        return f"{self.url}/v1"

    @property
    def url(self) -> str:
        """The server's address, for the `base_url` of an endpoint that speaks another API."""
        return f"http://{self.host}:{self.port}"

    def plan(self, *replies: Reply) -> None:
        """Have the next calls answered so, one reply a call, whatever chance would have had in store."""
        self.stub.planned.extend(replies)

    @property
    def calls(self) -> list[Received]:
        """The last thousand chat calls as they came, the oldest first."""
        return list(self.stub.received)

    @property
    def requests(self) -> int:
        """Chat calls that came, bad ones too."""
        return self.stub.requests

    @property
    def connections(self) -> int:
        """TCP connections on which chat calls came."""
        return len(self.stub.peers)

    @property
    def max_in_flight(self) -> int:
        """Chat calls that were under way at once, at most."""
        return self.stub.max_in_flight

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="stub-model", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            self._thread.join()
            raise self._failed
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._loop is not None and self._stop is not None and self._thread is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self.__exit__, *exc)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            runner, self.port = await start(self.stub, self.host, self.port)
        except OSError as exc:
            self._failed = exc
            return
        finally:
            self._ready.set()
        await self._stop.wait()
        await runner.cleanup()
