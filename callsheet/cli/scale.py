"""`callsheet scale`: worker processes of this machine, as many as their load needs."""

import re
import time
from pathlib import Path

import click

from callsheet.cli.fleet import Fleet, Plan
from callsheet.cli.processes import Interrupts
from callsheet.cli.stack import claimed, write_info
from callsheet.cli.terminal import moment, say
from callsheet.errors import SettingsError
from callsheet.resources.redis import sync_client, translated
from callsheet.scaling import Limits
from callsheet.settings import get_settings
from callsheet.workers.app import wrong_with

DEFAULTS = {"io": "--autoscale=500,20", "cpu": "--concurrency=1"}
_OURS = {"-n": "names", "--hostname": "names", "-D": "runs", "--detach": "runs", "--pidfile": "keeps"}


def given(options: tuple[str, ...], *names: str) -> str | None:
    """The value of an option among those for a worker, as `-c 4`, `-c4`, `--concurrency 4` or `--concurrency=4`."""
    found = None
    for i, option in enumerate(options):
        for name in names:
            if option == name and i + 1 < len(options):
                found = options[i + 1]
            elif option.startswith(f"{name}=") or (len(name) == 2 and option.startswith(name) and option != name):
                found = option[len(name):].removeprefix("=")
    return found


def per_worker(kind: str, options: tuple[str, ...]) -> int:
    """Calls that one worker runs at once, by its options.

    Raises:
        click.BadParameter: they cannot be right, or say nothing.
    """
    scale = given(options, "--autoscale")
    if scale is not None:
        if wrong := wrong_with(scale):
            raise click.BadParameter(wrong, param_hint="--autoscale")
        return int(scale.split(",")[0])
    slots = given(options, "-c", "--concurrency") or ""
    if not re.fullmatch(r"[1-9]\d*", slots):
        raise click.BadParameter(f"{slots!r} is no number of calls that a worker runs at once. Give a whole number, "
                                 f"or {DEFAULTS[kind]}.", param_hint="--concurrency")
    return int(slots)


def checked(options: tuple[str, ...]) -> None:
    """Refuse what the controller sees to itself."""
    for option in options:
        name = option.partition("=")[0] if option.startswith("--") else option[:2]
        if name in _OURS:
            raise click.BadParameter(f"{name} cannot be given: the controller {_OURS[name]} the workers itself.",
                                     param_hint="OPTIONS")


@click.command(short_help="Start and drain whole workers of this machine by their load.", epilog="""\b
Examples:
  callsheet scale io --min 1 --max 4 -- --autoscale=500,20
  callsheet scale cpu --min 0 --max 8
  callsheet scale io --max 3 --data /var/lib/callsheet/gpu -- -Q gpu -c 50""")
@click.argument("kind", type=click.Choice(["io", "cpu"]))
@click.option("--min", "minimum", default=1, show_default=True, type=click.IntRange(0), help="Workers at least.")
@click.option("--max", "maximum", required=True, type=click.IntRange(1), help="Workers at most.")
@click.option("--data", default=None, type=click.Path(file_okay=False, path_type=Path),
              help="Folder of their logs.  [default: .callsheet/scale-KIND]")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF CELERY WORKER]")
def scale(kind: str, minimum: int, maximum: int, data: Path | None, options: tuple[str, ...]) -> None:
    """Start and drain whole workers of this machine by the load on their queues.

    What follows -- goes to each `celery worker`; without --autoscale or -c among it, --autoscale=500,20 for io and -c 1
    for cpu. Runs until Ctrl-C or SIGTERM, then lets all calls end. A worker that is taken away ends its calls first,
    one that dies is replaced.
    """
    try:
        limits = Limits(minimum=minimum, maximum=maximum)
    except SettingsError as exc:
        raise click.BadParameter(f"--min {minimum} --max {maximum}: {exc}", param_hint="--max") from None
    checked(options)
    if given(options, "--autoscale", "-c", "--concurrency") is None:
        options = (*options, DEFAULTS[kind])
    queues = tuple(filter(None, (given(options, "-Q", "--queues") or kind).split(",")))
    folder = data or Path(".callsheet") / f"scale-{kind}"
    plan = Plan(kind=kind, options=options, queues=queues, per_worker=per_worker(kind, options), limits=limits,
                data=folder)
    settings = get_settings()
    with translated(settings):
        sync_client(settings).ping()
    with claimed(folder, "--data"), Interrupts().caught() as interrupts:
        write_info(folder, {"redis": settings.redis_address})
        tell(f"{minimum} to {maximum} {kind} workers of {plan.per_worker} calls each, for {settings.redis_address}; "
            f"logs in {folder / 'logs'}. Ctrl-C drains them.")
        Fleet(plan, settings, tell).run(interrupts)
        tell("all workers have ended.")


def tell(text: str) -> None:
    """Show a line, with the time."""
    say(f"[{moment(time.time())}] {text}")
