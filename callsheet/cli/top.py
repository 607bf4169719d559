"""`callsheet top`: queues, workers, agents, endpoints and hubs, live."""

import time
from contextlib import suppress

import click

from callsheet.cli.terminal import console
from callsheet.errors import RedisUnavailable
from callsheet.settings import get_settings


@click.command(short_help="Watch queues, workers, agents, limits and hubs; Ctrl-C ends.", epilog="""\b
Examples:
  callsheet top
  callsheet top --once                 one frame, for a pipe or a log
  CALLSHEET_REDIS_URL=redis://10.0.0.5:6379/0 callsheet top --every 5""")
@click.option("--every", default=2.0, show_default=True, type=click.FloatRange(1), metavar="SECONDS",
              help="Between two looks, 1 at least.")
@click.option("--once", is_flag=True, help="Print one frame and end.")
@click.option("--lines", default=12, show_default=True, type=click.IntRange(1), help="Rows of each table at most.")
def top(every: float, once: bool, lines: int) -> None:
    """Watch queues, workers, agents, endpoints' limits and hubs; Ctrl-C ends.

    Numbers of calls are since each worker began; those a second are since the look before. One look is a few trips to
    Redis and one question to the workers.
    """
    from rich.live import Live

    from callsheet.cli.top_frame import frame
    from callsheet.cli.top_look import Look, Rates, look

    settings, terminal = get_settings(), console(piped=140)
    rates, one = Rates(), look(settings)  # an error here ends the command; a later one is shown
    if once:
        terminal.print(frame(one, rates, lines))
        return
    with Live(console=terminal, screen=True, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            if not one.trouble:
                rates.take(one)
            live.update(frame(one, rates, lines), refresh=True)
            time.sleep(every)
            try:
                one = look(settings)
            except RedisUnavailable as exc:
                one = Look(at=time.time(), address=settings.redis_address, trouble=str(exc))
