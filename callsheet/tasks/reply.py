"""The Celery task that runs an agent's reply."""

import random
from typing import Any

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from callsheet.agents import AgentBase
from callsheet.errors import BadReply, BranchFailed, CannotTravel, PayloadExpired, StateMismatch, UsageError
from callsheet.resources.books import books
from callsheet.resources.context import call_context
from callsheet.settings import Settings, get_settings
from callsheet.tasks import payloads
from callsheet.tasks.base import Task
from callsheet.tasks.bridge import drive, in_strand
from callsheet.tasks.call import AgentCall
from callsheet.tasks.control import interruptible
from callsheet.tasks.execution import (
    FINAL,
    StatefulCall,
    import_aside,
    parts_of,
    plain_reply,
    prepared,
    stored,
    with_prints,
    written,
)
from callsheet.tasks.homes import refuse_process, worker_homes
from callsheet.tasks.loop import run_private, wait_on_process_loop
from callsheet.tasks.patience import patient, patiently
from callsheet.tasks.records import Noted
from callsheet.tasks.results import AGENT_ATTRIBUTE
from callsheet.tasks.scope import current_scope, scope_of
from callsheet.tasks.shown import Reply, shown
from callsheet.tasks.turns.line import KEEP_SENT, stamped

#: What trying again cannot mend, and the end of the time that the call was given.
NOT_RETRIED = (CannotTravel, BadReply, BranchFailed, PayloadExpired, StateMismatch, UsageError,
               SoftTimeLimitExceeded)

LONGEST_ASKED = 3600.0
"""Seconds that an endpoint's wish puts off the next try at most."""


class ReplyTask(Task):
    """`callsheet.reply(value, call)`: builds the agent, runs its reply, returns what it gave as JSON data.

    On the asyncio pool an `async def reply` runs on the loop and a `def reply` in a thread; in a prefork child each
    runs in the child's main thread, where Celery's time limits reach it.
    """

    name = "callsheet.reply"
    resultrepr_maxsize = 400  # a Reply cuts itself

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Celery's, with what `shown` gives."""
        data, keep_sent = args[-1] if args else None, options.pop(KEEP_SENT, False)
        if isinstance(data, dict):
            value = args[0].data if isinstance(args[0], Reply) else args[0]
            options |= shown(data.get("label", ""), (value, *data.get("args", ())), data.get("kwargs"))
            if not keep_sent:
                args = (*args[:-1], stamped(data, options.get("task_id"), options))
        return super().apply_async(args, kwargs, **options)

    def run(self, value: Any, call_data: dict[str, Any]) -> Any:
        """Run one call."""
        request = self.request
        if request.headers:  # what Celery leaves there is a dictionary with room for three times as much
            request.headers = dict(request.headers)
        record = Noted(request, call_data["label"], call_data.get("sent"))
        call, settings = AgentCall.from_wire(call_data), get_settings()
        scope = current_scope.set(scope_of(call.job, call.path, request, call_data))
        limit = (request.timelimit or (None, None))[1]
        try:
            try:
                with call_context(call.running(request.id, limit, notes=record.notes, root=request.root_id)):
                    out = self._reply(call, value, settings)
            finally:
                record.end()
            _settle_usage()
            record.count("ok")
            return out if out is None else Reply(out)
        except (Retry, Ignore, Reject):
            raise
        except Exception as exc:
            _settle_usage()
            setattr(exc, AGENT_ATTRIBUTE, call.label)
            final = isinstance(exc, NOT_RETRIED) or hasattr(exc, FINAL) or self.request.retries >= call.retries
            record.count("failed" if final else "retried")
            if final:
                raise
            raise self.retry(exc=exc, countdown=retry_pause(self.request.retries, settings, exc),
                             max_retries=call.retries) from exc
        except BaseException:
            record.count("cancelled")
            raise
        finally:
            current_scope.reset(scope)

    def _reply(self, call: AgentCall, value: Any, settings: Settings) -> Any:
        if not call.homes:
            return self._replied(call, value, settings)
        if not in_strand():
            refuse_process(call.label, call.homes)
        homes = worker_homes(settings, self).at(self, self.request, call.homes, call.label)
        drive(homes.__aenter__())
        try:
            return self._replied(call, value, settings)
        finally:
            drive(homes.__aexit__(None, None, None))

    def _replied(self, call: AgentCall, value: Any, settings: Settings) -> Any:
        if call.state is not None:
            stateful = StatefulCall(self, call, value, settings, NOT_RETRIED)
            return drive(stateful.run()) if in_strand() else stateful.run_plain()
        if in_strand():
            return drive(_on_loop(call, value, settings, self.backend, self.request.id))
        parts = patiently(lambda: payloads.load(parts_of(call, value), settings))
        agent, args, kwargs = prepared(call, parts, settings, self.backend)
        if agent.is_async():
            return run_private(_in_child(call, agent, args, kwargs, settings))
        out, blobs = written(call, plain_reply(call, agent, args, kwargs, settings), settings)
        if blobs:
            run_private(stored(blobs, settings))
        return out


# `run` is a plain def, but on the asyncio pool its place is the loop.
ReplyTask.is_async = True


def _settle_usage() -> None:
    """See that what the call's requests took is in Redis before its result, or its next step, is."""
    if books.idle:
        return
    if in_strand():
        drive(books.settled())
    else:
        wait_on_process_loop(books.settled())


def retry_pause(retries: int, settings: Settings, error: BaseException | None = None) -> float:
    """Seconds before the next try: doubling, with jitter, so that callers that failed together part.

    Where the error says when an endpoint can be called again (`retry_after`), not before, up to an hour.
    """
    longest = min(settings.retry_backoff * 2**retries, settings.retry_backoff_max)
    pause = random.uniform(longest / 2, longest)  # noqa: S311 - spreads load, guards nothing
    asked = getattr(error, "retry_after", None)
    return pause + min(asked, LONGEST_ASKED) if isinstance(asked, (int, float)) and asked > 0 else pause


async def _on_loop(call: AgentCall, value: Any, settings: Settings, backend: Any, call_id: str) -> Any:
    with interruptible(call_id) as entry:
        parts = await patient(lambda: payloads.load_async(parts_of(call, value), settings))
        await import_aside(parts[0], settings)
        agent, args, kwargs = prepared(call, parts, settings, backend)
        reply = await with_prints(call, agent, args, kwargs, settings, entry)
    out, blobs = written(call, reply, settings)
    await stored(blobs, settings)
    return out


async def _in_child(call: AgentCall, agent: AgentBase, args: tuple[Any, ...], kwargs: dict[str, Any],
                    settings: Settings) -> Any:
    out, blobs = written(call, await with_prints(call, agent, args, kwargs, settings), settings)
    await stored(blobs, settings)
    return out
