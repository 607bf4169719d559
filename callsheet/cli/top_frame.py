"""One frame of `callsheet top`."""

import time
from typing import Any

from rich.console import Group, RenderableType

from callsheet.cli.terminal import Table, Text
from callsheet.cli.top_look import Look, Quota, Rates
from callsheet.cli.tree_rows import seconds

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
