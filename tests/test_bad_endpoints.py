"""Endpoints that cannot be used: what a model says of each, and that it tells no secret."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from callsheet.errors import CallsheetError, CircuitOpen, SettingsError
from callsheet.models import EndpointError, OpenAIChatModel
from callsheet.settings import Settings, use_settings
from tests.model_server import ASK, whole
from tests.servers import Part, Playing, answer, break_off, hang_up, silence
from tests.services import free_port

FINE = answer(200, whole({"content": "hello"}))


def ask(*, retry: dict[str, Any] | None = None, **endpoint: Any) -> Any:
    """What a model behind such an endpoint answers."""
    given = {"retry": retry or {"attempts": 1}, "timeout": 2, **endpoint}

    async def main() -> Any:
        with use_settings(Settings.load(endpoints={"mine": given})):
            return await OpenAIChatModel("m", stream=False, endpoint="mine")(ASK)

    return asyncio.run(main())


def refusal(**endpoint: Any) -> CallsheetError:
    with pytest.raises(CallsheetError) as caught:
        ask(**endpoint)
    assert "SECRET" not in str(caught.value) + repr(caught.value.args)
    return caught.value


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def served(*parts: Part, tls: ssl.SSLContext | None = None, **endpoint: Any) -> tuple[Any, Playing]:
    """What a model behind a server that plays these parts answers or raises, and the server."""

    async def main() -> tuple[Any, Playing]:
        async with Playing(*parts, tls=tls) as server:
            given = {"retry": {"attempts": 1}, "timeout": 2, "base_url": server.url, **endpoint}
            with use_settings(Settings.load(endpoints={"mine": given})):
                try:
                    return await OpenAIChatModel("m", stream=False, endpoint="mine")(ASK), server
                except CallsheetError as exc:
                    assert "SECRET" not in str(exc) + repr(exc.args)
                    return exc, server

    return asyncio.run(main())


def test_a_certificate_of_nobodys_is_refused_at_once(tls: ssl.SSLContext) -> None:
    error, server = served(FINE, tls=tls, retry={"attempts": 5, "backoff": 0.01})
    assert isinstance(error, EndpointError) and not error.retryable
    for part in ("'mine'", "certificate", "CALLSHEET_ENDPOINTS__MINE__CA_FILE"):
        assert part in str(error)
    assert server.requests == []


def test_a_certificate_of_an_issuer_that_is_named_is_trusted(tls: ssl.SSLContext, authority: trustme.CA,
                                                             tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    answered, _ = served(FINE, tls=tls, ca_file=str(path))
    assert answered.content == [{"type": "text", "text": "hello"}]


def test_a_certificate_of_another_host_is_refused(authority: trustme.CA, tmp_path: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("elsewhere.example").configure_cert(context)
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    error, _ = served(FINE, tls=context, ca_file=str(path))
    assert "certificate" in str(error) and not error.retryable


@pytest.mark.parametrize("content", [None, "", "junk"])
def test_certificates_that_cannot_be_read_are_named(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    error = refusal(base_url="https://127.0.0.1:9/v1", ca_file=str(path))
    assert isinstance(error, SettingsError) and str(path) in str(error) and "ca_file" in str(error)


def test_tls_that_is_none(tls: ssl.SSLContext) -> None:
    async def plain() -> None:
        async with Playing(FINE) as server:
            url = server.url.replace("http:", "https:")
            error = await asyncio.to_thread(refusal, base_url=url)
            assert isinstance(error, EndpointError) and not error.retryable

    asyncio.run(plain())


def test_a_proxy_is_an_endpoints_own() -> None:
    async def main() -> None:
        async with Playing(FINE) as proxy:
            address = f"http://me:SECRET@127.0.0.1:{proxy.port}"
            answered = await asyncio.to_thread(ask, base_url="http://models.invalid/v1", proxy=address)
            assert answered.content and proxy.heads[0]["Host"] == "models.invalid"
            assert proxy.heads[0]["Proxy-Authorization"] == "Basic bWU6U0VDUkVU"

    asyncio.run(main())


def test_a_proxy_that_is_not_there_is_named_without_its_password() -> None:
    error = refusal(base_url="http://models.invalid/v1", proxy=f"http://me:SECRET@127.0.0.1:{free_port()}")
    assert isinstance(error, EndpointError) and error.retryable
    assert "proxy" in str(error) and "CALLSHEET_ENDPOINTS__MINE__PROXY" in str(error)


@pytest.mark.parametrize("base_url", ["http://models.invalid/v1", "https://models.invalid/v1"])
def test_a_proxy_that_refuses(base_url: str) -> None:
    async def main() -> None:
        async with Playing(answer(407, "who are you?", "text/plain")) as proxy:
            at = f"http://me:SECRET@127.0.0.1:{proxy.port}"
            error = await asyncio.to_thread(refusal, base_url=base_url, proxy=at,
                                            retry={"attempts": 3, "backoff": 0.01})
            assert isinstance(error, EndpointError) and not error.retryable
            assert len(proxy.requests) <= 1

    asyncio.run(main())


def test_a_missing_key_names_its_variable_and_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MINE_KEY", raising=False)
    error = refusal(base_url="https://api.openai.com/v1", api_key_env="MINE_KEY")
    assert "MINE_KEY" in str(error)
    error = refusal(base_url="http://127.0.0.1:9/v1", api_key_file=str(tmp_path / "none"))
    assert isinstance(error, SettingsError) and str(tmp_path / "none") in str(error)


@pytest.mark.parametrize(("part", "retryable", "said"), [
    (answer(200, "<!doctype html><title>Sign in</title>", "text/html"), False, "HTML page"),
    (answer(502, "<html>Bad gateway</html>", "text/html"), True, "HTML page"),
    (answer(200, '{"choices": [{"mess'), True, "half of it"),
    (answer(200, '{"error": {"message": "SORRY", "code": "server_error"}}'), True, "SORRY"),
    (answer(200, b"\xff\xfe\x00"), False, "not JSON"),
    (answer(204, b""), True, "half of it"),
    (silence, True, "did not answer"),
    (hang_up, True, "broke off"),
    (break_off, True, "broke off its answer"),
])
def test_bad_servers(part: Part, retryable: bool, said: str) -> None:
    error, server = served(part, timeout=0.4)
    assert isinstance(error, EndpointError), error
    assert (error.endpoint, error.retryable, len(server.requests)) == ("mine", retryable, 1)
    assert said in str(error) and "'mine'" in str(error)


def test_retries_are_made_below_the_model_and_its_error_is_of_the_last() -> None:
    error, server = served(answer(500, "first"), answer(503, "last"), retry={"attempts": 3, "backoff": 0.01})
    assert error.status == 503 and "last" in str(error) and len(server.requests) == 3
    answered, server = served(answer(500, "first"), FINE, retry={"attempts": 3, "backoff": 0.01})
    assert answered.content and len(server.requests) == 2


def test_an_open_breaker_is_a_models_error() -> None:
    async def main() -> None:
        given = {"base_url": f"http://127.0.0.1:{free_port()}/v1", "retry": {"attempts": 1},
                 "breaker": {"minimum": 1, "cooldown": 60}}
        with use_settings(Settings.load(endpoints={"mine": given})):
            model = OpenAIChatModel("m", endpoint="mine")
            with pytest.raises(EndpointError):
                await model(ASK)
            await asyncio.sleep(0.01)
            with pytest.raises(CircuitOpen, match="'mine' is left alone"):
                await model(ASK)

    asyncio.run(main())
