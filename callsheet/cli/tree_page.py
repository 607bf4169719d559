"""A job's tree as one page with a time line, which asks no server for anything."""

import base64
import hashlib
import math
import re
import time
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from callsheet.cli.progress import in_words as usage_in_words
from callsheet.cli.tree_rows import Row, Sums, cost, in_words, remarks, rows, seconds, sums, tokens
from callsheet.messages.printable import printable
from callsheet.tasks.tree.nodes import MEANINGS, CallNode, JobNode

TICKS = 5
"""Marks on the time line beside its beginning."""

_PAGE = Path(__file__).with_name("tree_page.html")
_STEPS = (1, 2, 2.5, 5, 10)


class Html(str):
    """Text that is HTML already; whatever else comes into the page is escaped on its way in."""

    __slots__ = ()


def html(form: str, *values: Any) -> Html:
    """`form` with each {} filled by a value: as it is if it is Html, else as text."""
    return Html(form.format(*map(_escaped, values)))


def joined(parts: Iterable[Any], between: str = "") -> Html:
    """Parts one after the other."""
    return Html(between.join(map(_escaped, parts)))


def _escaped(value: Any) -> str:
    return value if isinstance(value, Html) else escape(printable(str(value)))


def written(job: JobNode) -> str:
    """The page."""
    found = sums(job)
    span = max(found.end - found.begin, 1e-6)
    step = _step(span)
    spent = usage_in_words(found.usage)
    lines = [html('<p class="error">{}</p>', job.error)] if job.error else []
    if job.left_out:
        lines.append(html("<p>{} more calls are not shown (--most).</p>", f"{job.left_out:,}"))
    facts = [in_words(found), *([spent] if spent else [])]
    page = _PAGE.read_text(encoding="utf-8")
    script = hashlib.sha256(page.partition("<script>")[2].partition("</script>")[0].encode()).digest()
    values = {
        "title": job.label, "id": job.id, "status": _status(job.status), "span": seconds(found.end - found.begin),
        "facts": joined(html("<li>{}</li>", fact) for text in facts for fact in text.split(" · ")),
        "notes": joined(lines), "ticks": _ticks(span, step), "step": f"{100 * step / span:.3f}%",
        "script": base64.b64encode(script).decode(), "rows": joined((_row(row, job, found) for row in rows(job)), "\n"),
        "looked": time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(job.looked))}
    return Template(page).substitute({name: _escaped(value) for name, value in values.items()})


def _status(status: str) -> Html:
    return html('<span class="s {}" title="{}">{}</span>', _kind(status), MEANINGS.get(status, status), status.lower())


def _kind(status: str) -> str:
    return status.lower().replace(" ", "-")


def _step(span: float) -> float:
    """Round seconds between two marks."""
    rough = span / TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(unit * factor for factor in _STEPS if unit * factor >= rough * 0.999)


def _ticks(span: float, step: float) -> Html:
    marks = []
    for number in range(int(span * 0.94 / step) + 1):
        at = number * step
        text = re.sub(r"\.?0+ s$", " s", seconds(at)) if 0 < at < 99.95 else seconds(at)
        marks.append(html('<span style="left:{}%">{}</span>', f"{100 * at / span:.3f}", text if at else "0"))
    return joined(marks)


def _row(row: Row, job: JobNode, found: Sums) -> Html:
    depth = len(row.branches)
    call = row.call
    label = html('<td class="l" style="--d:{}"><div>{}</div></td>', depth, row.label)
    if call is None:
        state = _status(row.job.status) if row.job is not None else ""
        return html('<tr class="g">{}<td>{}</td><td class="w"></td><td colspan="4"></td><td class="t"></td></tr>{}',
                    label, state, _below(depth, [], row.error(job)))
    now = job.looked
    where = html("{} <i>{}</i>", call.worker, call.pid) if call.worker else (
        html("<i>queue {}</i>", call.queue) if call.queue else "")
    cells = joined(html("<td>{}</td>", text) for text in (
        seconds(call.waited(now) if call.sent else None), seconds(call.ran(now)), tokens(call.usage), cost(call.usage)))
    return html('<tr>{}<td>{}</td><td class="w">{}</td>{}<td class="t">{}</td></tr>{}', label, _status(call.status),
                where, cells, _bars(call, found, now), _below(depth, remarks(call), call.error))


def _below(depth: int, notes: list[str], error: str) -> Html:
    if not notes and not error:
        return Html("")
    told = [" · ".join(notes)] if notes else []
    told += [html('<span class="error">{}</span>', error)] if error else []
    return html('<tr class="n"><td colspan="7" style="--d:{}"><div>{}</div></td><td class="t"></td></tr>', depth,
                joined(told, " · "))


def _bars(call: CallNode, found: Sums, now: float) -> Html:
    if call.sent is None:
        return Html("")
    span = max(found.end - found.begin, 1e-6)

    def bar(kind: str, begin: float, end: float, what: str) -> Html:
        left = max(0.0, min(100.0, 100 * (begin - found.begin) / span))
        width = max(0.0, min(100.0 - left, 100 * (end - begin) / span))
        title = f"{what} {seconds(max(0.0, end - begin))}, from {seconds(max(0.0, begin - found.begin)) or '0'}"
        return html('<b class="{}" style="left:{}%;width:{}%" title="{}"></b>', kind, f"{left:.3f}", f"{width:.3f}",
                    title)

    started = call.started if call.started is not None else now
    bars = [bar("wait", call.sent, started, "waited")] if started > call.sent else []
    if call.started is not None:
        bars.append(bar(f"run {_kind(call.status)}", call.started, call.ended if call.ended is not None else now,
                        "ran"))
    return joined(bars)
