"""Requests to an endpoint's chat API, put together with as little work as a call can do.

httpx's client merges addresses, headers, cookies, time limits and hooks anew for each request, which costs as much as
sending it. What is the same for every call of an endpoint is made once here.
"""

from typing import Any

import httpx

from callsheet.resources.endpoints import Signature, shown_url
from callsheet.resources.stack import CHECKED, EndpointTransport

_MOST_MADE = 256
_made: dict[tuple[int, str, str | None, str, bool], tuple[EndpointTransport, httpx.URL, httpx.Headers]] = {}


def post(shared: EndpointTransport, path: str, key: str | None, headers: dict[str, str], content: bytes,
         timeout: float, key_header: str = "Authorization", own: bool = False) -> httpx.Request:
    """A POST of JSON, signed with the endpoint's key and headers; for `shared.handle_async_request`.

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
    known = _made.get((id(shared), path, key, key_header, own))
    if known is None:
        if len(_made) >= _MOST_MADE:
            _made.clear()
        # The tuple keeps the transport, so that its id stays its own.
        signature = Signature(shared.endpoint, key_header, key if own else None)
        known = _made[id(shared), path, key, key_header, own] = shared, *_template(shared, path, signature)
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
