"""The steps of `callsheet run`: load, survey, resume, find or start workers, run, sum up."""

import asyncio
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from callsheet.agents import CallOptions
from callsheet.cli.batch import Batch, Refused, Sent
from callsheet.cli.inputs import Input, Inputs, Malformed
from callsheet.cli.processes import Interrupted, Interrupts
from callsheet.cli.progress import Display, Prints, Tally, clock, in_words, spent
from callsheet.cli.results import Results
from callsheet.cli.stack import Plan, Stack, claimed, write_info
from callsheet.cli.target import Loaded, load
from callsheet.cli.terminal import say
from callsheet.cli.under_way import Remedies, fates
from callsheet.cli.up import autoscale
from callsheet.settings import Settings, get_settings, use_settings

INTERRUPTED = 130  # exit code
_NAMED = 20  # malformed inputs in the summary


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the user asked for; the command's options."""

    file: Path
    inputs: tuple[Path, ...]
    output: Path
    name: str | None
    resume: bool | None
    limit: int | None
    text_field: str
    window: int
    priority: int | None
    timeout: float | None
    retries: int
    queue: str | None
    up: bool
    io: str
    cpu: str
    stub_model: bool
    stream: bool

    @property
    def state(self) -> Path:
        """Where job ids are kept."""
        return self.output.with_name(self.output.name + ".state")

    @property
    def data(self) -> Path:
        """Where a Redis started for the run keeps its data: beside the output, so that a resumed run finds it."""
        return self.output.parent / ".callsheet" / self.output.name


@dataclass
class Survey:
    """The inputs, counted."""

    ids: list[str] = field(default_factory=list)
    malformed: list[Malformed] = field(default_factory=list)
    skipped: str = ""


