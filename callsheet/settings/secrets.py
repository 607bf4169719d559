"""What the settings keep secret, and texts without it: log records, errors that are stored, what people read.

A text is cleaned where it leaves the process, not where it is made. The one who reads the settings says which they are
(`guard`); from then on the process's log records and the errors of Callsheet's own classes are without their secrets.
"""

import base64
import contextlib
import functools
import html
import itertools
import json
import logging
import os
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit
from urllib.request import getproxies

from callsheet.errors import MissingKey, provide_cleaning

if TYPE_CHECKING:
    from callsheet.settings.model import Settings

HIDDEN = "***"
_SHORTEST = 6  # characters; a shorter secret would blank ordinary words
_LONG = 16  # characters; of a secret of so many, half of it is hidden too: texts are cut
_FRESH = 10.0  # seconds for which what the settings hide is remembered: keys may stand in files that change
_MOST_KEPT = 1000
_ENDS = 1 << 15  # characters; of a longer error's text so many are left at its beginning, and at its end
_KEYS = r"[\w.~+/%=-]{0,400}"  # what else of a key may stand beside its half
_SCHEMES = ("bearer ", "basic ", "token ")

_USERINFO = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_BEARER = re.compile(r"\b((?i:bearer)|(?i:basic)(?=\s+[\w.~+/-]*[A-Z\d=]))\s+[\w.~+/=-]{8,}")
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

#: Headers that hold no secret, whatever their values look like.
_OPEN_HEADERS = re.compile(r"(?i)(accept|content|cache|(anthropic|openai)-(beta|version|organization|project)|"
                           r"user-agent|(http-)?referer|origin|host|via|connection|x-title|x-region)\b")
#: What is no ordinary word, nor a date, a path or an address.
_UNMISTAKABLE = re.compile(r"(?![/.~]|\d{4}-\d\d|\S*://)(?:(?=\D*\d)(?=[^A-Za-z]*[A-Za-z])\S{10,}|\S{24,})")


def unmistakable(value: str) -> bool:
    """Whether a text looks like a secret, and like nothing else."""
    return _UNMISTAKABLE.fullmatch(value) is not None


class Secrets:
    """Secrets, and the forms in which texts hold them: as they are, escaped, in an address, in a header.

    Args:
        values: the secrets; those of under 6 characters are none.
        logins: each a "user:password", which HTTP sends as base64.

    Attributes:
        values: the secrets.
    """

    __slots__ = ("_all", "_plain", "logins", "values")

    def __init__(self, values: Iterable[str] = (), logins: Iterable[str] = ()) -> None:
        self.values = frozenset(value for value in values if len(value) >= _SHORTEST)
        self.logins = frozenset(login for login in logins if len(login) > _SHORTEST)
        meant = {form: value for value in self.values for form in _forms(value)}
        meant |= {_base64(login): login for login in self.logins}
        found = sorted((form for form in meant if len(form) >= _SHORTEST), key=len, reverse=True)
        self._all = {form: (_half(form), _half(form[::-1])[::-1]) for form in found}
        self._plain = {form: halves for form, halves in self._all.items() if unmistakable(meant[form])}

    def __bool__(self) -> bool:
        return bool(self._all)

    def without(self, text: str) -> str:
        """The text without them, and without halves of long ones: for people, who can do without an ordinary word."""
        return _hidden(self._all, text)

    def cleaned(self, data: str) -> str:
        """Data as text, JSON for example, likewise without those that no ordinary word can be."""
        return _hidden(self._plain, data)

    def within(self, data: str) -> bool:
        """Whether data hold one that no ordinary word can be."""
        return any(map(data.__contains__, self._plain))


def _hidden(forms: dict[str, tuple[str, str]], text: str) -> str:
    """The text without these forms, the longest first, and without their halves."""
    if forms and any(map(text.__contains__, itertools.chain.from_iterable(forms.values()))):
        for form in forms:
            text = text.replace(form, HIDDEN)
        for head, tail in forms.values():  # what is left of those that were cut
            if head in text or tail in text:
                text = re.sub(rf"{re.escape(head)}{_KEYS}|{_KEYS}{re.escape(tail)}", HIDDEN, text)
    return text


def _half(form: str) -> str:
    return form if len(form) < _LONG else form[:(len(form) + 1) // 2]


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode().rstrip("=")


def _forms(value: str) -> set[str]:
    return {value, quote(value), quote(value, safe=""), quote_plus(value), html.escape(value), repr(value)[1:-1],
            json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], _base64(value), _base64(f":{value}")}


NONE = Secrets()
_current: "Settings | None" = None
_last: "tuple[Settings, float, Secrets] | None" = None
_kept: dict[str, None] = {}


def secrets_of(settings: "Settings") -> Secrets:
    """What the settings keep secret, as it is now: passwords, keys, headers; of addresses user, password, query."""
    own = settings.redis_sentinel_password
    values: list[str | None] = [own.get_secret_value() if own else None, *_kept]
    addresses = settings.redis_url.get_secret_value().split(";")
    logins = settings.flower_auth.get_secret_value().split(",") if settings.flower_auth is not None else []
    logins += os.environ.get("FLOWER_BASIC_AUTH", "").split(",")
    for server in settings.mcp.servers.values():
        values += server.secrets()
        addresses += server.args
        options = [("", ""), *(arg.partition("=")[::2] for arg in server.args)]
        values += [given or option for (before, _), (option, given) in itertools.pairwise(options)
                   if names_a_secret(option if given else before)]
    for endpoint in settings.endpoints.values():
        hidden = [value for name, value in endpoint.headers.items() if not _OPEN_HEADERS.match(name)]
        values += [*hidden, *(value.partition(" ")[2] for value in hidden if value.lower().startswith(_SCHEMES))]
        addresses += [endpoint.base_url, endpoint.proxy.get_secret_value() if endpoint.proxy else ""]
        with contextlib.suppress(MissingKey):
            values.append(endpoint.key())
    addresses += getproxies().values()
    for address in addresses:
        logins += _logins(address)
        values += [value for name, value in parse_qsl(address.partition("?")[2]) if names_a_secret(name)]
    values += [part.partition(":")[2] or (part if unmistakable(part) else "") for part in logins]
    return Secrets((value for value in values if value), logins)


