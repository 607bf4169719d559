"""A tool's failure as a text for the model, without what only the developer may see."""

import contextlib
import re
from urllib.parse import urlsplit

from callsheet.errors import CallsheetError, JobError
from callsheet.settings import get_settings

LONGEST = 2_000
"""Characters of an error's text that a model gets."""
LONGEST_TRACE = 20_000
"""Characters of a traceback that are logged."""
_SHORTEST_SECRET = 6  # characters; a shorter one would blank ordinary words
_USERINFO = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}")


class OutOfTime(Exception):
    """A call of a tool is over its time; never leaves the tools."""


def failure_text(exc: BaseException) -> str:
    """What the model is told of an error."""
    return f"Error: {failure_words(exc)}"


def failure_words(exc: BaseException) -> str:
    """An error's kind and text, and no traceback; of Callsheet's own errors the text alone."""
    text = safe(exc.message if isinstance(exc, JobError) else str(exc))
    return text if text and isinstance(exc, CallsheetError) else f"{type(exc).__name__}: {text}".removesuffix(": ")


def safe(text: str, longest: int = LONGEST) -> str:
    """A text without the settings' secrets and without credentials in addresses; cut if it is long."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    text = _BEARER.sub(r"\1 ***", _USERINFO.sub("***", text))
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"


def _secrets() -> set[str]:
    """What the settings keep secret, as it is now; of an address its password."""
    found: list[str | None] = []
    with contextlib.suppress(CallsheetError):  # settings that are wrong hold no secrets that are in use
        settings = get_settings()
        found.append(_password(settings.redis_url.get_secret_value()))
        for endpoint in settings.endpoints.values():
            found += endpoint.headers.values()
            found.append(_password(endpoint.proxy.get_secret_value()) if endpoint.proxy else None)
            with contextlib.suppress(CallsheetError):
                found.append(endpoint.key())
    return {secret for secret in found if secret and len(secret) >= _SHORTEST_SECRET}


def _password(address: str) -> str | None:
    with contextlib.suppress(ValueError):
        return urlsplit(address).password
    return None
