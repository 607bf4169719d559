"""Running a batch: a window of jobs under way, each result written as it comes, and the file of the jobs' ids."""

import asyncio
import fcntl
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import click

from callsheet.agents import CallOptions
from callsheet.agents.dispatch import dispatcher
from callsheet.cli.inputs import Input
from callsheet.cli.progress import Display, Prints
from callsheet.cli.results import Results
from callsheet.cli.target import Target
from callsheet.errors import AgentFailed, CallsheetError, CannotTravel, JobError, JobLost, RedisUnavailable
from callsheet.messages import Msg
from callsheet.tasks.jobs import Job

_TOGETHER = 100  # jobs published in one go
_TICK = 0.2  # seconds between two looks at the clock and the stack
_STALLED = 30.0  # seconds without a result after which the queues are looked at
_REFUSED = ("callsheet.errors.ModuleNotAllowed", "callsheet.errors.CannotTravel")
_SHOWN = 5  # failures told as they happen


class Sent:
    """The file with the ids of the jobs that a run sent, for the run that goes on; written by one process at a time.

    Args:
        path: of the file.
        target: what runs, e.g. "review.py:pipeline".
        fresh: forget what is in it, once the run begins.

    Attributes:
        jobs: job ids by input id.

    Raises:
        click.ClickException: another run writes it, or it is about another target.
    """

    def __init__(self, path: Path, target: str, fresh: bool = False) -> None:
        self.path = path
        self.jobs: dict[str, str] = {}
        self._target = target
        self._file: IO[bytes] = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise click.ClickException(f"Another `callsheet run` writes {path.with_suffix('')} now. Wait for it, or "
                                       "give another --output.") from None
        lines = [] if fresh else self._read()
        before = lines[0]["target"] if lines else target
        if before != target:
            self.close()
            raise click.ClickException(f"{path.with_suffix('')} holds results of {before}, not of {target}. Give "
                                       "another --output, or --no-resume to replace them.")
        self._begun = bool(lines)
        self.jobs = {line["input_id"]: line["job_id"] for line in lines[1:]}

    def _read(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        lines, end = [], 0
        for line in self._file:
            try:
                lines.append(json.loads(line))
            except ValueError:  # half a line, written when the run before was killed
                break
            end += len(line)
        self._file.truncate(end)
        return lines

    def begin(self) -> None:
        """The run begins; what a fresh one forgets is forgotten now."""
        if not self._begun:
            self.finish()

    def finish(self) -> None:
        """Forget the jobs: all have ended, and their results are written."""
        self._begun = True
        self.jobs.clear()
        self._file.truncate(0)
        self._append([{"target": self._target}])

    def add(self, jobs: Iterable[tuple[str, str]]) -> None:
        """Note pairs of input id and job id, before the jobs are sent."""
        self.jobs.update(pairs := dict(jobs))
        self._append([{"input_id": input_id, "job_id": job_id} for input_id, job_id in pairs.items()])

    def _append(self, lines: list[dict[str, Any]]) -> None:
        self._file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        self._file.flush()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class Refused(Exception):  # its text is the worker's
    """The workers cannot build the target: every input would fail."""


@dataclass(eq=False, kw_only=True)
class Batch:
    """One run over the inputs that are left."""

    target: Target  # what runs
    options: CallOptions  # of each job
    results: Results  # where results go
    sent: Sent  # where job ids are kept
    picked_up: dict[str, str]  # job ids by input id of an earlier run's jobs, done or under way
    window: int  # jobs under way at most
    display: Display  # of its progress
    check: Callable[[], None]  # called now and then; what it raises ends the run
    stalled: Callable[[], str]  # asked, in a thread, when nothing has ended for a while; gives a warning or ""
    prints: Prints | None = None  # shows what the agents print

    def __post_init__(self) -> None:
        self._tally = self.display.tally
        self._last = time.monotonic()
        self._changed = asyncio.Event()
        self._problem: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, inputs: Iterator[Input]) -> None:
        """Run until all inputs have a result.

        Whatever it raises, what came until then is written, and what is under way is left to go on.

        Raises:
            Refused: the workers cannot build the target.
            CallsheetError: Redis is gone, or the like.
            Exception: what `check` raised.
        """
        ticking = asyncio.create_task(self._tick())
        try:
            while self._problem is None:
                room = self.window - len(self._tasks)
                if room >= min(_TOGETHER, max(1, self.window // 4)):
                    chunk = list(islice(inputs, min(room, _TOGETHER)))
                    if chunk:
                        await self._send(chunk)
                        continue
                    if not self._tasks:
                        return
                self._changed.clear()
                await self._changed.wait()
        finally:
            ticking.cancel()
            left = list(self._tasks)
            for task in left:
                task.cancel()
            await asyncio.gather(ticking, *left, return_exceptions=True)
            self._tally.running = len(left)  # the jobs go on, if nobody waits for them
        if self._problem is not None:
            raise self._problem

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            try:
                self.check()
                self.display.update()
                if self._tasks and time.monotonic() - self._last > _STALLED:
                    self._last = time.monotonic()
                    if warning := await asyncio.to_thread(self.stalled):
                        self.display.say(warning)
            except Exception as exc:
                self._fail(exc)
                return

    def _fail(self, problem: BaseException) -> None:
        self._problem = self._problem or problem
        self._changed.set()

    async def _send(self, chunk: list[Input]) -> None:
        known = [item for item in chunk if item.id in self.picked_up]
        new = [item for item in chunk if item.id not in self.picked_up]
        for item in known:
            self._follow(item, Job.from_id(self.picked_up[item.id]), None)
        if not new:
            return
        ids = [str(uuid4()) for _ in new]
        self.sent.add(zip([item.id for item in new], ids, strict=True))
        try:
            jobs = await asyncio.to_thread(self._submit, new, ids)
        except RedisUnavailable:
            raise
        except CallsheetError:  # one of them is refused, and so none was sent: one by one
            await self._send_each(new, ids)
            return
        for item, job in zip(new, jobs, strict=True):
            self._follow(item, job, time.monotonic())

    def _submit(self, items: list[Input], ids: list[str]) -> list[Job]:
        jobs: list[Job] = dispatcher().submit_many(self.target, [item.msg for item in items], self.options, ids)
        return jobs

    async def _send_each(self, items: list[Input], ids: list[str]) -> None:
        for item, job_id in zip(items, ids, strict=True):
            try:
                [job] = await asyncio.to_thread(self._submit, [item], [job_id])
            except CannotTravel as exc:
                self._write(item, job_id, None, error=exc)
            else:
                self._follow(item, job, time.monotonic())

    def _follow(self, item: Input, job: Job, started: float | None) -> None:
        task = asyncio.create_task(self._finish(item, job, started))
        self._tasks.add(task)
        self._tally.running = len(self._tasks)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._tally.running = len(self._tasks)
        self._last = time.monotonic()
        self._changed.set()

    async def _finish(self, item: Input, job: Job, started: float | None) -> None:
        try:
            if self.prints is not None:
                await self.prints.follow(item.source, job)
            result, error = await job, None
        except JobLost as exc:
            await self._send_again(item, exc)
            return
        except JobError as exc:
            result, error = None, exc
        except Exception as exc:
            self._fail(exc)
            return
        if why := _refusal(result, error):
            self._fail(Refused(why))
            return
        seconds = None if started is None else round(time.monotonic() - started, 3)
        self._write(item, job.id, seconds, result=result, error=error)

    async def _send_again(self, item: Input, lost: JobLost) -> None:
        self.display.say(f"{item.source} is sent again. {lost}")
        self.picked_up.pop(item.id, None)
        try:
            await self._send([item])
        except Exception as exc:
            self._fail(exc)

    def _write(self, item: Input, job_id: str, seconds: float | None, *, result: Any = None,
               error: CallsheetError | None = None) -> None:
        try:
            self.results.write({"input_id": item.id, "source": item.source, "status": "failed" if error else "ok",
                                 "result": _plain(result), "error": _told(error) if error else None, "job_id": job_id,
                                 "seconds": seconds})
        except OSError as exc:
            self._fail(click.ClickException(f"{self.results.path} cannot be written: {exc.strerror}."))
            return
        self._tally.jobs.append(job_id)
        if error:
            self._tally.failed += 1
            if self._tally.failed <= _SHOWN:
                more = " (further ones are in the results only)" if self._tally.failed == _SHOWN else ""
                self.display.say(f"{item.source} failed: {_told(error)['message']}{more}")
        else:
            self._tally.ok += 1


def _plain(result: Any) -> Any:
    if isinstance(result, list):
        return [_plain(item) for item in result]
    return result.to_dict() if isinstance(result, Msg) else result


def _told(error: CallsheetError) -> dict[str, Any]:
    """An error as JSON data."""
    told = {"type": type(error).__name__, "message": error.message}
    if isinstance(error, AgentFailed):
        told |= {"agent": error.agent, "remote_type": error.remote_type, "remote_message": error.remote_message,
                 "remote_traceback": error.remote_traceback}
    return told


def _refusal(result: Any, error: CallsheetError | None) -> str:
    """Why the worker could not build the target, or ""; also where a fan-out collected that as a branch's error."""
    if isinstance(error, AgentFailed):
        return _about_modules(error.remote_type, error.remote_message)
    for msg in result if isinstance(result, list) else [result]:
        record = msg.metadata.get("error") if isinstance(msg, Msg) else None
        if isinstance(record, dict):
            why = _about_modules(str(record.get("type")), str(record.get("message")))
            if why:
                return why
    return ""


def _about_modules(kind: str, text: str) -> str:
    about = kind == _REFUSED[0] or (kind == _REFUSED[1] and ("cannot be imported here" in text
                                                             or "does not exist here" in text))
    return text if about else ""
