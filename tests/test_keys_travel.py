"""What is a key does not travel, wherever it was put; what only looks like talk of keys does."""

import dataclasses
import functools
import json
from typing import Any

import pytest
from pydantic import BaseModel

import callsheet
from callsheet import AgentBase, Msg, Toolkit
from callsheet.errors import CannotTravel
from callsheet.mcp import HttpStatefulClient, StdIOStatefulClient
from callsheet.messages import StateModule
from callsheet.messages.wire import Writer
from callsheet.models import AnthropicChatModel, DashScopeChatModel, GeminiChatModel, OllamaChatModel, OpenAIChatModel
from callsheet.settings import Settings, use_settings
from tests.agents.tools import Caller

KEY = "unmistakable-0123456789abcdef"
FORMED = f"sk-{KEY}"
OWN = "own-0123456789abcdef"  # of a model: kept secret like the settings' from then on
M: Any = OpenAIChatModel


class Searcher(AgentBase):
    def __init__(self, name: str, api_key: str | None = None, model: Any = None, **options: Any) -> None:
        self.name = name

    async def reply(self, msg: Msg) -> Msg:
        return msg


class Form(BaseModel):
    password: str


@dataclasses.dataclass
class Login:
    user: str
    access_token: str


def search(query: str, api_key: str = "") -> str:
    return query


def kit(**preset: Any) -> Toolkit:
    made = Toolkit()
    made.register_tool_function(search, preset_kwargs=preset)
    return made


@pytest.mark.parametrize(("value", "names"), [
    (lambda: M("m", api_key=OWN), "'api_key'"), (lambda: M("m", OWN), "OpenAIChatModel"),
    *((lambda headers=headers: M("m", client_kwargs={"default_headers": headers}), next(iter(headers))) for headers in (
        {"Authorization": "short"}, {"X-Auth-Token": KEY}, {"cookie": "session=1"}, {"x-api-key": "k3y"},
        {"Ocp-Apim-Subscription-Key": KEY}, {"X-Session": KEY})),
    (lambda: M("m", generate_kwargs={"extra_headers": {"Authorization": f"Bearer {KEY}"}}), "extra_headers"),
    (lambda: M("m", generate_kwargs={"extra_body": {"routes": [{"token": KEY}]}}), "token"),
    (lambda: M("m", client_kwargs={"base_url": f"https://me:{KEY}@host/v1"}), "base_url"),
    (lambda: M("m", client_kwargs={"base_url": f"https://{KEY}@host/v1"}), "base_url"),
    (lambda: M("m", client_kwargs={"base_url": f"https://host/v1?key={KEY}"}), "'key'"),
    (lambda: M("m", client_kwargs={"base_url": "https://host/v1?a=b&api_key=x1"}), "'api_key'"),
    (lambda: GeminiChatModel("m", generate_kwargs={"http_options": {"headers": {"x-goog-api-key": KEY}}}), "goog"),
    (lambda: AnthropicChatModel("m", client_kwargs={"default_headers": {"X-Api-Key": KEY}}), "X-Api-Key"),
    (lambda: DashScopeChatModel("m", base_http_api_url=f"https://u:{KEY}@host/v1"), "base_http_api_url"),
    (lambda: OllamaChatModel("m", host=f"https://u:{KEY}@host"), "host"),
    (lambda: Searcher("s", api_key="x1"), "'api_key'"), (lambda: Searcher("s", "x1"), "argument 2 of Searcher() is"),
    (lambda: Searcher("s", openaiApiKey="x1"), "openaiApiKey"), (lambda: Searcher("s", db={"dbPassword": "x1"}), "dbP"),
    (lambda: Searcher("s", api_keys=["a", "b"]), "api_keys"), (lambda: Searcher("s", api_keys={"x": "a"}), "api_keys"),
    (lambda: Searcher("s", x=({"y": [{"SECRET_KEY": "x1"}]},)), "SECRET_KEY"),
    (lambda: Searcher("s", token=KEY), "'token'"), (lambda: Searcher("s", raw=FORMED.encode()), "raw"),
    (lambda: Searcher("s", auth=("user", KEY)), "auth"), (lambda: Searcher("s", other=FORMED), "by its form"),
    (lambda: Searcher("s", other=["x", f"Bearer {KEY}"]), "by its form"), (lambda: Searcher(FORMED), "argument 1"),
    (lambda: Searcher("s", headers=[("Authorization", "x1"), ("a", "b")]), "headers"),
    (lambda: Searcher("s", args=["--api-key", "x1"]), "args"), (lambda: Searcher("s", args=["--api-key=x1"]), "args"),
    (lambda: Searcher("s", dsn=f"Server=h;AccountKey={KEY}==;x=y"), "AccountKey"),
    (lambda: Searcher("s", url=f"postgres://me:{KEY}@db/x"), "url"),
    (lambda: Searcher("s", model=M("m", OWN)), "OpenAIChatModel"), (lambda: Form(password="x1"), "password"),
    (lambda: Login("me", "x1"), "access_token"), (lambda: functools.partial(search, api_key="x1"), "api_key"),
    (lambda: functools.partial(search, "q", "x1"), "api_key"), (lambda: {1: 2, "api_key": "x1"}, "api_key"),
    (lambda: Searcher("s", toolkit=kit(api_key="x1")), "preset_kwargs"),
    (lambda: HttpStatefulClient("s", "streamable_http", f"https://h/mcp?k=1&token={KEY}"), "token"),
    (lambda: StdIOStatefulClient("s", "program", ["--token", KEY]), "argument 3"),
])
def test_a_key_is_refused_with_the_argument_and_the_remedy(value: Any, names: str) -> None:
    settings = Settings.load(mcp={"servers": {"s": {"command": "program", "args": ["--token", KEY]}}})
    with use_settings(settings), pytest.raises(CannotTravel, match=r"on an endpoint|Declare (an|it) ") as refused:
        Writer().write(value(), "it")
    assert names in str(refused.value) and "travel" in str(refused.value)
    assert not any(mark in str(refused.value) for mark in (KEY, OWN, "x1", "k3y"))


