"""Texts without the settings' secrets: log records, errors, causes, whatever form a secret has in them."""

import asyncio
import base64
import copy
import io
import json
import logging
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from callsheet.errors import AgentFailed, CallsheetError, McpError, ObserveFailed, RedisUnavailable
from callsheet.mcp import HttpStatelessClient, StdIOStatefulClient
from callsheet.models import AnthropicChatModel, GeminiChatModel, OpenAIChatModel
from callsheet.settings import Settings, use_settings
from callsheet.settings.secrets import Secrets, clean_cause, in_use, scrubbed, secrets_of, told
from callsheet.tasks.app import make_app
from callsheet.tasks.results import ResultBackend, record_of
from callsheet.tasks.shown import hidden
from tests.test_planted_keys import echo

KEY, HEADER, PASSWORD = "zebra-key-1111-abcdef", "zebra-header-2222", 'p"ä&/zebra 3333'
ASK: Any = [{"role": "user", "content": "Hello"}]


def settings(at: str = "h", **more: Any) -> Settings:
    once = {"retry": {"attempts": 1}, "breaker": {"enabled": False}, "api_key": KEY, "headers": {"X-Team": HEADER}}
    url = f"redis://:{quote(PASSWORD, safe='')}@h/0"
    return Settings.load(redis_url=url, flower_auth="me:password", inline=True, **more,
                         endpoints={name: {"base_url": f"http://{at}/{name}", **once}
                                    for name in ("openai", "anthropic", "gemini", "mcp")})


@pytest.mark.parametrize("form", [
    KEY, HEADER, PASSWORD, quote(PASSWORD, safe=""), json.dumps(PASSWORD), repr(PASSWORD), KEY[:15], KEY[8:],
    base64.b64encode(HEADER.encode()).decode(), base64.b64encode(f":{KEY}".encode()).decode(), f"{KEY}{KEY}"])
def test_a_secret_is_known_in_each_form(form: str) -> None:
    with use_settings(settings()):
        said = scrubbed(f"before {form}, after")
    assert said.startswith("before ") and said.endswith(", after") and "***" in said
    assert not any(part in said for part in ("zebra", "1111", "2222", "3333", form))


def test_what_is_no_secret_stays() -> None:
    with use_settings(settings()):
        text = "The key is a zebra; see http://host/x?a=b@c and max_tokens=3, Basic chemistry"
        assert scrubbed(text) == told(text) == text
        assert told("at postgres://me:pw@db with Bearer abcdefgh12") == "at postgres://***@db with Bearer ***"
        assert scrubbed("my password is it") == "my *** is it"  # of Flower; texts for people can do without
        assert in_use().cleaned(f'["my password", "{KEY}", "x"]') == '["my password", "***", "x"]'  # data cannot
    open_headers = {"User-Agent": "my-agent/1.0.0-beta", "anthropic-beta": "prompt-caching-2024-07-31"}
    found = secrets_of(Settings.load(endpoints={"e": {"base_url": "http://h", "headers": open_headers}}))
    assert not found.values & set(open_headers.values())
    assert Secrets(["short"]).without("short") == "short"


def test_log_records_are_without_them_whoever_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(logging.LogRecord):
        pass

    stream = io.StringIO()
    log = logging.getLogger("somebody.elses.entirely")
    log.propagate, log.handlers = False, [logging.StreamHandler(stream)]
    before = logging.getLogRecordFactory()
    try:
        with use_settings(settings()):
            for make in (logging.LogRecord, Own, logging.getLogRecordFactory()):
                logging.setLogRecordFactory(make)
                with use_settings(settings()):
                    try:
                        raise ValueError(f"no: {KEY}")
                    except ValueError:
                        log.exception("it is %s: %r", HEADER, {"x": PASSWORD}, extra={"mine": 1})
                    record = log.makeRecord("n", logging.INFO, "f", 1, f"a {KEY}", (), None)
                    again = pickle.loads(pickle.dumps(copy.copy(record).__dict__))
                    assert record.getMessage() == "a ***" and again["lineno"] == 1
                    assert isinstance(record, Own if make is Own else logging.LogRecord)
    finally:
        logging.setLogRecordFactory(before)
    said = stream.getvalue()
    assert said.count("ValueError: no: ***") == 3 and said.count("it is ***: {'x': '***'}") == 3 and "zebra" not in said


def test_errors_are_without_them_and_what_is_stored_of_errors() -> None:
    with use_settings(settings()) as mine:
        for exc in (McpError(f"no {KEY}", 3), RedisUnavailable(f"no {KEY}"), ObserveFailed("x", {"a": f"no {KEY}"}),
                    AgentFailed("x", "t", f"no {KEY}", f"Traceback {KEY}", "a", "j")):
            assert KEY not in f"{exc!r} {exc} {vars(exc)} {exc.to_dict()}" and "***" in repr(exc)
            assert type(exc)(*exc.args).args == exc.args == pickle.loads(pickle.dumps(exc)).args
        backend = ResultBackend(app=make_app(mine, "io", "x"), url="redis://h:1/0")
        raised = RuntimeError(f"no {KEY}", {"deep": [f"no {HEADER}"]}, 3)
        stored = [backend.prepare_exception(raised, "json"), record_of(raised, "a"),
                  backend._get_result_meta(None, "FAILURE", f"Traceback {KEY}", None)]
        assert "zebra" not in json.dumps(stored) and json.dumps(stored).count("***") == 5
        huge = f"{KEY} begins {'x ' * 10**7} ends {KEY}"  # looked through whole, it would hold up a worker for a minute
        for text in (backend.prepare_exception(RuntimeError(huge), "json")["exc_message"][0], hidden(huge)):
            assert text.startswith("*** begins x") and text.endswith("ends ***") and len(text) < 70_000


def test_a_cause_that_tells_one_is_left_out() -> None:
    with use_settings(settings()):
        plain, leaky = ValueError("x"), ValueError(KEY)
        assert clean_cause(plain) is plain
        plain.__context__ = leaky
        assert clean_cause(plain) is None and clean_cause(leaky) is None
        assert clean_cause(ExceptionGroup("x", [ValueError("y"), leaky])) is None


def test_what_servers_and_programs_repeat_is_told_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Their errors with the SDKs' in the traceback, inline too, and what a program prints."""
    (tmp_path / "server.py").write_text("import os\nprint('it is', os.environ['MY_TOKEN'], flush=True)\n")
    program = {"command": sys.executable, "args": [str(tmp_path / "server.py")], "env": {"MY_TOKEN": HEADER}}
    with echo() as (at, seen), use_settings(settings(at, mcp={"servers": {"p": program}, "connect_timeout": 5})):
        for call in (lambda: OpenAIChatModel("m", stream=False)(ASK),
                     lambda: AnthropicChatModel("m", stream=False)(ASK),
                     lambda: GeminiChatModel("m", stream=False)(ASK), lambda: StdIOStatefulClient("p").list_tools(),
                     lambda: HttpStatelessClient("m", "streamable_http", endpoint="mcp").list_tools()):
            with pytest.raises(CallsheetError) as raised:
                asyncio.run(call())
            said = "".join(traceback.format_exception(raised.value))
            assert KEY not in said and HEADER not in said, said
        assert KEY in "".join(seen) and HEADER in "".join(seen)
    assert "mcp_not_a_message" in caplog.text and HEADER not in caplog.text
