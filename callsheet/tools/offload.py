"""What tools need of the layers above: someone who runs a function on the workers of a queue."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from callsheet.errors import UsageError
from callsheet.tools.registered import RegisteredToolFunction
from callsheet.tools.response import ToolResponse


@dataclass(frozen=True, kw_only=True)
class Errand:
    """One call of a tool on another worker."""

    tool: RegisteredToolFunction  # what is to run
    arguments: dict[str, Any]  # the model's, known to fit
    timeout: float | None  # seconds that are left for it, or None


class Elsewhere(Protocol):
    """Runs tools on the workers of the queues that they name."""

    def is_here(self, queue: str) -> bool:
        """Whether what runs here came from that queue."""

    async def run(self, errand: Errand) -> ToolResponse:
        """Run it there, and wait without holding a slot.

        Raises:
            ToolFailed: the tool raised, or could not be run; with the text for the model.
        """


_provider: list[Callable[[], Elsewhere]] = []


def provide(provider: Callable[[], Elsewhere]) -> None:
    """Say who runs tools elsewhere; called once by the layer above, at import."""
    _provider[:] = [provider]


def elsewhere() -> Elsewhere:
    """Who runs tools elsewhere."""
    if not _provider:
        raise UsageError("Nothing is there to run tools on other workers: import callsheet, not callsheet.tools alone.")
    return _provider[0]()
