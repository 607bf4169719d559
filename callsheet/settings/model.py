"""The Settings object: environment `CALLSHEET_*`, `.env`, `callsheet.toml` or `[tool.callsheet]`.

Read once, when first asked for; importing this module reads nothing.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as UnreadableValue

from callsheet.errors import SettingsError
from callsheet.settings.endpoints import Endpoint, Prices, names
from callsheet.settings.mcp import McpSettings
from callsheet.settings.problems import misspelt, report
from callsheet.settings.providers import default_endpoints
from callsheet.settings.queues import wrong_with_name
from callsheet.settings.secrets import guard
from callsheet.settings.sentinels import SCHEME as SENTINEL
from callsheet.settings.sentinels import Login, Sentinels
from callsheet.settings.sentinels import parse as parse_sentinels
from callsheet.settings.sources import Pyproject, Toml, misspelt_in, redis_address, redis_here

PREFIX = "CALLSHEET_"
ENV_FILE = ".env"


Names = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """Everything that can be set. Each field is an environment variable with `CALLSHEET_` before its name.

    Attributes:
        redis_url: broker, results and state. `redis://`, `rediss://`, `unix:///path?db=0`, or
            `sentinel://host:26379;sentinel://other:26379/0`; may hold a password, or `?password_file=` its file's path.
        redis_sentinel_master: the name under which the sentinels of such an address watch the master.
        redis_sentinel_username: for the sentinels themselves, where they ask for one.
        redis_sentinel_password: likewise; the server's own is in the address.
        modules: modules (with what is under them) whose agents, functions and Celery tasks workers may build
            and run; comma-separated in the environment.
        queues: more queues than `io` and `cpu` that jobs may name.
        media_folders: of a worker, whose pictures, sound and film messages may name; `temp` is the temporary one.
        media_hosts: from where it fetches what messages name: `public` for all that the internet reaches, addresses,
            networks, and names or patterns such as `*.example.com`.
        inline: run every call in the caller's process, without Redis; for unit tests.
        key_prefix: put before every Redis key of Callsheet's own.
        result_expires: seconds that results and large payloads are kept.
        events_max: events kept for one job, about; the oldest go first.
        events_expires: seconds that a job's events are kept after the last of them.
        answers_expires: seconds that people's answers are kept, and questions whose worker is gone.
        payload_inline_max: bytes; a larger payload is stored once in Redis under its hash.
        payload_max: bytes; a larger message is refused.
        retry_backoff: seconds before the first retry of a call that has `retries`; doubles each time.
        retry_backoff_max: seconds at most between two tries.
        track_started: store the state STARTED as well, one more Redis trip a call.
        transport: how workers consume from Redis: `batched`, many messages a trip and under leases, or `stock`, as
            kombu does. Publishers and both kinds of worker go together.
        loop: whose event loops run coroutines: `uvloop` where it is installed, or `asyncio`.
        lease: seconds after which the calls of a killed worker are back on their queues; `batched` only.
        max_deaths: workers that may die under one call; the call is given up with the last. `batched` only.
        eta_horizon: seconds from now; what is to start later than that waits in Redis, and in no worker, until shortly
            before; `batched` only.
        turn_lease: seconds after which the turn of an agent whose worker was killed passes on.
        state_expires: seconds that an agent's state is kept after its last turn; 0 keeps it for ever.
        warm_agents: agents with state that a worker process keeps ready between their turns; 0 keeps none.
        warm_bytes: that these may take, as estimated; the least recently used go first.
        hub_length: messages that a hub's log keeps; a member further behind gets a note of what is missing.
        hub_age: seconds that it keeps them.
        hub_expires: seconds after its last use that a hub is closed.
        visibility_timeout: seconds after which a call that a stock worker has not acknowledged is delivered again.
        max_parked: calls in one io worker that may wait for child jobs at once, beyond its slots.
        soft_shutdown: seconds that a cold shutdown (SIGQUIT) leaves to running calls before it cancels them.
        tool_text_max: characters of text that an agent's model gets of one call of a tool; what is beyond is cut.
        tool_threads: tools that are plain functions and run at once in one process, each in a thread.
        loop_block_warning: seconds that code may block an io worker's loop before it is logged.
        autoscale_target_wait: seconds within which an autoscaled worker tries to begin what waits.
        autoscale_step: times its size at most to which it grows at once.
        autoscale_cooldown: seconds after which it has come down from a size that it needs no more.
        autoscale_memory: bytes that it may use, with its processes; or its control group's limit, if lower.
        autoscale_memory_share: share of that limit up to which it grows.
        autoscale_cpu: share of the processors' time from which it grows no more; an io worker has one processor.
        autoscale_lag: seconds that the loop is late from which an io worker grows no more.
        autoscale_strain: seconds that either of these must be exceeded before that counts.
        tenant_weights: by tenant, how much of an endpoint each gets where several wait for it; 1 where none is given.
        outbound_hosts: hosts that models and MCP clients may call beside the endpoints', by name, pattern such as
            `*.example.com` or network such as `10.0.0.0/8`; `*`, any but a link's and a cloud's own services.
        endpoints: model servers by name; the public providers are there from the start.
        mcp: MCP servers that workers may start, and bounds of all MCP clients.
        prices: of models on any endpoint, by name or pattern such as `gpt-4o*`, for a million tokens.
        usage_expires: seconds that the fleet's counts of tokens and cost are kept.
        metrics_port: where a worker answers Prometheus: a port, a range such as 9600-9610 of which each worker of a
            machine takes the first free one, or 0 for any free port; None for nowhere.
        metrics_address: of this machine, on which it does.
        flower_auth: who may use `callsheet flower`, each a "user:password"; comma-separated.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=ENV_FILE, env_nested_delimiter="__", extra="ignore", frozen=True,
        toml_file="callsheet.toml", hide_input_in_errors=True, pyproject_toml_table_header=("tool", "callsheet"),
    )

    redis_url: SecretStr = Field(default_factory=redis_here, validate_default=True)
    redis_sentinel_master: str | None = Field(None, validate_default=True)
    redis_sentinel_username: str = ""
    redis_sentinel_password: SecretStr | None = None
    modules: Names = ()
    queues: Names = ()
    media_folders: Names = (".", "temp")
    media_hosts: Names = ("public",)
    inline: bool = False
    key_prefix: str = "callsheet:"
    result_expires: int = Field(86_400, gt=0)
    events_max: int = Field(10_000, ge=10)
    events_expires: int = Field(86_400, gt=0)
    answers_expires: int = Field(7 * 86_400, gt=60)
    payload_inline_max: int = Field(64 * 1024, ge=1024)
    payload_max: int = Field(16 * 1024 * 1024, ge=1024)
    retry_backoff: float = Field(1.0, ge=0)
    retry_backoff_max: float = Field(60.0, ge=0)
    track_started: bool = False
    transport: Literal["batched", "stock"] = "batched"
    loop: Literal["uvloop", "asyncio"] = "uvloop"
    lease: float = Field(60.0, ge=1)
    max_deaths: int = Field(3, ge=2)
    eta_horizon: float = Field(3600.0, ge=1)
    turn_lease: float = Field(15.0, ge=1)
    state_expires: int = Field(7 * 86_400, ge=0)
    warm_agents: int = Field(1000, ge=0)
    warm_bytes: int = Field(64 * 1024 * 1024, ge=0)
    hub_length: int = Field(10_000, ge=1)
    hub_age: int = Field(86_400, gt=0)
    hub_expires: int = Field(7 * 86_400, gt=0)
    visibility_timeout: int = Field(3600, gt=0)
    max_parked: int = Field(10_000, ge=0)
    soft_shutdown: float = Field(0.0, ge=0)
    tool_text_max: int = Field(100_000, ge=100)
    tool_threads: int = Field(200, ge=1)
    loop_block_warning: float = Field(0.25, gt=0)
    autoscale_target_wait: float = Field(1.0, gt=0)
    autoscale_step: float = Field(4.0, gt=1)
    autoscale_cooldown: float = Field(30.0, ge=0)
    autoscale_memory: int | None = Field(None, gt=0)
    autoscale_memory_share: float = Field(0.9, gt=0, le=1)
    autoscale_cpu: float = Field(0.95, gt=0)
    autoscale_lag: float = Field(0.5, gt=0)
    autoscale_strain: float = Field(5.0, ge=0)
    tenant_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    outbound_hosts: Names = ("*",)
    endpoints: dict[str, Endpoint] = Field(default_factory=default_endpoints, validate_default=True)
    mcp: McpSettings = McpSettings()
    prices: Prices = Field(default_factory=dict)
    usage_expires: int = Field(35 * 86_400, gt=0)
    metrics_port: str | None = None
    metrics_address: str = "127.0.0.1"
    flower_auth: SecretStr | None = None

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

    @field_validator("modules", "queues", "media_folders", "media_hosts", "outbound_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return names(value)

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
