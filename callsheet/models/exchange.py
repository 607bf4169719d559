"""One call of an endpoint's chat API: the request, and the answer: one JSON text, or a stream of events."""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from callsheet.models.answer import MOST_CALLS, Answer, Draft, TooManyCalls, reason
from callsheet.models.base import ChatResponse
from callsheet.models.errors import Failures, error_in
from callsheet.models.sse import Event, EventStream, EventTooLong, LineStream
from callsheet.models.structured import Misfit, problems_of, read_fitting
from callsheet.resources.stack import post, transport
from callsheet.settings import Endpoint
from callsheet.settings.secrets import clean_cause

ERROR_READ = 256 * 1024
"""Bytes of a refusal that are read."""

MAX_BODY = 64 * 1024 * 1024
"""Bytes of an answer."""

MOST_VALUES = 1_000_000
"""Values in one JSON text: to read more takes so long that other agents of the process would notice."""

DRAIN = 0.5
"""Seconds to wait for a stream's end after its last event, so that the connection can be used again."""

_TURN = 0.02  # seconds of work on a stream after which the loop does others'
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


@dataclass(slots=True)
class Call:
    """One call under way."""

    target: str | Endpoint  # whom it goes to: an endpoint's name in the settings, or an endpoint
    path: str  # under the endpoint's address, or an address of its own
    key: str | None  # that it is signed with, or None
    body: dict[str, Any]  # of the request; JSON data
    headers: dict[str, str]  # beside the endpoint's own
    timeout: float  # seconds for the whole answer; in a stream, between two chunks
    failures: Failures
    answer: Answer
    structured: type[BaseModel] | None = None  # what the answer must be, if anything
    speaks: str = "OpenAI's chat completions API"  # the name of the API
    lines: bool = False  # a stream is a JSON text a line, rather than server-sent events
    translate: Callable[[dict[str, Any]], dict[str, Any]] | None = None  # makes an event one of OpenAI's API
    key_header: str = "Authorization"  # that takes the key
    own: bool = False  # whether the key is the model's, rather than the endpoint's


@contextlib.asynccontextmanager
async def opened(call: Call) -> AsyncGenerator[httpx.Response, None]:
    """The response of an accepted request; what goes wrong until it is closed becomes an EndpointError.

    Raises:
        ValueError: the request is not JSON.
    """
    try:
        content = _encode(call.body).encode()
    except (TypeError, ValueError) as exc:
        raise ValueError(f"The call of {call.body['model']!r} is not JSON: {exc}. Give strings, numbers, lists and "
                         "dictionaries.") from exc
    shared = transport(call.target)
    request = post(shared, call.path, call.key, call.headers, content, call.timeout, call.key_header, call.own)
    response: httpx.Response | None = None
    try:
        response = await shared.handle_async_request(request)
        response.request = request
        if not response.is_success:
            raise call.failures.refused(response.status_code, await read_body(response, call, ERROR_READ),
                                        response.headers)
        yield response
    except (httpx.HTTPError, TimeoutError) as exc:
        raise call.failures.transport(exc, response is not None) from clean_cause(exc)
    finally:
        if response is not None and not response.is_closed:
            await response.aclose()


async def read_body(response: httpx.Response, call: Call, cut: int | None = None) -> bytes:
    """The whole body, or its first `cut` bytes; TimeoutError after `call.timeout` seconds, an EndpointError over
    MAX_BODY bytes."""
    parts: list[bytes] = []
    size = 0
    async with asyncio.timeout(call.timeout):
        async for chunk in pieces_of(response):
            parts.append(chunk)
            size += len(chunk)
            if cut is not None and size > cut:
                break
            if size > MAX_BODY:
                raise _too_large(call, response.status_code)
    return b"".join(parts)


def _too_large(call: Call, status: int) -> Exception:
    return call.failures.broken(f"The answer has over {MAX_BODY} bytes", "Ask for less.", status)


