"""Where this process gets turns, keeps warm agents, and ends turns."""

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from callsheet.agents import AgentBase
from callsheet.errors import TurnLost, UsageError
from callsheet.hub.records import News
from callsheet.resources.loops import on_lasting_loop
from callsheet.settings import Settings
from callsheet.tasks.turns.backlog import Backlog
from callsheet.tasks.turns.binding import Binding
from callsheet.tasks.turns.keeper import Keeper
from callsheet.tasks.turns.records import COLD, NOTHING, Busy, Changes, Claim, Granted, Place, Replied, held_up
from callsheet.tasks.turns.redis import Store

logger = logging.getLogger(__name__)

_AGENT = 20_000  # bytes that an agent takes without its state, about
_ENTRY = 2_000  # bytes that a message takes beside its text, about


@dataclass
class Warm:
    """An agent between two turns."""

    spec: Any  # what it was built of, as it travelled
    binding: Binding  # to its state
    version: int  # of the state
    attributes: dict[str, Any]  # as they were before any turn, without those that are state

    @property
    def agent(self) -> AgentBase:
        """The agent."""
        return self.binding.agent

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return _AGENT + self.binding.entries * _ENTRY + 2 * self.binding.size

    def restore(self) -> None:
        """Undo what replies set on the agent beside its state, as if it was built anew."""
        here, state = vars(self.agent), vars(self.agent).get("_registered", {})
        for name in [name for name in here if name not in self.attributes and name not in state]:
            del here[name]
        here.update(self.attributes)


def attributes_of(agent: AgentBase) -> dict[str, Any]:
    """An agent's attributes without those that are state."""
    state = vars(agent).get("_registered", {})
    return {name: value for name, value in vars(agent).items() if name not in state}


