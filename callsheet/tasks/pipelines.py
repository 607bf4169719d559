"""Pipelines: agents one after another, or side by side; nested to any depth."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, Literal, Union

from callsheet.agents import AgentBase, BoundCall, CallOptions
from callsheet.agents.base import split_options
from callsheet.agents.dispatch import dispatcher
from callsheet.errors import UsageError
from callsheet.messages import Msg, Recorded

Member = Union[AgentBase, "Pipeline"]
Input = Msg | list[Msg] | None
OnError = Literal["raise", "collect"]


class Pipeline(Recorded):
    """What both pipelines share."""

    agents: list[Member]

    @property
    def label(self) -> str:
        """The pipeline, for people."""
        return f"{type(self).__name__}({', '.join(agent.label for agent in self.agents)})"

    async def __call__(self, msg: Input = None, **kwargs: Any) -> Any:
        """Run the pipeline as one job and wait for its result.

        Args:
            msg: given to the first agent, or to each of a fan-out.
            kwargs: given to each agent that gets `msg`.

        Raises:
            AgentFailed: an agent raised.
            BranchFailed: a branch of a fan-out failed.
        """
        return await dispatcher().call(self, (msg,), kwargs, CallOptions())

    def submit(self, msg: Input = None, **kwargs: Any) -> Any:
        """Send the pipeline as one job and return its Job at once; options as in AgentBase.submit, for each call."""
        options = split_options(kwargs, self.members())
        return dispatcher().submit(self, (msg,), kwargs, options)

    def options(self, **options: Any) -> "BoundPipeline":
        """This pipeline with call options, for each of its calls."""
        return BoundPipeline(self, CallOptions.of(options))

    def members(self) -> list[AgentBase]:
        """All agents in it, at any depth."""
        found: list[AgentBase] = []
        for agent in self.agents:
            found.extend(agent.members() if isinstance(agent, Pipeline) else [agent])
        return found


class BoundPipeline(BoundCall):
    """A pipeline together with options of its calls."""

    def submit(self, msg: Input = None, **kwargs: Any) -> Any:
        """As Pipeline.submit, with the options given before."""
        return super().submit(msg, **kwargs)

    async def __call__(self, msg: Input = None, **kwargs: Any) -> Any:
        """As Pipeline.__call__, with the options given before."""
        return await super().__call__(msg, **kwargs)


class SequentialPipeline(Pipeline):
    """Agents one after another, each given the reply of the one before: a Celery chain.

    Args:
        agents: agents or pipelines, also none: then the input is the result.

    Raises:
        UsageError: a member is neither.
    """

    def __init__(self, agents: Sequence[Member]) -> None:
        self.agents = _checked(agents, "SequentialPipeline")


class FanoutPipeline(Pipeline):
    """Agents side by side, all given the same message: a Celery chord, its results in the order of the agents.

    Args:
        agents: agents or pipelines, also none: then the result is an empty list.
        enable_gather: False runs them one after another, still all with the same message.
        reduce: an agent or pipeline given the list of results; its reply is the result.
        on_error: what a failing branch does. Either way the others finish. "raise": the job fails with
            BranchFailed, which names the branch (one after another, those behind it do not run). "collect": a message
            with the error, in `metadata["error"]`, stands in its place.

    Raises:
        UsageError: a member is neither, or on_error is another word.
    """

    def __init__(self, agents: Sequence[Member], enable_gather: bool = True, reduce: Member | None = None,
                 on_error: OnError = "raise") -> None:
        if on_error not in ("raise", "collect"):
            raise UsageError(f"on_error={on_error!r}: \"raise\" or \"collect\" is needed.")
        self.agents = _checked(agents, "FanoutPipeline")
        self.enable_gather = enable_gather
        self.reduce = _checked([reduce], "FanoutPipeline's reduce")[0] if reduce is not None else None
        self.on_error: OnError = on_error

    def branches(self) -> tuple[str, ...]:
        """The branches' labels, in order."""
        count = len(self.agents)
        return tuple(f"branch {i + 1} of {count}, {agent.label}" for i, agent in enumerate(self.agents))

    def members(self) -> list[AgentBase]:
        """All agents in it, at any depth, the reducing one too."""
        reducers = self.reduce.members() if isinstance(self.reduce, Pipeline) else [self.reduce] if self.reduce else []
        return [*super().members(), *reducers]


def _checked(agents: Sequence[Any], what: str) -> list[Member]:
    if isinstance(agents, (AgentBase, Pipeline)):
        raise UsageError(f"{what} takes a list of agents: write [{agents.label}].")
    members = list(agents)
    for index, agent in enumerate(members):
        if not isinstance(agent, (AgentBase, Pipeline)):
            hint = " Did you give the class in place of an object?" if isinstance(agent, type) else ""
            raise UsageError(f"Member {index + 1} of {what} is a {type(agent).__name__}: an agent or a pipeline is "
                             f"needed.{hint}")
    return members


async def sequential_pipeline(agents: Sequence[Member], msg: Input = None) -> Any:
    """Run agents one after another, as one job; no agents give `msg` back."""
    return await SequentialPipeline(agents)(msg)


async def fanout_pipeline(agents: Sequence[Member], msg: Input = None, enable_gather: bool = True,
                          **kwargs: Any) -> list[Any]:
    """Run agents with the same message, as one job; their replies in the order of the agents."""
    results: list[Any] = await FanoutPipeline(agents, enable_gather)(msg, **kwargs)
    return results


async def stream_printing_messages(agents: Sequence[AgentBase], coroutine_task: Coroutine[Any, Any, Any],
                                   queue: "asyncio.Queue[Any] | None" = None, end_signal: str = "[END]",
                                   ) -> AsyncIterator[tuple[Msg, bool]]:
    """What `agents` print while `coroutine_task` runs, as (message, last), wherever they run.

    Args:
        agents: whose messages.
        coroutine_task: calls the agents, e.g. `pipeline(msg)`.
        queue: used in place of a new one.
        end_signal: put into the queue when the task has ended.

    Raises:
        Exception: what `coroutine_task` raised, after the messages.
    """
    queue = queue or asyncio.Queue()
    before = [agent.msg_queue for agent in agents]
    for agent in agents:
        agent.set_msg_queue_enabled(True, queue)
    task = asyncio.ensure_future(coroutine_task)
    # Not put_nowait: a bounded queue may be full.
    end = asyncio.ensure_future(_put_after(task, queue, end_signal))
    try:
        while True:
            item = await queue.get()
            if isinstance(item, str) and item == end_signal:
                break
            yield item
        await task
    finally:
        task.cancel()
        end.cancel()
        for agent, old in zip(agents, before, strict=True):
            agent.set_msg_queue_enabled(old is not None, old)


async def _put_after(task: "asyncio.Future[Any]", queue: "asyncio.Queue[Any]", item: Any) -> None:
    await asyncio.wait({task})
    await queue.put(item)
