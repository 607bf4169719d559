"""`make demo`: a review panel of agents over a folder of documents, on real workers, with a Redis of its own."""

import argparse
import asyncio
import os
import socket
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from callsheet import Job, Msg
from callsheet.cli.processes import Interrupted, Interrupts
from callsheet.cli.stack import Plan, Stack, claimed
from callsheet.errors import CallsheetError
from callsheet.settings import use_settings
from examples.review.agents import Librarian, ReportWriter
from examples.review.documents import Library, read_folder
from examples.review.pipeline import panel
from examples.review.report import Timing, timing_summary, timing_table

ROOT = Path(__file__).resolve().parents[2]
STUB = "stub-extractive"
KEYS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "CALLSHEET_ENDPOINTS__OPENAI__BASE_URL")
ROWS = 40  # of the table of calls


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--input", type=Path, help="a folder of documents; by default this project's README and docs")
    parser.add_argument("--model", help=f"the chat model; by default {STUB}, or gpt-4o-mini where a key is set")
    parser.add_argument("--output", type=Path, default=Path(".callsheet/demo/report.md"), help="where the report goes")
    parser.add_argument("--keep", action=argparse.BooleanOptionalAction, default=sys.stdin.isatty(),
                        help="leave Flower up at the end, until Ctrl-C (the default in a terminal)")
    return parser.parse_args()


def read(given: Path | None) -> Library:
    """The documents, or an error that says what is wrong with the folder."""
    try:
        if given is not None:
            return read_folder(given)
        return read_folder(ROOT, only=["README.md", "CHANGELOG.md", "docs/*"])
    except ValueError as exc:
        sys.exit(f"make demo: {exc}")


async def review(library: Library, model: str, console: Console) -> tuple[str, list[tuple[Job, str]]]:
    """The report, and the jobs that it took, each with the document that it was about."""
    messages = [Msg("library", doc.text, "user", metadata={"path": doc.path, "title": doc.title, "words": doc.words})
                for doc in library.documents]
    pipeline = panel(model, sorted(library.files))
    columns = (TextColumn("[bold]Reviewing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(messages))
        comparison = Librarian("librarian").submit(messages)
        jobs: list[tuple[Job, str]] = [(comparison, "all")]

        async def one(message: Msg) -> Msg:
            started, path = time.monotonic(), str(message.metadata["path"])
            job: Job = pipeline.submit(message)
            jobs.append((job, path))
            section: Msg = await job
            progress.console.print(f"  {path}: {message.metadata['words']:,} words, 5 agents and an editor, "
                                   f"{time.monotonic() - started:.1f} s", highlight=False)
            progress.advance(bar)
            return section

        sections = await asyncio.gather(*(one(message) for message in messages))
        title = f"Review of {library.folder}"
        writing = ReportWriter("writer", title, list(library.notices)).submit([*sections, await comparison])
        jobs.append((writing, "all"))
        report: Msg = await writing
    return report.get_text_content() or "", jobs


def timings(jobs: list[tuple[Job, str]]) -> list[Timing]:
    """What ran where and how long."""
    return [Timing(agent=call.agent, queue=call.queue, worker=call.worker, pid=call.pid, started=call.started,
                   waited=max(0.0, call.started - call.sent), ran=call.ended - call.started, subject=subject)
            for job, subject in jobs for call in job.calls()]


def show(console: Console, report: str, rows: list[Timing], output: Path) -> None:
    """The report, the table, and where the report was written."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(report)
    console.print(Markdown(report))
    console.rule("What ran where")
    rows.sort(key=lambda row: row["started"])
    table = timing_table(rows) if len(rows) <= ROWS else timing_table(rows[:ROWS]).rpartition("\n\n")[0]
    console.print(table, highlight=False, markup=False, soft_wrap=True)
    if len(rows) > ROWS:
        console.print(f"… and {len(rows) - ROWS} more calls\n\n{timing_summary(rows)}", highlight=False, soft_wrap=True)
    console.rule()
    console.print(f"The report is in {output}.", highlight=False)


async def watched(stack: Stack, interrupts: Interrupts, library: Library, model: str, console: Console
                  ) -> tuple[str, list[tuple[Job, str]]]:
    """The review, given up as soon as a service ends or the user wants to stop."""
    work = asyncio.ensure_future(review(library, model, console))
    while not work.done():
        stack.supervisor.check()
        if interrupts.count:
            raise Interrupted
        await asyncio.wait({work}, timeout=0.1)
    return work.result()


def main() -> None:
    """Read, run, show."""
    options, console = arguments(), Console()
    library = read(options.input)
    real = any(os.environ.get(key) for key in KEYS)
    model = options.model or ("gpt-4o-mini" if real else STUB)
    console.print(f"{len(library.documents)} documents of {library.folder}; chat model {model}"
                  + ("" if real else ", a small server of our own that works by extraction; set OPENAI_API_KEY or "
                                     "OPENAI_BASE_URL for a real one"), highlight=False)
    data = options.output.parent
    plan = Plan(data=data, modules=("examples",), flower_port=port_near(5555), stub_port=None if real else 0,
                path=(ROOT,))
    try:
        with claimed(data), Interrupts().caught() as interrupts:
            stack = Stack(plan, interrupts)
            try:
                console.print("Starting Redis, an io worker, a cpu worker and Flower ...")
                stack.start()
                with use_settings(stack.settings):
                    report, jobs = asyncio.run(watched(stack, interrupts, library, model, console))
                    show(console, report, timings(jobs), options.output)
                if options.keep:
                    console.print(f"Flower shows it all: http://127.0.0.1:{stack.flower_port}", highlight=False)
                    console.print("Press Ctrl-C to end.")
                    stack.supervisor.watch()
            finally:
                stack.stop()
    except Interrupted:
        console.print("Ended.")
    except click.ClickException as exc:
        sys.exit(f"make demo: {exc.format_message()}")
    except CallsheetError as exc:
        sys.exit(f"make demo: {exc}")


def port_near(wanted: int) -> int:
    """`wanted`, or 0 for any free one where it is taken."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted


if __name__ == "__main__":
    main()
