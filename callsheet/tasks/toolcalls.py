"""Tools that run as jobs on the workers of a queue of their own."""

import contextvars
import inspect
from collections.abc import AsyncIterator, Generator
from dataclasses import replace
from typing import Any

from celery import current_task

from callsheet.agents import AgentBase, CallOptions
from callsheet.agents.dispatch import dispatcher
from callsheet.errors import AgentTimeout, JobError, ToolFailed
from callsheet.messages import Msg
from callsheet.tasks.loop import run_private
from callsheet.tools import Toolkit, ToolResponse
from callsheet.tools.arguments import call_arguments
from callsheet.tools.execution import PASS_THROUGH, spread_out
from callsheet.tools.response import Grown, OutOfTime, failure_words, response_of, safe
from callsheet.tools.threads import Errand, provide

_FAILED, _METADATA, _INTERRUPTED = "failed", "metadata", "is_interrupted"


class ToolCall(AgentBase, queue="cpu"):
    """One call of a tool as a job."""

    def __init__(self, name: str, toolkit: Toolkit) -> None:
        self.name = name
        self.toolkit = toolkit

    def reply(self, arguments: dict[str, Any]) -> Msg:
        """The tool's last response as a message; of a tool that raised, what the model is told."""
        try:
            args, kwargs = call_arguments(self.toolkit.tools[self.name], arguments)
            response = _last(self.toolkit.tools[self.name].original_func(*args, **kwargs))
            return Msg(self.name, response.content, "assistant",
                       metadata={_METADATA: response.metadata, _INTERRUPTED: response.is_interrupted})
        except PASS_THROUGH:
            raise
        except Exception as exc:
            return Msg(self.name, "", "assistant", metadata={_FAILED: failure_words(exc)})


def _last(value: Any) -> ToolResponse:
    """What a call gave, once all of it is there."""
    if inspect.isawaitable(value) or isinstance(value, AsyncIterator):
        return run_private(_drained(value))
    if not isinstance(value, Generator):
        return response_of(value)
    grown, last = Grown(), None
    for item in value:
        last = grown.take(item)
    return grown.end() or last or response_of(None)


async def _drained(value: Any) -> ToolResponse:
    last = response_of(None)
    async for response in spread_out(value, contextvars.copy_context(), None):
        last = response
    return last


class QueuedTools:
    """Runs tools on the workers of their queues, as jobs."""

    def is_here(self, queue: str) -> bool:
        """Whether this call came from that queue: its processes may all wait for one another otherwise."""
        request = current_task.request if current_task else None
        return request is not None and (request.delivery_info or {}).get("routing_key") == queue

    async def run(self, errand: Errand) -> ToolResponse:
        """Run it there. The caller gives its slot back meanwhile; if it is cancelled, so is the job.

        Raises:
            ToolFailed: the tool raised, or its worker died.
            CallsheetError: it could not be sent.
        """
        kit = Toolkit()
        kit.tools[errand.tool.name] = replace(errand.tool, group="basic", extended_model=None, postprocess_func=None,
                                              queue=None, timeout=None, retries=0)
        options = CallOptions(queue=errand.tool.queue, timeout=errand.timeout)
        try:
            msg = await dispatcher().call(ToolCall(errand.tool.name, kit), (errand.arguments,), {}, options)
        except AgentTimeout as exc:
            raise OutOfTime if errand.timeout is not None else ToolFailed(safe(exc.message)) from exc
        except JobError as exc:
            raise ToolFailed(safe(exc.message)) from exc
        if _FAILED in msg.metadata:
            raise ToolFailed(msg.metadata[_FAILED])
        return ToolResponse(msg.get_content_blocks(), metadata=msg.metadata[_METADATA],
                            is_interrupted=msg.metadata[_INTERRUPTED])


provide(QueuedTools)
