"""`callsheet top`: queues, workers, agents, endpoints and hubs, live."""

import os
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import click
from rich.console import Group, RenderableType

from callsheet.cli.terminal import Table, Text
from callsheet.cli.tree_rows import seconds
from callsheet.errors import RedisUnavailable
from callsheet.hub.elastic import HubLag, hub_lags
from callsheet.resources.backlog import UNACKED, backlogs
from callsheet.resources.limits.messages import Limits
from callsheet.resources.redis import sync_client, translated
from callsheet.settings import Settings, get_settings
from callsheet.settings.keys import Keys
from callsheet.tasks.app import current_app
from callsheet.tasks.control import ask
from callsheet.workers import status

PIPED = 140
"""Columns where the output is no terminal, and so has no edge."""


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
    from rich.console import Console
    from rich.live import Live

    from callsheet.cli.top import Look, Rates, frame, look

    settings, console = get_settings(), Console(highlight=False)
    rates, one = Rates(), look(settings)  # an error here ends the command; a later one is shown
    if once:
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = PIPED
        console.print(frame(one, rates, lines))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            if not one.trouble:
                rates.take(one)
            live.update(frame(one, rates, lines), refresh=True)
            time.sleep(every)
            try:
                one = look(settings)
            except RedisUnavailable as exc:
                one = Look(at=time.time(), address=settings.redis_address, trouble=str(exc))


MOST_HUBS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """How far an endpoint's limits are used up."""

    limits: dict[str, tuple[float, int]] = field(default_factory=dict)
    """What is used of each that there is, and how much may be, by what people call it."""
    waiting: int = 0  # calls that wait for their turn, of the whole fleet
    breaker: str = "closed"  # "closed", "open" or "probing"


@dataclass(slots=True, kw_only=True)
class Look:
    """One look."""

    at: float  # unix time
    address: str  # of Redis, without its password
    waiting: dict[str, int] = field(default_factory=dict)  # messages, by queue
    held: int = 0  # messages that workers hold
    workers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each told, by name; of those that are no workers of ours why that cannot be read, as `unread`."""
    quotas: dict[str, Quota] = field(default_factory=dict)  # by endpoint
    hubs: list[HubLag] = field(default_factory=list)  # those used last
    trouble: str = ""  # what was wrong, or ""

    def readers(self, queue: str) -> int:
        """Workers that read a queue."""
        return sum(queue in one.get("queues", ()) for one in self.workers.values())

    def agents(self) -> dict[str, list[float]]:
        """By agent: calls that ended, those of them that failed, their seconds; of all workers together."""
        return _summed(one.get("agents", {}) for one in self.workers.values())

    def models(self) -> dict[str, list[float]]:
        """By endpoint: outbound calls, errors, tokens, cost; of all workers together."""
        return _summed(one.get("models", {}) for one in self.workers.values())


def _summed(parts: Any) -> dict[str, list[float]]:
    found: defaultdict[str, list[float]] = defaultdict(list)
    for part in parts:
        for name, numbers in part.items():
            known = found[name]
            found[name] = [a + b for a, b in zip(known, numbers, strict=True)] if known else list(numbers)
    return dict(found)


def look(settings: Settings) -> Look:
    """One look; blocks for some Redis trips and until the workers have answered.

    Raises:
        RedisUnavailable: no Redis answers.
    """
    found = Look(at=time.time(), address=settings.redis_address)
    with translated(settings):
        found.workers = status.told(ask(current_app(settings), settings, status.STATUS))
        client = sync_client(settings)
        served = [queue for one in found.workers.values() for queue in one.get("queues", ())]
        found.waiting = backlogs([*settings.known_queues, *served], client)
        found.held = int(client.hlen(UNACKED))
        found.quotas = _quotas(settings, client)
        found.hubs = hub_lags(client, Keys(settings.key_prefix), MOST_HUBS)
    found.at = time.time()
    return found


def _quotas(settings: Settings, client: Any) -> dict[str, Quota]:
    """Of endpoints with limits, and those that are left alone."""
    keys, names = Keys(settings.key_prefix), list(settings.endpoints)
    limits = {name: Limits.of(endpoint) for name, endpoint in settings.endpoints.items()}
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            window = limits[name].window
            pipe.hmget(keys.limits(name, window, "state"), "sum_r", "sum_t", "held")
            pipe.zcard(keys.limits(name, window, "queue"))
            pipe.hget(keys.breaker(name), "state")
        answers = pipe.execute()
    found = {}
    for number, name in enumerate(names):
        (requests, tokens, held), queued, breaker = answers[3 * number:3 * number + 3]
        most = limits[name]
        if most.any or breaker or queued:
            used = (("requests", requests, most.requests), ("tokens", tokens, most.tokens),
                    ("under way", held, most.calls))
            found[name] = Quota(
                limits={what: (max(0.0, float(count or 0)), of) for what, count, of in used if of is not None},
                waiting=queued, breaker=breaker.decode() if breaker else "closed")
    return found


class Rates:
    """How fast numbers that only grow did so between the last two looks."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, ...], float] = {}
        self._now: dict[tuple[str, ...], float] = {}
        self._seconds = 0.0
        self._at = 0.0

    def take(self, one: Look) -> None:
        """The newest look."""
        self._seconds, self._at = (one.at - self._at if self._at else 0.0), one.at
        self._before, self._now = self._now, {}
        for name, worker in one.workers.items():
            self._now["worker", name] = worker.get("tasks", 0)
        for agent, numbers in one.agents().items():
            self._now["agent", agent] = numbers[0]
        for endpoint, numbers in one.models().items():
            self._now["tokens", endpoint], self._now["calls", endpoint] = numbers[2], numbers[0]
            self._now["cost", endpoint] = numbers[3]

    def of(self, *key: str) -> float | None:
        """A second; None while that is not known, as after a worker began anew."""
        if not self._seconds or key not in self._before or key not in self._now:
            return None
        grown = self._now[key] - self._before[key]
        return grown / self._seconds if grown >= 0 else None

    def total(self, kind: str) -> float | None:
        """Of all of a kind together."""
        rates = [rate for key in self._now if key[0] == kind and (rate := self.of(*key)) is not None]
        return sum(rates) if rates else None


