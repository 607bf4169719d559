"""Chat models against a real server that plays each part, good and bad."""

import asyncio
import gc
import json
import pickle
from datetime import date
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, HttpUrl, create_model

from callsheet.errors import CallsheetError, CannotTravel, ModelError, SettingsError, UsageError
from callsheet.formatters import OpenAIChatFormatter
from callsheet.messages import Msg
from callsheet.messages.wire import Writer
from callsheet.models import (
    AnthropicChatModel,
    ChatResponse,
    DashScopeChatModel,
    DeepSeekChatModel,
    EndpointError,
    GeminiChatModel,
    OllamaChatModel,
    OpenAIChatModel,
)
from callsheet.models.answer import reason
from callsheet.models.sse import LIMIT, Event, EventStream, EventTooLong, LineStream
from callsheet.models.structured import response_format
from callsheet.settings import Settings, use_settings
from tests.hanging import for_ever
from tests.model_server import ASK, USAGE, Handler, delta, says, serving, streams, whole
from tests.services import free_port


def ask(handler: Handler, model: OpenAIChatModel | None = None, endpoint: dict[str, Any] | None = None,
        **kwargs: Any) -> list[ChatResponse]:
    """All responses of one call."""

    async def main() -> list[ChatResponse]:
        async with serving(handler, **(endpoint or {})):
            result = await (model or OpenAIChatModel("m", stream=False))(ASK, **kwargs)
            return [result] if isinstance(result, ChatResponse) else [chunk async for chunk in result]

    return asyncio.run(main())


def streaming() -> OpenAIChatModel:
    return OpenAIChatModel("m")


def test_a_whole_answer() -> None:
    message = {"role": "assistant", "content": "Hello", "reasoning_content": "greet", "tool_calls": [
        {"id": 71, "type": "function", "function": {"name": "wave", "arguments": '{"times": 2}'}}]}
    [response] = ask(says(whole(message, "tool_calls")))
    assert response.content == [
        {"type": "thinking", "thinking": "greet"}, {"type": "text", "text": "Hello"},
        {"type": "tool_use", "id": "71", "name": "wave", "input": {"times": 2}}]
    assert (response.id, response.type, response.metadata) == ("c1", "chat", None)
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.type) == (7, 2, "chat")
    assert response.usage.time > 0
    json.dumps(response.to_dict())


def test_a_stream_grows_whatever_way_its_bytes_are_cut() -> None:
    events = [delta(role="assistant", content=""), delta(content="Grüß "), delta(content="dich\u2028!"),
              delta("stop"), {"id": "c1", "choices": [], "usage": USAGE}]
    for piece in (0, 1, 7):
        got = ask(streams(*events, piece=piece), streaming())
        assert [chunk.content for chunk in got] == [
            [{"type": "text", "text": "Grüß "}], [{"type": "text", "text": "Grüß dich\u2028!"}],
            [{"type": "text", "text": "Grüß dich\u2028!"}]]
        assert got[0].usage is None and got[-1].usage is not None and got[-1].usage.output_tokens == 2


def test_tool_calls_in_a_stream() -> None:
    def call(index: int | None = None, ident: str | None = None, name: str | None = None,
             arguments: str = "") -> dict[str, Any]:
        return delta(tool_calls=[{"index": index, "id": ident, "function": {"name": name, "arguments": arguments}}])

    got = ask(streams(call(0, "a", "find", '{"q": "bl'), call(0, arguments='ue"}'), call(1, "b", "stop"),
                      call(0, "c", "again", '{"x": 1, tr'), delta("tool_calls")), streaming())
    assert got[0].content == [{"type": "tool_use", "id": "a", "name": "find", "input": {"q": "bl"}}]
    assert got[-1].content == [
        {"type": "tool_use", "id": "a", "name": "find", "input": {"q": "blue"}},
        {"type": "tool_use", "id": "b", "name": "stop", "input": {}},
        # Same index, another id: another call. What cannot be read is handed on as it came.
        {"type": "tool_use", "id": "c", "name": "again", "input": {}, "raw_input": '{"x": 1, tr'}]