class Runner:
    """One `callsheet run`.

    Args:
        order: what the user asked for.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self.loaded: Loaded = load(order.file, order.name)
        self.modules = self.loaded.modules()
        self.remedies = Remedies(self.loaded, self.modules, order.queue)
        own = frozenset(path.resolve() for path in (order.output, order.state))
        self.inputs = Inputs(order.inputs, order.text_field, own, order.limit)
        self.interrupts = Interrupts()

    def run(self) -> int:
        """Do it; the exit code."""
        survey = self._survey()
        with ExitStack() as stack:
            stack.enter_context(self.interrupts.caught())
            sent, results = self._opened(survey)
            stack.callback(sent.close)
            stack.callback(results.close)
            stack.callback(self._drop_empty)
            done = sum(map(results.is_done, survey.ids))
            tally = Tally(len(survey.ids), done)
            if done == len(survey.ids):
                say(f"All {done} inputs have a result in {self.order.output} already: nothing to do. "
                    "--no-resume runs them again.")
                return self._end(survey, sent, results, tally, said=True)
            if done:
                say(f"Resuming: {done} of {len(survey.ids)} inputs have a result already.", err=True)
            try:
                with self._workers() as (settings, workers):
                    self._batch(settings, workers, sent, results, tally)
            except Interrupted:
                results.put_in_order(survey.ids)
                self._interrupted(tally)
                return INTERRUPTED
            except Refused as exc:
                raise click.ClickException(self.remedies.refused(str(exc))) from None
            return self._end(survey, sent, results, tally)

    # Before the run -----------------------------------------------------------------------------------

    def _survey(self) -> Survey:
        survey = Survey()
        for item in self.inputs:
            if isinstance(item, Malformed):
                survey.malformed.append(item)
                say(f"Malformed: {item.source}: {item.why}", err=True)
            else:
                survey.ids.append(item.id)
        skipped = {why: count for why, count in self.inputs.skipped.items() if count}
        survey.skipped = ", ".join(f"{why}: {count}" for why, count in skipped.items())
        if not survey.ids:
            found = f" ({len(survey.malformed)} malformed)" if survey.malformed else ""
            left = f" Left out: {survey.skipped}." if survey.skipped else ""
            raise click.ClickException(f"There are no inputs in {', '.join(map(str, self.order.inputs))}{found}.{left} "
                                       "Give text files, folders of them, or JSONL.")
        return survey

    def _opened(self, survey: Survey) -> tuple[Sent, Results]:
        order = self.order
        fresh = order.resume is False or not order.output.exists()
        order.output.absolute().parent.mkdir(parents=True, exist_ok=True)
        sent = Sent(order.state, f"{order.file.name}:{self.loaded.name}", fresh)
        try:
            results = Results(order.output, fresh)
            ours = any(input_id in results.places or input_id in sent.jobs for input_id in survey.ids)
            if order.resume is None and results.places and not ours:
                results.close()
                raise click.ClickException(f"{order.output} holds results of other inputs. Give another --output, "
                                           "--no-resume to replace them, or --resume to add to them.")
        except BaseException:
            self._drop_empty()
            sent.close()
            raise
        if fresh and order.up:
            shutil.rmtree(order.data, ignore_errors=True)  # calls of an earlier run may wait in it
        return sent, results

    def _drop_empty(self) -> None:
        """Leave no files of a run that did not begin."""
        for path in (self.order.output, self.order.state):
            if path.exists() and not path.stat().st_size:
                path.unlink()

    @contextmanager
    def _workers(self) -> Iterator[tuple[Settings, Stack | None]]:
        """The settings that reach the workers, and the stack if it is the run's own."""
        if self.order.up:
            with self._own_workers() as stack, use_settings(stack.settings):
                yield stack.settings, stack
            return
        settings = get_settings()
        if settings.modules:
            more = tuple(name for name in self.modules if name not in settings.modules)
            settings = settings.model_copy(update={"modules": (*settings.modules, *more)})
        if not settings.inline:
            self.remedies.need_workers(settings)
        with use_settings(settings):
            yield settings, None

    @contextmanager
    def _own_workers(self) -> Iterator[Stack]:
        order = self.order
        plan = Plan(data=order.data, io=order.io, cpu=order.cpu, modules=self.modules,
                    stub_port=0 if order.stub_model else None, path=(self.loaded.folder, Path.cwd()))
        with claimed(order.data):
            stack = Stack(plan, self.interrupts)
            try:
                say("Starting Redis and workers ...", err=True)
                stack.start()
                write_info(order.data, {"redis": stack.redis_address})
                yield stack
            finally:
                say("Stopping Redis and workers ...", err=True)
                # Nobody needs to hear that the connection to a Redis that is stopped broke.
                logging.getLogger("callsheet.resources.subscriptions").setLevel(logging.ERROR)
                stack.stop()

    # The run ------------------------------------------------------------------------------------------

    def _batch(self, settings: Settings, stack: Stack | None, sent: Sent, results: Results, tally: Tally) -> None:
        order = self.order

        def check() -> None:
            if self.interrupts.count:
                raise Interrupted
            if stack is not None:
                stack.supervisor.check()

        left = {input_id: job for input_id, job in sent.jobs.items() if not results.is_done(input_id)}
        fate = {} if settings.inline or not left else fates(left.values(), settings)
        picked_up = {input_id: job for input_id, job in left.items() if fate.get(job, "gone") != "gone"}
        options = CallOptions(queue=order.queue, priority=order.priority, timeout=order.timeout, retries=order.retries)
        display = Display(tally)
        tally.started = time.monotonic()
        results.begin()
        sent.begin()
        if picked_up:
            waiting = sum(fate[job] == "under way" for job in picked_up.values())
            display.say(f"Picking up jobs of the run before: {len(picked_up) - waiting} ended, {waiting} under way.")
        pending = (item for item in self.inputs if isinstance(item, Input) and not results.is_done(item.id))

        async def main() -> None:
            batch = Batch(target=self.loaded.target, options=options, results=results, sent=sent, picked_up=picked_up,
                          window=order.window, display=display, check=check,
                          stalled=lambda: self.remedies.unserved(settings),
                          prints=Prints(display, tally.total == 1) if order.stream else None)
            await batch.run(pending)

        with display.shown():
            asyncio.run(main())
        tally.spent = in_words(spent(tally.jobs, settings))

    # After the run ------------------------------------------------------------------------------------

    def _end(self, survey: Survey, sent: Sent, results: Results, tally: Tally, said: bool = False) -> int:
        results.put_in_order(survey.ids)
        if not tally.failed:
            sent.finish()
            if self.order.up:  # all that the run's own Redis held is in the results
                shutil.rmtree(self.order.data, ignore_errors=True)
                with suppress(OSError):  # other things are in it
                    self.order.data.parent.rmdir()
        if not said:
            before = f" ({tally.skipped} of them before)" if tally.skipped else ""
            say(f"{tally.total} inputs: {tally.ok + tally.skipped} ok{before}, {tally.failed} failed, in "
                f"{clock(tally.elapsed)} ({tally.rate:.1f}/s). Results: {self.order.output}")
            if tally.spent:
                say(f"Used: {tally.spent}")
        if survey.skipped:
            say(f"Left out: {survey.skipped}")
        if survey.malformed:
            say(f"{len(survey.malformed)} malformed, not run:")
            for item in survey.malformed[:_NAMED]:
                say(f"  {item.source}: {item.why}")
            if len(survey.malformed) > _NAMED:
                say("  and others, named above")
        return 1 if tally.failed or survey.malformed else 0

    def _interrupted(self, tally: Tally) -> None:
        left = tally.total - tally.done
        if self.order.up:
            meanwhile = "What was waiting stays in Redis' file."
        else:
            meanwhile = f"Jobs that go on at the workers: {tally.running}."
        say(f"\nInterrupted: {tally.done} of {tally.total} inputs have a result in {self.order.output}, {left} "
            f"have none. {meanwhile}\nTo go on, give the same command again.", err=True)


