"""Which failed requests may be sent again, and when."""

import email.utils
import json
import re
import time
from dataclasses import dataclass

import httpx

from callsheet.resources.transport import ProxyRefused, UntrustedCertificate

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
