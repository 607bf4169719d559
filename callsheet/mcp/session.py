"""A session with a server: opened when it is needed, anew when it was lost, owned by one task.

The SDK's transports and sessions are cancel scopes of anyio, which have to be left in the task that entered them. So
one task opens a session, keeps it, and closes it; calls come from any task of the loop.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mcp import ClientSession
from mcp.client.subscriptions import listen
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    METHOD_NOT_FOUND,
    UNSUPPORTED_PROTOCOL_VERSION,
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    Implementation,
    PaginatedRequestParams,
    ServerNotification,
    Tool,
    ToolListChangedNotification,
)

from callsheet.errors import McpError, McpTimeout
from callsheet.mcp.http import connected
from callsheet.mcp.lifecycle import Attempt, Fate, SessionLost, Watched, current_attempt
from callsheet.mcp.pipe import piped
from callsheet.mcp.specs import LISTED, HttpSpec, Spec
from callsheet.mcp.words import in_words, silent
from callsheet.settings import Settings

logger = logging.getLogger(__name__)
if logging.getLogger("mcp").level == logging.NOTSET:
    # It logs failures with their tracebacks, parts of messages too. Whoever calls gets them as errors of ours.
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
T = TypeVar("T")
Work = Callable[[ClientSession], Coroutine[Any, Any, T]]
_US = Implementation(name="callsheet", version="1")
_GRACE = 5.0  # seconds that requests of an abandoned call may go on, so that the server hears of it
_GOODBYE = 0.5  # seconds that whoever abandons a call waits for that
_CLOSE = 10.0  # seconds that closing may take
_WHOLE = "Connection closed"  # what the SDK says when it is the session that was lost, not a call
_PAGES = 100  # of a list of tools


def _now() -> float:
    return asyncio.get_running_loop().time()


@dataclass(eq=False)
class _Open:
    """An open session. Times are the loop's."""

    session: ClientSession
    fate: Fate  # what becomes of it
    task: "asyncio.Task[None]"  # that owns it
    calls: int = 0  # under way
    used: float = field(default_factory=_now)  # when the last one began or ended
    tools: list[Tool] | None = None  # what the server listed, while that holds
    listed: float = 0.0  # when they were asked for
    changes: int = 0  # of the list, that the server told


