"""The small steps between a pipeline's calls: gathering branches, handing a value on."""

from typing import Any

from celery import Celery

from callsheet.errors import AgentFailed, BranchFailed
from callsheet.messages import Msg
from callsheet.settings import get_settings
from callsheet.tasks import payloads
from callsheet.tasks.call import Gathering
from callsheet.tasks.loop import on_process_loop
from callsheet.tasks.results import failure, parse


def register_gathering(app: Celery) -> None:
    """Register the small steps as tasks: gather, carry, empty, keep and merge.

    They are `async def` so that an io worker runs them on its loop, without a thread.
    """

    @app.task(name="callsheet.gather", shared=False)
    async def gather(results: list[Any], branches: Any, on_error: str) -> Any:
        """The results of a fan-out's branches, in their order."""
        if isinstance(branches, dict):  # a cpu worker runs this on a loop of its own
            branches = await on_process_loop(payloads.load_async(branches, get_settings()))
        return gathered(results, Gathering(branches=branches, on_error=on_error), app.backend)

    @app.task(name="callsheet.carry", shared=False)
    async def carry(value: Any) -> Any:
        """Hand a value on as it is: an empty pipeline's place in another."""
        return piped_input(value)

    @app.task(name="callsheet.empty", shared=False)
    async def empty(value: Any) -> Any:
        """What an empty FanoutPipeline gives."""
        return []

    @app.task(name="callsheet.keep", shared=False)
    async def keep(value: Any, first: bool) -> Any:
        """Carry the state of a one-by-one fan-out past the branch that runs beside this."""
        return {"$seq": {"input": piped_input(value), "results": []}} if first else value

    @app.task(name="callsheet.merge", shared=False)
    async def merge(pair: list[Any], branch: str, on_error: str, last: bool) -> Any:
        """Add a branch's result to the state of a one-by-one fan-out; after the last, give the results."""
        result, state = pair
        [checked] = gathered([result], Gathering(branches=(branch,), on_error=on_error), app.backend)
        results = [*state["$seq"]["results"], checked]
        return results if last else {"$seq": {**state["$seq"], "results": results}}


def piped_input(value: Any) -> Any:
    """What the next agent gets of `value`: of a one-by-one fan-out's state, the fan-out's own input."""
    return value["$seq"]["input"] if isinstance(value, dict) and "$seq" in value else value


def gathered(results: list[Any], gathering: Gathering, backend: Any) -> list[Any]:
    """The branches' results with failures dealt with.

    Args:
        results: JSON data; `{"$error": ...}` where a branch failed.
        gathering: the branches' labels, and whether to raise or to collect.
        backend: where the traceback of a failed call is stored.

    Raises:
        BranchFailed: with on_error="raise", for the first branch that failed.
    """
    failed = [(place, result["$error"]) for place, result in enumerate(results)
              if isinstance(result, dict) and "$error" in result]
    if gathering.on_error == "raise":
        failed = failed[:1]
    out = list(results)
    traces = _tracebacks([record.get("task_id") or "" for _, record in failed], backend)
    for (place, record), trace in zip(failed, traces, strict=True):
        branch = gathering.branches[place]
        error = _branch_error(record, branch, trace)
        if gathering.on_error == "raise":
            raise error
        out[place] = error_message(error, branch)
    return out


def error_message(error: AgentFailed, branch: str) -> dict[str, Any]:
    """The message, written, that stands in the place of a failed branch."""
    metadata = {"error": {"type": error.remote_type, "message": error.remote_message, "agent": error.agent,
                          "branch": branch, "job_id": error.job_id}}
    name = error.agent.partition("(")[2].rstrip(")") or error.agent or branch
    return {"$msg": Msg(name, f"Error: {error.message}", "assistant", metadata=metadata).to_dict()}


def _tracebacks(task_ids: list[str], backend: Any) -> list[str]:
    """Of failed calls; "" where none is known."""
    if backend is None or not task_ids:
        return [""] * len(task_ids)
    texts = backend.mget([backend.get_key_for_task(task_id or "-") for task_id in task_ids])
    return [(parse(text).get("traceback") or "") if text else "" for text in texts]


def _branch_error(record: dict[str, Any], branch: str, trace: str) -> BranchFailed:
    task_id = record.get("task_id") or ""
    error = failure({"status": record.get("state", "FAILURE"), "result": record, "traceback": trace},
                    label=branch.partition(", ")[2] or branch, job_id=task_id)
    message = f"{branch} failed: {error.args[0] if error.args else error}"
    if isinstance(error, AgentFailed):
        return BranchFailed(message, error.remote_type, error.remote_message, error.remote_traceback, error.agent,
                            task_id, branch)
    return BranchFailed(message, f"callsheet.errors.{type(error).__name__}", str(error), trace, branch, task_id,
                        branch)
