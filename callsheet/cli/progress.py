"""How far a batch is (a live line on a terminal, a plain one elsewhere), what its agents print, and what it used."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from callsheet.agents.console import print_to_console
from callsheet.cli.terminal import Text, say
from callsheet.errors import JobError, RedisUnavailable
from callsheet.resources.accounts import JobUsage, Usage, process_rows
from callsheet.resources.books import job_usage
from callsheet.settings import Settings
from callsheet.tasks.events import Event
from callsheet.tasks.jobs import Job

_PLAIN_EVERY = 5.0  # seconds
_TOGETHER = 1000  # jobs whose usage is read in one trip


@dataclass
class Tally:
    """Counts of a batch under way."""

    total: int  # inputs in all
    skipped: int  # of them, done by an earlier run
    ok: int = 0  # ended well in this run
    failed: int = 0  # ended badly
    running: int = 0  # sent, and not ended
    jobs: list[str] = field(default_factory=list)  # ids of those that ended in this run
    spent: str = ""  # what their outbound calls took, in words
    started: float = field(default_factory=time.monotonic)  # when the run began

    @property
    def done(self) -> int:
        """Inputs that have a line in the results."""
        return self.skipped + self.ok + self.failed

    @property
    def elapsed(self) -> float:
        """Seconds since the start of this run."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Inputs that ended in a second of this run."""
        return (self.ok + self.failed) / max(self.elapsed, 0.001)

    @property
    def eta(self) -> str:
        """The time that is left at this rate."""
        left = self.total - self.done
        if not left:
            return "0:00"
        return clock(left / self.rate) if self.ok + self.failed else "-:--"

    def line(self) -> str:
        """The counts in one line."""
        return (f"{self.done}/{self.total} done, {self.failed} failed, {self.running} running, {self.rate:.1f}/s, "
                f"{clock(self.elapsed)} elapsed, {self.eta} left")


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Display:
    """Shows a tally on the standard error."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self._bar: Progress | None = None
        self._shown = time.monotonic()

    @contextmanager
    def shown(self) -> Iterator["Display"]:
        """Show it during the block."""
        if not sys.stderr.isatty():
            yield self
            return
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as self._bar:
            self._bar.add_task("", total=self.tally.total, completed=self.tally.done)
            self.update()
            try:
                yield self
            finally:
                self.update()
        self._bar = None

    def update(self) -> None:
        """The tally has changed, or time has passed."""
        tally = self.tally
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=tally.done, description=(
                f"{tally.failed} failed  {tally.running} running  {tally.rate:.1f}/s  ETA {tally.eta}"))
        elif time.monotonic() - self._shown >= _PLAIN_EVERY:
            self._shown = time.monotonic()
            say(tally.line(), err=True)

    def say(self, text: str) -> None:
        """A line of its own, above the live one."""
        if self._bar is not None:
            self._bar.console.print(Text(text))
        else:
            say(text, err=True)


class Prints:
    """Shows what the agents of a run's jobs print.

    Args:
        display: of the run's progress.
        alone: whether there is one input: then messages are shown as they grow. Of several, whole ones are.
    """

    def __init__(self, display: Display, alone: bool) -> None:
        self._display, self._alone = display, alone

    async def follow(self, source: str, job: Job) -> None:
        """Show what the agents of an input's job print, until it ends."""
        try:
            async for event in job.stream():
                self._show(source, job, event)
        except JobError:
            return  # told with its result

    def _show(self, source: str, job: Job, event: Event) -> None:
        if event.again:
            self._display.say(f"{source}: {event.agent} begins anew; what it had not finished is void.")
        if event.question is not None:
            self._display.say(f"{source}: {event.agent} asks: {event.question.prompt}\n"
                              f"  To answer: callsheet answer {job.id} TEXT")
        elif self._alone:
            print_to_console(event.msg, event.last)
        elif event.last:
            say(f"{source}: {event.msg.name}: {event.msg.get_text_content() or '(no text)'}")


def spent(jobs: list[str], settings: Settings) -> Usage:
    """What some jobs took; inline, what this process did. Nothing, where Redis has gone."""
    if settings.inline:
        return JobUsage.of(process_rows())
    total = Usage()
    try:
        for start in range(0, len(jobs), _TOGETHER):
            total += job_usage(jobs[start:start + _TOGETHER], settings)
    except RedisUnavailable:
        return Usage()
    return total


def in_words(usage: Usage) -> str:
    """One line, or "" where no call was made."""
    if not usage.calls:
        return ""
    words = [f"{usage.calls:,} model calls"]
    for count, what in ((usage.errors, "failed"), (usage.retries, "retries"), (usage.fallbacks, "fallbacks")):
        if count:
            words.append(f"{count:,} {what}")
    if usage.total_tokens:
        cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
        words.append(f"{usage.input_tokens:,} tokens in{cached}, {usage.output_tokens:,} out")
    if usage.cost:
        lacking = f", without {usage.unpriced:,} calls that have no price" if usage.unpriced else ""
        words.append(f"cost {usage.cost:,.4f}{lacking}")
    return ", ".join(words)
