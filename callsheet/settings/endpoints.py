"""What the settings say of an endpoint: address, key, limits, retries, prices; and those there are without them."""

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from callsheet.errors import MissingKey

OLLAMA_PORT = 11434

#: Variables of the providers' own in which an endpoint's address may stand.
_ADDRESSES = {"openai": "OPENAI_BASE_URL", "anthropic": "ANTHROPIC_BASE_URL", "gemini": "GOOGLE_GEMINI_BASE_URL",
              "dashscope": "DASHSCOPE_BASE_URL", "deepseek": "DEEPSEEK_BASE_URL", "ollama": "OLLAMA_HOST",
              "azure": "AZURE_OPENAI_ENDPOINT"}

T = TypeVar("T")


def names(value: Any) -> Any:
    """A comma-separated text as its parts; anything else as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(names)]
"""Texts, which the environment holds separated by commas."""


class Part(BaseModel):
    """Base of what settings are made of."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RetryPolicy(Part):
    """When a request is sent again."""

    attempts: int = Field(4, ge=1, le=100)  # how often a request is sent at most; 1: never again
    backoff: float = Field(0.5, ge=0)  # seconds at most before the first retry; the wait is drawn between 0 and that
    backoff_max: float = Field(30.0, ge=0)  # seconds at most between two attempts
    retry_after_max: float = Field(120.0, ge=0)  # seconds that a server's Retry-After is waited for at most
    budget: float = Field(0.1, ge=0)  # retries that a process adds, as a share of its calls of half a minute
    budget_min: int = Field(10, ge=0)  # retries in half a minute that are allowed however few calls there were
    after_sent: bool = False  # also what the server may have begun, and the provider may charge twice


class BreakerPolicy(Part):
    """When an endpoint is left alone for a while."""

    enabled: bool = True  # whether it ever is
    failure_rate: float = Field(0.5, gt=0, le=1)  # share of failed requests, over 0 to 1, from which it is left alone
    minimum: int = Field(20, ge=1)  # requests in the window before the share counts
    window: float = Field(30.0, ge=1, le=3600)  # seconds that are looked back
    cooldown: float = Field(15.0, gt=0, le=3600)  # seconds that it is left alone before one request probes it


class Price(Part):
    """What a model's tokens cost, in a currency of your choice for a million tokens."""

    input: float = Field(ge=0)  # of the prompt
    output: float = Field(ge=0)  # of the answer
    cached: float | None = Field(None, ge=0)  # of the part that the provider had in its cache; as `input` without
    written: float | None = Field(None, ge=0)  # of the part that it wrote to its cache; as `input` without
    lasting: float | None = Field(None, ge=0)  # of the part that it wrote there for an hour; as `written` without

    def of(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0, written_tokens: int = 0,
           lasting_tokens: int = 0) -> float:
        """The cost of a call; of its input tokens some were cached and some written, of these some for an hour."""
        cached = self.input if self.cached is None else self.cached
        written = self.input if self.written is None else self.written
        lasting = written if self.lasting is None else self.lasting
        fresh = max(0, input_tokens - cached_tokens - written_tokens)
        brief = max(0, written_tokens - lasting_tokens)
        return (fresh * self.input + cached_tokens * cached + brief * written + lasting_tokens * lasting
                + output_tokens * self.output) / 1e6


Prices = dict[str, Price]


def fitting(table: Mapping[str, T], name: str) -> T | None:
    """What a table has under a name, or else under the longest pattern that fits it, such as `gpt-4o*`."""
    if name in table:
        return table[name]
    patterns = [pattern for pattern in table if "*" in pattern and fnmatchcase(name, pattern)]
    return table[max(patterns, key=len)] if patterns else None


def price_of(model: str, *tables: Prices) -> Price | None:
    """The price of a model, of the first table that knows it."""
    return next((found for table in tables if (found := fitting(table, model)) is not None), None)


