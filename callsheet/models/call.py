"""One call of an endpoint's chat API: the request, and the response while it is read."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx
from pydantic import BaseModel

from callsheet.models.answer import Answer
from callsheet.models.errors import Failures
from callsheet.models.exchange import read_body
from callsheet.resources import transport
from callsheet.resources.post import post
from callsheet.settings import Endpoint
from callsheet.settings.secrets import clean_cause

ERROR_READ = 256 * 1024
"""Bytes of a refusal that are read."""

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


@dataclass(slots=True)
class Call:
    """One call under way.

    Attributes:
        target: whom it goes to: an endpoint's name in the settings, or an endpoint.
        path: under the endpoint's address, or an address of its own.
        key: that it is signed with, or None.
        body: of the request; JSON data.
        headers: beside the endpoint's own.
        timeout: seconds for the whole answer; in a stream, between two chunks.
        structured: what the answer must be, if anything.
        by_tool: the structure is asked for as a tool's arguments.
        speaks: the name of the API.
        lines: a stream is a JSON text a line, rather than server-sent events.
        translate: makes an event one of OpenAI's API.
        key_header: that takes the key.
        own: whether the key is the model's, rather than the endpoint's.
    """

    target: str | Endpoint
    path: str
    key: str | None
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
    key_header: str = "Authorization"
    own: bool = False


class Opened:
    """`async with Opened(call) as response`: the response of an accepted request.

    What goes wrong until it is closed becomes an EndpointError.

    Raises:
        ValueError: the request is not JSON.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._response: httpx.Response | None = None

    async def __aenter__(self) -> httpx.Response:
        call = self._call
        try:
            content = _encode(call.body).encode()
        except (TypeError, ValueError) as exc:
            raise ValueError(f"The call of {call.body['model']!r} is not JSON: {exc}. Give strings, numbers, lists and "
                             "dictionaries.") from exc
        shared = transport(call.target)
        request = post(shared, call.path, call.key, call.headers, content, call.timeout, call.key_header, call.own)
        try:
            self._response = response = await shared.handle_async_request(request)
            response.request = request
            if response.is_success:
                return response
            raise call.failures.refused(response.status_code, await read_body(response, call, ERROR_READ),
                                        response.headers)
        except (httpx.HTTPError, TimeoutError) as exc:
            await self._close()
            raise call.failures.transport(exc, self._response is not None) from clean_cause(exc)
        except BaseException:
            await self._close()
            raise

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self._close()
        if isinstance(exc, httpx.HTTPError | TimeoutError):
            raise self._call.failures.transport(exc, True) from clean_cause(exc)

    async def _close(self) -> None:
        if self._response is not None and not self._response.is_closed:
            await self._response.aclose()