def test_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    seen: list[tuple[dict[str, Any], Any]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((await request.json(), request.headers))
        return web.Response(text=whole({"content": "ok"}), content_type="application/json")

    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    model = OpenAIChatModel("m", None, False, "low", "org", True, "openai",
                            {"timeout": 5, "default_headers": {"X-A": "1"}},
                            {"temperature": 1, "seed": 3, "extra_body": {"top_k": 4}})
    ask(handler, model, tools=tools, tool_choice="find", temperature=0.5, extra_headers={"X-B": "2"})
    body, headers = seen[0]
    assert body == {"model": "m", "messages": ASK, "stream": False, "temperature": 0.5, "seed": 3, "top_k": 4,
                    "reasoning_effort": "low", "tools": tools,
                    "tool_choice": {"type": "function", "function": {"name": "find"}}}
    assert (headers["X-A"], headers["X-B"], headers["OpenAI-Organization"]) == ("1", "2", "org")
    assert headers["Authorization"] == "Bearer sk-environment"
    ask(handler, OpenAIChatModel("m", "sk-mine", False))
    assert seen[1][1]["Authorization"] == "Bearer sk-mine"
    ask(handler, streaming(), tool_choice="auto")
    assert seen[2][0]["stream_options"] == {"include_usage": True} and "tool_choice" not in seen[2][0]


def test_content_that_is_nothing_but_text_is_sent_as_one() -> None:
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((await request.json())["messages"])
        return web.Response(text=whole({"content": "ok"}), content_type="application/json")

    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    kept = [[*parts, {"type": "image_url", "image_url": {"url": "x"}}],
            [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}], [], None, "plain"]
    messages = [{"role": "user", "content": content} for content in [parts, *kept]]

    async def main() -> None:
        async with serving(handler):
            await OpenAIChatModel("m", stream=False)(messages)

    asyncio.run(main())
    assert [message["content"] for message in seen[0]] == ["a\nb", *kept]
    assert messages[0]["content"] == parts  # the caller's own are left as they are


def test_another_base_url_does_not_get_the_endpoints_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers)
        return web.Response(text=whole({"content": "ok"}), content_type="application/json")

    async def main() -> None:
        async with serving(handler):
            from callsheet.settings import get_settings

            url = get_settings().endpoints["openai"].base_url
            other = {"openai": {"base_url": "https://elsewhere.invalid/v1", "headers": {"X-Key": "k"}}}
            with use_settings(Settings.load(endpoints=other)):
                await OpenAIChatModel("m", stream=False, client_kwargs={"base_url": url})(ASK)

    asyncio.run(main())
    assert "Authorization" not in seen[0] and "X-Key" not in seen[0]


class Verdict(BaseModel):
    """A judgement."""

    score: int = Field(ge=0, le=10)
    why: str = "none"


@pytest.mark.parametrize("stream", [False, True])
def test_structured_output(stream: bool) -> None:
    text = '{"score": 7, "why": "clear"}'
    handler = streams(delta(content=text[:9]), delta(content=text[9:]), delta("stop")) if stream else \
        says(whole({"content": f"```json\n{text}\n```"}))
    got = ask(handler, OpenAIChatModel("m", stream=stream), structured_model=Verdict)
    assert got[-1].metadata == {"score": 7, "why": "clear"}


