"""Where sessions live: on the process's loop, shared by all that name the same server.

Not on the loop of whoever calls: that of a cpu worker's process, or of `asyncio.run`, ends with the call.
"""

import asyncio
import atexit
import contextlib
import importlib
import logging
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

from callsheet.errors import UsageError
from callsheet.mcp.specs import Spec
from callsheet.resources.loops import PerLoop, lasting_loop
from callsheet.settings import get_settings

logger = logging.getLogger(__name__)
T = TypeVar("T")
_loaded: list[bool] = []
_CLOSE = 5.0  # seconds that all sessions together may take to close when the process ends


def sdk_module(name: str) -> Any:
    """A module of this package that imports the SDK.

    Args:
        name: of the module, e.g. "session".

    Raises:
        UsageError: the SDK is not installed; names the extra.
    """
    try:
        return importlib.import_module(f"callsheet.mcp.{name}")
    except ImportError as exc:
        raise UsageError(f"MCP clients need the MCP SDK, which cannot be imported here ({exc}). Install it where they "
                         "connect, in programs and on workers: pip install 'callsheet[mcp]'.") from exc


async def loaded() -> None:
    """Load what needs the SDK, the first time: that takes a second, which the loop is not kept waiting for.

    Raises:
        UsageError: the SDK is not installed.
    """
    if not _loaded:
        await asyncio.to_thread(sdk_module, "session")
        _loaded.append(True)


async def at_home(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Await what `work` gives on the process's loop. Cancelling the caller cancels it; context variables are its."""
    await loaded()
    loop = lasting_loop()
    if loop is asyncio.get_running_loop():
        return await work()
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_there(work), loop))


async def _there(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return await work()


class Sessions:
    """The sessions of a loop, by server. All clients of one name and settings share one."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, Any] = {}

    def of(self, spec: Spec) -> Any:
        """The session with a server, a `callsheet.mcp.session.Session`."""
        found = self._by_key.get(spec.key)
        if found is None:
            for other in self._by_key.values():
                if other.spec.name == spec.name:
                    logger.warning("mcp_two_of_one_name server=%s: %s, and %s, have other settings and are told apart. "
                                   "Give one of the clients another name.", spec.name, other.spec.shown, spec.shown)
                    break
            made = sdk_module("session").Session(spec, get_settings(), lambda: self._idle(spec))
            found = self._by_key[spec.key] = made
        return found

    def _idle(self, spec: Spec) -> None:
        found = self._by_key.get(spec.key)
        if found is not None and not found.holders:
            del self._by_key[spec.key]

    async def release(self, spec: Spec, holder: int) -> None:
        """A client closes: the session ends with the last one, unless others use it without having connected."""
        found = self._by_key.get(spec.key)
        if found is None:
            return
        found.holders.discard(holder)
        if not found.holders and not found.kept:
            del self._by_key[spec.key]
            await found.close()

    async def aclose(self) -> None:
        """Close them all."""
        found, self._by_key = list(self._by_key.values()), {}
        await asyncio.gather(*(one.close() for one in found), return_exceptions=True)

    def open_names(self) -> set[str]:
        """Names of the clients that have a session now."""
        return {one.spec.name for one in self._by_key.values() if one.is_open}


_sessions: PerLoop[Sessions] = PerLoop()
_at_exit: list[bool] = []


def sessions() -> Sessions:
    """Those of the running loop."""
    if not _at_exit:
        _at_exit.append(True)
        atexit.register(close_all)
    return _sessions.get("sessions", Sessions)


def close_all() -> None:
    """Close this process's sessions; from any thread but the loop's. Calls under way fail."""
    if not _at_exit:
        return
    with contextlib.suppress(Exception):
        loop = lasting_loop()
        if not loop.is_closed():
            asyncio.run_coroutine_threadsafe(_there(lambda: sessions().aclose()), loop).result(_CLOSE)
