"""Calls of agents that have MCP clients with affinity go to the io worker that holds the clients' sessions.

The first worker that such a call reaches becomes the home of the agent's clients, and says so in Redis under a lease.
Another worker that gets a call for them sends it on, to the queue that only the home consumes, under the same id. A
home lasts as long as its session and its worker.
"""

import asyncio
import json
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from celery.exceptions import Ignore
from celery.utils.nodenames import worker_direct
from redis.exceptions import RedisError

from callsheet.agents import AgentBase
from callsheet.errors import CallsheetError, UsageError
from callsheet.mcp import StatefulClientBase
from callsheet.mcp.home import sessions
from callsheet.resources.backlog import STEPS
from callsheet.resources.loops import on_lasting_loop
from callsheet.resources.redis import Script, sync_client
from callsheet.settings import Settings
from callsheet.settings.keys import Keys
from callsheet.tasks.patience import patient
from callsheet.tasks.turns.line import KEEP_SENT, Publisher
from callsheet.tools import Toolkit
from callsheet.tools.clients import ClientTool

logger = logging.getLogger(__name__)
_SCRIPT = Script(Path(__file__).with_name("homes.lua"))
_SENT_ON = "sent_on"
_MOST_SENT_ON = 5
_LISTENS_WITHIN = 5.0  # seconds in which the worker consumes one more queue

_homes: dict[str, "Homes"] = {}
_lock = threading.Lock()


def homes_of(agent: AgentBase) -> tuple[str, ...]:
    """Names of the clients with affinity that an agent has, as attributes or in a toolkit that is one."""
    found = set()
    for value in vars(agent).values():
        if isinstance(value, StatefulClientBase):
            if value.affinity:
                found.add(value.name)
        elif isinstance(value, Toolkit):
            for tool in value.tools.values():
                client = tool.original_func.client if isinstance(tool.original_func, ClientTool) else None
                if isinstance(client, StatefulClientBase) and client.affinity:
                    found.add(client.name)
    return tuple(sorted(found))


def refuse_process(label: str, names: tuple[str, ...]) -> None:
    """Affinity is to a process, and a cpu worker has several behind one queue."""
    raise UsageError(f"{label} has MCP clients with affinity ({', '.join(names)}), and its call came to a cpu worker, "
                     "whose processes take calls as they come: none can be chosen. Write its reply as `async def`, and "
                     "send it to an io worker.")