class Session:
    """A session with one server, on the loop that runs; see the module.

    Args:
        spec: which server.
        settings: of the process.
        on_idle: called when it was closed for want of calls.

    Attributes:
        holders: clients that connected and did not close.
        kept: whether it is to stay until it is idle, although nobody holds it.
    """

    def __init__(self, spec: Spec, settings: Settings, on_idle: Callable[[], object] = lambda: None) -> None:
        self.spec = spec
        self.holders: set[int] = set()
        self.kept = False
        self._settings = settings
        self._on_idle = on_idle
        self._open: _Open | None = None
        self._opening: asyncio.Future[_Open] | None = None
        self._listing = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def is_open(self) -> bool:
        """Whether there is a session now."""
        return self._open is not None and not self._open.fate.ended.is_set()

    async def open(self) -> None:
        """Connect, unless it is connected.

        Raises:
            McpError: the server is not there, or is none.
            CallsheetError: an endpoint that is not there, cannot be used now, or is used wrongly.
        """
        await self._opened()

    async def request(self, work: Work[T], timeout: float | None = None) -> T:
        """Do something with the session; on a new one, where the server does not know the old one any more.

        Args:
            work: is given the SDK's session.
            timeout: seconds, connecting included; the settings' without.

        Raises:
            McpTimeout: they are over; the server is told that nobody waits any more.
            McpError: the server refused it, is not there, or was lost meanwhile.
            CallsheetError: an endpoint that cannot be used now, or is used wrongly.
        """
        async def tried() -> T:
            try:
                return await self._once(work)
            except SessionLost:
                return await self._once(work)

        try:
            return await self.within(timeout, tried)
        except SessionLost:
            raise McpError(f"{self.spec.shown} does not know the session that it has just opened.") from None

    async def call(self, name: str, arguments: dict[str, Any], timeout: float | None) -> CallToolResult:
        """Call a tool; see `request`.

        Not with the SDK's `call_tool`: it checks the answer with the regular expressions of the server's schema, by
        which a server could keep the loop busy for ever. `results.checked` does without.
        """
        asked = CallToolRequest(params=CallToolRequestParams(name=name, arguments=arguments))
        return await self.request(lambda session: session.send_request(asked, CallToolResult), timeout)

    async def within(self, timeout: float | None, steps: Callable[[], Awaitable[T]]) -> T:
        """Take some steps in so many seconds; in the settings' without.

        Raises:
            McpTimeout: they are over.
        """
        seconds = self._settings.mcp.call_timeout if timeout is None else timeout
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await steps()
        except TimeoutError:
            if not limit.expired():
                raise
            raise McpTimeout(f"{self.spec.shown} did not answer within {seconds:g} s. Give it longer "
                             "(execution_timeout, or CALLSHEET_MCP__CALL_TIMEOUT), or see what keeps it.") from None

    async def tools(self) -> list[Tool]:
        """The server's tools: asked for once a session, and again when the server says that they have changed.

        Raises:
            McpError: as of `request`.
        """
        async with self._listing:
            known = await self._opened()
            now = _now()
            # Where there is no greeting, nobody tells when notices of changes do not come any more.
            if known.tools is not None and (known.session.initialize_result is not None or now - known.listed < LISTED):
                return known.tools
            changes, found = known.changes, await self.request(_all_tools)
            if self._open is known and known.changes == changes:
                known.tools, known.listed = found, now
            return found

    async def close(self) -> None:
        """End the session; calls under way fail. The next call opens a new one."""
        opening, self._opening = self._opening, None
        if opening is not None and not opening.done():
            with contextlib.suppress(Exception):
                await asyncio.wait_for(asyncio.shield(opening), _CLOSE)
        known, self._open = self._open, None
        if known is not None:
            known.fate.tell("it was closed here")
            await asyncio.wait({known.task}, timeout=_CLOSE)

    # One call --------------------------------------------------------------------------------------

    async def _once(self, work: Work[T]) -> T:
        known = await self._opened()
        attempt = Attempt()
        context = copy_context()
        context.run(current_attempt.set, attempt)
        task: asyncio.Task[T] = asyncio.get_running_loop().create_task(work(known.session), context=context)
        known.calls += 1
        try:
            waited: set[asyncio.Future[Any]] = {task, attempt.failed}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if attempt.error is None and task.done():
                try:
                    return task.result()
                except Exception as exc:
                    if attempt.error is None:  # else the request's own failure tells more
                        raise await self._translated(exc, known) from exc
            assert attempt.error is not None
            if isinstance(attempt.error, SessionLost):
                known.fate.tell("the server does not know it any more")
                logger.info("mcp_session_lost server=%s: a new one is opened", self.spec.name)
                raise attempt.error
            raise in_words(attempt.error, self.spec) from attempt.error
        finally:
            known.calls -= 1
            known.used = _now()
            if not task.done():
                attempt.abandon(_GRACE)
                task.cancel()
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                await asyncio.wait({task}, timeout=_GOODBYE)
            elif not task.cancelled():
                task.exception()  # it is known by another name

    async def _translated(self, exc: Exception, known: _Open) -> Exception:
        if isinstance(exc, MCPError) and exc.code == CONNECTION_CLOSED:
            if exc.message != _WHOLE:  # of this call alone
                return in_words(exc, self.spec)
            # The task that owns the session knows more, as soon as it has ended.
            await asyncio.wait({known.task}, timeout=1.0)
            if known.fate.silent and isinstance(self.spec, HttpSpec):
                return silent(self.spec)
            return in_words(exc, self.spec, str(known.fate))
        return in_words(exc, self.spec)

    # Its life --------------------------------------------------------------------------------------

    async def _opened(self) -> _Open:
        if self._open is not None and not self._open.fate.ended.is_set():
            return self._open
        if self._opening is None or self._opening.done():
            loop = asyncio.get_running_loop()
            opening: asyncio.Future[_Open] = loop.create_future()
            self._opening = opening
            # In a context of its own: the session outlives the call that is the first to need it, and its deadline.
            task = loop.create_task(self._live(opening), context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        # Others wait too: whoever is cancelled does not break it off.
        return await asyncio.shield(self._opening)

    async def _live(self, opening: "asyncio.Future[_Open]") -> None:
        fate, seconds = Fate(), self._settings.mcp.connect_timeout
        attempt = Attempt()
        current_attempt.set(attempt)
        limit, task = asyncio.timeout(seconds), asyncio.current_task()
        assert task is not None
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with limit:
                    session = await self._greeted(stack, fate, attempt)
                known = self._open = _Open(session, fate, task)
                logger.info("mcp_connected server=%s protocol=%s", self.spec.name, session.protocol_version)
                opening.set_result(known)
                await self._watch(known)
        except BaseException as exc:
            error = attempt.error or exc
            if limit.expired():
                error = McpTimeout(f"{self.spec.shown} did not greet within {seconds:g} s. See whether it runs, or "
                                   "give it longer (CALLSHEET_MCP__CONNECT_TIMEOUT).")
            if not opening.done():
                opening.set_exception(in_words(error, self.spec, str(fate)))
                opening.exception()  # whoever waited may be gone
            else:
                fate.tell(f"it {str(in_words(error, self.spec)).removeprefix(self.spec.shown).strip(': .')}")
            if isinstance(exc, (asyncio.CancelledError, KeyboardInterrupt, SystemExit)):
                raise
        finally:
            fate.tell("")
            if self._open is not None and self._open.fate is fate:
                self._open = None

    async def _greeted(self, stack: contextlib.AsyncExitStack, fate: Fate, attempt: Attempt) -> ClientSession:
        """Connect, and agree on a version: with the greeting that opens a session, or without where there is none."""
        spec, settings = self.spec, self._settings
        streams: Any = connected(spec, settings) if isinstance(spec, HttpSpec) else piped(spec, settings, fate)
        read, write = await stack.enter_async_context(streams)
        session = ClientSession(Watched(read, fate), write, client_info=_US, message_handler=self._heard)
        await stack.enter_async_context(session)
        try:
            await session.initialize()
        except MCPError as exc:
            if attempt.error is not None or exc.code not in (UNSUPPORTED_PROTOCOL_VERSION, METHOD_NOT_FOUND):
                raise
            await session.discover()
            tools = session.server_capabilities.tools if session.server_capabilities else None
            if tools is not None and tools.list_changed:
                await stack.enter_async_context(listen(session, tools_list_changed=True))
        return session

    async def _heard(self, message: ServerNotification | Exception) -> None:
        if isinstance(message, ToolListChangedNotification) and self._open is not None:
            logger.info("mcp_tools_changed server=%s", self.spec.name)
            self._open.tools = None
            self._open.changes += 1

    async def _watch(self, known: _Open) -> None:
        """Keep the session until it ends, is to end, does not answer any more, or is idle."""
        mcp, fate, pinged = self._settings.mcp, known.fate, _now()
        while not fate.ended.is_set():
            due = [pinged + mcp.ping] if mcp.ping else []
            due += [known.used + mcp.idle] if mcp.idle and not known.calls else []
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(due, default=None)):
                    await fate.ended.wait()
                    return
            now = _now()
            if mcp.idle and not known.calls and now >= known.used + mcp.idle:
                logger.info("mcp_idle_closed server=%s idle=%g", self.spec.name, mcp.idle)
                fate.tell("it was idle")
                self._on_idle()
            elif mcp.ping and now >= pinged + mcp.ping:
                if not await self._answers(known):
                    logger.warning("mcp_unhealthy server=%s: it does not answer a ping; closed, and opened anew for "
                                   "the next call", self.spec.name)
                    fate.tell("it does not answer any more")
                pinged = _now()

    async def _answers(self, known: _Open) -> bool:
        attempt = Attempt()
        context = copy_context()
        context.run(current_attempt.set, attempt)
        ping = asyncio.get_running_loop().create_task(_ping(known.session), context=context)
        try:
            waited: set[asyncio.Future[Any]] = {ping, attempt.failed}
            await asyncio.wait(waited, timeout=self._settings.mcp.pong, return_when=asyncio.FIRST_COMPLETED)
            return attempt.error is None and ping.done() and ping.result()
        finally:
            attempt.abandon(0)
            ping.cancel()


async def _ping(session: ClientSession) -> bool:
    """Whether the server answers, whatever it says."""
    try:
        if session.initialize_result is not None:
            await session.send_ping()
        else:
            await session.send_discover(session.protocol_version or "")
    except MCPError as exc:
        return exc.code != CONNECTION_CLOSED
    except Exception:  # an answer that is not what it should be is one
        return True
    return True


async def _all_tools(session: ClientSession) -> list[Tool]:
    found: list[Tool] = []
    cursor = None
    for _ in range(_PAGES):
        page = await session.list_tools(params=PaginatedRequestParams(cursor=cursor) if cursor else None)
        found += page.tools
        cursor = page.next_cursor
        if not cursor:
            break
    return found
