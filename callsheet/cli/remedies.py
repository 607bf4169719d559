"""What to do where no worker serves a file: said with the very command that mends it."""

import shlex
from pathlib import Path

import click

from callsheet.cli.target import Loaded
from callsheet.cli.under_way import unserved
from callsheet.errors import RedisUnavailable
from callsheet.settings import Settings


class Remedies:
    """Remedies for one file, whose modules workers must allow; all calls may have one queue."""

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
