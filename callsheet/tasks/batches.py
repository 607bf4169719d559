"""`callsheet.map`: one agent or pipeline over thousands of inputs."""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from callsheet.agents import AgentBase, CallOptions
from callsheet.agents.dispatch import dispatcher
from callsheet.errors import AgentFailed, CallsheetError, CannotTravel, JobError, PayloadExpired, UsageError
from callsheet.messages import Msg
from callsheet.messages.printable import printable
from callsheet.settings import get_settings
from callsheet.tasks.inline import InlineDispatcher
from callsheet.tasks.jobs import Job, cancel_all
from callsheet.tasks.loop import on_process_loop, wait_on_process_loop
from callsheet.tasks.pipelines import OnError, Pipeline
from callsheet.tasks.waiter import waiter

_TOGETHER = 200  # jobs published in one go
_AHEAD = 100  # results fetched in one go, where so many are there
_LOOK_EVERY = 10  # results taken between two such looks at least
_COLLECTED = (JobError, PayloadExpired)  # what may go wrong with one input and not with the rest


async def _looked_ahead(task_ids: list[str]) -> int:
    """On the process's loop."""
    return await waiter(get_settings()).look_ahead(task_ids)


class Batch:
    """Results of many inputs, in the order of the inputs; iterate with `for`, or with `async for` in async code.

    Jobs are submitted as the iteration asks for them, at most `window` ahead of it.
    """

    def __init__(self, target: AgentBase | Pipeline, messages: Iterable[Any], options: CallOptions, window: int,
                 progress: bool | None, on_error: OnError) -> None:
        self._target = target
        self._messages = iter(messages)
        self._total = len(messages) if isinstance(messages, Sized) else None
        self._options = options
        self._window = window
        self._progress = sys.stderr.isatty() if progress is None else progress
        self._on_error = on_error
        self._waiting: deque[Job | CallsheetError] = deque()
        self._taken_before_look = _LOOK_EVERY

    def _next_inputs(self) -> list[Any]:
        """The inputs to submit now; none while the window is nearly full."""
        room = self._window - len(self._waiting)
        if room < min(_TOGETHER, (self._window + 9) // 10) and self._waiting:
            return []
        return list(islice(self._messages, min(room, _TOGETHER)))

    def _submit(self, inputs: list[Any]) -> list[Job | CallsheetError]:
        try:
            return list(dispatcher().submit_many(self._target, inputs, self._options))
        except CannotTravel as exc:
            if len(inputs) == 1:
                return [exc]
            return [job for value in inputs for job in self._submit([value])]

    def _to_look_for(self, job: Job | CallsheetError) -> list[str]:
        """The jobs whose results to fetch in one trip before that of `job` is taken; none if it is not yet time."""
        self._taken_before_look -= 1
        if type(job) is not Job or not self._waiting or self._taken_before_look > 0:
            return []
        return [job.id, *(other.id for other in islice(self._waiting, _AHEAD - 1) if type(other) is Job)]

    def _failed(self, error: CallsheetError) -> Msg:
        if self._on_error == "raise":
            cancel_all([job for job in self._waiting if type(job) is Job])
            raise error
        kind = error.remote_type if isinstance(error, AgentFailed) else type(error).__name__
        text = error.message if isinstance(error, JobError) else str(error)
        return Msg(self._target.label, f"Error: {text}", "assistant",
                   metadata={"error": {"type": kind, "message": text}})

    def __iter__(self) -> Iterator[Any]:
        with self._bar() as advance:
            while True:
                while inputs := self._next_inputs():
                    self._waiting += self._submit(inputs)
                if not self._waiting:
                    return
                job = self._waiting.popleft()
                if ids := self._to_look_for(job):
                    found = wait_on_process_loop(_looked_ahead(ids))
                    self._taken_before_look = max(found, _LOOK_EVERY)
                try:
                    result = job.get() if isinstance(job, Job) else job
                except _COLLECTED as exc:
                    result = exc
                if isinstance(result, CallsheetError):
                    result = self._failed(result)
                advance()
                yield result

    async def __aiter__(self) -> AsyncIterator[Any]:
        with self._bar() as advance:
            while True:
                while inputs := self._next_inputs():
                    self._waiting += await self._submit_async(inputs)
                if not self._waiting:
                    return
                job = self._waiting.popleft()
                if ids := self._to_look_for(job):
                    found = await on_process_loop(_looked_ahead(ids))
                    self._taken_before_look = max(found, _LOOK_EVERY)
                try:
                    result = await job if isinstance(job, Job) else job
                except _COLLECTED as exc:
                    result = exc
                if isinstance(result, CallsheetError):
                    result = await asyncio.to_thread(self._failed, result)
                advance()
                yield result

    async def _submit_async(self, inputs: list[Any]) -> list[Job | CallsheetError]:
        if isinstance(dispatcher(), InlineDispatcher):
            return self._submit(inputs)  # its jobs run on this loop
        return await asyncio.to_thread(self._submit, inputs)

    @contextmanager
    def _bar(self) -> Iterator[Any]:
        if not self._progress:
            yield lambda: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                   TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(escape(printable(self._target.label)), total=self._total)
            yield lambda: bar.advance(task)


def map(target: AgentBase | Pipeline, messages: Iterable[Any], *, progress: bool | None = None,
        window: int = 10_000, on_error: OnError = "raise", **options: Any) -> Batch:
    """Run an agent or a pipeline over many inputs, each a job; results in the order of the inputs.

    Args:
        target: the agent or pipeline.
        messages: the inputs; an endless or lazy iterable is read as results are taken.
        progress: a progress bar on the standard error; by default where that is a terminal.
        window: jobs under way at most.
        on_error: "raise" raises at the first input that failed and cancels the rest; "collect" puts a message with
            the error, in `metadata["error"]`, in its place.
        options: as in AgentBase.submit, for each job.

    Returns:
        an iterable, also in async code.
    """
    if not isinstance(target, (AgentBase, Pipeline)):
        raise UsageError(f"callsheet.map needs an agent or a pipeline, not a {type(target).__name__}.")
    if window < 1:
        raise UsageError(f"window={window!r}: a whole number over 0 is needed.")
    if on_error not in ("raise", "collect"):
        raise UsageError(f"on_error={on_error!r}: \"raise\" or \"collect\" is needed.")
    return Batch(target, messages, CallOptions.of(options), window, progress, on_error)