def test_structured_output_that_does_not_fit() -> None:
    with pytest.raises(EndpointError, match=r"does not fit Verdict: score: .*less than or equal to 10"):
        ask(says(whole({"content": '{"score": 11}'})), structured_model=Verdict)
    with pytest.raises(EndpointError, match=r"cut at max_tokens.*Raise max_tokens"):
        ask(says(whole({"content": '{"score": 1'}, "length")), structured_model=Verdict)
    with pytest.raises(EndpointError, match="refused: no"):
        ask(says(whole({"content": None, "refusal": "no"})), structured_model=Verdict)


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_without_response_format_is_asked_by_tool(stream: bool) -> None:
    bodies: list[dict[str, Any]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        if "response_format" in bodies[-1]:
            return web.json_response({"error": {"message": "This response_format type is unavailable"}}, status=400)
        calls = [{"index": 0, "id": "t", "function": {"name": "Verdict", "arguments": '{"score": 3}'}}]
        if stream:
            return await streams(delta(tool_calls=calls), delta("stop"))(request)
        return web.Response(text=whole({"tool_calls": calls}), content_type="application/json")

    got = ask(handler, OpenAIChatModel("m", stream=stream), structured_model=Verdict)
    assert got[-1].metadata == {"score": 3, "why": "none"}
    assert [("response_format" in body, "tools" in body) for body in bodies] == [(True, False), (False, True)]


def test_schemas_are_strict_where_they_can_be() -> None:
    class Inner(BaseModel):
        default: str = "x"

    class Outer(BaseModel):
        inner: Inner = Inner()
        many: list[Inner] = []

    class Free(BaseModel):
        counts: dict[str, int]

    made = response_format(Outer)["json_schema"]
    assert made["strict"] is True
    assert made["schema"]["required"] == ["inner", "many"] and made["schema"]["additionalProperties"] is False
    assert made["schema"]["properties"]["inner"] == {"$ref": "#/$defs/Inner"}
    assert made["schema"]["$defs"]["Inner"]["required"] == ["default"]
    assert response_format(Free)["json_schema"]["strict"] is False
    made = response_format(create_model("Page", url=(HttpUrl, ...), on=(date, ...)))["json_schema"]
    assert made["strict"] and [one.get("format") for one in made["schema"]["properties"].values()] == [None, "date"]


ERROR = json.dumps({"error": {"message": "Incorrect key sk-secret given", "type": "x", "code": "invalid_api_key"}})


@pytest.mark.parametrize(("handler", "status", "retryable", "parts"), [
    (says(ERROR, 401), 401, False, ["Incorrect key *** given. Set a valid key", "OPENAI_API_KEY"]),
    (says("no such model", 404), 404, False, ["no such model", "Check the model's name"]),
    (says("", 503, Retry_After="2"), 503, True, ["(no text)", "Try again later"]),
    (says('{"error":{"message":"slow down"}}', 429), 429, True, ["slow down", "less often"]),
    (says('{"error":{"message":"x","code":"insufficient_quota"}}', 429), 429, False, ["Pay"]),
    (says("<html><body>Sign in</body></html>", 502, "text/html"), 502, True, ["HTML page", "Sign in"]),
    (says("x" * 9000, 400), 400, False, ["xxx…", "Correct the call"]),
    (says("", 307, Location="https://u:p@new.example/v1?t=1"), 307, False, ["redirects to https://new.example/v1"]),
    (says("<!doctype html><title>Hi</title>", 200, "text/html"), 200, False, ["HTML page", "base_url"]),
    (says('{"id": "c1", "choi'), 200, True, ["half of it", '{"id": "c1", "choi']),
    (says('{"error": {"message": "overloaded", "code": 503}}'), 503, True, ["overloaded"]),
    (says('{"error": "nope"}'), 200, False, ["nope"]),
    (says("[1, 2]"), 200, False, ["no chat completion", "[1, 2]"]),
    (says('{"choices": [7]}'), 200, False, ["no chat completion"]),
    (says('{"choices": []}'), 200, False, ["no choice"]),
])
@pytest.mark.parametrize("stream", [False, True])
def test_bad_answers(handler: Handler, status: int, retryable: bool, parts: list[str], stream: bool) -> None:
    with pytest.raises(ModelError) as caught:
        ask(handler, OpenAIChatModel("m", "sk-secret", stream), endpoint={"api_key_env": "OPENAI_API_KEY"})
    exc = caught.value
    assert isinstance(exc, EndpointError)
    assert (exc.status, exc.retryable, exc.endpoint) == (status, retryable, "openai")
    for part in ["'openai'", *parts]:
        assert part in str(exc)
    assert "sk-secret" not in str(exc) and "u:p" not in str(exc) and len(str(exc)) < 1000
    assert exc.retry_after == (2.0 if status == 503 and "no text" in str(exc) else None)
    for again in (pickle.loads(pickle.dumps(exc)), CallsheetError.from_dict(json.loads(json.dumps(exc.to_dict())))):
        assert (type(again), str(again), again.args) == (EndpointError, str(exc), exc.args)


@pytest.mark.parametrize(("handler", "part"), [
    (streams(delta(content="Once upon"), done=False), "broke off before the answer was complete"),
    (streams(delta(content="Once upon"), done=False, cut=True), "broke off its answer"),
    (streams(delta(content="Once"), '{"choices": [{"del', done=False), "half of it"),
    (streams(delta(content="Once"), {"error": {"message": "out of memory", "code": 500}}, done=False), "out of mem"),
    (streams(delta(content="Once")), "broke off before the answer was complete"),
    (streams(delta(content="Once"), {"object": "error", "message": "out of memory", "type": "InternalServerError"}),
     "out of memory"),
    (streams(delta(content="Once"), {"message": "upstream timed out", "code": 504}), "upstream timed out"),
    (streams(delta(content="Once"), {"detail": "gone", "code": "503"}), "gone"),
    (streams(delta(content="Once"), delta("error")), r"failed amid its answer \(error\)"),
    (streams(delta(content="Once"), {"choices": [{"delta": {}, "finish_reason": "error",
                                                 "error": {"message": "provider is down", "code": 502}}]}), "is down"),
    (streams(delta(content="Once"), delta("insufficient_system_resource")), "insufficient_system_resource"),
])
def test_streams_that_break_off(handler: Handler, part: str) -> None:
    heard: list[Any] = []

    async def main() -> None:
        async with serving(handler):
            async for chunk in await streaming()(ASK):  # type: ignore[union-attr]
                heard.append(chunk)

    with pytest.raises(EndpointError, match=part) as caught:
        asyncio.run(main())
    assert heard and caught.value.retryable


def test_a_stream_may_end_without_done() -> None:
    assert ask(streams(delta("stop", content="a"), done=False), streaming())[-1].content


@pytest.mark.parametrize(("word", "known"), [
    ("end_turn", "stop"), ("STOP", "stop"), ("MAX_TOKENS", "length"), ("model_length", "length"),
    ("function_call", "tool_calls"), ("SAFETY", "content_filter"), ("MALFORMED_FUNCTION_CALL", "error"),
    ("FINISH_REASON_UNSPECIFIED", None), ("pause_turn", "pause_turn"), (None, None)])
def test_why_an_answer_ended_in_the_words_of_any_provider(word: str | None, known: str | None) -> None:
    assert reason(word) == known


@pytest.mark.parametrize("error", [{"object": "error", "message": "CUDA"}, {"detail": [{"msg": "CUDA"}]},
                                   {"type": "error", "error": {"message": "CUDA"}}, {"msg": "CUDA", "code": 1113}])
def test_an_answer_that_is_an_error_says_what_the_server_said(error: dict[str, Any]) -> None:
    for handler in (says(json.dumps(error)), streams(error)):
        with pytest.raises(EndpointError, match=r"is an error: .*CUDA"):
            ask(handler, streaming())


def test_what_a_server_wants_back_goes_back_to_it() -> None:
    """Halves of characters in two chunks, too."""
    own = {"google": {"thought_signature": "sig"}}
    call = {"index": 0, "id": "t", "function": {"name": "f", "arguments": '{"a": "\ud83d'}, "extra_content": own}
    rest = {"index": 0, "function": {"arguments": '\ude00"}'}}
    got = ask(streams(delta(reasoning_content="h\ud83d", reasoning_details=[{"id": 1}]), delta(content="x\ud83d"),
                      delta(reasoning_content="\ude00m", reasoning_details=[{"id": 2}]), delta(content="\ude00"),
                      delta(tool_calls=[call]), delta(tool_calls=[rest]), delta("tool_calls")), streaming())
    for response in got:
        Msg("bob", response.content, "assistant")  # which holds no half
    thinking, said, used = got[-1].content
    assert thinking == {"type": "thinking", "thinking": "h😀m", "details": [{"id": 1}, {"id": 2}]}
    assert said["text"] == "x😀" and used["input"] == {"a": "😀"} and used["extra"] == {"extra_content": own}
    [back] = asyncio.run(OpenAIChatFormatter().format([Msg("bob", got[-1].content, "assistant")]))
    assert back["reasoning_content"] == "h😀m" and back["reasoning_details"] == [{"id": 1}, {"id": 2}]
    assert back["tool_calls"][0]["extra_content"] == own


def test_a_server_that_does_not_stream_is_understood() -> None:
    [response] = ask(says(whole({"content": "Hello"})), streaming())
    assert response.content == [{"type": "text", "text": "Hello"}]


@pytest.mark.parametrize("stream", [False, True])
def test_silence_is_a_timeout(stream: bool) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: " + json.dumps(delta(content="Once")).encode() + b"\n\n")
        await for_ever()
        return response

    with pytest.raises(EndpointError, match=r"fell silent .* for 0.2 s.*ENDPOINTS__OPENAI__TIMEOUT") as caught:
        ask(handler, OpenAIChatModel("m", stream=stream), timeout=0.2)
    assert caught.value.retryable


def test_nothing_listens() -> None:
    async def main() -> None:
        await OpenAIChatModel("m", endpoint="gone")(ASK)

    gone = {"gone": {"base_url": f"http://127.0.0.1:{free_port()}/v1"}}
    with use_settings(Settings.load(endpoints=gone)), pytest.raises(EndpointError, match="cannot be reached") as caught:
        asyncio.run(main())
    assert caught.value.retryable and "CALLSHEET_ENDPOINTS__GONE__BASE_URL" in str(caught.value)


def test_a_missing_key_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    async def main() -> None:
        await OpenAIChatModel("gpt-4o")(ASK)

    with use_settings(Settings.load()), pytest.raises(ModelError, match="OPENAI_API_KEY"):
        asyncio.run(main())


@pytest.mark.parametrize(("messages", "match"), [
    ("hello", "list of dictionaries"), ([], "empty"), ([{"role": "user"}], r"messages\[0\]"),
    (["hi"], r"messages\[0\]"), ([{"role": "user", "content": {1, 2}}], "not JSON"),
])
def test_bad_messages(messages: Any, match: str) -> None:
    async def main() -> None:
        await OpenAIChatModel("m")(messages)

    with use_settings(Settings.load(endpoints={"openai": {"base_url": "http://127.0.0.1:9"}})), \
            pytest.raises(ValueError, match=match):
        asyncio.run(main())


def test_bad_arguments() -> None:
    model = OpenAIChatModel("m")
    with pytest.raises(TypeError, match="tool_choice is int"):
        asyncio.run(model(ASK, tool_choice=3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'walk'.*auto, none, required"):
        asyncio.run(model(ASK, tool_choice="walk"))
    with pytest.raises(SettingsError, match="'nowhere'"):
        asyncio.run(OpenAIChatModel("m", endpoint="nowhere")(ASK))
    with pytest.raises(UsageError, match="max_retries"):
        OpenAIChatModel("m", client_kwargs={"max_retries": 3})


def test_a_key_is_shown_nowhere_and_records_as_a_secret() -> None:
    for model in (OpenAIChatModel("m", "sk-mine"), OpenAIChatModel("m", api_key="sk-mine")):
        assert "sk-mine" not in repr(model) + repr(vars(model))
        again = type(model)(*model._recorded[0], **model._recorded[1])
        assert again._api_key is not None and again._api_key.get_secret_value() == "sk-mine"


def test_a_model_travels_without_its_key_or_not_at_all() -> None:
    model = OpenAIChatModel("m", endpoint="local", generate_kwargs={"temperature": 0})
    data = json.loads(json.dumps(Writer().write(model, "argument 'model'")))
    assert data["args"] == ["m"] and data["kwargs"] == {"endpoint": "local", "generate_kwargs": {"temperature": 0}}
    with pytest.raises(CannotTravel, match="an endpoint of their settings") as caught:
        Writer().write(OpenAIChatModel("m", "sk-mine"), "argument 'model'")
    assert "sk-mine" not in str(caught.value)


def test_a_stream_that_nobody_reads_gives_its_connection_back() -> None:
    gone = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            while True:
                await response.write(b": ping\n\n")
                await asyncio.sleep(0.01)
        except ConnectionError:
            gone.set()
            raise

    async def main() -> None:
        async with serving(handler, max_connections=1):
            await streaming()(ASK)
            gc.collect()
            await asyncio.wait_for(gone.wait(), 5)

    asyncio.run(main())


@given(st.lists(st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), min_size=1)),
       st.sampled_from(["\n", "\r\n", "\r"]), st.integers(1, 9))
def test_events_survive_any_cut(texts: list[str], end: str, piece: int) -> None:
    data = "".join(f": note{end}event: x{end}data: {text}{end}{end}" for text in texts).encode()
    stream, got = EventStream(), []
    for start in range(0, len(data), piece):
        got += stream.feed(data[start:start + piece])
    assert got + stream.close() == [Event("x", text) for text in texts if text.encode().strip()]


_TEXTS = st.lists(st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), min_size=1),
                  min_size=1, max_size=4)


