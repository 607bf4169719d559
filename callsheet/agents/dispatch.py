"""What agents need of the layer above them: someone who makes calls into jobs."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from callsheet.agents.options import CallOptions
from callsheet.errors import UsageError


class Dispatcher(Protocol):
    """Makes calls into jobs; a target is an agent, or what the layer above builds of agents."""

    def submit(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions) -> Any:
        """Send the call and return its Job at once."""

    def submit_many(self, target: Any, values: list[Any], options: CallOptions,
                    job_ids: Sequence[str] | None = None) -> list[Any]:
        """Send a call for each value, published together, and return their Jobs; with these ids, if given."""

    async def call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any],
                   options: CallOptions) -> Any:
        """Send the call and wait for its reply without blocking the loop."""


_provider: Callable[[], Dispatcher] | None = None
#: The dispatcher of this context, in place of the process's; set inside `with inline():`.
override: ContextVar[Dispatcher | None] = ContextVar("callsheet_dispatcher", default=None)


def provide(provider: Callable[[], Dispatcher]) -> None:
    """Say who makes the process's dispatcher; called once by the layer above, at import."""
    global _provider  # noqa: PLW0603 - the one seam between the layers
    _provider = provider


def dispatcher() -> Dispatcher:
    """The dispatcher that holds here."""
    here = override.get()
    if here is not None:
        return here
    if _provider is None:
        raise UsageError("Nothing is there to run agents: import callsheet, not callsheet.agents alone.")
    return _provider()