class Endpoint(Part):
    """A model server that agents call by name."""

    base_url: str  # up to and including the version, e.g. `https://api.openai.com/v1`
    api_key: SecretStr | None = None  # better as `api_key_env` or `api_key_file`, so that no settings hold it
    api_key_env: str | None = None  # name of the environment variable that holds the key
    api_key_file: Path | None = None  # path of a file that holds the key, e.g. a mounted secret; read for each request
    headers: dict[str, str] = Field(default_factory=dict)  # sent with every request
    timeout: float = Field(300.0, gt=0)  # seconds for a whole response to arrive; a stream: between two chunks
    connect_timeout: float = Field(10.0, gt=0)  # seconds to open a connection
    max_connections: int = Field(1000, gt=0)  # connections that one process keeps to this endpoint
    rpm: int | None = Field(None, gt=0)  # requests that all workers together send in any minute
    tpm: int | None = Field(None, gt=0)  # tokens, of requests and answers, that they use in any minute
    max_concurrency: int | None = Field(None, gt=0)  # calls that they have under way at once
    window: float = Field(60.0, gt=0, le=3600)  # seconds within which the provider counts
    burst: float = Field(0.2, gt=0, le=1)  # share of a window's limits that may go at once after a quiet time
    priority: int = Field(5, ge=0, le=9)  # of waiting calls that have none of their own, 0 (first) to 9 (last)
    default_output_tokens: int = Field(512, ge=0)  # of an answer whose request does not bound them
    proxy: SecretStr | None = None  # with user and password if need be; without, HTTPS_PROXY and its kin
    ca_file: Path | None = None  # PEM file with the certificates to trust; without, the system's
    retry: RetryPolicy = RetryPolicy()  # when a request is sent again
    breaker: BreakerPolicy = BreakerPolicy()  # when the endpoint is left alone for a while
    fallback: Names = ()  # to ask in its place, in this order
    prices: Prices = Field(default_factory=dict)  # of its models; before those of the settings

    @field_validator("base_url")
    @classmethod
    def _http(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("an address that begins with http:// or https:// is needed")
        return value.rstrip("/")

    @field_validator("proxy")
    @classmethod
    def _proxy(cls, value: SecretStr | None) -> SecretStr | None:
        try:
            parts = urlsplit(value.get_secret_value()) if value is not None else None
            right = parts is None or (parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0)
        except ValueError:  # the port
            right = False
        if not right:
            raise ValueError("an address such as http://proxy:3128 or http://user:password@proxy:3128 is needed")
        return value

    @field_validator("window")
    @classmethod
    def _holds_one(cls, value: float, info: ValidationInfo) -> float:
        for limit in ("rpm", "tpm"):
            allowed = info.data.get(limit)
            if allowed is not None and allowed * value < 60:
                raise ValueError(f"{limit}={allowed} allows less than one in a window of so few seconds")
        return value

    def key(self) -> str | None:
        """The key from the settings, its environment variable or its file, as it is now; None where there is none.

        Raises:
            MissingKey: the file cannot be read, or is empty.
        """
        if self.api_key is not None:
            return self.api_key.get_secret_value()
        found = os.environ.get(self.api_key_env) if self.api_key_env else None
        return found or (self._key_in_file() if self.api_key_file else None)

    def _key_in_file(self) -> str:
        path = self.api_key_file
        assert path is not None
        try:
            key = path.read_text(encoding="utf-8").strip("\r\n")
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
            raise MissingKey(f"The key of the endpoint at {address_of(self.base_url)} cannot be read from {path}: "
                                f"{why}. Put the key there, readable for this process, or correct "
                                "api_key_file.") from None
        if not key.strip():
            raise MissingKey(f"{path}, which should hold the key of the endpoint at {address_of(self.base_url)}, is "
                                "empty. Put the key there, or correct api_key_file.")
        return key


def address_of(url: str) -> str:
    """Scheme, host and port of an address: what may be shown of it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def default_endpoints() -> dict[str, Any]:
    """Endpoints by name, as they would be written into callsheet.toml; each may be changed there, in part too."""
    env = os.environ
    google = "GOOGLE_API_KEY" if "GOOGLE_API_KEY" in env and "GEMINI_API_KEY" not in env else "GEMINI_API_KEY"
    found = {
        "openai": _at("openai", "https://api.openai.com/v1", "OPENAI_API_KEY"),
        "anthropic": _at("anthropic", "https://api.anthropic.com", "ANTHROPIC_API_KEY"),
        "gemini": _at("gemini", "https://generativelanguage.googleapis.com", google),
        "dashscope": _at("dashscope", "https://dashscope.aliyuncs.com/compatible-mode/v1", "DASHSCOPE_API_KEY"),
        "deepseek": _at("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
        "ollama": {"base_url": ollama_url(env.get(_ADDRESSES["ollama"]) or ""), "api_key_env": "OLLAMA_API_KEY"},
    }
    azure = env.get(_ADDRESSES["azure"])  # each customer has an address of their own
    if azure:
        found["azure"] = {"base_url": f"{azure.rstrip('/')}/openai/v1", "api_key_env": "AZURE_OPENAI_API_KEY"}
    return found


def address_variable(name: str, base_url: str) -> str:
    """The environment variable that an endpoint's address stands in, or that would beat where it stands.

    Args:
        name: the endpoint's.
        base_url: its address, as in its settings.
    """
    given = _ADDRESSES.get(name, "")
    if os.environ.get(given) and default_endpoints()[name]["base_url"].rstrip("/") == base_url:
        return given
    return f"CALLSHEET_ENDPOINTS__{name.upper()}__BASE_URL"


def ollama_url(host: str) -> str:
    """The address of an Ollama server's compatible API, from what OLLAMA_HOST may hold: a host, with or without
    scheme, port and path; "" is this machine."""
    scheme, mark, rest = host.strip().rpartition("://")
    address, slash, path = rest.rstrip("/").partition("/")
    address = address or "127.0.0.1"
    if address.startswith(":"):
        address = f"127.0.0.1{address}"
    if not mark and ":" not in address.rpartition("]")[2]:
        address = f"{address}:{OLLAMA_PORT}"
    if address.startswith("0.0.0.0"):  # noqa: S104 - where a server listens, not where it is reached
        address = address.replace("0.0.0.0", "127.0.0.1", 1)  # noqa: S104
    path = f"{slash}{path}".removesuffix("/v1")
    return f"{scheme or 'http'}://{address}{path}/v1"


def _at(name: str, otherwise: str, key: str) -> dict[str, Any]:
    return {"base_url": os.environ.get(_ADDRESSES[name]) or otherwise, "api_key_env": key}
