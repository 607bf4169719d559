"""The transports that a request to an endpoint passes through, put together once a loop and endpoint."""

from collections.abc import Hashable
from typing import Any

import httpx

from callsheet.errors import UsageError
from callsheet.resources.breaker import Breaking, breakers
from callsheet.resources.endpoints import resolved, signed
from callsheet.resources.limits.transport import Limiting
from callsheet.resources.loops import PerLoop
from callsheet.resources.outbound import Outbound
from callsheet.resources.record import Recording
from callsheet.resources.refusals import Reading
from callsheet.resources.retries import Retrying, budget_for
from callsheet.resources.transport import pooled_transport
from callsheet.resources.usage import Sniffing
from callsheet.settings import Endpoint, Settings, get_settings

stacks: PerLoop[httpx.AsyncBaseTransport] = PerLoop()
_made: dict[tuple[str, int, int], "EndpointTransport"] = {}
_MOST_MADE = 256
CHECKED = "callsheet_checked"
"""In the extensions of a request whose address is known to be one that may be called."""


def transport(endpoint: str | Endpoint, settings: Settings | None = None) -> "EndpointTransport":
    """A transport to an endpoint, for whatever takes an httpx client.

    `httpx.AsyncClient(transport=callsheet.resources.transport("openai"))`: what is sent through it passes the
    endpoint's limits, retries and accounting, and shares the process's connections. It works on any
    event loop; closing the client leaves the connections open for others, until the loop ends. It signs nothing: the
    key is the client's affair.

    Args:
        endpoint: a name in the settings, or an endpoint as such.
        settings: where to look the name up; the process's settings without.

    Raises:
        SettingsError: no endpoint has that name.
    """
    known = settings or get_settings()
    name, found = resolved(endpoint, known)
    # Each call of a model asks. A transport refers to both objects, so that their ids stay theirs.
    made = _made.get((name, id(found), id(known)))
    if made is None:
        if len(_made) >= _MOST_MADE:
            _made.clear()
        made = _made[name, id(found), id(known)] = EndpointTransport(name, found, known)
    return made


def build(name: str, endpoint: Endpoint, settings: Settings) -> httpx.AsyncBaseTransport:
    """The stack of one loop, from the connections up."""
    inner: httpx.AsyncBaseTransport = Reading(Sniffing(pooled_transport(endpoint, Outbound(settings))))
    inner = Limiting(inner, name, endpoint, settings)
    if endpoint.breaker.enabled:
        inner = Breaking(inner, breakers(name, endpoint, settings))
    policy = endpoint.retry
    inner = Retrying(inner, name, policy, budget_for(name, endpoint.base_url, policy.budget, policy.budget_min))
    return Recording(inner, name)


class EndpointTransport(httpx.AsyncBaseTransport):
    """The stack of one endpoint, on whichever loop runs.

    Attributes:
        name: the endpoint's.
        endpoint: its settings.
        outbound: which addresses may be called through it.
        key: what makes two of them the same.
    """

    def __init__(self, name: str, endpoint: Endpoint, settings: Settings) -> None:
        self.name = name
        self.endpoint = endpoint
        self.settings = settings
        self.outbound = Outbound(settings)
        self.key: Hashable = (name, _hashable(endpoint.__dict__), settings.redis_url, settings.key_prefix,
                              settings.inline, self.outbound.key)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request through the running loop's stack, signed where it is marked.

        Raises:
            UsageError: no loop runs, or the settings do not let anybody call that address.
        """
        if CHECKED not in request.extensions:
            self.outbound.check(request.url)
        try:
            stack = stacks.get(self.key, self._build)
        except RuntimeError:
            raise UsageError("An endpoint's transport was used where no asyncio loop runs. Use it in a coroutine that "
                             "asyncio runs.") from None
        headers = signed(request)
        if headers is None:
            return await stack.handle_async_request(request)
        bare, request.headers = request.headers, headers
        try:
            return await stack.handle_async_request(request)
        finally:
            request.headers = bare  # of which redirects are made

    def _build(self) -> httpx.AsyncBaseTransport:
        return build(self.name, self.endpoint, self.settings)

    async def aclose(self) -> None:
        """Others use the connections: they close with the loop."""


def _hashable(value: Any) -> Hashable:
    """The value with dictionaries and lists made into tuples."""
    if isinstance(value, dict):
        return tuple((key, _hashable(item)) for key, item in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    known: Hashable = value
    return known
