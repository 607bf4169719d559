"""What a refusal says in its body: when to come back, that nothing helps, or which parameter is not taken."""

import asyncio
import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

import httpx

from callsheet.resources.record import json_body
from callsheet.resources.verdict import RETRIED, asked_delay, is_spent

MOST_READ = 64 * 1024
"""Bytes of an error's body that are read."""

READ_WITHIN = 10.0
"""Seconds that an error's body may take."""

SAID, PARAMETER = "callsheet_said", "callsheet_parameter"
"""Extensions of such a response: its body's beginning, and the parameter that is not taken, if it says so."""

WANTS_REASONING = "no reasoning_content"
"""Stands for a parameter: each message of the model's must have its thoughts."""

WANTS_LAST_WORD = "no last word of the model's"
"""Likewise: the last message must be a user's, or a tool's result."""

_UNIT = {"ms": 0.001, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = r"(?:\d+(?:\.\d+)?\s*(?:ms|milliseconds?|s|sec(?:ond)?s?|m|min(?:ute)?s?|h|hours?|d|days?)(?![a-z])\s*)+"
_WAIT = re.compile(rf"(?:again|retry|wait|reset\w*|available)\s+(?:in|after|for|at least)?\s*({_TIME})", re.I)
_FIELD = re.compile(
    rf'"(retry_?delay|retry_after(?:_ms|_seconds)?|estimated_time)"\s*:\s*"?({_TIME}|\d+(?:\.\d+)?)', re.I)
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|mil|s|m|h|d)?", re.I)

#: How servers speak of what a request may ask for and many do not take, at any mention.
_FORCED = {
    "tool_choice": re.compile(r"tool[ _]?choice|tool_?config|function[ _]?calling[ _]?config|forced function", re.I),
    "response_format": re.compile(r"response[_ ]format|json_schema", re.I)}
#: What is refused only in such words; the rest is about its value.
_UNKNOWN = re.compile(
    r"unsupported|not (?:yet |currently )?support|n't support|unknown|unrecogni[sz]ed|unexpected"
    r"|extra (?:inputs|fields)|extra_forbidden|additional propert|not (?:permitted|allowed|implemented)"
    r"|(?:not |un)available|only the default|may only be set", re.I)
#: What no request can do without, or what would be another request without.
_NEEDED = frozenset({"model", "messages", "contents", "system", "tools", "stream", "stop", "n", "logit_bias", "audio",
                     "modalities", "format", "input", "options", "metadata", "user", "config"})
_INSIDE = ("reasoning_content", "reasoning_details", "extra_content", "cache_control")  # of messages
OF_MESSAGES = frozenset({*_INSIDE, "name", WANTS_REASONING, WANTS_LAST_WORD})
_LAST_WORD = re.compile(r"must end with a user|assistant message prefill|expected last role user", re.I)
_NAME = re.compile(r"messages.{0,80}\bname\b", re.I | re.S)


def named_delay(said: str) -> float | None:
    """Seconds until a server wants to be asked again, as its error names them, in a field or in words."""
    field = _FIELD.search(said)
    if field is not None:
        return _seconds(field[2]) / (1000 if field[1].lower().endswith("_ms") else 1)
    words = _WAIT.search(said)
    return _seconds(words[1]) if words is not None else None


def _seconds(text: str) -> float:
    """Of "1m30s", "859ms" or "20"."""
    return sum(float(number) * _UNIT.get("ms" if unit.lower() == "mil" else unit.lower(), 1.0)
               for number, unit in _PART.findall(text))


def refused_parameter(asked: Mapping[str, Any], said: str) -> str | None:
    """The parameter of a request that its server does not take, if its error says that.

    Args:
        asked: the request, of a chat API.
        said: the error's text.
    """
    choice = asked.get("tool_choice")
    mode = choice.get("type") if isinstance(choice, dict) else choice
    for name, words in _FORCED.items():
        there = mode not in (None, "auto") if name == "tool_choice" else name in asked
        if there and words.search(said):
            return name
    if "reasoning_content" in said and re.search(r"missing|must be passed|required", said, re.I):
        return WANTS_REASONING
    if _LAST_WORD.search(said):
        return WANTS_LAST_WORD
    if not _UNKNOWN.search(said):
        return None
    names = [name for name in asked if name not in _NEEDED]
    names += [name for name in _INSIDE if name in said and name in json.dumps(asked.get("messages"), default=str)]
    places = [(found.start(), name) for name in names
              if (found := re.search(rf"(?<![a-z_]){re.escape(name)}{'(?:ing)?' if name == 'think' else ''}(?![a-z_])",
                                     said, re.I))]
    return min(places)[1] if places else "name" if _NAME.search(said) else None


class Reading(httpx.AsyncBaseTransport):
    """Reads refusals that may pass to their end, and tells in their headers what they tell in their bodies.

    Read to its end a refusal leaves the connection to the next request, and whoever gets it can still read it.

    Args:
        inner: the next transport; its bodies are plain.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request."""
        response = await self._inner.handle_async_request(request)
        status = response.status_code
        if status < 400 or (status not in RETRIED and response.headers.get("x-should-retry", "").lower() != "true"):
            return response
        assert isinstance(response.stream, httpx.AsyncByteStream)
        raw = bytearray()
        with contextlib.suppress(httpx.TransportError, TimeoutError):
            async with asyncio.timeout(READ_WITHIN):
                async for chunk in response.stream:
                    raw += chunk
                    if len(raw) > MOST_READ:
                        break
        await response.aclose()
        body = bytes(raw)
        said = body.decode("utf-8", "replace")
        asked = json_body(request) or {}
        parameter = refused_parameter(asked, said) if "messages" in asked else None
        kept = httpx.Response(status, headers=response.headers, stream=httpx.ByteStream(body),
                              extensions={**response.extensions, SAID: body, PARAMETER: parameter})
        if parameter or is_spent(status, body):
            kept.headers["x-should-retry"] = "false"
        elif asked_delay(kept.headers) is None and (delay := named_delay(said)) is not None:
            kept.headers["retry-after"] = f"{delay:.3f}"
        return kept

    async def aclose(self) -> None:
        """Close the transports under it."""
        await self._inner.aclose()
