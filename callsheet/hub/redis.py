"""Hubs in Redis: opening them, saying something, large messages, what listeners are told, how far members lag."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from callsheet.errors import HubMismatch
from callsheet.hub.entries import differs, gap, missing
from callsheet.hub.patience import patient, patiently
from callsheet.hub.records import Entry, Hear, HubInfo, Member, Opened, Opening, Pushed, Seat, number_of
from callsheet.hub.together import together
from callsheet.messages.quick import loads
from callsheet.resources.payloads import REF, Blobs, apart
from callsheet.resources.redis import Script, async_client, sync_client, translated
from callsheet.resources.subscriptions import subscriptions
from callsheet.settings import Settings
from callsheet.settings.keys import Keys

LIBRARY = Path(__file__).with_name("log.lua")

MOST_HUBS = 20
"""Hubs whose lag is looked at, those used last."""

MOST_MEMBERS = 200
"""Members of such a hub that are looked at."""

_SCRIPT = Script(Path(__file__).with_name("hub.lua"), LIBRARY)
_MOST_EXPIRED = 10  # hubs that one opening looks after
_AUTO = {True: "1", False: "", None: "?"}
_FIELDS = ("epoch", "auto", "kept", "created", "touched", "seq", "last", "openers", "closed", "members", "eager")
_BEGINNING = f'{{"{REF}":'  # of what stands in a log for a large message


def parted(texts: Sequence[str], settings: Settings) -> tuple[list[str], Blobs]:
    """Texts as they go into a log, and what has to be stored before."""
    blobs: Blobs = {}
    given = []
    for text in texts:
        if len(text) > settings.payload_inline_max:
            ref, more = apart(text.encode())
            blobs |= more
            text = json.dumps(ref, separators=(",", ":"))  # noqa: PLW2901
        given.append(text)
    return given, blobs


def any_large(entries: Sequence[Entry]) -> bool:
    """Whether there are references among them."""
    return any(entry.text.startswith(_BEGINNING) for entry in entries)


async def filled(hub: str, entries: Sequence[Entry], settings: Settings) -> list[Entry]:
    """Entries with their large messages; one that is no longer stored becomes a message that says so."""
    large = {entry.id: json.loads(entry.text)[REF] for entry in entries if entry.text.startswith(_BEGINNING)}
    if not large:
        return list(entries)
    digests, keys = list(set(large.values())), Keys(settings.key_prefix)
    with translated(settings):
        texts = await async_client(settings).mget([keys.payload(digest) for digest in digests])
    found = {digest: text.decode() for digest, text in zip(digests, texts, strict=True) if text is not None}

    def text(entry: Entry) -> str:
        return found.get(large[entry.id]) or json.dumps(gap(hub, entry.number, entry.number).to_dict())

    return [replace(entry, text=text(entry)) if entry.id in large else entry for entry in entries]


class RedisHubs:
    """Hubs in Redis. What raises HubMissing does so where no hub of the name, or of the epoch, is open.

    The methods with an "a" before their names are those for async code. LocalHubs has the same.

    Attributes:
        remote: whether the agents in them run elsewhere.
    """

    remote = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys = Keys(settings.key_prefix)

    # Changing -----------------------------------------------------------------------------------------

    def _command(self, action: str, name: str, epoch: str, args: Sequence[Any]) -> tuple[list[str], list[Any]]:
        return [self._keys.hub(name), self._keys.hubs()], [action, name, epoch, *args]

    def _run(self, action: str, name: str, epoch: str, *args: Any) -> list[Any]:
        command = self._command(action, name, epoch, args)
        with translated(self._settings):
            return _answer(name, patiently(lambda: _SCRIPT.run(sync_client(self._settings), *command)))

    async def _arun(self, action: str, name: str, epoch: str, *args: Any) -> list[Any]:
        keys, given = self._command(action, name, epoch, args)

        async def run() -> Any:
            return await _SCRIPT.arun(async_client(self._settings), keys, given)

        with translated(self._settings):
            return _answer(name, await patient(run))

    def _opening(self, name: str, opening: Opening) -> list[Any]:
        epoch, k, s = uuid4().hex, self._keys, self._settings
        return [opening.opener, _AUTO[opening.auto], "1" if opening.kept else "", epoch, k.hub_log(epoch),
                k.hub_members(epoch), k.hub_ids(epoch), k.hub_exchange(name), channel_of(name, s), s.hub_length,
                s.hub_age * 1000, s.hub_expires * 1000, *self._seats(opening.seats)]

    def _seats(self, seats: Sequence[Seat]) -> list[str]:
        return [part for seat in seats for part in (
            seat.id, self._keys.seats(seat.id), seat.label, "d" if seat.deaf else "1" if seat.eager else "",
            seat.spec)]

    def open(self, name: str, opening: Opening) -> Opened:
        """Open a hub, or join the one there is.

        Raises:
            HubMismatch: one is open with other settings.
        """
        def stale() -> Any:
            client = sync_client(self._settings)
            return client.zrange(*self._stale(client.time()), byscore=True, offset=0, num=_MOST_EXPIRED)

        with translated(self._settings):
            for one in patiently(stale):
                self._run("expired", one.decode(errors="replace"), "")
        return _opened(self._run("open", name, "", *self._opening(name, opening)))

    async def aopen(self, name: str, opening: Opening) -> Opened:
        """As `open`."""
        async def stale() -> Any:
            client = async_client(self._settings)
            return await client.zrange(*self._stale(await client.time()), byscore=True, offset=0, num=_MOST_EXPIRED)

        with translated(self._settings):
            for one in await patient(stale):
                await self._arun("expired", one.decode(errors="replace"), "")
        return _opened(await self._arun("open", name, "", *self._opening(name, opening)))

    def _stale(self, time: tuple[int, int]) -> tuple[str, str, int]:
        return self._keys.hubs(), "-inf", (time[0] - self._settings.hub_expires) * 1000

    def add(self, name: str, epoch: str, opener: str, seats: Sequence[Seat]) -> None:
        """Seat agents."""
        self._run("add", name, epoch, opener, "", *self._seats(seats))

    def delete(self, name: str, epoch: str, agent_ids: Sequence[str]) -> list[str]:
        """Have members leave; gives the ids of those that are none."""
        return [one.decode() for one in self._run("delete", name, epoch, *agent_ids)[0]]

    def set_auto(self, name: str, epoch: str, auto: bool) -> None:
        """Say whether replies are broadcast."""
        self._run("auto", name, epoch, _AUTO[auto])

    def say(self, name: str, epoch: str, broadcast: str, sender: str, texts: Sequence[str]) -> tuple[str, int]:
        """Broadcast messages; gives the id of the last one's entry, and how many eager members there are.

        Args:
            name: of the hub.
            epoch: which life of it; "" for any.
            broadcast: an id; what comes twice under it is kept once.
            sender: the agent id of who says it, or "".
            texts: messages as JSON.
        """
        entry_id, eager = self._run("say", name, epoch, broadcast, sender, *texts)
        return entry_id.decode(), int(eager)

    async def asay(self, name: str, epoch: str, broadcast: str, sender: str, texts: Sequence[str]) -> tuple[str, int]:
        """As `say`."""
        keys, given = self._command("say", name, epoch, [broadcast, sender, *texts])

        async def run() -> Any:
            return await together(_SCRIPT, self._settings).ask((keys, given))

        with translated(self._settings):
            entry_id, eager = _answer(name, await patient(run))
        return entry_id.decode(), int(eager)

    def leave(self, name: str, epoch: str, opener: str, agent_ids: Sequence[str]) -> None:
        """Take back an opening, and with it the agents that nobody else brought; the last one closes the hub."""
        self._run("leave", name, epoch, opener, *agent_ids)

    async def aleave(self, name: str, epoch: str, opener: str, agent_ids: Sequence[str]) -> None:
        """As `leave`."""
        await self._arun("leave", name, epoch, opener, *agent_ids)

    def close(self, name: str, epoch: str) -> None:
        """Close a hub for all."""
        self._run("close", name, epoch)

    # Looking ------------------------------------------------------------------------------------------

    async def info(self, name: str) -> HubInfo | None:
        """A hub that is open, or was closed not long ago."""
        found = await self._infos([name])
        return found[0] if found else None

    async def _infos(self, names: Sequence[str]) -> list[HubInfo]:
        async def look() -> tuple[list[tuple[str, dict[str, str]]], list[int]]:
            async with async_client(self._settings).pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hmget(self._keys.hub(name), *_FIELDS)
                found = [(name, dict(zip(_FIELDS, [(value or b"").decode() for value in values], strict=True)))
                         for name, values in zip(names, await pipe.execute(), strict=True) if values[0]]
                for _, hub in found:
                    pipe.hlen(hub["members"])
                return found, await pipe.execute() if found else []

        with translated(self._settings):
            found, counts = await patient(look)
        return [HubInfo(name=name, epoch=hub["epoch"], auto=hub["auto"] == "1", kept=hub["kept"] == "1",
                        created=int(hub["created"]) / 1000, used=int(hub["touched"]) / 1000, messages=int(hub["seq"]),
                        last=hub["last"], members=count, openers=int(hub["openers"]),
                        closed=int(hub["closed"]) / 1000 if hub["closed"] else None)
                for (name, hub), count in zip(found, counts, strict=True)]

    async def _records(self, info: HubInfo) -> dict[str, dict[str, Any]]:
        with translated(self._settings):
            found = await patient(lambda: async_client(self._settings).hgetall(self._keys.hub_members(info.epoch)))
        return {agent.decode(): json.loads(text) for agent, text in found.items()}

    async def _open_info(self, name: str) -> HubInfo:
        info = await self.info(name)
        if info is None or info.closed is not None:
            raise missing(name)
        return info

    async def members(self, name: str) -> list[Member]:
        """The members of an open hub."""
        info = await self._open_info(name)
        records = await self._records(info)

        async def look() -> list[bytes | None]:
            async with async_client(self._settings).pipeline(transaction=False) as pipe:
                for record in records.values():
                    pipe.hget(record["seats"], record["seat"])
                return list(await pipe.execute())

        with translated(self._settings):
            seats = [json.loads(text) if text else {"c": info.last} for text in await patient(look)]
        # What was heard since the look at the hub is no news of it.
        return [Member(id=agent, label=record["label"], eager=bool(record.get("eager")),
                       behind=0 if "d" in seat else max(0, info.messages - number_of(seat["c"])))
                for (agent, record), seat in zip(records.items(), seats, strict=True)]

    async def eager(self, name: str) -> list[Seat]:
        """Its eager members, with what they are built of."""
        info = await self._open_info(name)
        return [Seat(id=agent, label=record["label"], eager=True, spec=record["spec"])
                for agent, record in (await self._records(info)).items() if record.get("eager")]

    async def listed(self, most: int) -> list[HubInfo]:
        """The open hubs, the last used first."""
        with translated(self._settings):
            names = await patient(lambda: async_client(self._settings).zrevrange(self._keys.hubs(), 0, most - 1))
        found = await self._infos([name.decode(errors="replace") for name in names])
        return [info for info in found if info.closed is None]

    async def read(self, epoch: str, after: str, most: int) -> list[Entry]:
        """Entries of a hub's log after one."""
        return _entries(await async_client(self._settings).xrange(self._keys.hub_log(epoch), min=f"({after}",
                                                                  count=most))

    async def filled(self, name: str, entries: Sequence[Entry]) -> list[Entry]:
        """Entries of a hub with their large messages, which the log and the push only refer to."""
        return await filled(name, entries, self._settings)

    async def recent(self, epoch: str, most: int) -> list[Entry]:
        """The last entries of a hub's log, in order."""
        with translated(self._settings):
            found = await patient(lambda: async_client(self._settings).xrevrange(self._keys.hub_log(epoch), count=most))
        return _entries(found)[::-1]

    def listen(self, name: str, hear: Hear) -> Callable[[], None]:
        """Have `hear` called with what is pushed, on the loop that runs; gives a function that ends it."""
        channel, heard = channel_of(name, self._settings), subscriptions(self._settings)

        def listener(data: bytes) -> None:
            hear(pushed(data) if data else Pushed(look=True))

        heard.add(channel, listener)
        return lambda: heard.remove(channel, listener)