BAR = 12
"""Characters of a bar."""


def frame(one: Look, rates: Rates, lines: int = 12) -> Group:
    """What is shown of a look, with so many rows of a table at most."""
    parts: list[RenderableType] = [_head(one, rates), Text()]
    if one.trouble:
        parts.append(Text(one.trouble, "bold red"))
    parts += [_queues(one, lines), Text(), _workers(one, rates, lines)]
    agents, models = one.agents(), one.models()
    if agents:
        parts += [Text(), _agents(agents, rates, lines)]
    if models or one.quotas:
        parts += [Text(), _endpoints(one, models, rates, lines)]
    if one.hubs:
        parts += [Text(), _hubs(one, lines)]
    return Group(*parts)


def _head(one: Look, rates: Rates) -> Text:
    count = len(one.workers)
    facts = [one.address, time.strftime("%H:%M:%S", time.localtime(one.at)),
             f"{count} {'worker' if count == 1 else 'workers'}"]
    calls, tokens, cost = rates.total("worker"), rates.total("tokens"), rates.total("cost")
    if calls is not None:
        facts.append(f"{calls:,.1f} tasks/s")
    if tokens is not None:
        facts.append(f"{60 * tokens:,.0f} tokens/min")
    if cost:
        facts.append(f"cost {3600 * cost:,.2f}/h")
    return Text.assemble(("callsheet top", "bold"), ("  " + " · ".join(facts), "dim"))


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", expand=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=True, overflow="ellipsis")
    return table


def _more(table: Table, count: int, lines: int) -> Table:
    if count > lines:
        table.add_row(Text(f"… {count - lines:,} more", "dim"))
    return table


def _queues(one: Look, lines: int) -> Table:
    table = _table("queue", "waiting", "workers", "")
    queues = sorted(one.waiting.items(), key=lambda item: (-item[1], item[0]))
    for queue, waiting in queues[:lines]:
        readers = one.readers(queue)
        alone = waiting and not readers
        remark = Text("no worker reads it", "bold red") if alone else Text()
        table.add_row(queue, Text(f"{waiting:,}", "red" if alone else "yellow" if waiting else ""),
                      f"{readers}" if readers else Text("–", "dim"), remark)
    if one.held:
        table.add_row(Text("with workers", "dim"), f"{one.held:,}")
    return _more(table, len(queues), lines)


