"""Agents that sit in hubs, for the tests."""

import asyncio
from typing import Any

import callsheet
from callsheet import AgentBase, Msg, MsgHub
from callsheet.memory import InMemoryMemory
from tests.agents.side import note, opened, opened_sync


def texts(msgs: list[Msg]) -> str:
    return "|".join(f"{msg.name}: {msg.get_text_content()}" for msg in msgs)


class Talker(AgentBase):
    """Remembers what it hears; says how many messages it remembers, or what it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.memory = InMemoryMemory()

    async def observe(self, msg: Any) -> None:
        await self.memory.add(msg)

    async def reply(self, msg: Msg | None = None) -> Any:
        told = msg.metadata if msg else {}
        if "note" in told:
            note(told["note"])
        if "gate" in told:
            await opened(told["gate"])
        if told.get("fail"):
            raise ValueError("no luck today")
        if told.get("silent"):
            return None
        heard = await self.memory.get_memory()
        if told.get("all"):
            return Msg(self.name, texts(heard), "assistant")
        said = str(msg.get_text_content()) if msg else f"{self.name} heard {len(heard)}"
        answer = Msg(self.name, said, "assistant")
        await self.memory.add(answer)
        return [answer, Msg(self.name, "and more", "assistant")] if told.get("twice") else answer


class Thinker(Talker):
    """Thinks aloud, in its replies."""

    async def reply(self, msg: Msg | None = None) -> Msg:
        blocks: list[Any] = [{"type": "thinking", "thinking": "secret"}]
        if msg is None:
            blocks.append({"type": "text", "text": "hello"})
        return Msg(self.name, blocks, "assistant")


class CpuTalker(AgentBase):
    """Plain code, on a cpu worker."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard: list[str] = []
        self.register_state("heard")

    async def observe(self, msg: Any) -> None:
        self.heard.append(f"{msg.name}: {msg.get_text_content()}")

    def reply(self, msg: Msg | None = None) -> Msg:
        if msg is not None and "gate" in msg.metadata:
            opened_sync(msg.metadata["gate"])
        return Msg(self.name, "|".join(self.heard), "assistant")


class PlainEar(CpuTalker):
    """With a plain observe."""

    def observe(self, msg: Any) -> None:  # type: ignore[override]
        self.heard.append(f"plain {msg.get_text_content()}")


class Forgetful(AgentBase):
    """Without state: it knows what it heard with this call."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard: list[Msg] = []

    async def observe(self, msg: Any) -> None:
        self.heard.append(msg)

    async def reply(self) -> Msg:
        return Msg(self.name, texts(self.heard), "assistant")


class Squeamish(Talker):
    """Raises at some messages."""

    async def observe(self, msg: Any) -> None:
        if "blood" in msg.content:
            raise ValueError("I cannot hear of blood")
        await super().observe(msg)


class Watcher(Talker, observe="eager"):
    """Is told at once."""

    def __init__(self, name: str, notes: str) -> None:
        super().__init__(name)
        self.notes = notes

    async def observe(self, msg: Any) -> None:
        await super().observe(msg)
        note(self.notes, f"{self.name} {msg.get_text_content()}")


class SqueamishWatcher(Watcher):
    """Is told at once, and raises."""

    async def observe(self, msg: Any) -> None:
        raise ValueError("I do not want to know")


class Host(AgentBase):
    """Opens a hub of its own on the worker."""

    def __init__(self, name: str, guests: list[AgentBase]) -> None:
        self.name, self.guests = name, guests

    async def reply(self, msg: Msg) -> Msg:
        async with MsgHub(self.guests, announcement=msg) as hub:
            for guest in self.guests:
                await guest()
            await hub.broadcast(Msg(self.name, "closing", "user"))
        said = [await guest(Msg("u", "", "user", metadata={"all": True})) for guest in self.guests]
        return Msg(self.name, " / ".join(str(one.content) for one in said), "assistant")


class PlainHost(AgentBase):
    """The same in plain code, on a cpu worker."""

    def __init__(self, name: str, guests: list[AgentBase]) -> None:
        self.name, self.guests = name, guests

    def reply(self, msg: Msg) -> Msg:
        with MsgHub(self.guests, announcement=msg) as hub:
            for guest in self.guests:
                guest.submit().get(30)
            hub.broadcast(Msg(self.name, "closing", "user"))
        said = [guest.submit(Msg("u", "", "user", metadata={"all": True})).get(30) for guest in self.guests]
        return Msg(self.name, " / ".join(str(one.content) for one in said), "assistant")


class Speaker(Talker):
    """Broadcasts to a hub in the course of its reply, by itself."""

    async def reply(self, msg: Msg) -> Msg:
        hub = MsgHub.open(str(msg.metadata["hub"]))
        await hub.broadcast(Msg(self.name, "aside", "assistant"))
        if "gate" in msg.metadata:
            note(msg.metadata["note"])
            await opened(msg.metadata["gate"])
        await hub.broadcast(Msg(self.name, "another aside", "assistant"))
        heard = texts(await self.memory.get_memory())
        await asyncio.sleep(0)
        return Msg(self.name, f"after {heard or 'nothing'}", "assistant")


class EagerSpeaker(Speaker, observe="eager"):
    """The same, and told at once."""

    def __init__(self, name: str, notes: str) -> None:
        super().__init__(name)
        self.notes = notes


async def collected(name: str, count: int, since: str = "start") -> list[str]:
    """The texts of so many events."""
    found = []
    async for event in callsheet.hub.listen(name, since):
        found.append(str(event.msg.get_text_content()))
        if len(found) == count:
            break
    return found
