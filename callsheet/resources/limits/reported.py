"""What providers say of their limits in the headers of their answers."""

import email.utils
import re
from dataclasses import dataclass
from datetime import datetime

import httpx

SLACK = 1.1
"""How much longer than a minute a limit's reset may take for it to be one a minute."""

_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Reported:
    """One limit.

    Attributes:
        limit: in its period.
        left: of it.
        reset: seconds until all of it is there again, or None.
    """

    limit: int
    left: int
    reset: float | None

    @property
    def per_minute(self) -> bool:
        """Whether its period is a minute, as far as can be told; limits a day come back far more slowly."""
        return self.reset is None or self.reset <= 60 * SLACK + 1


def reported(headers: httpx.Headers) -> tuple[Reported | None, Reported | None]:
    """The limits of requests and of tokens that an answer's headers tell; None where they do not."""
    if not any(b"ratelimit-" in name.lower() for name, _ in headers.raw):  # quicker than to ask for each
        return None, None
    if "x-ratelimit-limit-requests" in headers or "x-ratelimit-limit-tokens" in headers:
        return (_read(headers, "x-ratelimit-{}-requests"), _read(headers, "x-ratelimit-{}-tokens"))
    if "anthropic-ratelimit-requests-limit" in headers or "anthropic-ratelimit-tokens-limit" in headers:
        return (_read(headers, "anthropic-ratelimit-requests-{}"), _read(headers, "anthropic-ratelimit-tokens-{}"))
    return None, None


def _read(headers: httpx.Headers, name: str) -> Reported | None:
    try:
        limit, left = (int(headers[name.format(part)]) for part in ("limit", "remaining"))
    except (KeyError, ValueError):
        return None
    if limit <= 0 or left < 0:
        return None
    return Reported(limit, left, _seconds(headers.get(name.format("reset"), ""), headers.get("date", "")))


def _seconds(text: str, date: str) -> float | None:
    """Seconds from a duration such as 6m0.5s, a number, or a time; by the server's own clock."""
    text = text.strip()
    parts = _PART.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return max(0.0, (datetime.fromisoformat(text) - email.utils.parsedate_to_datetime(date)).total_seconds())
    except (TypeError, ValueError):
        return None
