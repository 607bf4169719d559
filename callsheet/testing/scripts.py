"""Scripts of this process: how far each has come, and what was asked."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from callsheet.errors import UsageError

KEPT = 1000
"""Scripts whose state a process keeps."""


class ScriptEnded(UsageError):
    """A scripted model was called more often than its script has answers."""


@dataclass(frozen=True)
class ModelCall:
    """A call that a scripted model got.

    Attributes:
        messages: as they were given.
        structured_model: name of the form asked for, or None.
        kwargs: the rest.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | None = None
    structured_model: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)


class Script:
    """How far one script has come in this process; an agent's model is built anew for each call, this stays."""

    def __init__(self) -> None:
        self.calls: list[ModelCall] = []
        self._lock = threading.Lock()

    def next(self, call: ModelCall) -> int:
        """Note the call; gives its number, from 0."""
        with self._lock:
            self.calls.append(call)
            return len(self.calls) - 1


_scripts: OrderedDict[str, Script] = OrderedDict()
_lock = threading.Lock()


def script_of(ident: str) -> Script:
    """The state of the script of that id."""
    with _lock:
        script = _scripts.setdefault(ident, Script())
        _scripts.move_to_end(ident)
        while len(_scripts) > KEPT:
            _scripts.popitem(last=False)
        return script
