"""`callsheet up`: Redis, workers and Flower on this machine."""

import os
import re
from pathlib import Path

import click

from callsheet.cli.processes import Interrupted, Interrupts, ServiceFailed
from callsheet.cli.stack import Plan, Stack, assigned, claimed, write_info
from callsheet.cli.terminal import say


def autoscale(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Check a "MAX,MIN", or "0" for no worker."""
    if value == "0":
        return value
    if re.fullmatch(r"[1-9]\d*", value):
        value = f"{value},{value}"
    if not re.fullmatch(r"[1-9]\d*,\d+", value) or int(value.split(",")[0]) < int(value.split(",")[1]):
        raise click.BadParameter("MAX,MIN is needed, such as 500,20: two whole numbers, the greater first; or 0 for "
                                 "no such worker.")
    return value


def module_names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Split a "a,b"."""
    return None if value is None else tuple(filter(None, (part.strip() for part in value.split(","))))


PORT = click.IntRange(0, 65535)


@click.command(short_help="Redis, an io worker, a cpu worker and Flower on this machine.", epilog="""\b
Examples:
  callsheet up --modules myproject.agents
  callsheet up --modules agents --io 2000,50 --cpu 4,1 --redis-port 0
  callsheet up --modules agents --stub-model          no key, no model: answers by extraction""")
@click.option("--io", default="500,20", show_default=True, metavar="MAX,MIN", callback=autoscale,
              help="Calls that the io worker runs at once; 0: no such worker.")
@click.option("--cpu", default="2,1", show_default=True, metavar="MAX,MIN", callback=autoscale,
              help="Processes of the cpu worker; 0: no such worker.")
@click.option("--modules", metavar="A,B", callback=module_names,
              help="Modules whose agents workers may build, importable from this folder. Default: CALLSHEET_MODULES.")
@click.option("--redis-port", default=6379, show_default=True, type=PORT,
              help="Port of the Redis that is started; 0: any free one.")
@click.option("--redis", "redis_url", metavar="URL", help="Use this Redis in place of starting one.")
@click.option("--flower-port", default=5555, show_default=True, type=PORT, help="Port of Flower; 0: any free one.")
@click.option("--no-flower", is_flag=True, help="Start no Flower.")
@click.option("--data", default=".callsheet", show_default=True, type=click.Path(file_okay=False, path_type=Path),
              help="Folder of Redis' append-only file and the logs.")
@click.option("--stub-model", is_flag=True, help="Start the stub model too, and point the workers at it.")
@click.option("--stub-port", default=8808, show_default=True, type=PORT,
              help="Port of the stub model; 0: any free one.")
@click.option("--patience", default=20.0, show_default=True, type=click.FloatRange(0),
              help="Seconds that running calls are given to end when you stop.")
def up(io: str, cpu: str, modules: tuple[str, ...] | None, redis_port: int, redis_url: str | None, flower_port: int,
       no_flower: bool, data: Path, stub_model: bool, stub_port: int, patience: float) -> None:
    """Start Redis, an io worker, a cpu worker and Flower on this machine.

    Runs until Ctrl-C, then lets running calls end and stops all; waiting calls stay in Redis' append-only file for
    the next time. All listen on the loopback address only.
    """
    plan = Plan(data=data, io=io, cpu=cpu, modules=modules, redis_url=redis_url, redis_port=redis_port,
                flower_port=None if no_flower else flower_port, stub_port=stub_port if stub_model else None,
                path=(Path.cwd(),), patience=patience)
    with claimed(data), Interrupts().caught() as interrupts:
        stack = Stack(plan, interrupts)
        say("Starting ...")
        try:
            stack.start()
            write_info(data, {"redis": stack.redis_address})
            say(_table(stack))
            stack.supervisor.watch()
        except Interrupted:
            pass
        except ServiceFailed as exc:
            exc.show()
            say("Stopping the others ...", err=True)
            raise SystemExit(1) from None
        else:
            say(f"\nStopping: running calls are given {patience:g} s to end; Ctrl-C again hurries ...")
        finally:
            stack.stop()
        say("Stopped.")


def _table(stack: Stack) -> str:
    rows = [("", "what", "pid", "log")]
    if stack.plan.redis_url is not None:
        rows.append(("redis", f"{stack.settings.redis_address} (yours)", "", ""))
    rows += [(process.name, process.service.where, str(process.pid), _shown(process.service.log))
             for process in stack.supervisor.processes]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    modules = ", ".join(stack.settings.modules)
    lines += ["", f"Workers build agents from: {modules}" if modules else
              "Workers build no agents of yours yet: name their modules with --modules.",
              f"To submit from elsewhere:  export CALLSHEET_REDIS_URL={assigned(stack.redis_address)}"]
    if stack.stub_url:
        lines.append(f"To call the stub model:    export CALLSHEET_ENDPOINTS__OPENAI__BASE_URL={stack.stub_url}")
    return "\n".join([*lines, "Ready. Ctrl-C stops all."])


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)
