"""`callsheet flower`: Flower for Callsheet's app."""

import os

import click

from callsheet.cli.ports import chosen
from callsheet.cli.stack import flower_command
from callsheet.resources.redis import sync_client, translated
from callsheet.settings import get_settings


@click.command(epilog="""\b
Examples:
  callsheet flower
  CALLSHEET_REDIS_URL=redis://10.0.0.5:6379/0 callsheet flower --port 5556
  callsheet flower -- --basic-auth=me:secret       what follows -- goes to Flower""")
@click.option("--port", default=5555, show_default=True, type=click.IntRange(0, 65535),
              help="Port; 0: any free one.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def flower(port: int, options: tuple[str, ...]) -> None:
    """Watch workers and calls in Flower, on the loopback address.

    Shows what runs on the Redis at CALLSHEET_REDIS_URL. For calls of workers that `callsheet up` did not start, start
    these with -E.
    """
    settings = get_settings()
    with translated(settings):
        sync_client(settings).ping()
    port = chosen(port, "Flower", "--port")
    click.echo(f"Flower on http://127.0.0.1:{port}, for {settings.redis_address}. Ctrl-C stops it.")
    command = flower_command(port, *options)
    os.execv(command[0], command)  # noqa: S606 - the process becomes Flower
