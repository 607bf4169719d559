"""One call of an endpoint's chat API: the request, and the response while it is read."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import BaseModel

from callsheet.models.answer import Answer
from callsheet.models.errors import Failures
from callsheet.models.exchange import read_body
from callsheet.resources import client
from callsheet.settings import Endpoint


@dataclass
class Call:
    """One call under way.

    Attributes:
        endpoint: whom it goes to.
        path: under the endpoint's address, or an address of its own.
        body: of the request; JSON data.
        headers: beside the endpoint's own.
        timeout: seconds for the whole answer; in a stream, between two chunks.
        structured: what the answer must be, if anything.
        by_tool: the structure is asked for as a tool's arguments.
        speaks: the name of the API.
        lines: a stream is a JSON text a line, rather than server-sent events.
        translate: makes an event one of OpenAI's API.
    """

    endpoint: Endpoint
    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    timeout: float
    failures: Failures
    answer: Answer
    structured: type[BaseModel] | None = None
    by_tool: bool = False
    speaks: str = "OpenAI's chat completions API"
    lines: bool = False
    translate: Callable[[dict[str, Any]], dict[str, Any]] | None = None


@contextlib.asynccontextmanager
async def opened(call: Call) -> AsyncIterator[httpx.Response]:
    """The response of an accepted request; what goes wrong until it is closed becomes an EndpointError."""
    try:
        content = json.dumps(call.body, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise ValueError(f"The call of {call.body['model']!r} is not JSON: {exc}. Give strings, numbers, lists and "
                         "dictionaries.") from exc
    http = client(call.endpoint)
    limit = httpx.Timeout(call.timeout, connect=call.endpoint.connect_timeout, pool=None)
    begun = False
    try:
        async with http.stream("POST", call.path, content=content, timeout=limit,
                               headers={"Content-Type": "application/json", **call.headers}) as response:
            begun = True
            if not response.is_success:
                raise call.failures.refused(response.status_code, await read_body(response, call), response.headers)
            yield response
    except (httpx.HTTPError, TimeoutError) as exc:
        raise call.failures.transport(exc, begun) from exc
