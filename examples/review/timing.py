"""Which call ran where and when, as a table for a terminal."""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from examples.review.layout import text_table


class Timing(TypedDict):
    """One call of an agent: where it ran, when it started (seconds since the epoch), and how long it waited in its
    queue and ran (seconds). `subject`: what it was about, such as a document's path."""

    agent: str
    queue: str
    worker: str
    pid: int
    started: float
    waited: float
    ran: float
    subject: NotRequired[str]


def timing_table(rows: Sequence[Timing]) -> str:
    """The calls in order of their start, which is shown from the first one's, and a line for each queue below."""
    if not rows:
        return "No calls were made."
    ordered = sorted(rows, key=lambda row: (row["started"], row["agent"], row["pid"]))
    first = ordered[0]["started"]
    with_subject = any(row.get("subject") for row in ordered)
    header = ["agent", *(["document"] if with_subject else []), "queue", "worker", "pid", "started", "waited", "ran"]
    cells = [
        [
            row["agent"],
            *([row.get("subject", "")] if with_subject else []),
            row["queue"],
            row["worker"],
            str(row["pid"]),
            f"+{_seconds(row['started'] - first)}",
            _seconds(row["waited"]),
            _seconds(row["ran"]),
        ]
        for row in ordered
    ]
    numbers = range(len(header) - 4, len(header))
    return f"{text_table(header, cells, numbers)}\n\n{timing_summary(ordered)}"


def timing_summary(rows: Sequence[Timing]) -> str:
    """A line for each queue: its calls, processes, the most that ran at the same time, and the time all took."""
    lines = []
    for queue in sorted({row["queue"] for row in rows}):
        ran = [row for row in rows if row["queue"] == queue]
        processes = len({(row["worker"], row["pid"]) for row in ran})
        elapsed = max(row["started"] + row["ran"] for row in ran) - min(row["started"] for row in ran)
        lines.append(
            f"{queue}: {_count(len(ran), 'call')} in {_count(processes, 'process', 'processes')}, "
            f"at most {most_at_once(ran)} at the same time; "
            f"{_seconds(sum(row['ran'] for row in ran))} of work done in {_seconds(elapsed)}"
        )
    return "\n".join(lines)


def most_at_once(rows: Sequence[Timing]) -> int:
    """The largest number of calls that were running at one moment."""
    # At equal times ends sort before starts: calls one after the other do not overlap.
    changes = [(row["started"], 1) for row in rows] + [(row["started"] + row["ran"], -1) for row in rows]
    running = most = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return max(most, min(1, len(rows)))


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
