"""What the settings say of endpoints: keys, proxies, policies, fallbacks, prices; and what is said of wrong ones."""

import os
from pathlib import Path

import pytest

from callsheet import Settings
from callsheet.errors import SettingsError
from callsheet.settings import Endpoint
from callsheet.settings.endpoints import Price, address_variable, price_of

AT = "http://h/v1"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("CALLSHEET_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_policies_come_from_variables_and_from_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "callsheet.toml").write_text(
        '[endpoints.a]\nbase_url = "http://a/v1"\nfallback = ["b"]\n[endpoints.a.breaker]\ncooldown = 3\n'
        '[endpoints.a.prices."small*"]\ninput = 1\noutput = 2\n[endpoints.b]\nbase_url = "http://b/v1"\n'
        '[prices.big]\ninput = 10\noutput = 20\n')
    monkeypatch.setenv("CALLSHEET_ENDPOINTS__A__RETRY__ATTEMPTS", "7")
    monkeypatch.setenv("CALLSHEET_ENDPOINTS__B__FALLBACK", "a, openai")
    settings = Settings.load()
    a, b = settings.endpoints["a"], settings.endpoints["b"]
    assert (a.retry.attempts, a.breaker.cooldown, a.fallback, b.fallback) == (7, 3, ("b",), ("a", "openai"))
    assert price_of("small-2", a.prices, settings.prices) == Price(input=1, output=2)
    assert price_of("big", a.prices, settings.prices) == Price(input=10, output=20)


def test_the_variable_to_correct_is_the_one_that_holds_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    own = "CALLSHEET_ENDPOINTS__OPENAI__BASE_URL"
    assert address_variable("openai", "https://api.openai.com/v1") == own
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8808/v1/")
    assert address_variable("openai", Settings.load().endpoints["openai"].base_url) == "OPENAI_BASE_URL"
    monkeypatch.setenv("OLLAMA_HOST", "gpu-box")
    assert address_variable("ollama", Settings.load().endpoints["ollama"].base_url) == "OLLAMA_HOST"
    monkeypatch.setenv(own, "http://elsewhere/v1")  # beats it
    assert address_variable("openai", Settings.load().endpoints["openai"].base_url) == own
    assert address_variable("mine", "http://h/v1") == "CALLSHEET_ENDPOINTS__MINE__BASE_URL"


@pytest.mark.parametrize(("variable", "value", "said"), [
    ("RETRY__ATTEMPTS", "0", "greater than or equal to 1"), ("RETRY__BACKOFF", "-1", "greater than or equal to 0"),
    ("RETRY__BUDGET", "-0.1", "greater than or equal to 0"), ("RETRY__BACKOFF_MAX", "nan", "greater than or equal"),
    ("RETRY__TRIES", "3", "is not a setting"), ("BREAKER__FAILURE_RATE", "0", "greater than 0"),
    ("BREAKER__FAILURE_RATE", "1.5", "less than or equal to 1"), ("BREAKER__WINDOW", "-3", "greater than or equal"),
    ("BREAKER__MINIMUM", "0", "greater than or equal to 1"), ("BREAKER__COOLDOWN", "0", "greater than 0"),
    ("TIMEOUT", "-1", "greater than 0"), ("CONNECT_TIMEOUT", "0", "greater than 0"),
    ("MAX_CONNECTIONS", "-5", "greater than 0"), ("PRICES__M__INPUT", "-1", "greater than or equal to 0"),
    ("PROXY", "socks5://me:SECRET@p:1", "http://user:password@proxy:3128"),
    ("PROXY", "http://me:SECRET@p:port", "http://user:password@proxy:3128"),
    ("FALLBACK", "b", "the fallback 'b' of the endpoint 'x' is no endpoint"),
    ("FALLBACK", "x", "is that endpoint itself"),
])
def test_what_cannot_be_right_is_refused_by_name(variable: str, value: str, said: str,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_ENDPOINTS__X__BASE_URL", AT)
    monkeypatch.setenv(f"CALLSHEET_ENDPOINTS__X__{variable}", value)
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    name = "CALLSHEET_ENDPOINTS" if variable == "FALLBACK" else f"CALLSHEET_ENDPOINTS__X__{variable}"
    assert name in str(caught.value) and said in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_key_file_is_read_afresh_without_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-one\r\n")
    endpoint = Endpoint(base_url=AT, api_key_file=path)
    assert endpoint.key() == "sk-one"
    path.write_text("sk-two\n")
    assert endpoint.key() == "sk-two"


def test_the_nearest_key_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    path.write_text("from-file\n")
    both = Endpoint(base_url=AT, api_key_env="SOME_KEY", api_key_file=path)
    monkeypatch.delenv("SOME_KEY", raising=False)
    assert both.key() == "from-file"
    monkeypatch.setenv("SOME_KEY", "from-variable")
    assert both.key() == "from-variable"
    assert Endpoint(base_url=AT, api_key="given", api_key_file=path).key() == "given"
    assert Endpoint(base_url=AT).key() is None


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"])
def test_an_unreadable_key_file_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "no" / "key" if content is None else tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        Endpoint(base_url="http://me:SECRET@h:8/v1", api_key_file=path).key()
    for part in (str(path), "http://h:8", "api_key_file"):
        assert part in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_secrets_of_an_endpoint_are_not_shown() -> None:
    shown = repr(Endpoint(base_url=AT, api_key="SECRET", proxy="http://me:SECRET@p:3128"))
    assert "SECRET" not in shown


def test_the_first_table_and_the_longest_pattern_decide_the_price() -> None:
    cheap, dear, other = (Price(input=i, output=i) for i in (1, 2, 3))
    mine = {"gpt-4o*": dear, "gpt-4o-mini*": cheap}
    assert price_of("gpt-4o-mini-2024", mine) is cheap
    assert price_of("gpt-4o-2024", mine, {"gpt-4o-2024": other}) is dear
    assert price_of("claude", mine, {"claude": other}) is other
    assert price_of("claude", mine) is None and price_of("gpt-4o") is None


def test_cached_tokens_have_a_price_of_their_own() -> None:
    assert Price(input=2, output=8, cached=0.5).of(1_000_000, 500_000, 400_000) == pytest.approx(1.2 + 0.2 + 4)
    assert Price(input=2, output=8).of(1_000_000, 0, 400_000) == pytest.approx(2)
