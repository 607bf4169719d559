"""`callsheet flower`: Flower for Callsheet's app, open to nobody by mistake."""

import os

import click

from callsheet.cli.embedded_redis import LOOPBACK, chosen
from callsheet.cli.flower_access import Access
from callsheet.cli.processes import without_keys
from callsheet.cli.stack import python_command
from callsheet.cli.terminal import say
from callsheet.resources.redis import sync_client, translated
from callsheet.settings import get_settings

_COLUMNS = "name,args,state,runtime,retries,worker,uuid,received"


@click.command(epilog="""\b
Examples:
  callsheet flower
  CALLSHEET_REDIS_URL=redis://10.0.0.5:6379/0 callsheet flower --port 5556
  CALLSHEET_FLOWER_AUTH=me:password callsheet flower --address 0.0.0.0
  callsheet flower -- --persistent=true            what follows -- goes to Flower""")
@click.option("--address", default=LOOPBACK, show_default=True, envvar="FLOWER_ADDRESS", show_envvar=True,
              help="Address to listen on; anything but loopback needs CALLSHEET_FLOWER_AUTH.")
@click.option("--port", default=5555, show_default=True, type=click.IntRange(0, 65535), envvar="FLOWER_PORT",
              show_envvar=True, help="Port; 0: any free one.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF FLOWER]")
def flower(address: str, port: int, options: tuple[str, ...]) -> None:
    """Watch and steer workers and calls in Flower.

    Shows what runs on the Redis at CALLSHEET_REDIS_URL. For calls of workers that `callsheet up` did not start, start
    these with -E.

    On the loopback address it asks nobody who they are, but other web sites cannot use it. On any other it asks for
    user and password: CALLSHEET_FLOWER_AUTH=user:password.
    """
    settings = get_settings()
    access = Access.of((f"--address={address}", f"--port={port}", *options), settings)
    with translated(settings):
        sync_client(settings).ping()
    where, env = f"unix socket {access.unix_socket}", {**without_keys(os.environ), **access.env()}
    command = [*python_command("callsheet.cli.flower_server"), *access.options]
    if not access.unix_socket:
        port = chosen(access.port, "Flower", "--port", host=access.address)
        command += [f"--address={access.address}", f"--port={port}"]
        shown = f"[{access.address}]" if ":" in access.address else access.address or "0.0.0.0"  # noqa: S104 - shown only
        where = f"http{'s' if access.encrypted else ''}://{shown}:{port}"
    env.setdefault("FLOWER_TASKS_COLUMNS", _COLUMNS)
    say(f"Flower on {where}, for {settings.redis_address}; {access.told}. Ctrl-C stops it.")
    if access.warning:
        say(access.warning, err=True)
    os.execve(command[0], command, env)  # noqa: S606 - the process becomes Flower
