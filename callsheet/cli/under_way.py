"""What became of jobs that an interrupted run sent, which queues no worker reads, and what to do about that."""

import contextlib
import json
import shlex
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import click
from celery import states

from callsheet.cli.target import Loaded
from callsheet.errors import RedisUnavailable
from callsheet.resources.redis import sync_client, translated
from callsheet.settings import Settings
from callsheet.settings.keys import Keys
from callsheet.tasks.app import current_app
from callsheet.tasks.results import parse
from callsheet.tasks.whereabouts import whereabouts

Fate = Literal["done", "under way", "gone"]
_PAGE = 500
_BETWEEN_LOOKS = 0.1  # seconds, in which a message on its way from a queue to a worker arrives
_PATIENCE = 3.0  # seconds that workers are given to say what they read


def fates(job_ids: Iterable[str], settings: Settings) -> dict[str, Fate]:
    """What became of each job: done well, still waiting or running, or gone (failed, cancelled, never sent, lost)."""
    ids = list(job_ids)
    with translated(settings):
        found = _ended(ids, settings)
        for _ in range(2):
            if len(found) < len(ids):
                messages = {call for call, _ in whereabouts(settings)}
                for job_id, calls in _calls([job_id for job_id in ids if job_id not in found], settings):
                    if messages.intersection(calls):
                        found[job_id] = "under way"
                time.sleep(_BETWEEN_LOOKS)
                # It may have ended while the messages were read.
                found |= _ended([job_id for job_id in ids if found.get(job_id) != "done"], settings)
    return {job_id: found.get(job_id, "gone") for job_id in ids}


def _ended(ids: list[str], settings: Settings) -> dict[str, Fate]:
    client, found = sync_client(settings), dict[str, Fate]()
    for page in _pages(ids):
        for job_id, text in zip(page, client.mget([f"celery-task-meta-{job_id}" for job_id in page]), strict=True):
            status = parse(text)["status"] if text else None
            if status == states.SUCCESS:
                found[job_id] = "done"
            elif status in states.READY_STATES:
                found[job_id] = "gone"
    return found


def _calls(ids: list[str], settings: Settings) -> Iterator[tuple[str, list[str]]]:
    """Each job's calls: a pipeline's are on record, an agent's is the job itself."""
    client, keys = sync_client(settings), Keys(settings.key_prefix)
    for page in _pages(ids):
        with client.pipeline(transaction=False) as pipe:
            for job_id in page:
                pipe.hget(keys.job(job_id), "calls")
            for job_id, calls in zip(page, pipe.execute(), strict=True):
                yield job_id, json.loads(calls) if calls else [job_id]


def _pages(ids: list[str]) -> Iterator[list[str]]:
    return (ids[start:start + _PAGE] for start in range(0, len(ids), _PAGE))


class _Enough(Exception):
    """All queues are served."""


def unserved(queues: Iterable[str], settings: Settings) -> list[str]:
    """Those of `queues` that no worker reads; as soon as it is clear that there are none."""
    wanted = set(queues)

    def heard(answer: dict[str, Any]) -> None:
        for served in answer.values():
            wanted.difference_update(queue["name"] for queue in served or () if isinstance(queue, dict))
        if not wanted:
            raise _Enough

    with translated(settings):
        sync_client(settings).ping()
        with contextlib.suppress(_Enough):
            current_app(settings).control.broadcast("active_queues", reply=True, timeout=_PATIENCE, callback=heard)
    return sorted(wanted)


class Remedies:
    """What to do where no worker takes the calls of one file, or none can build what it defines.

    Args:
        loaded: the file.
        modules: that workers must allow.
        queue: of all calls, or None for the agents' own.
    """

    def __init__(self, loaded: Loaded, modules: tuple[str, ...], queue: str | None) -> None:
        self._loaded = loaded
        self._modules = ",".join(modules)
        self._queues = {queue or member.default_queue() for member in loaded.members()}

    def need_workers(self, settings: Settings) -> None:
        """Refuse to send what nobody would take.

        Raises:
            click.ClickException: no Redis, or no worker for one of the queues; with the remedy.
        """
        try:
            missing = self.unserved(settings)
        except RedisUnavailable as exc:
            raise click.ClickException(f"{str(exc).partition('. Start one')[0]}. Nothing was sent. Start Redis and "
                                       f"workers in another terminal:\n\n{self._up_command()}\n\nor let this command "
                                       "start its own: --up") from None
        if missing:
            raise click.ClickException(f"{missing}\n\nor let this command start its own: --up. Nothing was sent.")

    def unserved(self, settings: Settings) -> str:
        """What to do about queues that no worker reads; "" if there is none."""
        missing = unserved(self._queues, settings)
        if not missing:
            return ""
        address = settings.redis_address
        named = "queue" if len(missing) == 1 else "queues"
        commands = [self._up_command(address)] if {"io", "cpu"} & set(missing) else []
        env = f"CALLSHEET_REDIS_URL={shlex.quote(address)} CALLSHEET_MODULES={self._modules}"
        commands += [f"    {env} celery -A callsheet.workers.io worker -Q {name}"
                     for name in missing if name not in ("io", "cpu")]
        return (f"No worker reads the {named} {', '.join(missing)} at {address}. Start workers in another terminal:"
                "\n\n" + "\n".join(commands))

    def refused(self, why: str) -> str:
        """What to do about workers that cannot build the target, as one said."""
        return (f"The workers cannot build {self._loaded.target.label}: {why}\nRestart them so that they can:\n\n"
                f"{self._up_command()}\n\n(or, for workers started otherwise: CALLSHEET_MODULES={self._modules} and "
                f"{self._loaded.folder} on their PYTHONPATH), or let this command start its own: --up. Then give the "
                "same command again.")

    def _up_command(self, address: str = "") -> str:
        folder = self._loaded.folder
        path = "" if folder == Path.cwd() else f"PYTHONPATH={shlex.quote(str(folder))} "
        redis = f" --redis {shlex.quote(address)}" if address else ""
        return f"    {path}callsheet up --modules {self._modules}{redis}"