@click.command(epilog="""\b
Examples:
  callsheet run review.py --input docs --up
  callsheet run review.py --input tickets.jsonl --output answers.jsonl --text-field body
  callsheet run review.py --target critic --input a.txt --input b.txt --retries 2 --timeout 120

\b
A line of a JSONL input is a text, {"text": ...} or a message {"content": ..., "name": ..., "role": ...}; further
fields of {"text": ...} become its metadata. A file or an output line is one input. The exit code is 0 if all inputs
have a result, 1 if some failed or are malformed, 130 after Ctrl-C.""")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--input", "inputs", multiple=True, required=True, type=click.Path(exists=True, path_type=Path),
              metavar="PATH", help="A text file, a folder of them, or JSONL; may be given again.")
@click.option("--output", default="results.jsonl", show_default=True, type=click.Path(dir_okay=False, path_type=Path),
              help="Where results go, a line an input.")
@click.option("--target", "name", metavar="NAME",
              help="The variable of FILE to run. Default: `pipeline`, `agent`, or the only one.")
@click.option("--resume/--no-resume", default=None,
              help="Skip inputs with a result in the output, or replace the output. "
                   "Default: resume where the output is of these inputs.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The first N inputs only.")
@click.option("--text-field", default="text", show_default=True, metavar="FIELD",
              help="Field of a JSONL object that holds the text.")
@click.option("--window", default=1000, show_default=True, type=click.IntRange(1), help="Jobs under way at most.")
@click.option("--priority", type=click.IntRange(0, 9), help="0 (first) to 9 (last).")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS",
              help="That each reply may take.")
@click.option("--retries", default=0, show_default=True, type=click.IntRange(0),
              help="How often a reply that raised is tried again.")
@click.option("--queue", metavar="NAME", help="Queue of all calls, in place of the agents' own.")
@click.option("--stream", is_flag=True, help="Show what the agents print, as it comes.")
@click.option("--up", is_flag=True, help="Start Redis and workers for this run, and stop them after it.")
@click.option("--io", default="500,20", show_default=True, metavar="MAX,MIN", callback=autoscale,
              help="With --up: calls that the io worker runs at once; 0: no such worker.")
@click.option("--cpu", default="2,1", show_default=True, metavar="MAX,MIN", callback=autoscale,
              help="With --up: processes of the cpu worker; 0: no such worker.")
@click.option("--stub-model", is_flag=True, help="With --up: point the workers at a stub model.")
def run(**given: Any) -> None:
    """Run the pipeline or agent that FILE defines over many inputs.

    Without --up the workers at CALLSHEET_REDIS_URL do the work; they must allow FILE's module. A run that is
    interrupted, even killed, goes on where it was when the same command is given again: nothing that has ended is
    run again.
    """
    if given["stub_model"] and not given["up"]:
        raise click.UsageError("--stub-model goes with --up: running workers have their own settings.")
    raise SystemExit(Runner(Order(**given)).run())
