"""Where calls are that have not ended: the one place that goes through all in Redis where a message may lie."""

from collections.abc import Iterator
from typing import Any, Literal

from callsheet.messages.quick import readable
from callsheet.resources.backlog import STEPS, UNACKED
from callsheet.resources.redis import sync_client, translated
from callsheet.settings import Settings
from callsheet.settings.keys import Keys

#: On a queue, whatever its priority; with a worker, which runs it or holds it until its time; put away until its time,
#: which is far ahead; waiting for its agent's turn.
Where = Literal["queued", "held", "delayed", "parked"]

_PAGE = 500


def queued(queue: str, client: Any) -> Iterator[Any]:
    """The messages that wait in a queue, whatever their priority."""
    for step in STEPS:
        start = 0
        while page := client.lrange(queue + step, start, start + _PAGE - 1):
            start += len(page)
            yield from map(readable, page)


def held(client: Any) -> Iterator[Any]:
    """The messages that workers have, also of workers that were lost, until their leases are over."""
    for _, text in client.hscan_iter(UNACKED, count=_PAGE):
        entry = readable(text)
        yield entry[0] if isinstance(entry, list) and entry else None


def whereabouts(settings: Settings) -> Iterator[tuple[str, Where]]:
    """The task ids of all calls that have not ended, each with where it is; some twice. Blocks."""
    with translated(settings):
        client, keys = sync_client(settings), Keys(settings.key_prefix)
        for _ in range(2):  # a message may go back meanwhile to where was looked before
            for queue in settings.known_queues:
                yield from ((_task_id(message), "queued") for message in queued(queue, client))
            yield from ((_task_id(message), "held") for message in held(client))
            for task_id, _ in client.zscan_iter(f"{UNACKED}_later", count=_PAGE):
                yield task_id.decode(errors="replace"), "delayed"
            for agent, _ in client.zscan_iter(keys.lines(), count=_PAGE):
                for call, _ in client.zscan_iter(keys.line(agent.decode(errors="replace")), count=_PAGE):
                    yield call.decode(errors="replace"), "parked"


def _task_id(message: Any) -> str:
    """ "None" of what is no message: something else writes to the queue."""
    headers = message.get("headers") if isinstance(message, dict) else None
    return str(headers.get("id") if isinstance(headers, dict) else None)
