"""The Settings object: environment `CALLSHEET_*`, `.env`, `callsheet.toml` or `[tool.callsheet]`.

Read once, when first asked for; importing this module reads nothing.
"""

import contextlib
import json
import os
import re
import threading
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    PyprojectTomlConfigSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as UnreadableValue

from callsheet.errors import SettingsError
from callsheet.settings.endpoints import Endpoint, Names, Prices, default_endpoints
from callsheet.settings.mcp import McpSettings
from callsheet.settings.problems import misspelt, report, unknown
from callsheet.settings.queues import wrong_with_name
from callsheet.settings.secrets import guard
from callsheet.settings.sentinels import SCHEME as SENTINEL
from callsheet.settings.sentinels import Login, Sentinels
from callsheet.settings.sentinels import parse as parse_sentinels

PREFIX = "CALLSHEET_"
ENV_FILE = ".env"


def _table(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, ValueError) as exc:  # ValueError: not TOML, or not UTF-8
        raise SettingsError(f"The file {path} cannot be read: {exc}. Mend it, or take it away.") from None


class Toml(TomlConfigSettingsSource):
    """`callsheet.toml` in the working directory."""

    where = "callsheet.toml"

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return _table(file_path)

    def unknown(self, fields: Iterable[str]) -> list[str]:
        """A line for each key that is no setting."""
        return unknown(self.where, self.toml_data, fields)


class Pyproject(PyprojectTomlConfigSettingsSource, Toml):
    """`[tool.callsheet]` of `pyproject.toml` in the working directory."""

    where = "[tool.callsheet] of pyproject.toml"


def redis_here() -> SecretStr:
    """The Redis of a `callsheet up` of this user's that runs in the working directory; else the usual address."""
    info = Path(".callsheet/up.json")
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        if info.stat().st_uid == os.getuid():
            known = json.loads(info.read_text())
            os.kill(known["pid"], 0)
            return SecretStr(known["redis"])
    return SecretStr("redis://127.0.0.1:6379/0")


def redis_address(address: str) -> str:
    """The address of a Redis as redis-py, kombu and Celery all read it: with the password of its `password_file`, if it
    names one, and with TLS options in the one spelling that they share.

    Raises:
        ValueError: the file cannot be read, or an option is not for such an address.
    """
    parts = urlsplit(address)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    tls = [name for name in query if name.startswith("ssl_")]
    odd = [name for name in query if name not in (*tls, "password_file")]
    if odd and parts.scheme != "unix":  # kombu takes no others
        raise ValueError(f"{odd[0]!r} is no option of such an address: there are password_file, and ssl_cert_reqs, "
                         "ssl_ca_certs and the like")
    if tls and parts.scheme != "rediss":
        raise ValueError(f"{', '.join(tls)}: TLS options go with rediss:// only")
    if "ssl_cert_reqs" in query:
        query["ssl_cert_reqs"] = query["ssl_cert_reqs"].lower().removeprefix("cert_")
        if query["ssl_cert_reqs"] not in ("required", "optional", "none"):
            raise ValueError("its ssl_cert_reqs has to be required, optional or none")
    if "ssl_check_hostname" in query:
        checked = query["ssl_check_hostname"].lower() not in ("0", "f", "false", "n", "no")
        query["ssl_check_hostname"] = str(checked).lower()
    netloc, file = parts.netloc, query.pop("password_file", None)
    if file is not None:
        if parts.scheme not in ("redis", "rediss"):
            raise ValueError("password_file goes with redis:// and rediss:// only")
        try:
            password = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as exc:
            raise ValueError(f"its password_file {file} cannot be read: {exc}") from None
        user, _, host = netloc.rpartition("@")
        if ":" in user:
            raise ValueError("it has a password and a password_file")
        netloc = f"{user}:{quote(password, safe='')}@{host}"
    elif not tls:
        return address
    return parts._replace(netloc=netloc, query=urlencode(query)).geturl()


def misspelt_in(file: str, prefix: str, fields: Iterable[str]) -> list[str]:
    """A line for each variable in an env file that looks like a setting with a letter wrong.

    Raises:
        SettingsError: the file cannot be read.
    """
    path = Path(file)
    try:
        found = dotenv_values(path) if path.is_file() else {}
    except (OSError, ValueError) as exc:
        raise SettingsError(f"The file {path} cannot be read: {exc}. Mend it, or take it away.") from None
    return [f"{line} (in {file})" for line in misspelt(prefix, fields, found)]


