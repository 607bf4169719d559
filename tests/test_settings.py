"""Settings: where they come from, which one wins, and what is said of a wrong one."""

import dataclasses
import re
import tomllib
import types
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kombu.utils.json import dumps
from pydantic import ValidationError

from callsheet import Settings, get_settings
from callsheet.errors import SettingsError
from callsheet.scaling import Rules
from callsheet.settings import use_settings
from callsheet.settings.celery import JOIN_EXPIRES, broker_url, celery_config, route
from callsheet.settings.endpoints import BreakerPolicy, Endpoint, RetryPolicy, ollama_url
from callsheet.settings.keys import Keys
from callsheet.settings.mcp import McpSettings
from callsheet.tasks.app import make_app
from tests.services import ROOT


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without files of settings, and an environment without variables of ours."""
    import os

    for name in list(os.environ):
        if name.startswith(("CALLSHEET_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)
    return put


def refusal() -> str:
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    assert caught.value.__cause__ is None
    return str(caught.value)


# Sources ----------------------------------------------------------------------------------------------------

def test_there_are_defaults_for_everything() -> None:
    settings = Settings.load()
    assert settings.redis_url.get_secret_value() == "redis://127.0.0.1:6379/0"
    assert settings.known_queues == ("io", "cpu")
    assert settings.modules == ()
    assert not settings.inline
    assert settings.payload_inline_max == 64 * 1024
    assert settings.endpoints["openai"].base_url == "https://api.openai.com/v1"


def rows() -> dict[str, str]:
    """The settings of the documentation, with the defaults that it gives."""
    text = (ROOT / "docs/settings.md").read_text()
    return dict(re.findall(r"^\| `CALLSHEET_(\w+)` \| (.+?) \|", text, re.MULTILINE))


def test_each_setting_is_documented_and_nothing_else_is() -> None:
    listed = set(rows()) | {"ENDPOINTS"}  # which has a section of its own
    assert listed == {name.upper() for name in Settings.model_fields}
    assert "\n## Endpoints\n" in (ROOT / "docs/settings.md").read_text()


@pytest.mark.parametrize("name", sorted(set(rows()) - {"MCP"}))
def test_the_documented_default_is_the_one_that_holds(name: str, env: Any) -> None:
    told, default = rows()[name].strip("`"), getattr(Settings.load(), name.lower())
    if told == "none":
        assert not default
    else:
        assert default not in (None, "", ())
        env(**{f"CALLSHEET_{name}": told})
        assert getattr(Settings.load(), name.lower()) == default


SECTIONS = {"endpoints.local": Endpoint(base_url="http://any"), "endpoints.local.retry": RetryPolicy(),
            "endpoints.local.breaker": BreakerPolicy(), "mcp": McpSettings()}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_of_the_documentation_gives_all_there_is_with_its_defaults(section: str) -> None:
    block = (ROOT / "docs/settings.md").read_text().partition(f"\n[{section}]\n")[2].partition("```")[0]
    told = tomllib.loads(block.partition("\n[")[0])
    elsewhere = {"api_key", "retry", "breaker", "prices", "servers"}  # in sections of their own; a key, in no file
    assert set(told) == set(type(SECTIONS[section]).model_fields) - elsewhere
    for name, value in told.items():
        default = getattr(SECTIONS[section], name)
        if default not in (None, (), {}) and name != "base_url":
            assert value == default, name


# What is set of the autoscaler, by what of its rules it becomes.
RULES = {"TARGET_WAIT": ("target_wait", 3.5), "STEP": ("step", 2.5), "COOLDOWN": ("cooldown", 7.5),
         "MEMORY": ("memory_limit", 123_456_789), "MEMORY_SHARE": ("memory_share", 0.45), "CPU": ("cpu", 0.35),
         "LAG": ("lag", 0.15), "STRAIN": ("strain", 2.25)}


def test_every_threshold_of_the_autoscaler_is_a_setting() -> None:
    set_in = {name.removeprefix("autoscale_").upper() for name in Settings.model_fields if name.startswith("autoscale")}
    assert set_in == set(RULES)
    thresholds = {field.name for field in dataclasses.fields(Rules)} - {"per_unit", "idle_costs"}  # of the pool's kind
    assert {rule for rule, _ in RULES.values()} == thresholds
    assert Rules.of(Settings.load()) == Rules()


@pytest.mark.parametrize("name", RULES)
def test_a_threshold_that_is_set_is_the_workers_and_no_other_moves(name: str, env: Any) -> None:
    rule, value = RULES[name]
    env(**{f"CALLSHEET_AUTOSCALE_{name}": str(value)})
    assert Rules.of(Settings.load()) == dataclasses.replace(Rules(), **{rule: value})


def test_every_source_is_read_and_the_nearer_one_wins(tmp_path: Path, env: Any) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.callsheet]\nkey_prefix = "py:"\nresult_expires = 1\nmodules = ["py"]\nqueues = ["py"]\nmax_parked = 1\n')
    assert Settings.load().key_prefix == "py:"
    (tmp_path / "callsheet.toml").write_text('result_expires = 2\nmodules = ["toml.a", "toml.b"]\nqueues = ["t"]\n')
    (tmp_path / ".env").write_text("CALLSHEET_MODULES=dot\nCALLSHEET_QUEUES=dot\nOPENAI_API_KEY=not-ours\n")
    env(CALLSHEET_QUEUES="env")
    settings = Settings.load(max_parked=9)
    assert (settings.key_prefix, settings.result_expires) == ("py:", 2)
    assert (settings.modules, settings.queues, settings.max_parked) == (("dot",), ("env",), 9)


def test_names_are_separated_by_commas(env: Any) -> None:
    env(CALLSHEET_MODULES=" my.agents , other,", CALLSHEET_QUEUES="gpu,slow", CALLSHEET_INLINE="1")
    settings = Settings.load()
    assert settings.modules == ("my.agents", "other")
    assert settings.known_queues == ("io", "cpu", "gpu", "slow")
    assert settings.inline is True


def test_a_pyproject_without_our_table_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    assert Settings.load().key_prefix == "callsheet:"


def test_endpoints_come_from_nested_variables(env: Any) -> None:
    env(CALLSHEET_ENDPOINTS__LOCAL__BASE_URL="http://127.0.0.1:8000/v1/", CALLSHEET_ENDPOINTS__LOCAL__API_KEY="sk-1",
        CALLSHEET_ENDPOINTS__LOCAL__TIMEOUT="7.5", CALLSHEET_ENDPOINTS__OPENAI__TIMEOUT="9")
    endpoints = Settings.load().endpoints
    assert endpoints["local"].base_url == "http://127.0.0.1:8000/v1"
    assert endpoints["local"].key() == "sk-1"
    assert endpoints["local"].timeout == 7.5
    assert endpoints["openai"].timeout == 9
    assert endpoints["openai"].api_key_env == "OPENAI_API_KEY"
    assert "sk-1" not in repr(endpoints)


def test_endpoints_come_from_toml_and_keys_from_their_variable(tmp_path: Path, env: Any) -> None:
    (tmp_path / "callsheet.toml").write_text('[endpoints.fast]\nbase_url = "http://x/v1"\napi_key_env = "FAST_KEY"\n')
    endpoint = Settings.load().endpoints["fast"]
    assert endpoint.key() is None
    env(FAST_KEY="sk-2", OPENAI_BASE_URL="http://proxy/v1", OPENAI_API_KEY="sk-3")
    assert endpoint.key() == "sk-2"
    assert Settings.load().endpoints["openai"].base_url == "http://proxy/v1"
    assert Settings.load().endpoints["openai"].key() == "sk-3"


def test_the_public_providers_are_there_from_the_start(env: Any) -> None:
    for name in ("OPENAI_BASE_URL", "GEMINI_API_KEY", "OLLAMA_HOST"):
        env(**{name: ""})
    env(ANTHROPIC_BASE_URL="http://proxy/anthropic", ANTHROPIC_API_KEY="sk-ant", DEEPSEEK_API_KEY="sk-deep",
        CALLSHEET_ENDPOINTS__DASHSCOPE__TIMEOUT="7")
    endpoints = Settings.load().endpoints
    assert set(endpoints) == {"openai", "anthropic", "gemini", "dashscope", "deepseek", "ollama"}
    assert (endpoints["anthropic"].base_url, endpoints["anthropic"].key()) == ("http://proxy/anthropic", "sk-ant")
    assert endpoints["deepseek"].key() == "sk-deep"
    assert endpoints["dashscope"].timeout == 7 and endpoints["dashscope"].api_key_env == "DASHSCOPE_API_KEY"
    assert endpoints["ollama"].base_url == "http://127.0.0.1:11434/v1"


@pytest.mark.parametrize(("host", "url"), [
    ("", "http://127.0.0.1:11434/v1"), ("0.0.0.0", "http://127.0.0.1:11434/v1"), (":7000", "http://127.0.0.1:7000/v1"),
    ("gpu-1", "http://gpu-1:11434/v1"), ("gpu-1:80/", "http://gpu-1:80/v1"), ("[::1]", "http://[::1]:11434/v1"),
    ("https://ollama.example", "https://ollama.example/v1"), ("http://h:1/path/v1", "http://h:1/path/v1")])
def test_ollamas_host_may_be_written_as_ollama_takes_it(host: str, url: str) -> None:
    assert ollama_url(host) == url


def test_googles_other_variable_counts_where_geminis_is_not_set(env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    env(GOOGLE_API_KEY="g-1")
    assert Settings.load().endpoints["gemini"].key() == "g-1"
    env(GEMINI_API_KEY="g-2")
    assert Settings.load().endpoints["gemini"].key() == "g-2"


def test_there_is_one_settings_object_a_process() -> None:
    mine = Settings.load(key_prefix="mine:")
    with use_settings(mine) as given:
        assert get_settings() is given is mine
        with use_settings(Settings.load(key_prefix="inner:")):
            assert get_settings().key_prefix == "inner:"
        assert get_settings() is mine


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings.load().inline = True  # type: ignore[misc]


# Wrong ones ---------------------------------------------------------------------------------------------------

def test_every_wrong_value_is_named_at_once(env: Any) -> None:
    env(CALLSHEET_REDIS_URL="http://me:hunter2@x", CALLSHEET_MODULES="a b", CALLSHEET_INLINE="maybe",
        CALLSHEET_QUEUES="x y", CALLSHEET_RESULT_EXPIRES="-5", CALLSHEET_RETRY_BACKOFF="nan", CALLSHEET_MODULE="m",
        CALLSHEET_ENDPOINTS__X__TIMEOUT="0", CALLSHEET_OUTBOUND_HOSTS="https://api.x.com",
        CALLSHEET_MEDIA_HOSTS="10.1/99")
    said = refusal()
    for part in ("CALLSHEET_REDIS_URL (in callsheet.toml: redis_url)", "CALLSHEET_MODULES", "'a b'", "CALLSHEET_INLINE",
                 "'maybe'", "CALLSHEET_QUEUES", "'https://api.x.com' is no host",
                 "'10.1/99' is no host", "CALLSHEET_RESULT_EXPIRES", "'-5'", "greater than 0", "'nan'",
                 "CALLSHEET_MODULE is not a setting. Did you mean CALLSHEET_MODULES?",
                 "CALLSHEET_ENDPOINTS__X__BASE_URL", "is missing", "CALLSHEET_ENDPOINTS__X__TIMEOUT",
                 "Correct them in the environment"):
        assert part in said, part
    assert "hunter2" not in said


@pytest.mark.parametrize("given", [
    {"CALLSHEET_REDIS_URL": "redis://:SECRET@h:port/0"}, {"CALLSHEET_ENDPOINTS": '{"x": {"api_key": "SECRET"}}'},
    {"CALLSHEET_ENDPOINTS__X__API_KEY": "SECRET", "CALLSHEET_ENDPOINTS__X__BASEURL": "http://x"},
    {"CALLSHEET_ENDPOINTS": '[{"api_key": "SECRET"}]'}, {"CALLSHEET_ENDPOINTS": '{"api_key": "SECRET"'},
    {"CALLSHEET_ENDPOINTS__X__BASE_URL": "ftp://me:SECRET@h"},
    {"CALLSHEET_ENDPOINTS": '{"x": {"base_url": "http://h", "headers": {"Authorization": ["SECRET"]}}}'}])
def test_secrets_are_never_shown(given: dict[str, str], env: Any) -> None:
    env(**given)
    said = refusal()
    assert "SECRET" not in said
    assert "CALLSHEET_" in said


def test_secrets_are_not_shown_by_a_settings_object() -> None:
    settings = Settings.load(redis_url="redis://me:hunter2@h:1/2",
                             endpoints={"x": {"base_url": "http://h", "api_key": "sk-9"}})
    assert "hunter2" not in repr(settings)
    assert "sk-9" not in repr(settings)


@pytest.mark.parametrize("name", ["CALLSHEET_REDISURL", "CALLSHEET_REDIS_URI", "CALLSHEET_MODULE", "CALLSHEET_MOULDES",
                                  "CALLSHEET_ENDPOINT__X__BASE_URL", "callsheet_inlin", "CALLSHEET_RESULTS_EXPIRE"])
def test_a_misspelt_variable_is_named(name: str, env: Any) -> None:
    env(**{name: "1"})
    assert f"{name} is not a setting. Did you mean CALLSHEET_" in refusal()


def test_what_kubernetes_puts_into_a_pod_is_let_pass(env: Any) -> None:
    for service in ("CALLSHEET", "CALLSHEET_REDIS", "CALLSHEET_IO", "CALLSHEET_FLOWER"):
        env(**{f"{service}_SERVICE_HOST": "10.0.0.1", f"{service}_PORT": "tcp://10.0.0.1:1",
               f"{service}_PORT_6379_TCP_ADDR": "10.0.0.1", f"{service}_SERVICE_PORT": "1"})
    assert Settings.load()


def test_misspelt_names_in_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "callsheet.toml").write_text('redis_uri = "redis://h"\nzebra = 1\n')
    (tmp_path / "pyproject.toml").write_text("[tool.callsheet]\nmodule = []\n")
    (tmp_path / ".env").write_text("CALLSHEET_INLIN=1\nOTHER=2\n")
    said = refusal()
    assert "redis_uri in callsheet.toml is not a setting. Did you mean redis_url?" in said
    assert "zebra in callsheet.toml is not a setting. There are redis_url, redis_sentinel_master" in said
    assert "module in [tool.callsheet] of pyproject.toml is not a setting. Did you mean modules?" in said
    assert "CALLSHEET_INLIN is not a setting. Did you mean CALLSHEET_INLINE? (in .env)" in said


@pytest.mark.parametrize("name", ["callsheet.toml", "pyproject.toml", ".env"])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x = [\n\xff")
    assert name in refusal()


@pytest.mark.parametrize("name", ["callsheet.toml", "pyproject.toml"])
def test_toml_that_is_none_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("a = 1\nb = \n")
    said = refusal()
    assert name in said
    assert "line" in said


def test_json_that_is_none_is_named_by_its_variable(env: Any) -> None:
    env(CALLSHEET_ENDPOINTS="{oops")
    assert "CALLSHEET_ENDPOINTS cannot be read: it is not JSON" in refusal()


def test_a_wrong_value_given_in_code_is_one_of_our_errors() -> None:
    with pytest.raises(SettingsError, match="CALLSHEET_PAYLOAD_MAX"):
        Settings(payload_max=1)
    with pytest.raises(SettingsError, match="nonsense is not a setting"):
        Settings(nonsense=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("url", ["", "h:6379", "http://h", "redis://h:port/0", "redis://h:70000", "redis://h/db", "unix://",
                                 "unix:///", "redis://[::1/0"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"redis://127\.0\.0\.1:6379/0"):
        Settings(redis_url=url)


@pytest.mark.parametrize(("url", "why"), [
    ("sentinel://", "sentinel://:password@host:26379;sentinel://other:26379/0"), ("sentinel://h;redis://g", "such as"),
    ("sentinel://h:port", "such as sentinel"), ("sentinel://h:0", "such as sentinel"), ("sentinel://h/db", "such as"),
    ("sentinel://:hunter2@h;sentinel://:hunter3@g", "do not agree on a password"),
    ("sentinel://h/1;sentinel://g/2", "do not agree on a database"),
    ("sentinel://:hunter2@h?ssl=1", "'ssl' cannot stand in a sentinel:// address"),
    ("sentinel://:hunter2@h?master_name=other", "another master_name")])
def test_sentinels_that_are_none_are_refused(url: str, why: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(why)) as refused:
        Settings(redis_url=url, redis_sentinel_master="main")
    assert "hunter" not in str(refused.value)


def test_the_masters_name_is_needed() -> None:
    with pytest.raises(SettingsError, match=r"CALLSHEET_REDIS_SENTINEL_MASTER .* such as mymaster"):
        Settings(redis_url="sentinel://:hunter2@h")
    assert Settings(redis_url="sentinel://h?master_name=main").sentinels.master == "main"
    assert Settings(redis_sentinel_master="main").sentinels is None  # of another address


# What is made of them -----------------------------------------------------------------------------------------

ADDRESSES = [
    ("redis://h", {"host": "h", "port": 6379, "db": 0}),
    ("redis://:p%40w@h:1/2", {"host": "h", "port": 1, "db": 2, "password": "p@w"}),
    ("redis://me:pw@[::1]:1/2", {"host": "::1", "port": 1, "db": 2, "username": "me", "password": "pw"}),
    ("rediss://me:pw@h:1/2", {"host": "h", "port": 1, "db": 2, "username": "me", "ssl_cert_reqs": "CERT_REQUIRED"}),
    ("rediss://h:1/2?ssl_cert_reqs=none", {"host": "h", "ssl_cert_reqs": "CERT_NONE"}),
    ("rediss://h:1/2?ssl_ca_certs=/ca.pem", {"ssl_ca_certs": "/ca.pem", "ssl_cert_reqs": "CERT_REQUIRED"}),
    ("unix:///run/r.sock", {"path": "/run/r.sock", "db": 0}),
    ("unix:///run/r.sock?db=3", {"path": "/run/r.sock", "db": 3}),
    ("unix://me:p%40w@/run/r.sock?db=3", {"path": "/run/r.sock", "db": 3, "username": "me", "password": "p@w"}),
    ("unix:///run/r.sock?password=p%40w&db=4", {"path": "/run/r.sock", "db": 4, "password": "p@w"}),
]


@pytest.mark.parametrize(("url", "wanted"), ADDRESSES)
def test_broker_and_results_are_where_the_address_says(url: str, wanted: dict[str, Any]) -> None:
    app = make_app(Settings(redis_url=url))
    connection = app.connection_for_write()

    class Channel(connection.transport.Channel):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            self.connection = types.SimpleNamespace(client=connection, default_port=6379)

    for found in (Channel()._connparams(), app.backend.connparams):
        shown = {key: getattr(found.get(key), "name", found.get(key)) for key in wanted}
        assert shown == wanted


@pytest.mark.parametrize(("url", "shown"), [
    ("redis://me:hunter2@h:1/2", "redis://h:1/2"), ("redis://:a@b@h/0", "redis://h/0"), ("redis://h", "redis://h"),
    ("unix://me:pw@/r.sock?db=1", "unix:///r.sock?db=1")])
def test_the_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert Settings(redis_url=url).redis_address == shown


@pytest.mark.parametrize("url", ["sentinel://me:p%2F%40w@h1;sentinel://[::1]:7/3", "sentinel://h1;me:p%2F%40w@[::1]:7/3",
                                 "sentinel://me:p%2F%40w@h1/3;sentinel://me:p%2F%40w@[::1]:7/3?master_name=main"])
def test_celery_gets_every_sentinel_and_the_servers_password_with_each(url: str) -> None:
    settings = Settings(redis_url=url, redis_sentinel_master="main", redis_sentinel_password="sentry")
    assert settings.redis_address == "sentinel://h1:26379;sentinel://[::1]:7/3?master_name=main"
    for transport in (None, "callsheet.workers.transport:SentinelTransport"):
        app = make_app(settings)
        app.conf.broker_transport = transport
        hosts = [("h1", 26379), ("::1", 7)]
        found = app.backend.connparams
        assert [(host["host"], host["port"]) for host in found["hosts"]] == hosts
        assert (found["username"], found["password"], found["db"]) == ("me", "p/@w", 3)
        connection = app.connection_for_write()
        for _ in connection.alt:  # as when one does not answer
            assert (connection.userid, connection.password, connection.virtual_host) == ("me", "p/@w", "3")
            connection.maybe_switch_next()
        assert [(part.hostname, part.port) for part in map(urlsplit, connection.alt)] == hosts
        shown = repr([app.conf.table(), settings, dumps({**connection.info(), "password": None, "alternates": None})])
        for secret in ("p/@w", "p%2F%40w", "sentry"):
            assert secret not in shown
        assert connection.transport_options["sentinel_kwargs"]["credential_provider"].get_credentials() == ("sentry",)


def test_celery_is_configured_for_work_that_must_not_be_lost() -> None:
    config = celery_config(Settings(modules=("my.agents",), result_expires=77), "cpu")
    assert config["task_acks_late"]
    assert config["worker_prefetch_multiplier"] == 1
    assert config["accept_content"] == ["json"]
    assert config["imports"] == ("my.agents",)
    assert config["result_expires"] == 77
    assert config["result_chord_expires"] == JOIN_EXPIRES
    assert config["task_default_queue"] == "cpu"
    assert [queue.name for queue in config["task_queues"]] == ["cpu"]
    assert config["result_backend"] == "callsheet.tasks.results:ResultBackend+redis://127.0.0.1:6379/0"


def test_a_users_own_tasks_are_routed_by_their_kind() -> None:
    assert route("mine.add", (), {}, {}, types.SimpleNamespace(is_async=True)) == {"queue": "io"}
    assert route("mine.add", (), {}, {}, types.SimpleNamespace()) == {"queue": "cpu"}
    assert route("callsheet.reply", (), {}, {}, types.SimpleNamespace()) is None
    assert route("mine.add", (), {}, {}) is None


def test_the_broker_address_is_left_alone_where_it_can_be() -> None:
    assert broker_url(Settings(redis_url="redis://h:1/2")) == "redis://h:1/2"


def test_every_key_has_the_prefix() -> None:
    keys = Keys("mine:")
    names = [keys.payload("d"), keys.job("j"), keys.events("j"), keys.events_channel("j"), keys.revoked()]
    assert all(name.startswith("mine:") for name in names)
    assert len(set(names)) == len(names)
    assert dataclasses.is_dataclass(keys)
