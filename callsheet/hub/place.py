"""Where hubs are kept here: in Redis, or inline in this process."""

from callsheet.agents.dispatch import override
from callsheet.errors import UsageError
from callsheet.hub.local import PROCESS, LocalHubs
from callsheet.hub.redis import RedisHubs
from callsheet.resources.loops import running_loop
from callsheet.settings import get_settings

Hubs = RedisHubs | LocalHubs


def the_hubs() -> Hubs:
    """Where hubs are kept here."""
    here: Hubs | None = getattr(override.get(), "hubs", None)
    if here is not None:
        return here
    settings = get_settings()
    return PROCESS if settings.inline else RedisHubs(settings)


def on_loop() -> bool:
    """Whether an event loop runs in this thread."""
    return running_loop() is not None


def refuse_on_loop(what: str, instead: str) -> None:
    """Refuse what would block a running loop."""
    if on_loop():
        raise UsageError(f"{what} would block the running event loop. In async code write: {instead}")