class Settings(BaseSettings):
    """Everything that can be set; what each means in full: docs/settings.md.

    Each field is an environment variable with `CALLSHEET_` before its name.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=ENV_FILE, env_nested_delimiter="__", extra="ignore", frozen=True,
        toml_file="callsheet.toml", hide_input_in_errors=True, pyproject_toml_table_header=("tool", "callsheet"),
    )

    redis_url: SecretStr = Field(default_factory=redis_here, validate_default=True)  # broker, results and state
    redis_sentinel_master: str | None = Field(None, validate_default=True)  # under which sentinels watch the master
    redis_sentinel_username: str = ""  # for the sentinels themselves, where they ask for one
    redis_sentinel_password: SecretStr | None = None  # likewise; the server's own is in the address
    modules: Names = ()  # and what is under them, of which workers build and run
    queues: Names = ()  # more queues than `io` and `cpu` that jobs may name
    media_folders: Names = (".", "temp")  # of a worker, whose media messages may name; temp: the temporary one
    media_hosts: Names = ("public",)  # from where it fetches what messages name
    inline: bool = False  # run every call in the caller's process, without Redis; for unit tests
    key_prefix: str = "callsheet:"  # put before every Redis key of Callsheet's own
    result_expires: int = Field(86_400, gt=0)  # seconds that results and large payloads are kept
    events_max: int = Field(10_000, ge=10)  # events kept for one job, about; the oldest go first
    events_expires: int = Field(86_400, gt=0)  # seconds that a job's events are kept after the last of them
    answers_expires: int = Field(7 * 86_400, gt=60)  # seconds; also of questions whose worker is gone
    payload_inline_max: int = Field(64 * 1024, ge=1024)  # bytes; a larger payload is stored once, under its hash
    payload_max: int = Field(16 * 1024 * 1024, ge=1024)  # bytes; a larger message is refused
    retry_backoff: float = Field(1.0, ge=0)  # seconds before the first retry of a call; doubles each time
    retry_backoff_max: float = Field(60.0, ge=0)  # seconds at most between two tries
    track_started: bool = False  # store the state STARTED as well, one more Redis trip a call
    transport: Literal["batched", "stock"] = "batched"  # under leases, many messages a trip; or as kombu has it
    loop: Literal["uvloop", "asyncio"] = "uvloop"  # uvloop where it is installed
    lease: float = Field(60.0, ge=1)  # seconds after which a killed worker's calls are back on their queues
    max_deaths: int = Field(3, ge=2)  # workers that may die under one call
    eta_horizon: float = Field(3600.0, ge=1)  # seconds from now; what starts later waits in no worker
    turn_lease: float = Field(15.0, ge=1)  # seconds after which the turn of an agent whose worker was killed passes on
    state_expires: int = Field(7 * 86_400, ge=0)  # seconds that state is kept after an agent's turn; 0: for ever
    warm_agents: int = Field(1000, ge=0)  # with state, that a process keeps ready between turns; 0: none
    warm_bytes: int = Field(64 * 1024 * 1024, ge=0)  # that these may take, as estimated
    hub_length: int = Field(10_000, ge=1)  # messages that a hub keeps
    hub_age: int = Field(86_400, gt=0)  # seconds that it keeps them
    hub_expires: int = Field(7 * 86_400, gt=0)  # seconds after its last use that a hub is closed
    visibility_timeout: int = Field(3600, gt=0)  # seconds; of stock workers
    max_parked: int = Field(10_000, ge=0)  # calls in one io worker that may wait for child jobs, beyond its slots
    soft_shutdown: float = Field(0.0, ge=0)  # seconds that a cold shutdown (SIGQUIT) leaves to running calls
    tool_text_max: int = Field(100_000, ge=100)  # characters of text that a model gets of one call of a tool
    tool_threads: int = Field(200, ge=1)  # tools that are plain functions and run at once in a process
    loop_block_warning: float = Field(0.25, gt=0)  # seconds that code may block an io worker's loop before it is logged
    autoscale_target_wait: float = Field(1.0, gt=0)  # seconds within which it tries to begin what waits
    autoscale_step: float = Field(4.0, gt=1)  # times its size at most to which it grows at once
    autoscale_cooldown: float = Field(30.0, ge=0)  # seconds after which it has come down again
    autoscale_memory: int | None = Field(None, gt=0)  # bytes; or its control group's limit, if lower
    autoscale_memory_share: float = Field(0.9, gt=0, le=1)  # share of that limit up to which it grows
    autoscale_cpu: float = Field(0.95, gt=0)  # share of the processors' time from which it grows no more
    autoscale_lag: float = Field(0.5, gt=0)  # seconds that the loop is late from which an io worker grows no more
    autoscale_strain: float = Field(5.0, ge=0)  # seconds that either of these must be exceeded before that counts
    tenant_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)  # of an endpoint; 1 without
    outbound_hosts: Names = ("*",)  # that models and MCP may call beside the endpoints'
    endpoints: dict[str, Endpoint] = Field(default_factory=default_endpoints, validate_default=True)  # model servers
    mcp: McpSettings = McpSettings()  # MCP servers that workers may start, and bounds of all MCP clients
    prices: Prices = Field(default_factory=dict)  # of models on any endpoint
    usage_expires: int = Field(35 * 86_400, gt=0)  # seconds that the fleet's counts of tokens and cost are kept
    metrics_port: str | None = None  # or a range of ports; 0: any free one; None: no metrics
    metrics_address: str = "127.0.0.1"  # of this machine, on which it does
    flower_auth: SecretStr | None = None  # who may use `callsheet flower`, each a "user:password"; comma-separated

    secret: ClassVar[frozenset[str]] = frozenset(
        {"redis_url", "redis_sentinel_password", "flower_auth", "api_key", "headers", "proxy", "env"})

    def __init__(self, **values: Any) -> None:
        files: list[Toml | Pyproject] = [Toml(type(self)), Pyproject(type(self))]
        fields = type(self).model_fields
        wrong = misspelt(PREFIX, fields, os.environ) + misspelt_in(ENV_FILE, PREFIX, fields)
        wrong += [line for file in files for line in file.unknown(fields)]
        wrong += [f"{name} is not a setting." for name in values if name not in fields and name[0] != "_"]
        try:
            super().__init__(**values)
        except ValidationError as exc:
            wrong += report(exc, PREFIX, self.secret)
        except UnreadableValue as exc:
            field = str(exc).partition('field "')[2].partition('"')[0]
            wrong.append(f"{PREFIX}{field.upper()} cannot be read: it is not JSON.")
        if wrong:
            raise SettingsError("\n  ".join(["Some settings are wrong:", *wrong]) + "\nCorrect them in the "
                                "environment, in .env, in callsheet.toml or under [tool.callsheet].")

    @field_validator("modules")
    @classmethod
    def _dotted(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not all(part.isidentifier() for part in name.split(".")):
                raise ValueError(f"{name!r} is not a module's dotted name")
        return value

    @field_validator("queues")
    @classmethod
    def _queue_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if wrong := wrong_with_name(name):
                raise ValueError(wrong)
        return value

    @field_validator("media_hosts", "outbound_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if "/" in host or ":" in host:
                try:
                    ip_network(host, strict=False)
                except ValueError:
                    raise ValueError(f"{host!r} is no host: a name such as api.example.com or *.example.com, or a "
                                     "network such as 10.1.0.0/16 is needed, without scheme and port") from None
        return value

    @field_validator("metrics_port", mode="before")
    @classmethod
    def _ports(cls, value: Any) -> Any:
        if value in (None, ""):
            return None
        text = str(value).strip()
        first, dash, last = text.partition("-")
        right = re.fullmatch(r"[0-9]{1,5}(-[0-9]{1,5})?", text) and int(last or first) < 65_536
        if not right or (dash and not 0 < int(first) <= int(last)):
            raise ValueError("a port such as 9600, a range such as 9600-9610, or 0 for any free port is needed")
        return text

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value().startswith(SENTINEL):
            parse_sentinels(value.get_secret_value())
            return value
        try:
            parts = urlsplit(value.get_secret_value())
            right = parts.scheme in ("redis", "rediss") and parts.port != 0 and re.fullmatch(r"/?\d*", parts.path)
        except ValueError:  # the port
            right = False
            parts = None
        if not right and not (parts and parts.scheme == "unix" and parts.path.strip("/")):
            raise ValueError("an address such as redis://127.0.0.1:6379/0, rediss://…, unix:///path?db=0 or "
                             "sentinel://host:26379;sentinel://other:26379/0 is needed")
        return SecretStr(redis_address(value.get_secret_value()))

    @field_validator("redis_sentinel_master")
    @classmethod
    def _master(cls, value: str | None, info: ValidationInfo) -> str | None:
        url = info.data["redis_url"].get_secret_value() if "redis_url" in info.data else ""
        if url.startswith(SENTINEL) and not parse_sentinels(url, value).master:
            raise ValueError("a sentinel:// address needs the name under which the sentinels watch the master, "
                             "such as mymaster, here or as ?master_name= in the address")
        return value

    @field_validator("endpoints", mode="before")
    @classmethod
    def _over_defaults(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        defaults = default_endpoints()
        merged = {**defaults, **value}
        for name, default in defaults.items():
            if isinstance(merged[name], dict):
                merged[name] = {**default, **merged[name]}
        return merged

    @field_validator("endpoints")
    @classmethod
    def _fallbacks_exist(cls, value: dict[str, Endpoint]) -> dict[str, Endpoint]:
        for name, endpoint in value.items():
            for other in endpoint.fallback:
                if other == name or other not in value:
                    why = "that endpoint itself" if other == name else "no endpoint"
                    others = ", ".join(sorted(set(value) - {name})) or "none"
                    raise ValueError(f"the fallback {other!r} of the endpoint {name!r} is {why}; there are {others}")
        return value

    @property
    def known_queues(self) -> tuple[str, ...]:
        """The queues that a job may go to."""
        return ("io", "cpu", *self.queues)

    @property
    def metrics_ports(self) -> range:
        """The ports to try for metrics, in turn; none where there are to be no metrics."""
        first, _, last = (self.metrics_port or "").partition("-")
        return range(int(first), int(last or first) + 1) if first else range(0)

    @property
    def sentinels(self) -> Sentinels | None:
        """The sentinels of a sentinel:// address."""
        url, password = self.redis_url.get_secret_value(), self.redis_sentinel_password
        if not url.startswith(SENTINEL):
            return None
        login = Login(self.redis_sentinel_username, password.get_secret_value()) if password else None
        return parse_sentinels(url, self.redis_sentinel_master, login)

    @property
    def redis_address(self) -> str:
        """The Redis address without user and password, for messages."""
        if self.sentinels is not None:
            return self.sentinels.address()
        scheme, _, rest = self.redis_url.get_secret_value().partition("://")
        address, _, query = rest.rpartition("@")[2].partition("?")
        shown = "&".join(part for part in query.split("&") if part and not part.startswith(("password=", "username=")))
        return f"{scheme}://{address}{'?' + shown if shown else ''}"

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, `.env`, `callsheet.toml`, `pyproject.toml`."""
        return (init_settings, env_settings, dotenv_settings, Toml(settings_cls), Pyproject(settings_cls))

    @classmethod
    def load(cls, **overrides: Any) -> "Settings":
        """The settings from all sources.

        Args:
            overrides: values that beat every source.

        Raises:
            SettingsError: names every wrong value and misspelt name, and what would be right.
        """
        return cls(**overrides)


_lock = threading.Lock()
_current: Settings | None = None


def get_settings() -> Settings:
    """The process's settings, read on first use."""
    global _current  # noqa: PLW0603 - one Settings object a process is the point
    with _lock:
        if _current is None:
            _current = Settings.load()
            guard(_current)
        return _current


@contextmanager
def use_settings(settings: Settings) -> Iterator[Settings]:
    """Make `settings` the process's settings for the block; for tests and for embedding."""
    global _current  # noqa: PLW0603 - see get_settings
    with _lock:
        before, _current = _current, settings
        guard(settings)
    try:
        yield settings
    finally:
        with _lock:
            _current = before
            guard(before)
