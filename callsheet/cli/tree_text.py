"""A job's tree in the terminal."""

import textwrap
from collections.abc import Iterator

from callsheet.cli.progress import in_words as usage_in_words
from callsheet.cli.terminal import Text
from callsheet.cli.tree_rows import Row, Sums, cost, in_words, remarks, rows, seconds, sums, tokens
from callsheet.tasks.tree.nodes import CallNode, JobNode

BAR = 28
"""Characters of a call's time line."""

LONGEST_PLACE = 26
"""Characters of a worker's name."""

STYLES = {"SUCCESS": ("✓", "green"), "FAILURE": ("✗", "red"), "REVOKED": ("■", "magenta"), "RETRY": ("↻", "yellow"),
          "RUNNING": ("▶", "cyan"), "TAKEN": ("…", "blue"), "WAITING": ("…", "blue")}

_NAMES = ("call", "status", "where", "waited", "ran", "tokens", "cost", "")
_LEFT = {"call", "status", "where", ""}
_FIRST_TO_GO = (7, 2, 6, 5)  # columns that a narrow terminal does without: time line, where, cost, tokens


def shown(job: JobNode, width: int) -> Iterator[Text]:
    """The tree, line by line, for a terminal of so many columns."""
    found = sums(job)
    yield Text.assemble((_clipped(job.label, width), "bold"))
    yield Text(job.id, "dim")
    over = job.status in ("SUCCESS", "FAILURE", "REVOKED")
    facts = f"{'in' if over else 'for'} {seconds(found.end - found.begin)} · {in_words(found)}"
    state = _state(job.status)
    for line in textwrap.wrap(facts, max(20, width - len(state) - 1)):
        yield state.append(" ").append(line, "")
        state = Text(" " * 2)
    for line in textwrap.wrap(usage_in_words(found.usage), width):
        yield Text(line)
    if job.error:
        yield from (Text(line, "red") for line in textwrap.wrap(job.error, width))
    yield Text()
    yield from _table(job, found, width)


def _table(job: JobNode, found: Sums, width: int) -> Iterator[Text]:
    lines = rows(job)
    head = [Text(name, "dim") for name in (*_NAMES[:-1], f"0 … {seconds(found.end - found.begin)}")]
    cells = [_cells(row, job, found) for row in lines]
    widths = [max(len(line[number].plain) for line in (head, *cells)) for number in range(len(_NAMES))]
    kept = list(range(len(_NAMES)))
    for column in _FIRST_TO_GO:
        if sum(widths[number] + 2 for number in kept) > width + 2:
            kept.remove(column)
    rest = sum(widths[number] + 2 for number in kept if number)
    widths[0] = max(20, min(widths[0], width - rest))
    yield _line(head, widths, kept)
    for row, line in zip(lines, cells, strict=True):
        yield _line(line, widths, kept)
        yield from _notes(row, job, width)


def _line(cells: list[Text], widths: list[int], kept: list[int]) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for number in kept:
        cell = cells[number]
        cell.truncate(widths[number], overflow="ellipsis")
        room = " " * (widths[number] - cell.cell_len)
        left = _NAMES[number] in _LEFT
        line.append_text(cell).append(room + "  ") if left else line.append(room).append_text(cell).append("  ")
    line.rstrip()
    return line


def _notes(row: Row, job: JobNode, width: int) -> Iterator[Text]:
    """What does not fit into columns, below them."""
    call, error = row.call, row.error(job)
    remark = " · ".join(remarks(call)) if call is not None else ""
    trunk = "".join("│  " if branch in ("├─ ", "│  ") else "   " for branch in row.branches) + "   "
    room = max(30, width - len(trunk))
    if remark:
        yield Text.assemble((trunk, "dim"), (_clipped(remark, room), "dim"))
    for line in textwrap.wrap(error, room):
        yield Text.assemble((trunk, "dim"), (line, "red"))


def _cells(row: Row, job: JobNode, found: Sums) -> list[Text]:
    label = Text.assemble(("".join(row.branches), "dim"), row.label)
    call, now = row.call, job.looked
    if call is None:
        state = _state(row.job.status) if row.job is not None else Text()
        return [label, state, *(Text() for _ in _NAMES[2:])]
    where = f"{_clipped(call.worker, LONGEST_PLACE)} {call.pid}" if call.worker else (
        f"queue {call.queue}" if call.queue else "")
    waited = seconds(call.waited(now)) if call.sent else ""
    texts = (where, waited, seconds(call.ran(now)), tokens(call.usage), cost(call.usage))
    return [label, _state(call.status), *map(Text, texts), _bar(call, found, now)]


def _state(status: str) -> Text:
    sign, style = STYLES.get(status, ("·", "dim"))
    return Text(f"{sign} {status.lower()}", style)


def _clipped(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:max(1, longest - 1)]}…"


def _bar(call: CallNode, found: Sums, now: float) -> Text:
    span = max(found.end - found.begin, 1e-9)

    def column(moment: float) -> int:
        return max(0, min(BAR - 1, int((moment - found.begin) / span * BAR)))

    if call.sent is None:
        return Text()
    sent = column(call.sent)
    started = column(call.started if call.started is not None else now)
    text = Text(" " * sent).append("·" * max(0, started - sent), "dim")
    if call.started is not None:
        ended = column(call.ended if call.ended is not None else now)
        text.append("━" * (ended - started + 1), STYLES.get(call.status, ("", "white"))[1])
    return text
