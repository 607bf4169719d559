"""Making calls into jobs on workers."""

import asyncio
from collections.abc import Iterable
from typing import Any

from callsheet.agents import AgentBase, CallOptions
from callsheet.agents.dispatch import provide
from callsheet.errors import UsageError
from callsheet.settings import Settings, get_settings
from callsheet.tasks import payloads
from callsheet.tasks.app import current_app
from callsheet.tasks.canvas import Canvas
from callsheet.tasks.connections import translated
from callsheet.tasks.inline import InlineDispatcher
from callsheet.tasks.jobs import Job
from callsheet.tasks.pipelines import Pipeline

Target = AgentBase | Pipeline


class RemoteDispatcher:
    """Sends calls to workers through Celery.

    Args:
        settings: ours.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def submit(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions) -> Job:
        """Check, then send; a call that cannot travel is refused before anything is sent."""
        with translated(self.settings):
            return self._send(target, args, kwargs, options)

    def submit_many(self, target: Target, values: Iterable[Any], options: CallOptions) -> list[Job]:
        """A job for each value, published together."""
        app = current_app(self.settings)
        with translated(self.settings), app.producer_pool.acquire(block=True) as producer, producer.batch():
            return [self._send(target, (value,), {}, options, producer) for value in values]

    async def call(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions) -> Any:
        """Submit without blocking the loop, and wait; a caller that is cancelled cancels the job."""
        job = await asyncio.to_thread(self.submit, target, args, kwargs, options)
        agents = target.members() if isinstance(target, Pipeline) else [target]
        try:
            await _forward_prints(job, agents)
            return await job
        except asyncio.CancelledError:
            await asyncio.to_thread(job.cancel)
            raise

    def _send(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions,
              producer: Any = None) -> Job:
        app, settings = current_app(self.settings), self.settings
        eta = options.start_time()
        sending = {key: value for key, value in (("eta", eta), ("producer", producer)) if value is not None}
        if isinstance(target, AgentBase):
            canvas = Canvas(app, settings, options)
            signature = canvas.single(target, args, kwargs)
            payloads.store(canvas.blobs, settings)
            signature.apply_async(**sending)
            return _job(canvas, target, settings)
        if not isinstance(target, Pipeline):
            raise UsageError(f"A {type(target).__name__} cannot be submitted: an agent or a pipeline is needed.")
        canvas = Canvas(app, settings, options, kwargs)
        steps = canvas.pipeline(target)
        value = canvas.input(args[0] if args else None, target.label)
        payloads.store(canvas.blobs, settings)
        job = _job(canvas, target, settings)
        job.remember()
        if steps is None:  # an empty pipeline gives its input back, without a worker
            app.backend.mark_as_done(job.id, value)
        else:
            steps.apply_async((value,), **sending)
        return job


def _job(canvas: Canvas, target: Target, settings: Settings) -> Job:
    return Job(canvas.job_id, label=target.label, queues=tuple(canvas.queues), calls=tuple(canvas.calls),
               settings=settings)


async def _forward_prints(job: Job, agents: list[AgentBase]) -> None:
    """Put what the agents print into their message queues, where they are enabled, until the job ends."""
    queues = {agent.id: agent.msg_queue for agent in agents if agent.msg_queue is not None}
    if queues:
        async for event in job.stream():
            queue = queues.get(event.agent_id)
            if queue is not None:
                await queue.put((event.msg, event.last))


def _provider() -> Any:
    settings = get_settings()
    return InlineDispatcher(settings) if settings.inline else RemoteDispatcher(settings)


provide(_provider)
