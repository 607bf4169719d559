"""From agents and pipelines to Celery's canvases.

A call becomes one task. SequentialPipeline becomes a chain. FanoutPipeline becomes a chord: its header is the
branches, its body gathers their results, and reduces them in the same task where `reduce` is an agent. With
enable_gather=False each branch is a chord of its own, beside a task that carries the state on. No task
waits for another.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from celery import Celery, chain, chord
from celery.canvas import Signature, _chain

from callsheet.agents import AgentBase, CallOptions
from callsheet.settings import Settings
from callsheet.tasks import payloads
from callsheet.tasks.call import Gathering, make_call, writer_for
from callsheet.tasks.pipelines import FanoutPipeline, Member, Pipeline, SequentialPipeline

#: Seconds by which the hard limit comes after the soft one, which the agent sees as an exception.
GRACE = 5.0
_LONGEST = 200  # characters of a pipeline's label, in its plan


def expiry(options: CallOptions) -> str | None:
    """The time after which a call is dropped; not seconds, as the later steps of a pipeline are published later."""
    expires = options.expires
    if isinstance(expires, (int, float)):
        expires = datetime.now(UTC) + timedelta(seconds=expires)
    return expires.isoformat() if expires is not None else None


def time_limits(options: CallOptions) -> dict[str, float]:
    """Celery's limits, in seconds, for the `timeout` of a call."""
    if options.timeout is None:
        return {}
    return {"soft_time_limit": options.timeout, "time_limit": options.timeout + GRACE}


