"""What the settings keep secret, and texts for people without it."""

import contextlib
import re
import time
from urllib.parse import urlsplit

from callsheet.errors import MissingKey
from callsheet.settings.model import Settings

HIDDEN = "***"
_SHORTEST = 6  # characters; a shorter secret would blank ordinary words
_FRESH = 10.0  # seconds for which what the settings hide is remembered: keys may stand in files that change

_USERINFO = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}")
_PEM = re.compile(r"-----BEGIN [A-Z ]*KEY-----.*", re.DOTALL)
#: Keys of known kinds by their beginnings, tokens of three parts, and any long run of letters and digits.
_KEY = re.compile(r"\b(?:(?:sk|pk|rk|gh[opsu]|github_pat|glpat|hf|xox[a-z]|npm|pypi)[-_][\w.-]{8,}"
                  r"|(?:AKIA|ASIA|AIza|ya29|SG\.)[\w.-]{10,}|eyJ[\w-]{8,400}+\.[\w.-]+"
                  r"|(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{28,}={0,2})")
_CALLED = r"(?:api[_-]?key|secret|token(?!s)|passw(?:or)?d|passphrase|credential|authorization)"
#: Bounded everywhere, so that no text takes more than a time that grows with its length.
_NAMED = re.compile(rf"(?i)({_CALLED}[\w-]{{0,40}}[\"']?\s{{0,4}}[:=]\s{{0,4}}[\"']?)([^\s\"',;*]{{3,}})")
_NAME = re.compile(rf"(?i){_CALLED}|(?:^|_)key$")
#: One of these is in any text that the patterns above change, or a word as long as the shortest long run.
_SUSPECT = ("key", "secret", "token", "passw", "passphrase", "credential", "authorization", "bearer", "basic", "://",
            "-----begin", "sk-", "sk_", "pk-", "pk_", "rk-", "rk_", "gho", "ghp", "ghs", "ghu", "github_", "glpat",
            "hf-", "hf_", "xox", "npm-", "npm_", "pypi-", "pypi_", "akia", "asia", "aiza", "ya29", "sg.", "eyj")
_LONG_RUN = 28
_SHORTEST_FOUND = 9  # characters of what a pattern fits

_last: tuple[Settings, float, frozenset[str]] | None = None


def secrets_of(settings: Settings) -> frozenset[str]:
    """What the settings keep secret, as it is now: passwords, keys, headers; of addresses the passwords."""
    own = settings.redis_sentinel_password
    found: list[str | None] = [_password(part) for part in settings.redis_url.get_secret_value().split(";")]
    found.append(own.get_secret_value() if own else None)
    if settings.flower_auth is not None:
        found += [part.partition(":")[2] for part in settings.flower_auth.get_secret_value().split(",")]
    for server in settings.mcp.servers.values():
        found += server.secrets()
    for endpoint in settings.endpoints.values():
        found += endpoint.headers.values()
        found.append(_password(endpoint.proxy.get_secret_value()) if endpoint.proxy else None)
        with contextlib.suppress(MissingKey):
            found.append(endpoint.key())
    return frozenset(secret for secret in found if secret and len(secret) >= _SHORTEST)


def remembered(settings: Settings) -> frozenset[str]:
    """As `secrets_of`, from some seconds ago at most; cheap enough for each call."""
    global _last  # noqa: PLW0603 - one Settings object a process is the rule
    now = time.monotonic()
    if _last is None or _last[0] is not settings or now > _last[1]:
        _last = settings, now + _FRESH, secrets_of(settings)
    return _last[2]


def without_credentials(text: str, secrets: frozenset[str]) -> str:
    """A text without these secrets, and without credentials in addresses and headers."""
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return _BEARER.sub(rf"\1 {HIDDEN}", _USERINFO.sub(HIDDEN, text))


def without_keys(text: str, secrets: frozenset[str]) -> str:
    """As `without_credentials`, and without what looks like a key or is called one, though nobody said that it is."""
    if _suspect(text):
        text = without_credentials(text, secrets)
        return _NAMED.sub(rf"\1{HIDDEN}", _KEY.sub(HIDDEN, _PEM.sub(HIDDEN, text)))
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text


def _suspect(text: str) -> bool:
    """Whether a pattern could fit; for a fraction of what it takes to try them all."""
    if len(text) < _SHORTEST_FOUND:
        return False
    lower = text.lower()
    if [mark for mark in _SUSPECT if mark in lower]:  # a generator would take longer than the search
        return True
    return max(map(len, text.split()), default=0) >= _LONG_RUN


def names_a_secret(name: str) -> bool:
    """Whether what is called so is a secret: `api_key`, `db_password`."""
    return _NAME.search(name) is not None


def _password(address: str) -> str | None:
    with contextlib.suppress(ValueError):
        return urlsplit(address).password
    return None