def pieces_of(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body's bytes as they come."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return aiter(response.stream)  # without httpx's buffers and counts


async def read_whole(response: httpx.Response, call: Call) -> ChatResponse:
    """The response of an answer that comes in one piece."""
    body = await read_body(response, call)
    _add(call, _parsed(body, response, call), response.status_code)
    return _whole(call, response.status_code)


async def stream_answer(response: httpx.Response, call: Call) -> AsyncGenerator[ChatResponse, None]:
    """Growing responses; the last is complete.

    Raises:
        EndpointError: the stream ends too early or holds what is no completion.
        Misfit: it is complete, and has not the form asked for.
    """
    streams = "ndjson" if call.lines else "event-stream"
    if streams not in response.headers.get("content-type", streams):
        yield await read_whole(response, call)  # a server that does not stream, or a page that is no API
        return
    done = behind = False
    shown = None
    pieces = pieces_of(response)
    async for event in _events(pieces, call, response.status_code):
        if event.data.strip() == "[DONE]":
            done = True
            break
        if not _is_meant(event, call, response.status_code):
            continue
        if _add(call, _parsed(event.data, response, call), response.status_code):
            behind = not call.answer.due
            if not behind:
                shown = call.answer.response()
                yield shown
    if done:
        with contextlib.suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(DRAIN):
                async for _ in pieces:
                    pass
    if call.answer.finish is None:
        raise call.failures.cut_off(response.status_code)
    last = _whole(call, response.status_code)
    if (shown is None or behind or shown.finish_reason != last.finish_reason or last.metadata is not None
            or any("call" in part for part in call.answer.parts)):
        yield last


async def _events(pieces: AsyncIterator[bytes], call: Call, status: int) -> AsyncGenerator[Event, None]:
    stream = LineStream() if call.lines else EventStream()
    size, began = 0, time.monotonic()
    try:
        async for piece in pieces:
            size += len(piece)
            if size > MAX_BODY:
                raise _too_large(call, status)
            for event in stream.feed(piece):
                yield event
                if time.monotonic() - began > _TURN:
                    await asyncio.sleep(0)
                    began = time.monotonic()
    except EventTooLong as exc:
        raise call.failures.broken(f"The stream is not one of answers: {exc}", "Check the endpoint's base_url.",
                                   status) from exc
    for event in stream.close():
        yield event


def _is_meant(event: Event, call: Call, status: int) -> bool:
    """Whether an event is a part of the answer: not the signs of life that servers give names of their own.

    Raises:
        EndpointError: it is an error by its name.
    """
    if event.name in ("", "message"):
        return True
    if event.name == "error":
        try:
            told = json.loads(event.data)
        except (ValueError, RecursionError):
            told = event.data
        raise call.failures.told(told["error"] if isinstance(told, dict) and told.get("error") else told, status)
    return event.data.lstrip().startswith("{")


def _parsed(data: bytes | str, response: httpx.Response, call: Call) -> dict[str, Any]:
    try:
        marks = (b"{", b"[", b",") if isinstance(data, bytes) else ("{", "[", ",")
        if len(data) > MOST_VALUES and sum(map(data.count, marks)) > MOST_VALUES:  # type: ignore[arg-type]
            raise call.failures.broken(f"The answer has over {MOST_VALUES} values", "Ask for less.",
                                       response.status_code)
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
        raise call.failures.unreadable(text, response.status_code) from exc
    if not isinstance(value, dict):
        raise _shapeless(call, value, response.status_code)
    return value


def _add(call: Call, event: dict[str, Any], status: int) -> bool:
    error = error_in(event)
    if error is not None:
        raise call.failures.told(error, status)
    try:
        return call.answer.add(call.translate(event) if call.translate else event)
    except TooManyCalls:
        raise call.failures.broken(f"The answer makes over {MOST_CALLS} tool calls", "Ask for less.", status) from None
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise _shapeless(call, event, status) from exc


def _shapeless(call: Call, value: Any, status: int) -> Exception:
    shown = "".join(itertools.islice(json.JSONEncoder().iterencode(value), 200))  # no more than is shown
    return call.failures.broken(f"The answer is no chat completion: {shown[:200]}",
                                f"Check that the endpoint speaks {call.speaks}.", status)


def _whole(call: Call, status: int) -> ChatResponse:
    answer = call.answer
    if not (answer.finish or answer.parts or answer.refusal):
        raise call.failures.broken("The answer holds no choice", f"Check that the endpoint speaks {call.speaks}.",
                                   status)
    return finished(answer, call.structured, call.failures, status)


def finished(answer: Draft, form: type[BaseModel] | None, failures: Failures, status: int | None,
             why: str = "") -> ChatResponse:
    """The complete answer, checked.

    Args:
        answer: all of it.
        form: that it must have, if any.
        status: of the response.
        why: what the provider said of why it ended.

    Raises:
        Misfit: it has not that form.
        EndpointError: the model failed, or refused and said nothing; or the answer has not that form, being cut, so
            that asking again is of no use.
    """
    word, why = "refusal" if answer.refusal and not answer.text else answer.ended, answer.refusal or why
    if reason(word) == "error":
        raise failures.broken(f"The model failed amid its answer ({': '.join(filter(None, (word, why)))})",
                              "Try again, or ask another model.", status, retryable=True)
    if reason(word) == "content_filter" and not answer.said:
        raise failures.broken(f"The model refused: {why or word}", "Ask for something else.", status)
    data = None
    if form is not None:
        try:
            data = read_fitting(form, answer.data)
        except ValidationError as exc:
            wrong, cut = problems_of(exc), answer.finish == "length"
            error = failures.broken(
                f"The answer does not fit {form.__name__}{', being cut at max_tokens' if cut else ''}: {wrong}",
                "Raise max_tokens." if cut else "Describe the fields to the model, or take another model.", status,
                retryable=not cut)
            raise (error if cut else Misfit(answer.data, wrong, error, answer.usage)) from exc
    return answer.response(final=True, metadata=data)
