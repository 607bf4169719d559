"""What a refused request tells: whether to send it again, when, and which parameter a model does not take.

The fleet remembers such parameters, so that no process has to be refused twice.
"""

import asyncio
import contextlib
import email.utils
import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from redis.exceptions import RedisError

from callsheet.resources.context import current_call
from callsheet.resources.record import Layer, json_body
from callsheet.resources.redis import async_client
from callsheet.resources.transport import ProxyRefused, UntrustedCertificate
from callsheet.settings import get_settings
from callsheet.settings.keys import Keys

KEPT = 24 * 3600
"""Seconds for which the fleet remembers."""

LOOK = 300.0
"""Seconds after which a process that works for the fleet looks again."""

_ANSWERS_WITHIN = 1.0
_MOST = 1024
_known: dict[tuple[str, str], tuple[float, frozenset[str]]] = {}


def refused(base_url: str, model: str) -> frozenset[str]:
    """The parameters that this model is known not to take there."""
    found = _known.get((base_url, model))
    return found[1] if found is not None else frozenset()


async def look(base_url: str, model: str) -> None:
    """Ask the fleet what it knows, where a worker's call needs it and this process has not asked lately."""
    found = _known.get((base_url, model))
    if (found is not None and found[0] > time.monotonic()) or not _of_fleet():
        return
    with contextlib.suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(_ANSWERS_WITHIN):
            names = await async_client(get_settings()).smembers(_key(base_url, model))
        found = 0.0, frozenset(name.decode() for name in names)
    _keep(base_url, model, LOOK, found[1] if found is not None else frozenset())


async def learn(base_url: str, model: str, name: str) -> None:
    """Remember that this model does not take a parameter."""
    _keep(base_url, model, LOOK if _of_fleet() else 0.0, refused(base_url, model) | {name})
    if not _of_fleet():
        return
    with contextlib.suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(_ANSWERS_WITHIN), async_client(get_settings()).pipeline() as pipe:
            await pipe.sadd(_key(base_url, model), name).expire(_key(base_url, model), KEPT).execute()


def _of_fleet() -> bool:
    context = current_call()
    return context.call is not None and not context.local and not get_settings().inline


def _key(base_url: str, model: str) -> str:
    digest = hashlib.sha256(f"{base_url} {model}".encode("utf-8", "replace")).hexdigest()[:32]
    return Keys(get_settings().key_prefix).learned(digest)


def _keep(base_url: str, model: str, seconds: float, names: frozenset[str]) -> None:
    if len(_known) >= _MOST:
        _known.clear()
    _known[base_url, model] = time.monotonic() + seconds, names


RETRIED = frozenset({408, 409, 425, 429, *range(500, 600)})
"""Statuses after which the same request may succeed."""

_SPENT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance",
                    "exceeded_current_quota_error", "arrearage", "1113"})  # codes of a 429 that no waiting mends
_PER_DAY = re.compile(rb'"quota(?:Id|_limit)"\s*:\s*"[^"]*PerDay')  # Google's
_TOO_LARGE = re.compile(rb"Limit:? (\d+),.{0,40}?Requested:? ~?(\d+)", re.I)

_BEFORE_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
# An address, a certificate or a refusal does not mend by itself.
_NEVER = (httpx.UnsupportedProtocol, httpx.DecodingError, UntrustedCertificate, ProxyRefused)


@dataclass(frozen=True, slots=True)
class Again:
    """A request that may be sent again.

    Attributes:
        reason: why it has to be, e.g. "status 503" or "ConnectError"; holds nothing secret.
        after: seconds that the server asked to wait, or None.
        invited: whether the server named the time to come back as the remedy: its rate limit was reached.
    """

    reason: str
    after: float | None = None
    invited: bool = False


def of_error(exc: httpx.TransportError, after_sent: bool) -> Again | None:
    """Whether a request that got no answer may be sent again.

    Args:
        exc: what the pooled transport raised.
        after_sent: whether also if the server may have begun to work on it.
    """
    if not isinstance(exc, _NEVER) and (after_sent or isinstance(exc, _BEFORE_SENT)):
        return Again(type(exc).__name__)
    return None


def of_answer(status: int, headers: httpx.Headers, body: bytes) -> Again | None:
    """Whether a request with this answer may be sent again.

    Args:
        status: 400 or more.
        headers: of the answer.
        body: as much of it as was read.
    """
    wish = headers.get("x-should-retry", "").lower()
    if wish == "false" or (wish != "true" and status not in RETRIED):
        return None
    if is_spent(status, body):
        return None
    after = asked_delay(headers)
    return Again(f"status {status}", after, invited=status == 429 and after is not None)


def is_spent(status: int, body: bytes) -> bool:
    """Whether a 429 is one that no retry mends: all is used up for long, or one request is over the limit."""
    asked = _TOO_LARGE.search(body)
    return status == 429 and bool(_SPENT & {code.lower() for code in error_codes(body)} or _PER_DAY.search(body)
                                  or (asked and int(asked[2]) > int(asked[1])))


def asked_delay(headers: httpx.Headers) -> float | None:
    """Seconds that `retry-after-ms` or `Retry-After`, a number or a date, asks for; None without."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            asked = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if 0 <= asked < float("inf"):
            return asked
    try:
        when = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, when.timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def error_codes(body: bytes) -> set[str]:
    """The code and the type of an error, as providers write them; empty where the body holds none."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return set()
    error = data.get("error") if isinstance(data, dict) else None
    if not isinstance(error, dict):
        return set()
    return {value for name in ("code", "type") if isinstance(value := error.get(name), str)}


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


class Reading(Layer):
    """Reads refusals that may pass to their end, and tells in their headers what they tell in their bodies.

    Read to its end a refusal leaves the connection to the next request, and whoever gets it can still read it.

    Args:
        inner: the next transport; its bodies are plain.
    """

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