def _logins(address: str) -> Iterator[str]:
    """User and password of an address, as they stand there and as they are meant."""
    with contextlib.suppress(ValueError):
        login = urlsplit(address).netloc.rpartition("@")[0]
        if login:
            yield login
            yield unquote(login)


def remembered(settings: "Settings") -> Secrets:
    """As `secrets_of`, from some seconds ago at most, with what they were before; cheap enough for each call."""
    global _last  # noqa: PLW0603 - one Settings object a process is the rule
    now = time.monotonic()
    if _last is None or _last[0] is not settings or now > _last[1]:
        before = _last[2] if _last is not None and _last[0] is settings else NONE
        _last = settings, now + _FRESH, before  # an error within asks, too
        found = secrets_of(settings)
        if not before.values <= found.values:  # a key was changed, and texts may tell the one before
            found = Secrets(before.values | found.values, before.logins | found.logins)
        _last = settings, now + _FRESH, found
    return _last[2]


def keep_secret(value: str) -> None:
    """Hide what is no setting but as secret: a key that a program gives its model."""
    global _last  # noqa: PLW0603 - see remembered
    if value not in _kept and len(_kept) < _MOST_KEPT:
        _kept[value] = None
        _last = None


def in_use() -> Secrets:
    """Of the settings that this process has read; none before."""
    return remembered(_current) if _current is not None else NONE


def scrubbed(text: str, longest: int | None = None) -> str:
    """A text without the secrets of the settings in use; then cut, if it is longer than that."""
    text = in_use().without(text)
    return text if longest is None or len(text) <= longest else f"{text[:longest]}…"


def told(text: str) -> str:
    """As `scrubbed`, also without what is a credential by its place: in an address, in a header."""
    return _without_credentials(scrubbed(text))


def shortened(text: str) -> str:
    """A text of an error, without its middle where it is so long that looking through it would hold up a worker."""
    left_out = len(text) - 2 * _ENDS
    return f"{text[:_ENDS]} … ({left_out:,} characters) … {text[-_ENDS:]}" if left_out > 0 else text


def told_all(data: Any) -> Any:
    """JSON data of an error, with its texts shortened, and as `told`."""
    if isinstance(data, str):
        return told(shortened(data))
    if isinstance(data, dict):
        return {key: told_all(item) for key, item in data.items()}
    return [told_all(item) for item in data] if isinstance(data, (list, tuple)) else data


def clean_cause(exc: BaseException) -> BaseException | None:
    """The exception, if a traceback tells no secret of it, of what it came of and of what it groups."""
    text = "".join(traceback.format_exception(exc, limit=0))
    return exc if scrubbed(text) == text else None


class _Clean:
    """A log record whose message and traceback are without secrets, whichever handler writes it."""

    def getMessage(self) -> str:
        """The message."""
        text: str = super().getMessage()  # type: ignore[misc]
        return told(text)

    @property
    def exc_text(self) -> str | None:
        """The traceback, once a handler has written it."""
        return self.__dict__.get("exc_text")

    @exc_text.setter
    def exc_text(self, text: str | None) -> None:
        self.__dict__["exc_text"] = text and told(text)


@functools.cache
def _clean_class(kind: type) -> Any:
    return type(kind.__name__, (_Clean, kind), {"__module__": kind.__module__})


def _recorded(make: Callable[..., logging.LogRecord], *args: Any, **kwargs: Any) -> logging.LogRecord:
    record = make(*args, **kwargs)
    kind: Any = type(record)
    clean: logging.LogRecord = object.__new__(_clean_class(kind))
    clean.__dict__ |= record.__dict__
    return clean


def guard(settings: "Settings | None") -> None:
    """Take these settings for the ones in use, whose secrets this process tells nobody."""
    global _current  # noqa: PLW0603 - see remembered
    _current = settings
    if settings is None:
        return
    remembered(settings)
    provide_cleaning(scrubbed)
    make = logging.getLogRecordFactory()
    if getattr(make, "func", None) is not _recorded:
        logging.setLogRecordFactory(functools.partial(_recorded, make))


def _without_credentials(text: str) -> str:
    if "://" in text and "@" in text:
        text = _USERINFO.sub(HIDDEN, text)
    lower = text.lower()
    return _BEARER.sub(rf"\1 {HIDDEN}", text) if "bearer" in lower or "basic" in lower else text


def without_keys(text: str, secrets: Secrets) -> str:
    """A text as `told`, and without what looks like a key or is called one, though nobody said that it is."""
    text = secrets.without(text)
    if not _suspect(text):
        return text
    return _NAMED.sub(rf"\1{HIDDEN}", _KEY.sub(HIDDEN, _PEM.sub(HIDDEN, _without_credentials(text))))


def _suspect(text: str) -> bool:
    """Whether a pattern could fit; for a fraction of what it takes to try them all."""
    return len(text) >= _SHORTEST_FOUND and (
        any(map(text.lower().__contains__, _SUSPECT)) or max(map(len, text.split()), default=0) >= _LONG_RUN)


def names_a_secret(name: str) -> bool:
    """Whether what is called so is a secret: `api_key`, `db_password`."""
    return _NAME.search(name) is not None
