"""A Redis behind sentinels: `sentinel://:password@host:26379;sentinel://other:26379/0?master_name=mymaster`.

The form is Celery's. Celery takes user, password and database from the first host; here they may stand at any.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from redis import UsernamePasswordCredentialProvider
from redis.backoff import NoBackoff
from redis.retry import Retry

SCHEME = "sentinel://"
_PORT = 26379
_FORM = "sentinel://:password@host:26379;sentinel://other:26379/0"


class Login(UsernamePasswordCredentialProvider):
    """User and password for the sentinels themselves, in a form that shows neither.

    Celery's `inspect` and Flower show what a worker's connection is made with.
    """

    def __repr__(self) -> str:
        return "Login(***)"

    def __json__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Login) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((self.username, self.password))


class _Once(Retry):
    """No sentinel is asked again: whoever asks goes on to the next. In a form that `inspect` can show."""

    def __init__(self) -> None:
        super().__init__(NoBackoff(), 0)

    def __json__(self) -> str:
        return "once"


@dataclass(frozen=True, kw_only=True)
class Sentinels:
    """Sentinels, and the server that they are asked for."""

    hosts: tuple[tuple[str, int], ...]  # host and port of each
    master: str  # the name under which they watch it
    db: int = 0  # number of its database
    username: str = ""  # for the server, or ""
    password: str = field(default="", repr=False)  # likewise
    login: Login | None = None  # for the sentinels; None where they ask for none

    @property
    def own_options(self) -> dict[str, Any]:
        """How to connect to the sentinels: redis-py's and kombu's `sentinel_kwargs`."""
        waits: dict[str, Any] = {"socket_connect_timeout": 2, "socket_timeout": 2, "retry": _Once()}
        return {**waits, "credential_provider": self.login} if self.login else waits

    @property
    def server_options(self) -> dict[str, Any]:
        """How to connect to the server, besides its address."""
        return {"db": self.db, "username": self.username or None, "password": self.password or None}

    def url(self) -> str:
        """The address as Celery and kombu want it: user, password and database at each host."""
        login = f"{quote(self.username, safe='')}:{quote(self.password, safe='')}@" if self.password else ""
        return ";".join(f"{SCHEME}{login}{_bracketed(host)}:{port}/{self.db}" for host, port in self.hosts)

    def address(self) -> str:
        """The address without user and password, for messages."""
        hosts = ";".join(f"{SCHEME}{_bracketed(host)}:{port}" for host, port in self.hosts)
        return f"{hosts}/{self.db}?master_name={self.master}"


@functools.lru_cache(maxsize=16)
def parse(url: str, master: str | None = None, login: Login | None = None) -> Sentinels:
    """What an address says.

    Args:
        url: in the form above.
        master: the name of the master, where the address does not say it.
        login: for the sentinels.

    Raises:
        ValueError: says what is wrong, without what the address holds.
    """
    parts = [_split(chunk.strip()) for chunk in url.split(";") if chunk.strip()]
    named = _one("a master_name", (dict(parse_qsl(part.query)).get("master_name") for part in parts))
    if master and named and master != named:
        raise ValueError("the address has another master_name than the setting REDIS_SENTINEL_MASTER: give it once")
    return Sentinels(
        hosts=tuple((part.hostname or "", part.port or _PORT) for part in parts), master=master or named or "",
        db=int(_one("a database", (part.path.strip("/") for part in parts)) or 0),
        username=unquote(_one("a user", (part.username for part in parts)) or ""),
        password=unquote(_one("a password", (part.password for part in parts)) or ""), login=login)


def _split(chunk: str) -> SplitResult:
    part = urlsplit(chunk if "://" in chunk else SCHEME + chunk)
    try:
        right = f"{part.scheme}://" == SCHEME and part.hostname and part.port != 0 and not part.fragment and (
            part.path.strip("/").isdigit() or part.path in ("", "/"))
    except ValueError:  # the port
        right = False
    if not right:
        raise ValueError(f"an address such as {_FORM} is needed")
    for key, _ in parse_qsl(part.query, keep_blank_values=True):
        if key != "master_name":
            raise ValueError(f"{key!r} cannot stand in a sentinel:// address: of arguments it takes master_name only")
    return part


def _one(what: str, found: Iterable[str | None]) -> str | None:
    """The one value that was given, at whichever hosts."""
    given = {value for value in found if value}
    if len(given) > 1:
        raise ValueError(f"the hosts of the address do not agree on {what}: all sentinels watch the same server")
    return given.pop() if given else None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
