"""The transports that a request to an endpoint passes through, put together once a loop and endpoint."""

from collections.abc import Hashable
from typing import Any

import httpx

from callsheet.errors import UsageError
from callsheet.resources.breaker import Breaking, breakers
from callsheet.resources.endpoints import Signature, resolved, shown_url, signed
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
_requests: dict[tuple[int, str, str | None, str, bool], tuple["EndpointTransport", httpx.URL, httpx.Headers]] = {}
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
    inner: httpx.AsyncBaseTransport = Reading(Sniffing(pooled_transport(endpoint, Outbound(settings).connecting)))
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


def post(shared: EndpointTransport, path: str, key: str | None, headers: dict[str, str], content: bytes,
         timeout: float, key_header: str = "Authorization", own: bool = False) -> httpx.Request:
    """A POST of JSON, signed with the endpoint's key and headers; for `shared.handle_async_request`.

    httpx's client merges addresses, headers, cookies, time limits and hooks anew for each request, which costs as much
    as sending it. What is the same for every call of an endpoint is made once here.

    Args:
        shared: the endpoint's transport.
        path: under the endpoint's address, or an address.
        key: the endpoint's, as it is now, or one in its place; sent to the endpoint's origin alone.
        headers: of this call; they beat the endpoint's.
        content: the body.
        timeout: seconds of silence.
        key_header: that takes the key.
        own: whether the key is one in place of the endpoint's.
    """
    known = _requests.get((id(shared), path, key, key_header, own))
    if known is None:
        if len(_requests) >= _MOST_MADE:
            _requests.clear()
        # The tuple keeps the transport, so that its id stays its own.
        signature = Signature(shared.endpoint, key_header, key if own else None)
        known = _requests[id(shared), path, key, key_header, own] = shared, *_template(shared, path, signature)
    _, url, common = known
    made = httpx.Headers(common, encoding="utf-8")  # else httpx looks for the encoding at each look
    for name, value in headers.items():
        made[name] = value
    if "api-key" in headers:  # Azure's way to sign
        made.pop("authorization", None)
    made["content-length"] = str(len(content))
    limits: dict[str, Any] = {"connect": shared.endpoint.connect_timeout, "read": timeout, "write": timeout,
                              "pool": None}
    request = httpx.Request("POST", url, headers=made, stream=httpx.ByteStream(content),
                            extensions={"timeout": limits, CHECKED: True})
    request.read()  # so that who counts or sends again has it at hand
    return request


def _template(shared: EndpointTransport, path: str, signature: Signature) -> tuple[httpx.URL, httpx.Headers]:
    base = shown_url(shared.endpoint.base_url)
    url = httpx.URL(path if "://" in path else f"{base}/{path}")
    shared.outbound.check(url)
    request = httpx.Request("POST", url, headers={
        "User-Agent": "callsheet", "Accept": "*/*", "Accept-Encoding": "gzip, deflate", "Connection": "keep-alive",
        "Content-Type": "application/json"})
    del request.headers["content-length"]
    for name in request.headers.keys() & {name.lower() for name in shared.endpoint.headers}:
        del request.headers[name]  # signing adds the endpoint's, and leaves alone what is there
    signature.sign(request.headers, url)
    return url, request.headers
