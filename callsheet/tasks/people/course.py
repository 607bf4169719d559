"""What Redis holds for the rest of a job, and would drop while one of its calls waits for a person."""

from collections.abc import Iterator
from typing import Any

from celery._state import get_current_task

from callsheet.resources.payloads import REF
from callsheet.settings import Settings
from callsheet.settings.keys import Keys

_OF_A_CHORD = (".j", ".t", ".s", ".d", "")  # suffixes of Celery's keys


def kept_for_the_course(settings: Settings) -> list[str]:
    """Keys of the large payloads that the current task and the steps behind it refer to, and of the chords that its
    result, or theirs, is a part of.
    """
    task = get_current_task()
    request = task.request_stack.top if task is not None else None
    if request is None:
        return []
    keys, found = Keys(settings.key_prefix), []
    message = [request.args, request.kwargs, request.chain, request.chord, {"group_id": request.group}]
    for kind, value in _named(message):
        if kind == REF:
            found.append(keys.payload(value))
        else:
            found += [_text(task.backend.get_key_for_group(value, suffix)) for suffix in _OF_A_CHORD]
    return list(dict.fromkeys(found))


def _named(data: Any) -> Iterator[tuple[str, str]]:
    """References to payloads, and ids of groups, anywhere in messages."""
    left = [data]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            for kind in (REF, "group_id"):
                if isinstance(item.get(kind), str):
                    yield kind, item[kind]
            left += item.values()
        elif isinstance(item, (list, tuple)):
            left += item


def _text(key: str | bytes) -> str:
    return key.decode() if isinstance(key, bytes) else key
