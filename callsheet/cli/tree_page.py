"""A job's tree as one page with a time line, which asks no server for anything."""

import math
import re
import time
from html import escape
from pathlib import Path
from string import Template

from callsheet.cli.spent import in_words as usage_in_words
from callsheet.cli.tree_rows import Row, Sums, cost, in_words, remarks, rows, seconds, sums, tokens
from callsheet.tasks.tree.nodes import MEANINGS, CallNode, JobNode

TICKS = 5
"""Marks on the time line beside its beginning."""

_PAGE = Path(__file__).with_name("tree_page.html")
_STEPS = (1, 2, 2.5, 5, 10)


def written(job: JobNode) -> str:
    """The page."""
    found = sums(job)
    span = max(found.end - found.begin, 1e-6)
    step = _step(span)
    spent = usage_in_words(found.usage)
    lines = [f'<p class="error">{escape(job.error)}</p>'] if job.error else []
    if job.left_out:
        lines.append(f"<p>{job.left_out:,} more calls are not shown (--most).</p>")
    facts = [in_words(found), *([spent] if spent else [])]
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(job.label), id=escape(job.id), status=_status(job.status), span=seconds(found.end - found.begin),
        facts="".join(f"<li>{escape(fact)}</li>" for text in facts for fact in text.split(" · ")),
        notes="".join(lines), ticks=_ticks(span, step), step=f"{100 * step / span:.3f}%",
        rows="\n".join(_row(row, job, found) for row in rows(job)),
        looked=escape(time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(job.looked))))


def _status(status: str) -> str:
    kind = status.lower().replace(" ", "-")
    return f'<span class="s {kind}" title="{escape(MEANINGS.get(status, status))}">{escape(status.lower())}</span>'


def _step(span: float) -> float:
    """Round seconds between two marks."""
    rough = span / TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(unit * factor for factor in _STEPS if unit * factor >= rough * 0.999)


def _ticks(span: float, step: float) -> str:
    marks = []
    for number in range(int(span * 0.94 / step) + 1):
        at = number * step
        text = re.sub(r"\.?0+ s$", " s", seconds(at)) if 0 < at < 99.95 else seconds(at)
        marks.append(f'<span style="left:{100 * at / span:.3f}%">{text if at else "0"}</span>')
    return "".join(marks)


def _row(row: Row, job: JobNode, found: Sums) -> str:
    depth = len(row.branches)
    call = row.call
    label = f'<td class="l" style="--d:{depth}"><div>{escape(row.label)}</div></td>'
    if call is None:
        state = _status(row.job.status) if row.job is not None else ""
        error = row.job.error if row.job is not None and row.job is not job else ""
        cells = f'<td>{state}</td><td class="w"></td><td colspan="4"></td><td class="t"></td>'
        return f'<tr class="g">{label}{cells}</tr>{_below(depth, [], error)}'
    now = job.looked
    where = f"{escape(call.worker)} <i>{call.pid}</i>" if call.worker else (
        f"<i>queue {escape(call.queue)}</i>" if call.queue else "")
    cells = "".join(f"<td>{text}</td>" for text in (
        seconds(call.waited(now) if call.sent else None), seconds(call.ran(now)), tokens(call.usage), cost(call.usage)))
    return (f'<tr>{label}<td>{_status(call.status)}</td><td class="w">{where}</td>{cells}'
            f'<td class="t">{_bars(call, found, now)}</td></tr>{_below(depth, remarks(call), call.error)}')


def _below(depth: int, notes: list[str], error: str) -> str:
    if not notes and not error:
        return ""
    text = escape(" · ".join(notes))
    told = f'<span class="error">{escape(error)}</span>' if error else ""
    between = " · " if text and told else ""
    cell = f'<td colspan="7" style="--d:{depth}"><div>{text}{between}{told}</div></td>'
    return f'<tr class="n">{cell}<td class="t"></td></tr>'


def _bars(call: CallNode, found: Sums, now: float) -> str:
    if call.sent is None:
        return ""
    span = max(found.end - found.begin, 1e-6)

    def bar(kind: str, begin: float, end: float, what: str) -> str:
        left = max(0.0, min(100.0, 100 * (begin - found.begin) / span))
        width = max(0.0, min(100.0 - left, 100 * (end - begin) / span))
        title = f"{what} {seconds(max(0.0, end - begin))}, from {seconds(max(0.0, begin - found.begin)) or '0'}"
        return f'<b class="{kind}" style="left:{left:.3f}%;width:{width:.3f}%" title="{escape(title)}"></b>'

    started = call.started if call.started is not None else now
    bars = bar("wait", call.sent, started, "waited") if started > call.sent else ""
    if call.started is not None:
        kind = call.status.lower().replace(" ", "-")
        bars += bar(f"run {kind}", call.started, call.ended if call.ended is not None else now, "ran")
    return bars
