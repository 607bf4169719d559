"""What the settings say of an endpoint: where it is, how it is signed in to, and what is done when it fails."""

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from callsheet.errors import MissingKey

T = TypeVar("T")


def names(value: Any) -> Any:
    """A comma-separated text as its parts; anything else as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Part(BaseModel):
    """Base of what settings are made of."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RetryPolicy(Part):
    """When a request is sent again.

    Attributes:
        attempts: how often a request is sent at most; 1: never again.
        backoff: seconds at most before the first retry, doubling with each; the wait is drawn between 0 and that.
        backoff_max: seconds at most between two attempts.
        retry_after_max: seconds that a server's Retry-After is waited for at most; one that asks for more is not
            tried again.
        budget: retries that a process adds at most, as a share of its calls of the last half minute.
        budget_min: retries in half a minute that are allowed however few calls there were.
        after_sent: also send again what the server may have begun to work on, when it hung up or was silent;
            the provider may charge for both.
    """

    attempts: int = Field(4, ge=1, le=100)
    backoff: float = Field(0.5, ge=0)
    backoff_max: float = Field(30.0, ge=0)
    retry_after_max: float = Field(120.0, ge=0)
    budget: float = Field(0.1, ge=0)
    budget_min: int = Field(10, ge=0)
    after_sent: bool = False


class BreakerPolicy(Part):
    """When an endpoint is left alone for a while.

    Attributes:
        enabled: whether it ever is.
        failure_rate: share of failed requests, over 0 to 1, from which it is left alone.
        minimum: requests in the window before the share counts.
        window: seconds that are looked back.
        cooldown: seconds that it is left alone before one request probes it.
    """

    enabled: bool = True
    failure_rate: float = Field(0.5, gt=0, le=1)
    minimum: int = Field(20, ge=1)
    window: float = Field(30.0, ge=1, le=3600)
    cooldown: float = Field(15.0, gt=0, le=3600)


class Price(Part):
    """What a model's tokens cost, in a currency of your choice for a million tokens.

    Attributes:
        input: of the prompt.
        output: of the answer.
        cached: of the part of the prompt that the provider had in its cache; as `input` without.
        written: of the part that it wrote to its cache; as `input` without.
        lasting: of the part that it wrote there for an hour; as `written` without.
    """

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached: float | None = Field(None, ge=0)
    written: float | None = Field(None, ge=0)
    lasting: float | None = Field(None, ge=0)

    def of(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0, written_tokens: int = 0,
           lasting_tokens: int = 0) -> float:
        """The cost of a call.

        Args:
            input_tokens: cached ones included.
            output_tokens: of the answer.
            cached_tokens: of the input tokens.
            written_tokens: of the input tokens.
            lasting_tokens: of the written ones.
        """
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
    """A model server that agents call by name.

    Attributes:
        base_url: up to and including the version, e.g. `https://api.openai.com/v1`.
        api_key: the key itself; better given as `api_key_env` or `api_key_file`, so that no settings file holds it.
        api_key_env: name of the environment variable that holds the key.
        api_key_file: path of a file that holds the key, e.g. a mounted secret; read for each request.
        headers: sent with every request.
        timeout: seconds for a whole response to arrive; a stream: between two chunks.
        connect_timeout: seconds to open a connection.
        max_connections: connections that one process keeps to this endpoint.
        rpm: requests that all workers together send in any minute; None sets no limit, here and below.
        tpm: tokens, of requests and answers, that they use in any minute.
        max_concurrency: calls that they have under way at once.
        window: seconds within which the provider counts; where it counts the second, 1 keeps `rpm / 60` in each.
        burst: the share of a window's requests and tokens that may go at once after a quiet time, over 0 to 1.
        priority: of waiting calls that have none of their own, 0 (first) to 9 (last).
        default_output_tokens: tokens of an answer, as reckoned before a request that does not bound them.
        proxy: address of an HTTP proxy, with user and password if it wants them; without, HTTPS_PROXY and its kin.
        ca_file: path of a PEM file with the certificates to trust; without, the system's, or SSL_CERT_FILE's.
        retry: when a request is sent again.
        breaker: when the endpoint is left alone for a while.
        fallback: names of endpoints to ask in its place, in this order, when it cannot answer.
        prices: of its models, by name or pattern such as `gpt-4o*`; before those of the settings.
    """

    base_url: str
    api_key: SecretStr | None = None
    api_key_env: str | None = None
    api_key_file: Path | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    timeout: float = Field(300.0, gt=0)
    connect_timeout: float = Field(10.0, gt=0)
    max_connections: int = Field(1000, gt=0)
    rpm: int | None = Field(None, gt=0)
    tpm: int | None = Field(None, gt=0)
    max_concurrency: int | None = Field(None, gt=0)
    window: float = Field(60.0, gt=0, le=3600)
    burst: float = Field(0.2, gt=0, le=1)
    priority: int = Field(5, ge=0, le=9)
    default_output_tokens: int = Field(512, ge=0)
    proxy: SecretStr | None = None
    ca_file: Path | None = None
    retry: RetryPolicy = RetryPolicy()
    breaker: BreakerPolicy = BreakerPolicy()
    fallback: Annotated[tuple[str, ...], NoDecode, BeforeValidator(names)] = ()
    prices: Prices = Field(default_factory=dict)

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