def _workers(one: Look, rates: Rates, lines: int) -> RenderableType:
    if not one.workers:
        return Text.assemble(("worker", "bold"), "\n", ("No worker answers. Start one: celery -A callsheet.workers.io "
                             "worker, or callsheet up.", "yellow"))
    table = _table("worker", "pool", "slots", "", "waiting", "parked", "tasks/s", "lag", "queues", "size by", left=3)
    for name, told in list(one.workers.items())[:lines]:
        if "slots" not in told:
            table.add_row(name, Text(told.get("unread", ""), "dim"))
            continue
        slots = told["slots"]
        blocked = slots["loop_lag_seconds"] > 0.25
        lag = Text(seconds(slots["loop_lag_seconds"]), "red" if blocked else "") if told["pool"] == "asyncio" else "–"
        scale = told.get("autoscale")
        table.add_row(name, told["pool"], _bar(slots["slots_used"], slots["slots"]),
                      f"{slots['slots_used']:,.0f}/{slots['slots']:,.0f}", _number(slots["slots_waiting"]),
                      _number(slots["parked"]), _rate(rates.of("worker", name)), lag, ",".join(told["queues"]),
                      str(scale["bound"]) if scale else "–")
    return _more(table, len(one.workers), lines)


def _agents(agents: dict[str, list[float]], rates: Rates, lines: int) -> Table:
    table = _table("agent", "calls", "calls/s", "failed", "reply on average")
    busiest = sorted(agents.items(), key=lambda item: (-(rates.of("agent", item[0]) or 0), -item[1][0], item[0]))
    for name, (ended, failed, took) in busiest[:lines]:
        share = f"{failed:,.0f} ({failed / ended:.0%})" if failed else "0"
        table.add_row(name, f"{ended:,.0f}", _rate(rates.of("agent", name)), Text(share, "red" if failed else ""),
                      seconds(took / ended if ended else None))
    return _more(table, len(agents), lines)


def _endpoints(one: Look, models: dict[str, list[float]], rates: Rates, lines: int) -> Table:
    table = _table("endpoint", "calls", "calls/s", "errors", "tokens/min", "cost", "waiting", "limits", "breaker")
    names = sorted({*models, *one.quotas})
    for name in names[:lines]:
        calls, errors, _, cost = models.get(name, [0, 0, 0, 0.0])
        quota, tokens = one.quotas.get(name, Quota()), rates.of("tokens", name)
        table.add_row(name, f"{calls:,.0f}", _rate(rates.of("calls", name)),
                      Text(f"{errors:,.0f}", "red" if errors else ""),
                      f"{60 * tokens:,.0f}" if tokens is not None else "–", f"{cost:,.4f}" if cost else "–",
                      _number(quota.waiting), _limits(quota),
                      Text(quota.breaker, "" if quota.breaker == "closed" else "bold red"))
    return _more(table, len(names), lines)


def _limits(quota: Quota) -> Text:
    words = Text()
    for name, (used, most) in quota.limits.items():
        full = used >= 0.9 * most
        words.append(", " if words else "").append(f"{used:,.0f}/{most:,} {name}", "yellow" if full else "")
    return words or Text("–", "dim")


def _hubs(one: Look, lines: int) -> Table:
    table = _table("hub", "members", "messages", "behind", "last used")
    for hub in one.hubs[:lines]:
        table.add_row(hub.name, f"{hub.members:,}", f"{hub.messages:,}",
                      Text(f"{hub.behind:,}", "yellow" if hub.behind else ""),
                      f"{seconds(max(0.0, one.at - hub.used))} ago")
    return table


def _bar(used: float, most: float) -> Text:
    full = round(BAR * min(1.0, used / most)) if most else 0
    style = "red" if used >= most > 0 else "green"
    return Text.assemble(("━" * full, style), ("━" * (BAR - full), "bright_black"))


def _number(value: Any) -> Text:
    return Text(f"{value:,.0f}", "yellow" if value else "")


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"
