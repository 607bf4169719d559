"""Keys do not travel: one rule for the arguments of agents, models, tools and MCP clients, at any depth.

A key is known by the name that it is given under, by its form, by its place in an address, or as what the settings of
this process keep secret. What is said in messages is judged by the last alone: people and models may talk of keys.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from callsheet.errors import CannotTravel
from callsheet.settings.secrets import in_use, unmistakable

_OWNERS = ("openai|anthropic|claude|gemini|google|dashscope|deepseek|azure|aws|groq|mistral|cohere|huggingface|hf|"
           "github|gitlab|slack|discord|telegram|stripe|brave|tavily|serp|serpapi|bing")
#: The last words of a name that is a secret's, whatever its value.
_SECRET = re.compile(
    rf"(?:^|_)(?:(?:api|access|secret|private|auth|signing|encryption|master|account|shared|subscription|functions|{_OWNERS})"
    rf"_?keys?|(?:api|access|auth|refresh|bearer|session|oauth|bot|sas|{_OWNERS})_?tokens?|"
    r"(?:client|app|webhook|consumer|access)_secrets?|passwords?|passwd|passphrase|authorization|bearer)$")
#: Of one that may be anything: it is a secret where the value looks like one.
_PERHAPS = re.compile(r"^token$|(?:^|_)(?:secrets?|credentials?|cookies?|auth|jwt|pwd)$")
_HEADER = re.compile(r"(?!idempotency).*(?:key|token|secret|passw(?:or)?d|passphrase|credential|"
                     r"auth(?:oriz|entic)ation|auth|cookie|session(?:_?id)?)s?(?:_(?!type|results)|\d|$)")
_FORM = re.compile(
    r"(?:sk|pk|rk|gh[opsu]|github_pat|glpat|hf|xox[a-z]|npm|pypi)[-_](?=\S*\d)[\w.-]{0,200}?[A-Za-z0-9]{16}[\w.-]*"
    r"|(?:AKIA|ASIA|AIza|ya29\.|SG\.)[\w.-]{16,}|eyJ[\w-]{8,}\.[\w-]+\.[\w-]+|(?i:bearer|basic) (?=\S*\d)\S{12,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*")
_GIVEN = re.compile(r"(?:^-{0,2}|[?&;]\s*)([\w. -]+)=([^&;\s]+)")
#: The name of a variable, a mask, a type, prose.
_NO_KEY = re.compile(r"\$|env:|\*+$|<.*>$|(?:str|string|text|array|object|integer|number|required|optional|none|null|"
                     r"true|false|yes|no)$|"
                     r"(?:\S+\s+){3}", re.IGNORECASE)
_LONGEST = 4096  # characters of an address or an option
_BLOB = 64 * 1024  # characters of what may be an image as base64
HEADER = "header "
"""Before the name of what stands among headers."""


@functools.lru_cache(maxsize=4096)
def _kind(name: str) -> re.Pattern[str] | None:
    """Which of the patterns above tells that what has this name is, or may be, a secret."""
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[\W_]+", "_", name.removeprefix(HEADER).strip()).lower().strip("_")
    if _SECRET.search(plain) or (name.startswith(HEADER) and _HEADER.match(plain)):
        return _SECRET
    return _PERHAPS if _PERHAPS.search(plain) else None


def is_secret(name: str, value: str) -> bool:
    """Whether a value under this name is a secret."""
    kind = _kind(name)
    return kind is not None and bool(value) and (unmistakable(value) if kind is _PERHAPS else not _NO_KEY.match(value))


@functools.lru_cache(maxsize=4096)
def inside(name: str) -> str:
    """The name under which what is in a list or a dictionary of that name is judged; "" for a key of its own."""
    if name == HEADER or name.lower().endswith(("headers", "env")):
        return HEADER
    return name if name.endswith("s") and _kind(name) is _SECRET else ""


def among(name: str, items: Sequence[Any], index: int) -> str:
    """The name under which an item of a list is judged: the list's, or that of the option or the header before it."""
    before = items[index - 1] if index else None
    if type(before) is str and (before[:1] == "-" or name == HEADER):
        return before if before[:1] == "-" else HEADER + before
    return inside(name) or name


@functools.lru_cache(maxsize=1024)
def positional(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's positional parameters."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(one.name for one in found if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD))


def refuse(value: str, name: str, where: str) -> None:
    """See that a text is no secret.

    Args:
        value: the text.
        name: of the argument, the key of a dictionary or the like; "" where it has none.
        where: what it is, for the error.

    Raises:
        CannotTravel: it is; names it and the remedy, and not the value.
    """
    if is_secret(name, value):
        raise refusal(where, f"is a secret by its name, {name.removeprefix(HEADER)!r}")
    if len(value) > 16 and _FORM.fullmatch(value):
        raise refusal(where, "is a key by its form")
    if ("=" in value or "@" in value) and len(value) <= _LONGEST:
        for what in _told(value):
            raise refusal(where, f"has {what} in it")


def refuse_known(data: Any, where: str) -> None:
    """See that data hold nothing that the settings of this process keep secret; raises CannotTravel as `refuse`."""
    if not (secrets := in_use()):
        return
    text = data if isinstance(data, str) else repr(data)
    if (len(text) < _BLOB or " " in text[:_LONGEST]) and secrets.within(text):
        raise refusal(where, "holds what the settings here keep secret")


def _told(value: str) -> Iterator[str]:
    """What secrets an address, an option or a connection string tells."""
    if "://" in value and not re.search(r"\s", value):
        try:
            login = urlsplit(value).netloc.rpartition("@")[0]
        except ValueError:
            login = ""
        if login.partition(":")[2] or unmistakable(login):
            yield "a user or a password"
    if not re.search(r"\s", value) or all(_pair(part) for part in value.split(";") if part):
        for name, given in _GIVEN.findall(value):
            if is_secret(name, unquote(given)) or (name.lower() == "key" and unmistakable(unquote(given))):
                yield f"the secret {name!r}"


def _pair(part: str) -> bool:
    """Whether a text is a part of a connection string."""
    name, equals, _ = part.partition("=")
    return bool(equals) and len(name.split()) < 3


def refusal(where: str, why: str) -> CannotTravel:
    """The error for a secret in a message."""
    return CannotTravel(f"{where} {why}, and keys never travel. Keep it where the workers run: on an endpoint of their "
                        "settings (api_key_env, headers) whose name a model or a client is given, in a program of them "
                        "(mcp.servers, env_from), or in a variable that the agent or the tool reads.")
