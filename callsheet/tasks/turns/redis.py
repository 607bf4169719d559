"""States in Redis, and turns given by one script there."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from redis.exceptions import NoScriptError

from callsheet.errors import StateMismatch, TurnLost, UsageError
from callsheet.hub.records import Entry, News, is_own, number_of
from callsheet.hub.redis import LIBRARY
from callsheet.resources.redis import Script, async_client, sync_client, translated
from callsheet.resources.trouble import in_words, is_trouble
from callsheet.settings import Settings
from callsheet.settings.keys import Keys
from callsheet.tasks.patience import patient
from callsheet.tasks.turns.backlog import Backlog, Run
from callsheet.tasks.turns.local import LocalStore
from callsheet.tasks.turns.records import (
    FORMAT,
    NOTHING,
    Busy,
    Changes,
    Claim,
    Described,
    Ended,
    Granted,
    Place,
    Replied,
    Stored,
    held_up,
    lost,
    other_class,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")
_SCRIPT = Script(Path(__file__).parent / "turns.lua", LIBRARY)
_PAGE = 1000  # entries read at once
_TRIES = 12  # with growing pauses: about half a minute
_DAY = 86_400_000  # ms

Publish = Callable[[list[str]], Awaitable[None]]


class RedisStore:
    """States in Redis, and turns. To be used on the process's loop. LocalStore has the same."""

    def __init__(self, settings: Settings, publish: Publish, backlog: Backlog | None = None) -> None:
        self._settings, self._backlog = settings, backlog
        self._publish = publish
        self._keys = Keys(settings.key_prefix)
        self._lease = round(settings.turn_lease * 750)  # with the time until somebody looks, less than the setting
        self._kept = settings.state_expires * 1000
        # Longer than the state: the tokens of an agent never begin anew while it has one.
        self._turn_kept = max(self._kept, 365 * _DAY if not self._kept else 0) + _DAY

    async def take(self, claim: Claim, known: int, place: Place | None = None) -> Granted | Replied | Busy:
        """Ask for the turn.

        Args:
            claim: for whom.
            known: the version of the state that is known here, or COLD.
            place: kept in the line if it is another's turn; None keeps none.

        Raises:
            StateMismatch: the state is of another class, or of a newer version.
            UsageError: the reply whose turn it is waits for this very call.
        """
        waits = ["wait", place.message, place.expires or ""] if place else ["try", "", ""]
        here = self._backlog.known(claim.agent_id) if self._backlog is not None else {}
        have = [part for epoch, run in here.items() for part in (epoch, run.first, run.last)]
        answer = await self._patiently(claim.agent_id, "take", claim, [
            claim.cls, FORMAT, known, claim.sent, *waits, self._turn_kept, _PAGE, " ".join(claim.jobs),
            claim.before, *have])
        kind = answer[0]
        if kind == b"turn":
            return await self._granted(claim, here, *answer[1:])
        if kind == b"replied":
            return Replied(answer[1].decode(), [name.decode() for name in answer[2]])
        if kind in (b"busy", b"pause"):
            return Busy(int(answer[1]) / 1000 if kind == b"pause" else None)
        raise _refusal(claim, kind.decode(), answer[1].decode())

    async def _granted(self, claim: Claim, here: Mapping[str, Run], token: int, version: int, anew: bytes,
                       fields: list[bytes], entries: list[Any], news: list[Any]) -> Granted:
        found = [(path.decode(), text.decode()) for _, path, text in entries]
        more = entries
        while len(more) == _PAGE:
            page = await self._page(self._keys.memory(claim.agent_id), more[-1][0])
            more = [(entry, data[b"p"], data[b"c"]) for entry, data in page]
            found += [(path.decode(), text.decode()) for _, path, text in more]
        names, values = fields[::2], fields[1::2]
        return Granted(token=int(token), version=int(version), anew=bool(anew), entries=found,
                       news=[await self._news(claim.agent_id, here, one) for one in news],
                       fields={name.decode(): text.decode() for name, text in zip(names, values, strict=True)})

    async def _news(self, agent_id: str, here: Mapping[str, Run], given: list[Any]) -> News:
        seat, hub, epoch, cursor, upto, start, count, first, last, others, log = given
        life, heard, until, begin = epoch.decode(), cursor.decode(), upto.decode(), first.decode()
        found: list[Entry] = []
        if start != cursor:  # up to there it is here
            pushed = here[life].between(heard, min(start.decode(), until, key=number_of))
            found, begin = [entry for entry in pushed if not is_own(entry.sender, agent_id)], pushed[0].id
        found += [Entry(*(part.decode() for part in other)) for other in others]
        while count == _PAGE:
            page = await self._page(log, last, upto)
            found += [Entry(entry.decode(), sender, data[b"m"].decode()) for entry, data in page
                      if not is_own(sender := data[b"s"].decode(), agent_id)]
            count, last = len(page), page[-1][0] if page else last
        return News(seat=seat.decode(), hub=hub.decode(), epoch=life, cursor=heard, upto=until, first=begin,
                    entries=found)

    async def _page(self, stream: str | bytes, after: bytes, upto: bytes | str = "+") -> list[Any]:
        return await self._persistently(lambda: async_client(self._settings).xrange(
            stream, min=b"(" + after, max=upto, count=_PAGE))

    async def end(self, claim: Claim, token: int, changes: Changes = NOTHING, reply: str | None = None) -> Ended:
        """End the turn: write the changes, broadcast what was said, and let the next in line have it.

        While Redis is away, it is tried again for about half a minute.

        Args:
            claim: whose turn it is.
            token: of the turn.
            changes: of the state.
            reply: what came of the call, as JSON; a second delivery of the call gets it.

        Raises:
            TurnLost: it is not this call's turn any more; nothing is written.
        """
        pairs = [part for pair in [*changes.fields.items(), *changes.entries, *changes.heard.items()] for part in pair]
        answer = await self._patiently(claim.agent_id, "end", claim, [
            token, claim.cls, FORMAT, self._kept, self._turn_kept,
            "" if reply is None else f"{token} {0 if claim.once else claim.sent} {reply}",
            self._settings.result_expires * 1000,
            len(changes.fields), len(changes.entries), -1 if changes.base is None else changes.base,
            "all" if changes.replace else "1" if changes.trim else "", len(changes.heard), *pairs, *changes.said])
        if answer[0] == b"lost":
            raise TurnLost(lost(claim), bool(answer[1]))
        return Ended(int(answer[1]), [name.decode() for name in answer[2]])

    async def leave(self, claim: Claim) -> None:
        """Give up the place in the line."""
        await self._patiently(claim.agent_id, "leave", claim, [])

    async def pass_on(self, claim: Claim) -> None:
        """Let who is first in the line have the turn, if nobody has it."""
        await self._patiently(claim.agent_id, "pass", claim, [])

    async def waits(self, claim: Claim, token: int, jobs: Sequence[str]) -> bool:
        """The reply waits for these jobs from now on; whether calls in their course wait for this very turn."""
        return bool((await self._patiently(claim.agent_id, "waits", claim, [token, " ".join(jobs)]))[0])

    async def _patiently(self, agent_id: str, action: str, claim: Claim, args: Sequence[Any]) -> list[Any]:
        """The script's answer, whose messages are published; while Redis is away, it is asked again."""
        keys, given = self.command(agent_id, action, claim, args)

        async def ask() -> Any:
            return await _SCRIPT.arun(async_client(self._settings), keys, given)

        answer = await self._persistently(ask)
        if answer[-1]:
            await self._publish([text.decode() for text in answer[-1]])
        result: list[Any] = answer[:-1]
        return result

    async def _persistently(self, work: Callable[[], Awaitable[T]]) -> T:
        """In a worker for as long as it takes; elsewhere for about half a minute."""
        for number in range(_TRIES):
            try:
                return await patient(work)
            except Exception as exc:
                if not is_trouble(exc):
                    raise
                logger.warning("state_waits: an agent's state is not taken; trying again. %s",
                               in_words(exc, self._settings))
                problem = exc
            await asyncio.sleep(min(0.05 * 2**number, 5.0))
        with translated(self._settings):
            raise problem

    def command(self, agent_id: str, action: str, claim: Claim | None, args: Sequence[Any]
                ) -> tuple[list[str], list[Any]]:
        """The script's keys and arguments."""
        k, call = self._keys, claim.call_id if claim else ""
        keys = [k.state(agent_id), k.memory(agent_id), k.turn(agent_id), k.line(agent_id), k.parked(agent_id),
                k.lines(), k.states(), k.revoked(), k.replied(call), k.seats(agent_id)]
        return keys, [action, agent_id, call, self._lease, *args]

    # For the thread that keeps turns ------------------------------------------------------------------

    def renew(self, held: Sequence[tuple[Claim, int]]) -> list[bool]:
        """Prolong turns; says of each whether it is still the call's. Blocks."""
        commands = [self.command(claim.agent_id, "renew", claim, [token]) for claim, token in held]
        return [not isinstance(answer, Exception) and bool(answer[0]) for answer in self._run_all(commands)]

    def look_after(self) -> list[str]:
        """Pass on turns whose lease is over, where calls wait for them; gives messages to publish. Blocks."""
        due = sync_client(self._settings).zrangebyscore(self._keys.lines(), "-inf", round(time.time() * 1000), start=0,
                                                        num=100)
        answers = self._run_all([self.command(agent.decode(errors="replace"), "pass", None, []) for agent in due])
        odd = [agent for agent, answer in zip(due, answers, strict=True)
               if isinstance(answer, Exception) or agent.decode(errors="replace").encode() != agent]
        if odd:  # others behind them would never be due
            logger.critical("No turns can be passed on of %s: see the keys of these agents, if there are such", odd)
            sync_client(self._settings).zrem(self._keys.lines(), *odd)
        return [text.decode() for answer in answers if not isinstance(answer, Exception) for text in answer[-1]]

    def _run_all(self, commands: list[tuple[list[str], list[Any]]]) -> list[Any]:
        """The answers, or errors of single ones, such as of an agent with a key of another type."""
        client = sync_client(self._settings)
        for by_text in (False, True) if commands else ():
            with client.pipeline(transaction=False) as pipe:
                for keys, args in commands:
                    pipe.execute_command(*_SCRIPT.command(keys, args, by_text))
                found = pipe.execute(raise_on_error=False)
            for answer in found:
                if isinstance(answer, Exception) and is_trouble(answer):
                    raise answer
            if not any(isinstance(answer, NoScriptError) for answer in found):
                return list(found)
        return []

    # Sessions -----------------------------------------------------------------------------------------

    async def read(self, agent_id: str) -> Stored | None:
        """A state with all its entries, or None."""
        with translated(self._settings):
            async with async_client(self._settings).pipeline(transaction=True) as pipe:
                pipe.hgetall(self._keys.state(agent_id))
                pipe.xrange(self._keys.memory(agent_id))
                found, entries = await pipe.execute()
        if not found:
            return None
        given = {name.decode(): value.decode() for name, value in found.items()}
        if int(given["format"]) > FORMAT:
            raise _newer(f"The state of {agent_id!r}", given["format"])
        return Stored(
            id=agent_id, cls=given.get("class", ""), version=int(given["version"]), turns=int(given["turns"]),
            created=float(given["created"]) / 1000, updated=float(given["updated"]) / 1000,
            fields={name[2:]: text for name, text in given.items() if name.startswith("s:")},
            entries=[(data[b"p"].decode(), data[b"c"].decode()) for _, data in entries])

    async def copy(self, agent_id: str, claim: Claim, token: int) -> None:
        """Write a state under the claim's id as well, in place of what is there; in the claim's turn."""
        source = [self._keys.state(agent_id), self._keys.memory(agent_id)]
        if not (await self._patiently(claim.agent_id, "copy", claim, [token, *source]))[0]:
            raise TurnLost(lost(claim), False)

    async def remove(self, agent_id: str) -> None:
        """Remove a state; in the turn of somebody."""
        with translated(self._settings):
            async with async_client(self._settings).pipeline(transaction=True) as pipe:
                pipe.delete(self._keys.state(agent_id), self._keys.memory(agent_id))
                pipe.zrem(self._keys.states(), agent_id)
                await pipe.execute()

    async def listed(self, most: int) -> list[Described]:
        """The states, the last used first."""
        client, states = async_client(self._settings), self._keys.states()
        with translated(self._settings):
            if self._kept:
                await client.zremrangebyscore(states, "-inf", round(time.time() * 1000) - self._kept)
            ids = [agent.decode(errors="replace") for agent in await client.zrevrange(states, 0, most - 1)]
            async with client.pipeline(transaction=False) as pipe:
                for agent_id in ids:
                    pipe.hmget(self._keys.state(agent_id), "class", "turns", "created", "updated")
                found = await pipe.execute()
        return [Described(id=agent_id, cls=(cls or b"").decode(), turns=int(turns), created=int(created) / 1000,
                          updated=int(updated) / 1000)
                for agent_id, (cls, turns, created, updated) in zip(ids, found, strict=True) if updated]


Store = RedisStore | LocalStore
"""Where states are kept, and turns given."""


def _refusal(claim: Claim, kind: str, found: str) -> Exception:
    if kind == "class":
        return StateMismatch(other_class(claim, found))
    if kind == "format":
        return _newer(f"The state of {claim.label} with the id {claim.agent_id!r}", found)
    return UsageError(held_up(claim, found))


def _newer(what: str, found: str) -> StateMismatch:
    return StateMismatch(f"{what} was written by a newer version of Callsheet (form {found}; this one knows up to "
                         f"{FORMAT}). Update Callsheet here, workers first.")