class WarmAgents:
    """The agents kept, the least recently used first. One thread."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most, self._most_bytes = most, most_bytes
        self._kept: OrderedDict[str, Warm] = OrderedDict()
        self.size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, agent_id: object) -> bool:
        return agent_id in self._kept

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def take(self, agent_id: str, spec: Any) -> Warm | None:
        """The agent of this id, if it was built of `spec`; it is no longer kept here."""
        found = self._kept.pop(agent_id, None)
        if found is None:
            return None
        self.size -= found.size
        return found if found.spec == spec else None

    def keep(self, agent_id: str, warm: Warm) -> None:
        """Keep an agent, and let others go where there is no place for all."""
        before = self._kept.pop(agent_id, None)
        if before is not None:
            self.size -= before.size
        if not self.most or warm.size > self._most_bytes:
            return
        self._kept[agent_id] = warm
        self.size += warm.size
        while len(self._kept) > self.most or self.size > self._most_bytes:
            _, gone = self._kept.popitem(last=False)
            self.size -= gone.size


@dataclass
class Taken:
    """A turn that this process has."""

    claim: Claim
    granted: Granted
    warm: Warm | None


@dataclass
class Turn:
    """A turn with its agent."""

    desk: "Desk"  # where it was taken
    claim: Claim  # whose
    token: int  # its number
    warm: Warm  # the agent with its state
    news: list[News] = field(default_factory=list)  # what the agent has not heard of its hubs
    heard: dict[str, str] = field(default_factory=dict)  # what it has heard since, by its seat in a hub
    said: list[str] = field(default_factory=list)  # messages that its hubs are to hear, as JSON
    eager: Sequence[str] = ()  # once the turn has ended, the hubs whose eager members are to be told
    jobs: list[str] = field(default_factory=list)  # that the reply waits for

    @property
    def agent(self) -> AgentBase:
        """The agent, with its state."""
        return self.warm.agent

    def changes(self) -> Changes:
        """What the reply changed; once."""
        changes = self.warm.binding.changes(self.desk.settings.payload_max)
        return replace(changes, heard=self.heard, said=self.said) if self.news else changes


#: The turn of the reply that runs here.
current_turn: ContextVar[Turn | None] = ContextVar("callsheet_turn", default=None)


class Desk:
    """One process's, or that of calls that run inline."""

    def __init__(self, store: Store, settings: Settings, keeper: Keeper | None = None, warm: bool = False,
                 backlog: Backlog | None = None) -> None:
        self.store, self.settings, self.keeper, self.backlog = store, settings, keeper, backlog
        self.warm = WarmAgents(settings.warm_agents if warm else 0, settings.warm_bytes)

    async def take(self, claim: Claim, spec: Any, place: Callable[[], Place] | None = None) -> Taken | Replied | Busy:
        """Ask for the turn."""
        warm = self.warm.take(claim.agent_id, spec)
        answer = None
        try:
            known = warm.version if warm else COLD
            answer = await self.store.take(claim, known)
            if isinstance(answer, Busy) and place is not None:
                answer = await self.store.take(claim, known, place())
                if isinstance(answer, Busy) and answer.pause is not None:
                    pause = answer.pause
                    on_lasting_loop(lambda: self._pass_on(claim, pause))
        finally:
            if warm is not None and not isinstance(answer, Granted):
                self.warm.keep(claim.agent_id, warm)
        if not isinstance(answer, Granted):
            return answer
        if self.keeper is not None:
            self.keeper.hold(claim, answer.token)
        return Taken(claim, answer, None if answer.anew else warm)

    async def _pass_on(self, claim: Claim, seconds: float) -> None:
        await asyncio.sleep(seconds + 0.01)
        try:
            await self.store.pass_on(claim)
        except Exception as exc:  # a worker that looks after turns does it later
            logger.warning("turn_pass_on agent=%s id=%s: %s", claim.label, claim.agent_id, exc)

    def open(self, taken: Taken, spec: Any, build: Callable[[], AgentBase]) -> Turn:
        """The agent with its state; in the thread where it is to be built.

        Raises:
            StateMismatch: the state does not fit the agent.
        """
        warm = taken.warm
        if warm is None:
            agent = build()
            binding = Binding(agent, lambda: self.store.read(taken.claim.agent_id))
            warm = Warm(spec, binding, taken.granted.version, attributes_of(agent))
        else:
            warm.restore()
        warm.binding.load(taken.granted)
        return Turn(self, taken.claim, taken.granted.token, warm, taken.granted.news)

    async def release(self, claim: Claim, token: int) -> None:
        """End a turn that leaves nothing behind. Whatever goes wrong is logged: the lease ends by itself."""
        try:
            await self.store.end(claim, token)
        except TurnLost:
            pass
        except Exception:
            logger.exception("turn_release agent=%s id=%s: the turn passes on when its lease is over", claim.label,
                             claim.agent_id)
        finally:
            if self.keeper is not None:
                self.keeper.drop(claim)

    async def end_failed(self, turn: Turn, reply: Any = None) -> None:
        """End the turn of a reply that raised: what it changed before is kept. Whatever goes wrong is logged."""
        turn.said = []
        try:
            changes = turn.changes()
            await self.end(turn, changes, reply)
        except Exception:
            logger.exception("state_not_kept agent=%s id=%s: what a failed reply changed", turn.claim.label,
                             turn.claim.agent_id)
            await self.release(turn.claim, turn.token)

    async def end(self, turn: Turn, changes: Changes = NOTHING, reply: Any = None) -> None:
        """End a turn: keep the changes, and the reply for a second delivery of the call.

        Raises:
            TurnLost: nothing is kept.
            RedisUnavailable: Redis is away for longer than it is waited for.
        """
        try:
            version, turn.eager = await self.store.end(turn.claim, turn.token, changes,
                                                       json.dumps(reply, separators=(",", ":")))
        finally:
            if self.keeper is not None:
                self.keeper.drop(turn.claim)
        warm = turn.warm
        # An agent that has turns for its hubs' sake alone is built anew for each, as others without state are.
        if not warm.binding.rebound and not warm.binding.keeps_nothing and self.warm.most:
            try:
                warm.binding.saved(changes)
            except Exception:  # a custom_from_json that does not take what custom_to_json gave: the next turn says so
                return
            warm.version = version
            self.warm.keep(turn.claim.agent_id, warm)
            if self.backlog is not None:
                self.backlog.seated(turn.claim.agent_id, [(news.hub, news.epoch) for news in turn.news])

    @asynccontextmanager
    async def whole_turn(self, claim: Claim, spec: Any, build: Callable[[], AgentBase],
                         final: Callable[[Exception], bool]) -> AsyncIterator[Turn]:
        """Take the turn, where that only ever waits; run the block; end the turn.

        Args:
            claim: whose.
            spec: what the agent is built of.
            build: makes the agent.
            final: whether nothing is tried again after this error, so that what was changed before is kept.
        """
        taken = await self.take(claim, spec)
        assert isinstance(taken, Taken)
        turn = None
        try:
            turn = self.open(taken, spec, build)
            with running(turn):
                yield turn
        except Exception as exc:
            if turn is not None and final(exc):
                await self.end_failed(turn)
            else:
                await self.release(claim, taken.granted.token)
            raise
        except BaseException:
            await self.release(claim, taken.granted.token)
            raise
        try:
            await turn.warm.binding.compact()
            changes = turn.changes()
        except BaseException:
            await self.release(claim, taken.granted.token)
            raise
        await self.end(turn, changes)


@asynccontextmanager
async def waiting_for(job_id: str) -> AsyncIterator[None]:
    """The reply that runs here, if it has a turn, waits in the block for a job that it did not call itself.

    Raises:
        UsageError: a call in the course of the job waits for this very turn.
    """
    turn = current_turn.get()
    if turn is None:
        yield
        return
    store, claim = turn.desk.store, turn.claim
    turn.jobs.append(job_id)
    try:
        if await store.waits(claim, turn.token, turn.jobs):
            raise UsageError(held_up(claim, job_id))
        yield
    finally:
        turn.jobs.remove(job_id)
        await store.waits(claim, turn.token, turn.jobs)


@contextmanager
def running(turn: Turn) -> Iterator[Turn]:
    """The turn's reply runs in the block."""
    token = current_turn.set(turn)
    try:
        yield turn
    finally:
        current_turn.reset(token)