@given(_TEXTS, st.lists(st.sampled_from(["\n", "\r\n", "\r"]), min_size=1, max_size=3))
def test_events_survive_a_cut_at_every_byte(texts: list[str], ends: list[str]) -> None:
    """Cut in two at each place, and into single bytes; lines of several data fields and mixed ends included."""
    parts = [f"data:{text}{ends[0]}data: {text}{ends[-1]}{ends[len(ends) // 2]}" for text in texts]
    data = "".join(parts).encode()
    # A CR that ends a line and a LF that ends an empty one would be read as one CRLF: that is the format's own rule.
    whole = EventStream()
    expected = whole.feed(data) + whole.close()
    for cut in range(len(data) + 1):
        stream = EventStream()
        assert stream.feed(data[:cut]) + stream.feed(data[cut:]) + stream.close() == expected
    stream = EventStream()
    assert [event for byte in data for event in stream.feed(bytes([byte]))] + stream.close() == expected
    if set(ends) == {"\n"}:
        assert [event.data for event in expected] == [f"{text.removeprefix(' ')}\n{text}" for text in texts
                                                      if text.encode().strip()]


@given(st.lists(st.dictionaries(st.text(), st.text()), min_size=1, max_size=4))
def test_lines_survive_a_cut_at_every_byte(objects: list[dict[str, str]]) -> None:
    data = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in objects).encode("utf-8", "replace")
    whole = LineStream()
    expected = whole.feed(data) + whole.close()
    assert len(expected) == len(objects)
    for cut in range(len(data) + 1):
        stream = LineStream()
        assert stream.feed(data[:cut]) + stream.feed(data[cut:]) + stream.close() == expected


def test_an_event_without_end_is_cut_off() -> None:
    stream = EventStream()
    with pytest.raises(EventTooLong):
        stream.feed(b"data: " + b"x" * (LIMIT + 1))
    with pytest.raises(EventTooLong):
        LineStream().feed(b"x" * (LIMIT + 1))


@pytest.mark.parametrize("cls", [AnthropicChatModel, DashScopeChatModel, DeepSeekChatModel, GeminiChatModel,
                                 OllamaChatModel, OpenAIChatModel])
def test_an_unknown_endpoint_is_named_by_every_class(cls: Any) -> None:
    if cls in (AnthropicChatModel, GeminiChatModel):
        pytest.importorskip("anthropic" if cls is AnthropicChatModel else "google.genai")
    with use_settings(Settings.load()), pytest.raises(SettingsError, match=r"'nowhere'; the settings know: .*openai"):
        asyncio.run(cls("m", endpoint="nowhere")(ASK))
