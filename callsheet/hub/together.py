"""Broadcasts of one event loop that are made while another is on its way to Redis travel together, in their order."""

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.exceptions import NoScriptError

from callsheet.resources.loops import PerLoop
from callsheet.resources.redis import async_client
from callsheet.resources.scripts import Script
from callsheet.settings import Settings

_MOST = 200  # in one trip

Given = tuple[Sequence[str], Sequence[Any]]


class Together:
    """Runs a script again and again, each run with keys and arguments of its own; on one loop.

    Args:
        script: to run.
        settings: ours.
    """

    def __init__(self, script: Script, settings: Settings) -> None:
        self._script, self._settings = script, settings
        self._waiting: list[tuple[asyncio.Future[Any], Given]] = []
        self._sending: asyncio.Task[None] | None = None

    async def run(self, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run it; gives its answer."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((future, (keys, args)))
        if self._sending is None or self._sending.done():
            self._sending = loop.create_task(self._send())
        return await future

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            try:
                answers = await self._trip([given for _, given in batch])
            except BaseException as exc:
                answers = [exc] * len(batch)
            for (future, _), answer in zip(batch, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, BaseException):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    async def _trip(self, batch: list[Given]) -> list[Any]:
        client = async_client(self._settings)
        if len(batch) == 1:
            return [await self._script.arun(client, *batch[0])]
        answers = await self._run_all(client, batch, False)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            # None of them has run: the server has forgotten the script, and answers each the same.
            answers = await self._run_all(client, batch, True)
        return answers

    async def _run_all(self, client: Any, batch: list[Given], by_text: bool) -> list[Any]:
        async with client.pipeline(transaction=False) as pipe:
            for keys, args in batch:
                pipe.execute_command(*self._script.command(keys, args, by_text))
            return list(await pipe.execute(raise_on_error=False))

    async def aclose(self) -> None:
        """Break off what is under way."""
        if self._sending is not None:
            self._sending.cancel()


_senders: PerLoop[Together] = PerLoop()


def together(script: Script, settings: Settings) -> Together:
    """The running loop's."""
    key = script.sha, settings.redis_url.get_secret_value()
    return _senders.get(key, lambda: Together(script, settings))