def _entries(found: list[Any]) -> list[Entry]:
    return [Entry(entry.decode(), data[b"s"].decode(), data[b"m"].decode()) for entry, data in found]


def pushed(data: bytes) -> Pushed:
    """What a message of a hub's fanout exchange says."""
    try:
        message = loads(data)
        headers = message["headers"]
        if headers.get("closed"):
            return Pushed(epoch=headers["epoch"], closed=True)
        return Pushed(epoch=headers["epoch"], entry=Entry(headers["id"], headers["sender"], message["body"]))
    except (ValueError, LookupError, TypeError, AttributeError):
        return Pushed(look=True)  # something else has published there


def channel_of(name: str, settings: Settings) -> str:
    """The Redis channel of a hub's fanout exchange, as kombu names it."""
    database = sync_client(settings).connection_pool.connection_kwargs.get("db") or 0
    return f"/{database}.{Keys(settings.key_prefix).hub_exchange(name)}"


def _answer(name: str, answer: list[Any]) -> list[Any]:
    kind = answer[0]
    if kind == b"missing":
        raise missing(name)
    if kind == b"differs":
        raise HubMismatch(differs(name, bool(answer[1])))
    return answer[1:]


def _opened(answer: list[Any]) -> Opened:
    epoch, auto = answer
    return Opened(epoch=epoch.decode(), auto=auto == b"1")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubLag:
    """One hub.

    Attributes:
        name: of the hub.
        members: that it has.
        messages: that were said in it.
        behind: messages that the member furthest behind has yet to hear.
        used: unix time of its last use, about.
    """

    name: str
    members: int
    messages: int
    behind: int
    used: float


