"""The shape of a pipeline's job: what runs after and beside what, kept with the job for whoever looks at it.

A plan is JSON data: `label`, `sent` (unix time), `names` (the agents' labels, each once; the first is "", of steps that
belong to no agent), `of` (for each call the index of its name) and `shape`. A shape is the index of a call, or a list
that begins with "then" (one after another) or "beside" (at once) and goes on with shapes.
"""

import time
from collections.abc import Sequence
from typing import Any

from celery import chord
from celery.canvas import Signature, _chain

Shape = Any
_LONGEST = 200  # characters of a pipeline's label


def written(label: str, calls: Sequence[str], labels: Sequence[str], steps: Sequence[Signature]) -> dict[str, Any]:
    """The plan of a job."""
    names = {"": 0}
    of = [names.setdefault(name, len(names)) for name in labels]
    index = {call: number for number, call in enumerate(calls)}
    return {"label": label if len(label) <= _LONGEST else f"{label[:_LONGEST]}…", "sent": time.time(),
            "names": list(names), "of": of, "shape": _after([_shape(step, index) for step in steps])}


def _shape(step: Signature, index: dict[str, int]) -> Shape:
    if isinstance(step, chord):
        header = step.tasks if isinstance(step.tasks, (list, tuple)) else step.tasks.tasks
        return _after([["beside", *(_shape(branch, index) for branch in header)], _shape(step.body, index)])
    if isinstance(step, _chain):
        return _after([_shape(inner, index) for inner in step.tasks])
    return index[step.options["task_id"]]


def _after(shapes: list[Shape]) -> Shape:
    return shapes[0] if len(shapes) == 1 else ["then", *shapes]