class Canvas:
    """The tasks of one job.

    Args:
        app: with our tasks.
        settings: ours.
        options: of the job's calls.
        kwargs: for each agent that gets the job's input.
        stream: id of the job to whose events its agents print; its own by default.
        awaited: whether a call that runs here waits for it.

    Attributes:
        job_id: id of the job and of its last task.
        calls: ids of all tasks.
        labels: whose calls they are, likewise; "" for a step that belongs to no agent.
        queues: that they go to.
        blobs: large payloads to store before the job is sent.
    """

    def __init__(self, app: Celery, settings: Settings, options: CallOptions,
                 kwargs: dict[str, Any] | None = None, stream: str | None = None, awaited: bool = False) -> None:
        self.app = app
        self.settings = settings
        self.options = options
        self.kwargs = kwargs or {}
        self.job_id = options.job_id or str(uuid4())
        self.stream = stream or self.job_id
        self._awaited = awaited
        self.calls: list[str] = []
        self.labels: list[str] = []
        self.queues: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self._writer = writer_for(settings)
        self._planned: list[Signature] = []
        self._small = "io"  # the queue of steps that belong to no agent
        self._expires = expiry(options)

    def single(self, agent: AgentBase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Signature:
        """One call with arguments of its own."""
        call, blobs = make_call(agent, args, kwargs, self.options, job=self.stream, settings=self.settings,
                                writer=self._writer, awaited=self._awaited)
        self.blobs |= blobs
        signature = self._signature("callsheet.reply", (None, call.to_wire()), self._queue(agent), agent.label)
        return self._named(signature)

    def pipeline(self, target: Pipeline) -> Signature | None:
        """A pipeline's tasks, to be applied to its input; None if it has none."""
        # A queue that the job needs anyway, so that a pipeline of cpu agents needs no io worker.
        agent = next(iter(target.members()), None)
        known = self.settings.known_queues
        self._small = self._queue(agent) if agent else self.options.queue_for("io", target.label, known)
        steps = self._steps(target, self.kwargs)
        if not steps:
            return None
        self._named(_last(steps[-1]))
        self._planned = steps
        return _chained(steps)

    def plan(self, label: str) -> dict[str, Any]:
        """The pipeline's shape, for whoever looks at the job (`callsheet.tasks.tree`)."""
        names = {"": 0}
        of = [names.setdefault(name, len(names)) for name in self.labels]
        index = {call: number for number, call in enumerate(self.calls)}
        return {"label": label if len(label) <= _LONGEST else f"{label[:_LONGEST]}…", "sent": time.time(),
                "names": list(names), "of": of, "shape": _after([_shape(step, index) for step in self._planned])}

    def input(self, value: Any, label: str) -> Any:
        """A pipeline's input, written."""
        data, blobs = payloads.pack(self._writer.write(value, f"the input of {label}"), self.settings,
                                    f"The input of {label}")
        self.blobs |= blobs
        return data

    def _named(self, last: Signature) -> Signature:
        """Give the job's id to its last task."""
        self.calls[self.calls.index(last.options["task_id"])] = self.job_id
        last.options["task_id"] = self.job_id
        return last

    def _steps(self, target: Member, kwargs: dict[str, Any]) -> list[Signature]:
        if isinstance(target, AgentBase):
            return [self._reply(target, kwargs)]
        if isinstance(target, SequentialPipeline):
            steps: list[Signature] = []
            for agent in target.agents:
                steps += self._steps(agent, {} if steps else kwargs)
            return steps
        assert isinstance(target, FanoutPipeline)
        return self._fanout(target, kwargs)

    def _reply(self, agent: AgentBase, kwargs: dict[str, Any], gathering: Gathering | None = None,
               copies: int = 1) -> Signature:
        call, blobs = make_call(agent, (), kwargs, self.options, job=self.stream, settings=self.settings,
                                writer=self._writer, piped=True, gathering=gathering, awaited=self._awaited,
                                copies=copies)
        self.blobs |= blobs
        return self._signature("callsheet.reply", (call.to_wire(),), self._queue(agent), agent.label)

    def _fanout(self, target: FanoutPipeline, kwargs: dict[str, Any]) -> list[Signature]:
        if not target.agents:
            steps = [self._signature("callsheet.empty", (), self._small)]
            return steps + (self._steps(target.reduce, {}) if target.reduce else [])
        branches = [self._steps(agent, kwargs) or [self._signature("callsheet.carry", (), self._small)]
                    for agent in target.agents]
        queue = _last(branches[0][-1]).options["queue"]
        if not target.enable_gather:
            return self._one_by_one(target, branches, queue)
        # Celery puts the body into the message of each branch.
        labels, blobs = payloads.pack(list(target.branches()), self.settings, f"The labels of {target.label}",
                                      copies=len(branches))
        self.blobs |= blobs
        if isinstance(target.reduce, AgentBase):
            gathering = Gathering(branches=labels, on_error=target.on_error)
            body = self._reply(target.reduce, {}, gathering, copies=len(branches))
            return [chord(list(map(_chained, branches)), body, app=self.app)]
        body = self._signature("callsheet.gather", (labels, target.on_error), queue)
        rest = self._steps(target.reduce, {}) if target.reduce else []
        return [chord(list(map(_chained, branches)), body, app=self.app), *rest]

    def _one_by_one(self, target: FanoutPipeline, branches: list[list[Signature]], queue: str) -> list[Signature]:
        steps = []
        for index, (branch, label) in enumerate(zip(branches, target.branches(), strict=True)):
            keep = self._signature("callsheet.keep", (index == 0,), queue)
            merge = self._signature("callsheet.merge", (label, target.on_error, index == len(branches) - 1), queue)
            steps.append(chord([_chained(branch), keep], merge, app=self.app))
        return steps + (self._steps(target.reduce, {}) if target.reduce else [])

    def _queue(self, agent: AgentBase) -> str:
        return self.options.queue_for(agent.default_queue(), agent.label, self.settings.known_queues)

    def _signature(self, name: str, args: tuple[Any, ...], queue: str, label: str = "") -> Signature:
        task_id, options = str(uuid4()), self.options
        self.calls.append(task_id)
        self.labels.append(label)
        if queue not in self.queues:
            self.queues.append(queue)
        given: dict[str, Any] = {"task_id": task_id, "queue": queue}
        if options.priority is not None:
            given["priority"] = options.priority
        if self._expires is not None:
            given["expires"] = self._expires
        if label:  # a reply, whose time the options bound
            given |= time_limits(options)
        signature: Signature = self.app.tasks[name].signature(args, **given)
        return signature


def _chained(steps: list[Signature]) -> Signature:
    return steps[0] if len(steps) == 1 else chain(*steps)


def _last(step: Signature) -> Signature:
    """The task whose result is the step's."""
    return _last(step.body) if isinstance(step, chord) else step


def _shape(step: Signature, index: dict[str, int]) -> Any:
    """How a plan describes a step: a call by its number, `["then", ...]` or `["beside", ...]`."""
    if isinstance(step, chord):
        header = step.tasks if isinstance(step.tasks, (list, tuple)) else step.tasks.tasks
        return _after([["beside", *(_shape(branch, index) for branch in header)], _shape(step.body, index)])
    if isinstance(step, _chain):
        return _after([_shape(inner, index) for inner in step.tasks])
    return index[step.options["task_id"]]


def _after(shapes: list[Any]) -> Any:
    return shapes[0] if len(shapes) == 1 else ["then", *shapes]