class Homes:
    """The homes that are in this worker."""

    def __init__(self, settings: Settings, app: Any, hostname: str, queue: str) -> None:
        self._settings, self._app, self._hostname = settings, app, hostname
        self._keys = Keys(settings.key_prefix)
        self.direct: str = worker_direct(hostname).name
        self._queue = queue
        self._lease = round(settings.turn_lease * 1000)
        self._under_way: Counter[str] = Counter()
        self._held: set[str] = set()
        self._keeping = False
        self._listens = False
        self._changing = asyncio.Lock()  # claims and releases are one after the other

    @asynccontextmanager
    async def at(self, task: Any, request: Any, names: tuple[str, ...], label: str) -> AsyncIterator[None]:
        """A block in which a call of an agent with these clients runs here.

        Raises:
            Ignore: their home is another worker; the call was sent on.
        """
        # Two clients with homes of their own would send a call to and fro.
        anyway = "1" if request.args[-1].get(_SENT_ON, 0) >= _MOST_SENT_ON else "0"
        async with self._changing:
            claimed, other = await patient(lambda: self._run("claim", names, anyway))
            if claimed:
                held = self._held.issuperset(names)
                self._under_way.update(names)
                self._held.update(names)
        other = other.decode() if isinstance(other, bytes) else other
        if not claimed:
            await self._send_on(task, request, other, label)
            raise Ignore
        if other:
            logger.warning("mcp_home_moved clients=%s from=%s to=%s agent=%s: the worker that held the session is "
                           "gone; a new session is opened here", ",".join(names), other, self.direct, label)
        elif not held:
            logger.info("mcp_home clients=%s at=%s agent=%s", ",".join(names), self.direct, label)
        try:
            self._keep()
            await self._listen()
            yield
        finally:
            self._under_way.subtract(names)

    async def _send_on(self, task: Any, request: Any, other: str, label: str) -> None:
        *args, data = request.args
        args.append({**data, _SENT_ON: data.get(_SENT_ON, 0) + 1})
        signature = task.signature_from_request(request, args=tuple(args), retries=request.retries, queue=other,
                                                **{KEEP_SENT: True})
        logger.info("mcp_sent_on agent=%s call=%s to=%s", label, request.id, other)
        await Publisher(self._app, self._settings)([json.dumps(signature, default=str)])

    async def _listen(self) -> None:
        """Have this worker consume its direct queue."""
        if self._listens:
            return
        self._listens, answers = True, None
        try:
            answers = await patient(lambda: asyncio.to_thread(
                self._app.control.add_consumer, self.direct, destination=[self._hostname], reply=True,
                timeout=_LISTENS_WITHIN, limit=1))
        finally:
            self._listens = bool(answers)
        if not answers:
            logger.warning("mcp_home_unheard queue=%s: the worker did not begin to consume it within %g s; calls that "
                           "are sent there wait", self.direct, _LISTENS_WITHIN)

    def _keep(self) -> None:
        if not self._keeping:
            self._keeping = True
            on_lasting_loop(self._kept)

    async def _kept(self) -> None:
        """Renew the leases of homes while their sessions are open; give up the others."""
        try:
            while self._held:
                await asyncio.sleep(self._lease / 3000)
                opened = sessions().open_names()
                async with self._changing:
                    await self._renew(opened)
        finally:
            self._keeping = False

    async def _renew(self, opened: Collection[str]) -> None:
        stay = tuple(name for name in self._held if self._under_way[name] > 0 or name in opened)
        leave = tuple(self._held.difference(stay))
        with suppress(RedisError, OSError, CallsheetError):
            if stay:
                await self._run("renew", stay)
            if leave:
                await self._run("release", leave)
                self._held.difference_update(leave)

    async def _run(self, what: str, names: tuple[str, ...], *words: str) -> Any:
        return await asyncio.to_thread(self.run, what, names, *words)

    def run(self, what: str, names: tuple[str, ...], *words: str) -> Any:
        """Run the script; see homes.lua."""
        keys = [self._keys.direct_queues(), *map(self._keys.home, names)]
        return _SCRIPT.run(sync_client(self._settings), keys, [what, self.direct, self._queue, self._lease, *words])

    def give_up(self) -> None:
        """The worker stops: its homes move at once."""
        names = tuple(self._held)
        if names:
            self._held.clear()
            with suppress(RedisError, OSError):
                self.run("release", names, "gone")
                logger.info("mcp_home_given_up clients=%s at=%s", ",".join(names), self.direct)


def worker_homes(settings: Settings, task: Any) -> Homes:
    """This worker's; `task` is Celery's, bound to a request."""
    hostname = task.request.hostname
    with _lock:
        found = _homes.get(hostname)
        if found is None:
            found = _homes[hostname] = Homes(settings, task.app, hostname, task.app.conf.task_default_queue)
        return found


def give_up_homes() -> None:
    """The process ends."""
    for homes in list(_homes.values()):
        homes.give_up()


def sweep_homes(settings: Settings) -> None:
    """Send what waits for workers that are gone to the others."""
    with suppress(RedisError, OSError):
        moved = _SCRIPT.run(sync_client(settings), [Keys(settings.key_prefix).direct_queues()],
                            ["sweep", "", "", 0, *STEPS])
        if moved:
            logger.warning("mcp_calls_moved count=%d: the workers that they were sent to are gone; they go to others",
                           moved)
