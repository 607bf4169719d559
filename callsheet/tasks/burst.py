"""Many calls of one agent, published together.

What `Task.apply_async` would find out for each message alike (route, queue, time limits, parent) is found out once,
and the agent is written once. Celery's own builder and sender make each message, so that its form and its
`before_task_publish` and `after_task_publish` signals are as ever.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from celery import Celery

from callsheet.agents import AgentBase, CallOptions
from callsheet.resources.context import lineage, made_here
from callsheet.resources.epoch import looked_at
from callsheet.resources.payloads import store
from callsheet.settings import Settings
from callsheet.tasks import payloads
from callsheet.tasks.call import make_call, writer_for
from callsheet.tasks.canvas import expiry, time_limits
from callsheet.tasks.jobs import Job
from callsheet.tasks.reply import ReplyTask
from callsheet.tasks.shown import shown
from callsheet.tasks.turns.sending import stamped


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
