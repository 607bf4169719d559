"""Making calls into jobs on workers: one by one, or many calls of one agent in one trip to Redis (`Burst`)."""

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from celery import Celery, _state
from celery.canvas import Signature

from callsheet.agents import AgentBase, CallOptions
from callsheet.agents.dispatch import provide
from callsheet.errors import UsageError
from callsheet.resources.context import lineage, made_here
from callsheet.resources.epoch import looked_at
from callsheet.resources.payloads import store
from callsheet.resources.redis import translated
from callsheet.settings import Settings, get_settings
from callsheet.tasks import payloads
from callsheet.tasks.app import App, current_app
from callsheet.tasks.call import make_call, writer_for
from callsheet.tasks.canvas import Canvas, expiry, time_limits
from callsheet.tasks.events import current_stream
from callsheet.tasks.inline import InlineDispatcher
from callsheet.tasks.jobs import Job
from callsheet.tasks.patience import limits_held, patient
from callsheet.tasks.people.here import asking_here
from callsheet.tasks.pipelines import Member, Pipeline
from callsheet.tasks.reply import ReplyTask
from callsheet.tasks.shown import shown
from callsheet.tasks.turns.line import stamped


class RemoteDispatcher:
    """Sends calls to workers through Celery."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def submit(self, target: Member, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions) -> Job:
        """Check, then send; a call that cannot travel is refused before anything is sent."""
        with translated(self.settings):
            return self._publish_together(self._prepare(target, args, kwargs, options))

    def submit_many(self, target: Member, values: Sequence[Any], options: CallOptions,
                    job_ids: Sequence[str] | None = None) -> list[Job]:
        """A job for each value, published together, with these ids, if given; if one cannot travel, none is sent."""
        if not values:
            return []
        app = current_app(self.settings)
        if isinstance(target, AgentBase):
            burst = Burst(app, self.settings, target, options)
            burst.add(values, job_ids)
            with translated(self.settings), app.together() as producer:
                return burst.publish(producer)
        ids: Sequence[str | None] = job_ids or [options.job_id] * len(values)
        prepared = [self._prepare(target, (value,), {}, replace(options, job_id=job_id))
                    for value, job_id in zip(values, ids, strict=True)]
        with translated(self.settings), app.together():
            return [self._publish(sending) for sending in prepared]

    async def call(self, target: Member, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions) -> Any:
        """Submit without blocking the loop, and wait; a caller that is cancelled cancels the job."""
        agents = target.members() if isinstance(target, Pipeline) else [target]
        # Awaited inside a reply, a call prints where that reply does, unless its prints are collected here.
        stream = None if any(agent.msg_queue is not None for agent in agents) else current_stream.get()
        prepared: list[_Sending] = []

        def send() -> Job:
            with translated(self.settings):
                if not prepared:  # else this is another try
                    prepared.append(self._prepare(target, args, kwargs, options, stream, True))
                return self._publish_together(prepared[0])

        sending = asyncio.ensure_future(patient(lambda: asyncio.to_thread(send)))
        try:
            job = await asyncio.shield(sending)
            job._called = True
            async with asking_here(job, agents):
                await _forward_prints(job, agents)
                with limits_held() if any(agent.asks_people for agent in agents) else nullcontext():
                    return await job
        except asyncio.CancelledError:
            await asyncio.to_thread((await sending).cancel)
            raise

    def _publish_together(self, sending: "_Sending") -> Job:
        if sending.steps is None or isinstance(sending.target, AgentBase):
            return self._publish(sending)
        with current_app(self.settings).together():  # a fan-out is many messages
            return self._publish(sending)

    def _prepare(self, target: Member, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions,
                 stream: str | None = None, awaited: bool = False) -> "_Sending":
        """Everything that can be refused is refused here."""
        canvas = Canvas(current_app(self.settings), self.settings, options,
                        kwargs if isinstance(target, Pipeline) else None, stream, awaited)
        if isinstance(target, AgentBase):
            return _Sending(target, canvas, canvas.single(target, args, kwargs))
        if not isinstance(target, Pipeline):
            raise UsageError(f"A {type(target).__name__} cannot be submitted: an agent or a pipeline is needed.")
        steps = canvas.pipeline(target)
        return _Sending(target, canvas, steps, canvas.input(args[0] if args else None, target.label))

    def _publish(self, sending: "_Sending") -> Job:
        looked_at(self.settings)
        canvas, target = sending.canvas, sending.target
        eta = canvas.options.start_time()
        more: dict[str, Any] = {"eta": eta} if eta is not None else {}
        if current_app(self.settings).current_worker_task is None:
            more |= lineage(canvas.job_id)
        store(canvas.blobs, self.settings)
        job = Job(canvas.job_id, label=target.label, queues=tuple(canvas.queues), calls=tuple(canvas.calls),
                  settings=self.settings)
        if isinstance(target, Pipeline):
            job.remember(canvas.plan(target.label))
        else:
            target._jobs.add(job)
        made_here(job.id)
        if sending.steps is None:  # an empty pipeline gives its input back, without a worker
            canvas.app.backend.mark_as_done(job.id, sending.value)
        elif isinstance(target, Pipeline):
            sending.steps.apply_async((sending.value,), **more)
        else:
            sending.steps.apply_async(**more)
        return job


@dataclass(frozen=True)
class _Sending:
    """A job that is ready to be sent."""

    target: Member
    canvas: Canvas
    steps: Signature | None
    value: Any = None


class Burst:
    """Calls of one agent, each with one argument."""

    def __init__(self, app: Celery, settings: Settings, agent: AgentBase, options: CallOptions) -> None:
        self._app, self._settings, self._agent = app, settings, agent
        self._options, self._label = options, agent.label
        self._writer = writer_for(settings)
        self._queue = options.queue_for(agent.default_queue(), agent.label, settings.known_queues)
        call, self._blobs = make_call(agent, (), {}, replace(options, job_id=None), job="", settings=settings,
                                      writer=self._writer)
        self._call = call.to_wire()
        self._what = f"argument 1 of {self._label}"
        self._ready: list[tuple[str, list[Any]]] = []

    def add(self, values: Sequence[Any], ids: Sequence[str] | None) -> None:
        """Write the arguments of some calls."""
        for number, value in enumerate(values):
            written = self._writer.write(value, self._what)
            data, blobs = payloads.pack(written, self._settings, f"Argument 1 of {self._label}")
            self._blobs |= blobs
            self._ready.append((ids[number] if ids else self._options.job_id or str(uuid4()), [data]))

    def publish(self, producer: Any) -> list[Job]:
        """Send what was added."""
        looked_at(self._settings)
        store(self._blobs, self._settings)
        app, task = self._app, self._app.tasks[ReplyTask.name]
        headers, sending = self._headers(task), self._sending(task)
        build, send = app.amqp.create_task_message, app.amqp.send_task_message
        parent = app.current_worker_task
        jobs, queues = [], (self._queue,)
        options = {"queue": self._queue, "priority": self._options.priority, "eta": self._options.start_time()}
        for job_id, args in self._ready:
            call = stamped({**self._call, "job": job_id, "args": args}, job_id, options)
            texts = shown(self._label, args, settings=self._settings)
            send(producer, task.name, build(job_id, task.name, (None, call), {}, **headers, **texts), **sending)
            sending["declare"] = ()  # the first message has declared the queue
            if parent:
                parent.add_trail(app.AsyncResult(job_id))
            job = Job(job_id, label=self._label, queues=queues, settings=self._settings)
            self._agent._jobs.add(job)
            made_here(job_id)
            jobs.append(job)
        return jobs

    def _headers(self, task: Any) -> dict[str, Any]:
        """What Celery's Task and `send_task` would give each message."""
        given: dict[str, Any] = {"ignore_result": task.ignore_result, "expires": expiry(self._options),
                                 "eta": self._options.start_time(), "reply_to": self._app.thread_oid,
                                 "create_sent_event": self._app.conf.task_send_sent_event,
                                 **time_limits(self._options)}
        parent = self._app.current_worker_task
        if not parent:
            given |= lineage()
        else:
            given["root_id"] = parent.request.root_id or parent.request.id
            given["parent_id"] = parent.request.id
        return given

    def _sending(self, task: Any) -> dict[str, Any]:
        """How each message is sent."""
        given: dict[str, Any] = {"queue": self._queue, "serializer": task.serializer}
        parent, priority = self._app.current_worker_task, self._options.priority
        if priority is None and parent and self._app.conf.task_inherit_parent_priority:
            priority = parent.request.delivery_info.get("priority")
        if priority is not None:
            given["priority"] = priority
        routed: dict[str, Any] = self._app.amqp.router.route(given, task.name, (), {}, task)
        return {**routed, "retry": False}  # a batch is not sent again: nobody knows how much of it has arrived


async def _forward_prints(job: Job, agents: list[AgentBase]) -> None:
    """Put what the agents print into their message queues, where they are enabled, until the job ends."""
    queues = {agent.id: agent.msg_queue for agent in agents if agent.msg_queue is not None}
    if queues:
        async for event in job.stream():
            queue = queues.get(event.agent_id)
            if queue is not None and event.type == "message":
                await queue.put((event.msg, event.last))


def _provider() -> Any:
    settings, app = get_settings(), _state.default_app
    if settings.inline:
        return InlineDispatcher(settings)
    if isinstance(app, App) and app.conf.task_always_eager:
        raise UsageError("task_always_eager is for Celery's tasks. Agents, with hubs and state, run in this process "
                         "under CALLSHEET_INLINE=1, or in a block of `with callsheet.inline():`.")
    return RemoteDispatcher(settings)


provide(_provider)