def hub_lags(client: Any, keys: Keys, most: int = MOST_HUBS) -> list[HubLag]:
    """The hubs used last, in four trips to Redis however many there are; blocks."""
    listed = client.zrevrange(keys.hubs(), 0, most - 1, withscores=True)
    with client.pipeline(transaction=False) as pipe:
        for name, _ in listed:
            pipe.hmget(keys.hub(name.decode(errors="replace")), "seq", "members", "closed")
        facts = pipe.execute()
        hubs = [(name.decode(errors="replace"), used / 1000, int(seq or 0), members)
                for (name, used), (seq, members, closed) in zip(listed, facts, strict=True) if members and not closed]
        for *_, members in hubs:
            pipe.hlen(members)
            pipe.hscan(members, count=MOST_MEMBERS)
        answers = pipe.execute()
        looked_at = [list(texts.values())[:MOST_MEMBERS] for _, texts in answers[1::2]]
        for seat in (json.loads(text) for texts in looked_at for text in texts):
            pipe.hget(seat["seats"], seat["seat"])
        cursors = iter(pipe.execute())
    lags = []
    for (name, used, seq, _), members, texts in zip(hubs, answers[::2], looked_at, strict=True):
        heard = [number_of(json.loads(cursor)["c"]) for cursor in islice(cursors, len(texts)) if cursor]
        lags.append(HubLag(name=name, members=members, messages=seq, used=used,
                           behind=max(0, seq - min(heard, default=seq))))
    return lags
