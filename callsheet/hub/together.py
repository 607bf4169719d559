"""Broadcasts of one event loop that are made while another is on its way to Redis travel together, in their order."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from redis.exceptions import NoScriptError

from callsheet.resources.gathering import Gathering
from callsheet.resources.loops import PerLoop
from callsheet.resources.redis import Script, async_client
from callsheet.settings import Settings

_MOST = 200  # in one trip

Given = tuple[Sequence[str], Sequence[Any]]


async def _trip(script: Script, settings: Settings, batch: list[Given]) -> list[Any]:
    client = async_client(settings)
    if len(batch) == 1:
        return [await script.arun(client, *batch[0])]
    answers = await _run_all(client, script, batch, False)
    if any(isinstance(answer, NoScriptError) for answer in answers):
        # The server has forgotten the script. One that did run before that is known by its broadcast's id.
        answers = await _run_all(client, script, batch, True)
    return answers


async def _run_all(client: Any, script: Script, batch: list[Given], by_text: bool) -> list[Any]:
    async with client.pipeline(transaction=False) as pipe:
        for keys, args in batch:
            pipe.execute_command(*script.command(keys, args, by_text))
        return list(await pipe.execute(raise_on_error=False))


_senders: PerLoop[Gathering[Given]] = PerLoop()


def together(script: Script, settings: Settings) -> Gathering[Given]:
    """The running loop's: it runs a script again and again, each run with keys and arguments of its own."""
    key = script.sha, settings.redis_url.get_secret_value()
    return _senders.get(key, lambda: Gathering(
        partial(_trip, script, settings), lambda waiting: min(len(waiting), _MOST), "callsheet-hubs"))
