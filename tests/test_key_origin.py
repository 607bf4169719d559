"""A key goes to its endpoint's origin and nowhere else, whatever a message names; and which hosts may be called."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

import httpx
import pytest
from aiohttp import web

from callsheet.errors import CallsheetError, McpError, SettingsError, UsageError
from callsheet.mcp import HttpStatelessClient
from callsheet.models import (
    AnthropicChatModel,
    DashScopeChatModel,
    DeepSeekChatModel,
    GeminiChatModel,
    OllamaChatModel,
    OpenAIChatModel,
)
from callsheet.resources import client, transport
from callsheet.resources.outbound import Outbound
from callsheet.settings import Endpoint, Settings, use_settings

KEY, HEADER, PASSWORD = "zebra-key-1111", "zebra-header-2222", "zebra-password-3333"
ASK = [{"role": "user", "content": "Hello"}]


@asynccontextmanager
async def listening(redirect: str = "") -> AsyncIterator[tuple[str, list[str]]]:
    """A server that refuses all, or sends them elsewhere; its address, and what it got."""
    got: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        got.append(f"{request.raw_path} {dict(request.headers)} {await request.text()}")
        headers = {"Location": f"{redirect}{request.path}"} if redirect else {}
        return web.json_response({"error": {"message": "no"}}, status=307 if redirect else 400, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", got
    finally:
        await runner.cleanup()


Call = Callable[[str], Any]
#: Requests that try to leave for the address given, or to stay where it is "".
CALLS: dict[str, Call] = {
    "openai": lambda to: OpenAIChatModel("m", stream=False, client_kwargs={"base_url": to} if to else None)(ASK),
    "openai's host header": lambda to: OpenAIChatModel("m", stream=False, generate_kwargs={
        "extra_headers": {"hOst": to[7:]}} if to else None)(ASK),
    "azure": lambda to: OpenAIChatModel("m", stream=False, client_type="azure", client_kwargs={
        "azure_endpoint": to, "api_version": "1"} if to else {"api_version": "1"})(ASK),
    "dashscope": lambda to: DashScopeChatModel("m", stream=False, base_http_api_url=to or None)(ASK),
    "deepseek": lambda to: DeepSeekChatModel("m", stream=False, client_kwargs={"base_url": to} if to else None)(ASK),
    "ollama": lambda to: OllamaChatModel("m", host=to or None)(ASK),
    "anthropic": lambda to: AnthropicChatModel("m", stream=False, client_kwargs={"base_url": to} if to else None)(ASK),
    "gemini": lambda to: GeminiChatModel("m", stream=False, client_kwargs={"base_url": to} if to else None)(ASK),
    "gemini's http_options": lambda to: GeminiChatModel("m", stream=False, generate_kwargs={
        "http_options": {"base_url": to, "retry_options": {"attempts": 1}}} if to else None)(ASK),
    "mcp": lambda to: HttpStatelessClient("s", "streamable_http", **({"url": to} if to else {"endpoint": "mcp"})
                                          ).list_tools(),
    "mcp's other port": lambda to: HttpStatelessClient("s", "streamable_http", to or None, endpoint="mcp").list_tools(),
    "client": lambda to: client("openai").get(f"{to}/x" if to else "x"),
}


def at(url: str, **more: Any) -> dict[str, Any]:
    one = {"base_url": url, "api_key": KEY, "headers": {"X-Team": HEADER}, "retry": {"attempts": 1},
           "breaker": {"enabled": False}, **more}
    names = ("openai", "azure", "dashscope", "deepseek", "ollama", "anthropic", "gemini", "mcp")
    return {"endpoints": dict.fromkeys(names, one), "inline": True}


def test_a_key_goes_to_its_endpoints_origin_alone() -> None:
    async def main() -> None:
        async with listening() as (elsewhere, stolen), listening(elsewhere) as (redirecting, _), \
                listening() as (home, got):
            at_home, sent_on = (Settings.load(**at(base)) for base in (home, redirecting))
            for name, call in CALLS.items():
                got.clear()
                for settings, to in ((at_home, ""), (at_home, elsewhere), (sent_on, "")):
                    with use_settings(settings), suppress(CallsheetError, ExceptionGroup):
                        await call(to)
                assert KEY in got[0] and HEADER in got[0], name  # the endpoint gets both
                for secret in (KEY, HEADER, "set-by-callsheet"):
                    assert secret not in "".join(stolen), name
                assert "set-by-callsheet" not in "".join(got), name

    asyncio.run(main())


def test_redirects_take_neither_key_nor_headers_along() -> None:
    """httpx copies the headers of a request into the one that it is redirected to, all but Authorization."""
    async def main() -> None:
        async with listening() as (elsewhere, stolen), listening(elsewhere) as (home, got):
            base = home.replace("http://", f"http://me:{PASSWORD}@")
            for endpoint in (Endpoint(base_url=home, api_key=KEY, headers={"X-Team": HEADER}),
                             Endpoint(base_url=base, headers={"x-api-key": KEY})):
                await client(endpoint).get("x", follow_redirects=True)
            with use_settings(Settings.load(endpoints={"own": {"base_url": home, "api_key": KEY}})):
                async with httpx.AsyncClient(transport=transport("own"), follow_redirects=True) as own:
                    await own.get(f"{home}/x")  # a client of one's own signs for itself
        assert KEY in got[0] and "Basic " in got[1] and KEY in got[1] and KEY not in got[2]
        assert len(stolen) == 3
        assert not any(mark in "".join(stolen) for mark in (KEY, HEADER, PASSWORD, "Basic "))

    asyncio.run(main())


@pytest.mark.parametrize(("allowed", "url", "right"), [
    ("*", "https://anywhere.example/v1", True), ("*", "http://127.0.0.1:8000", True), ("*", "http://10.1.2.3", True),
    ("*", "http://endpoint.example:9/x", True), ("", "http://endpoint.example:9/x", True),
    ("", "http://endpoint.example/x", False), ("", "https://anywhere.example", False),
    ("*.example", "https://any.example./v1", True), ("*.example", "https://EXAMPLE.org", False),
    ("10.0.0.0/8", "http://10.1.2.3", True), ("10.0.0.0/8", "http://11.1.2.3", False),
    ("10.0.0.0/8", "http://[::ffff:10.1.2.3]/", True), ("host.example", "http://host.example:1", True),
])
def test_hosts_are_bounded_by_a_setting(allowed: str, url: str, right: bool) -> None:
    settings = Settings.load(outbound_hosts=allowed, endpoints={"e": {"base_url": "http://endpoint.example:9/v1"}})
    with nullcontext() if right else pytest.raises(UsageError, match=r"may not be called.*CALLSHEET_OUTBOUND_HOSTS"):
        Outbound(settings).check(httpx.URL(url))


@pytest.mark.parametrize("url", ["http://169.254.77.254/latest", "http://0xa9.0xfe.77.254/", "http://[fe80::1]/x",
                                 "http://[::ffff:169.254.77.254]/"])
def test_what_a_cloud_has_on_its_link_is_not_called(url: str) -> None:
    """Names and odd spellings too: what counts is the address that is connected to."""
    async def main() -> None:
        with use_settings(Settings.load(inline=True)):
            await client(Endpoint(base_url=url, retry={"attempts": 1})).get("x")

    with pytest.raises(UsageError, match="may not be called"):
        asyncio.run(main())


@pytest.mark.parametrize(("allowed", "base_url", "right"), [
    ("*,169.254.0.0/16", "http://x", True), ("", "http://169.254.77.254/v1", True), ("*", "http://169.254.1.1", False)])
def test_it_is_where_the_settings_say_its_number(allowed: str, base_url: str, right: bool) -> None:
    outbound = Outbound(Settings.load(outbound_hosts=allowed, endpoints={"link": {"base_url": base_url}}))
    with nullcontext() if right else pytest.raises(UsageError, match="may not be called"):
        outbound.connecting((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("169.254.77.254", 80))).close()


def test_a_model_that_a_message_names_is_told_so() -> None:
    with use_settings(Settings.load(outbound_hosts="*.example")):
        model = OpenAIChatModel("m", stream=False, client_kwargs={"base_url": "http://127.0.0.1:9"})
        with pytest.raises(UsageError, match=r"'127.0.0.1' may not be called"):
            asyncio.run(model(ASK))  # type: ignore[arg-type]
        with pytest.raises((UsageError, McpError), match=r"'127.0.0.1' may not be called"):
            asyncio.run(HttpStatelessClient("s", "streamable_http", "http://127.0.0.1:9").list_tools())
    with pytest.raises(SettingsError, match="outbound_host is"):
        Settings.load(outbound_host="x")
