"""The agents that are measured."""

import asyncio
import time

from redis.asyncio import BlockingConnectionPool, Redis

from callsheet import AgentBase, Msg, resources
from callsheet.memory import InMemoryMemory


class Caller(AgentBase):
    """Calls the slow endpoint."""

    def __init__(self, name: str = "caller") -> None:
        self.name = name

    async def reply(self, msg: Msg) -> Msg:
        answer = await resources.client("bench").get("slow")
        return Msg(self.name, answer.json()["answer"], "assistant")


class Listener(AgentBase):
    """Reads a stream that does not end."""

    def __init__(self, path: str) -> None:
        self.path = path

    async def reply(self, msg: Msg | None = None) -> None:
        async with resources.client("bench").stream("GET", self.path) as answer:
            async for _ in answer.aiter_bytes():
                pass


class Noop(AgentBase):
    """Gives nothing, at once."""

    async def reply(self, msg: Msg | None = None) -> None:
        return None


class Burner(AgentBase):
    """Computes in pure Python."""

    def __init__(self, rounds: int, name: str = "burner") -> None:
        self.rounds = rounds
        self.name = name

    def reply(self, msg: Msg) -> Msg:
        return Msg(self.name, str(burn(self.rounds)), "assistant")


class Tallied(AgentBase):
    """Notes in Redis that it began, and takes its time."""

    KEY = "benchmarks:begun"

    def __init__(self, redis_url: str, seconds: float, name: str = "tallied") -> None:
        self.redis_url = redis_url
        self.seconds = seconds
        self.name = name

    async def reply(self, msg: Msg) -> Msg:
        await note(self.redis_url, self.KEY, f"{msg.content} {time.time()}")
        await asyncio.sleep(self.seconds)
        return Msg(self.name, msg.content, "assistant")


class TalliedTwice(Tallied):
    """Notes that it ended, too."""

    ENDED = "benchmarks:ended"

    async def reply(self, msg: Msg) -> Msg:
        answer = await Tallied.reply(self, msg)
        await note(self.redis_url, self.ENDED, f"{msg.content} {time.time()}")
        return answer


_clients: dict[str, Redis] = {}


async def note(url: str, key: str, line: str) -> None:
    if url not in _clients:
        pool = BlockingConnectionPool.from_url(url, max_connections=50, timeout=None)
        _clients[url] = Redis.from_pool(pool)
    await _clients[url].rpush(key, line)


def burn(rounds: int) -> int:
    """Some arithmetic that no compiler takes out."""
    total = 0
    for number in range(rounds):
        total = (total * 31 + number) % 1_000_003
    return total


class Asks(AgentBase):
    """Calls the endpoint with limits; the message says "<tokens> <allowed for the answer> <seconds>"."""

    def __init__(self, name: str = "asks") -> None:
        self.name = name

    async def reply(self, msg: Msg) -> Msg:
        tokens, allowed, seconds = msg.get_text_content().split()
        answer = await resources.client("limited").post("chat/completions", json={
            "messages": [{"role": "user", "content": "x" * (2 * int(tokens))}], "max_tokens": int(allowed),
            "user": f"{tokens} {seconds}"})
        return Msg(self.name, str(answer.status_code), "assistant")


class Clerk(AgentBase):
    """Remembers what it hears, and that is all."""

    def __init__(self, name: str = "clerk") -> None:
        self.name = name
        self.memory = InMemoryMemory()
        self.turns = 0
        self.register_state("turns")

    async def reply(self, msg: Msg) -> None:
        await self.memory.add(msg)
        await self.memory.get_memory()
        self.turns += 1


class Talker(AgentBase):
    """Takes part in group conversations: remembers what it hears, and says what it is told to say."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.memory = InMemoryMemory()

    async def observe(self, msg: Msg) -> None:
        await self.memory.add(msg)

    async def reply(self, msg: Msg) -> Msg:
        if msg.content == "?":
            return Msg(self.name, "|".join(str(one.content) for one in await self.memory.get_memory()), "assistant")
        answer = Msg(self.name, msg.content, "assistant")
        await self.memory.add(answer)
        return answer