def test_it_is_refused_inline_too_and_before_anything_is_sent() -> None:
    with callsheet.inline(), pytest.raises(CannotTravel, match="preset_kwargs"):
        Caller("c", kit(api_key=KEY)).submit("search", {})


@pytest.mark.parametrize("value", [
    Msg("user", f"My api_key={FORMED} and password: hunter2, or https://me:pw1234567@host?key=1", "user"),
    Msg("a", [{"type": "tool_use", "id": "1", "name": "login", "input": {"password": "x", "token": KEY}}], "assistant"),
    Msg("a", "x", "assistant", metadata={"api_key": "none", "token_count": 3, "password": "a guess"}),
    M("m", generate_kwargs={"max_tokens": 100, "stop_token": "</s>", "logit_bias": {"token": 1}}),
    M("m", client_kwargs={"default_headers": {"X-Team": "review", "anthropic-beta": "prompt-caching-2024-07-31",
                                              "Idempotency-Key": KEY, "User-Agent": "me/1.0"}}),
    M("m", client_kwargs={"base_url": "https://user@host/v1?api-version=2024-10-21"}),
    Searcher("s", secret="werewolf", token="the", key="C-sharp-minor-7", keys=["password", "token"], author="me"),
    Searcher("s", api_key_env="OPENAI_API_KEY", api_key="$OPENAI_API_KEY", tokens=["the", "cat"], max_tokens=5),
    Searcher("s", primary_key="orders_2024_id", cache_key="user:123:profile", page_token="CAUQAA2024x"),
    Searcher("s", pwd="/home/me/2024"),
    {"env": {"TOKENIZERS_PARALLELISM": "false", "KEYBOARD": "de", "SESSION_TYPE": "x11", "HF_TOKEN": "$HF_TOKEN"}},
    {"headers": {"Keywords": "a, b", "Authentication-Results": "spf=pass", "Authenticated": "yes", "X-Author": "me"}},
    Searcher("s", reset_password="true", forgot_password="no"),
    Searcher("s", api_key=None, password="", schema={"properties": {"api_key": {"type": "string", "minLength": 8}}}),
    Searcher("s", text="Set api_key=... in the password=field; see https://me:pw@host for token=abc123def456"),
    Searcher("s", digest="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", basic="Basic chemistry"),
    Searcher("s", url="https://bucket.s3.amazonaws.com/x.pdf?X-Amz-Signature=9f86d081884c&page_token=abcdef123456"),
    Searcher("s", model="sk-learn-tutorial", table="pk_users", password="at least eight characters long"),
    kit(query="secrets of the deep"), HttpStatefulClient("s", "streamable_http", "https://h/mcp", {"X-Team": "t"}),
    {"formula": "a=b;c=d", "line": "x=1", "cookie": "chocolate chip", "usage": {"tokens": 3}},
])
def test_what_is_no_key_travels(value: Any) -> None:
    json.dumps(Writer().write(value, "it"))


class Kept(StateModule):
    def __init__(self, **values: str) -> None:
        vars(self).update(values)


def test_what_the_settings_keep_secret_is_refused_wherever_it_is() -> None:
    header, password = "zebra-header-2222", "zebra-password-3333"
    settings = Settings.load(redis_url=f"redis://:{password}@h/0", flower_auth="me:password",
                             endpoints={"e": {"base_url": "http://h", "headers": {"X": header, "Accept": "a" * 30}}})
    with use_settings(settings):
        for value in (f"it is {header}", ["x", {"y": f"{password}!"}], {header: 1}, password.encode(),
                      Msg("u", f"so {header}", "user"), Msg("u", "x", "user", metadata={"x": [header]}),
                      Msg("u", [{"type": "text", "text": f"so {password}"}], "user"), Searcher(header)):
            with pytest.raises(CannotTravel, match=r"keep secret|is a secret") as refused:
                Writer().write(value, "it")
            assert "zebra" not in str(refused.value)
        Writer().write(Msg("u", f"My password, {'a' * 30}", "user"), "it")  # too common a word to be refused
        with pytest.raises(CannotTravel, match="keep secret"):
            Kept(notes=f"use {header}").register_state("notes")
    with pytest.raises(CannotTravel, match="by its name"):
        Kept(api_key="x1").register_state("api_key")
    Kept(api_key="").register_state("api_key")
