"""Formatters: what each provider gets for the same conversations."""

import asyncio
import base64
import gzip
import ipaddress
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callsheet import Msg, Settings
from callsheet.errors import MessageError, UsageError
from callsheet.formatters import (
    AnthropicChatFormatter,
    AnthropicMultiAgentFormatter,
    CharTokenCounter,
    DashScopeChatFormatter,
    DashScopeMultiAgentFormatter,
    DeepSeekChatFormatter,
    DeepSeekMultiAgentFormatter,
    FormatterBase,
    GeminiChatFormatter,
    GeminiMultiAgentFormatter,
    OllamaChatFormatter,
    OllamaMultiAgentFormatter,
    OpenAIChatFormatter,
    OpenAIMultiAgentFormatter,
)
from callsheet.formatters.base import mended
from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Reader, Writer
from callsheet.resources.outbound import admitted
from callsheet.settings import use_settings

PNG = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
CHAT: list[type] = [AnthropicChatFormatter, DashScopeChatFormatter, DeepSeekChatFormatter, GeminiChatFormatter,
                    OllamaChatFormatter, OpenAIChatFormatter]
MULTI: list[type] = [AnthropicMultiAgentFormatter, DashScopeMultiAgentFormatter, DeepSeekMultiAgentFormatter,
                     GeminiMultiAgentFormatter, OllamaMultiAgentFormatter, OpenAIMultiAgentFormatter]
PROMPT = "So far:\n"


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(data: str = PNG) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def at(url: str, kind: str = "image") -> dict[str, Any]:
    return {"type": kind, "source": {"type": "url", "url": url}}


def use(ident: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": ident, "name": "find", "input": arguments}


def result(ident: str, output: Any) -> dict[str, Any]:
    return {"type": "tool_result", "id": ident, "name": "find", "output": output}


def conversation(*said: tuple[str, Any, Any]) -> list[Msg]:
    return [Msg(name, content, role) for name, content, role in said]


def formatted(formatter: Any, *said: tuple[str, Any, Any]) -> Any:
    return asyncio.run(formatter.format(conversation(*said)))


SYSTEM = ("system", "You are Bob.", "system")
TALK = [SYSTEM, ("user", [text("see"), image()], "user"),
        ("bob", [{"type": "thinking", "thinking": "hm", "signature": "s"}, text("seen")], "assistant")]
URL = f"data:image/png;base64,{PNG}"

EXPECTED: list[tuple[type, Any]] = [
    (OpenAIChatFormatter, [
        {"role": "system", "name": "system", "content": [text("You are Bob.")]},
        {"role": "user", "name": "user", "content": [text("see"), {"type": "image_url", "image_url": {"url": URL}}]},
        {"role": "assistant", "name": "bob", "content": [text("seen")]}]),
    (DeepSeekChatFormatter, [
        {"role": "system", "content": "You are Bob."}, {"role": "user", "content": "see"},
        {"role": "assistant", "content": "seen", "reasoning_content": "hm"}]),
    (DashScopeChatFormatter, [
        {"role": "system", "content": "You are Bob."},
        {"role": "user", "content": [{"text": "see"}, {"image": URL}]}, {"role": "assistant", "content": "seen"}]),
    (OllamaChatFormatter, [
        {"role": "system", "content": "You are Bob."}, {"role": "user", "content": "see", "images": [PNG]},
        {"role": "assistant", "content": "seen"}]),
    (AnthropicChatFormatter, [
        {"role": "system", "content": [text("You are Bob.")]}, {"role": "user", "content": [text("see"), image()]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, text("seen")]}]),
    (GeminiChatFormatter, [
        {"role": "user", "parts": [{"text": "You are Bob."}]},
        {"role": "user", "parts": [{"text": "see"}, {"inline_data": {"data": PNG, "mime_type": "image/png"}}]},
        {"role": "model", "parts": [{"text": "seen"}]}]),
]


@pytest.mark.parametrize(("cls", "expected"), EXPECTED)
def test_each_message_becomes_one(cls: type, expected: Any) -> None:
    assert formatted(cls(), *TALK) == expected


HISTORY = f"{PROMPT}<history>\nuser: hi\nal: see"
PANEL = [SYSTEM, ("user", "hi", "user"), ("al", [text("see"), image(), text("it")], "assistant"),
         ("bob", [use("1", q="ü")], "assistant"), ("system", [result("1", "found")], "system"),
         ("al", "fine", "assistant")]
CALL = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"q": "ü"}'}}
TOLD = {"role": "tool", "tool_call_id": "1", "content": "found", "name": "find"}
LATER = "<history>\nal: fine\n</history>"

EXPECTED_OF_MANY: list[tuple[type, Any]] = [
    (OpenAIMultiAgentFormatter, [
        {"role": "system", "content": [text("You are Bob.")]},
        {"role": "user", "content": [text(f"{HISTORY}\nal: it\n</history>"),
                                     {"type": "image_url", "image_url": {"url": URL}}]},
        {"role": "assistant", "name": "bob", "content": None, "tool_calls": [CALL]}, TOLD,
        {"role": "user", "content": [text(LATER)]}]),
    (DeepSeekMultiAgentFormatter, [
        {"role": "system", "content": "You are Bob."},
        {"role": "user", "content": f"{HISTORY}\nal: it\n</history>"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]}, TOLD, {"role": "user", "content": LATER}]),
    (DashScopeMultiAgentFormatter, [
        {"role": "system", "content": "You are Bob."},
        {"role": "user", "content": [{"text": HISTORY}, {"image": URL}, {"text": "al: it\n</history>"}]},
        {"role": "assistant", "content": [], "tool_calls": [CALL]}, TOLD, {"role": "user", "content": LATER}]),
    (OllamaMultiAgentFormatter, [
        {"role": "system", "content": "You are Bob."},
        {"role": "user", "content": f"{HISTORY}\n\nal: it\n</history>", "images": [PNG]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "find", "arguments": {"q": "ü"}}}]}, TOLD,
        {"role": "user", "content": LATER}]),
    (AnthropicMultiAgentFormatter, [
        {"role": "system", "content": [text("You are Bob.")]},
        {"role": "user", "content": [text(HISTORY), image(), text("al: it\n</history>")]},
        {"role": "assistant", "content": [{"id": "1", "type": "tool_use", "name": "find", "input": {"q": "ü"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [text("found")]}]},
        {"role": "user", "content": [text(LATER)]}]),
    (GeminiMultiAgentFormatter, [
        {"role": "user", "parts": [{"text": "You are Bob."}]},
        {"role": "user", "parts": [{"text": HISTORY.replace("<history>\n", "<history>")},
                                   {"inline_data": {"data": PNG, "mime_type": "image/png"}},
                                   {"text": "al: it\n</history>"}]},
        {"role": "model", "parts": [{"function_call": {"id": None, "name": "find", "args": {"q": "ü"}}}]},
        {"role": "user", "parts": [{"function_response": {"id": "1", "name": "find",
                                                          "response": {"output": "found"}}}]},
        {"role": "user", "parts": [{"text": LATER.replace("<history>\n", "<history>")}]}]),
]


@pytest.mark.parametrize(("cls", "expected"), EXPECTED_OF_MANY)
def test_a_conversation_of_many_becomes_a_history_around_its_tool_calls(cls: type, expected: Any) -> None:
    assert formatted(cls(conversation_history_prompt=PROMPT), *PANEL) == expected


@pytest.mark.parametrize("cls", MULTI)
def test_a_history_that_begins_and_ends_with_a_picture_is_enclosed(cls: type) -> None:
    said = json.dumps(formatted(cls(), ("user", [image()], "user")))
    takes_pictures = cls is not DeepSeekMultiAgentFormatter
    assert (PNG in said) == takes_pictures
    if cls not in (OpenAIMultiAgentFormatter, DeepSeekMultiAgentFormatter):
        assert "<history>" in said and "</history>" in said


@pytest.mark.parametrize("cls", [*CHAT, *MULTI])
def test_nothing_gives_nothing(cls: type) -> None:
    assert formatted(cls()) == []
    assert formatted(cls(), ("user", [], "user")) == []


@pytest.mark.parametrize("cls", CHAT)
def test_a_result_in_the_message_of_its_call_comes_after_it(cls: type) -> None:
    messages = formatted(cls(), ("bob", [use("1"), result("1", "found"), text("So.")], "assistant"))
    assert len(messages) == 3
    assert "found" in json.dumps(messages[1]) and "So." in json.dumps(messages[2])


@pytest.mark.parametrize("cls", [AnthropicChatFormatter, GeminiChatFormatter])
def test_calls_keep_their_place_where_they_are_parts(cls: type) -> None:
    message = formatted(cls(), ("bob", [use("1"), text("meanwhile"), use("2")], "assistant"))[0]
    assert "meanwhile" in json.dumps((message.get("content") or message.get("parts"))[1])


@pytest.mark.parametrize(("cls", "options"), [
    (OpenAIChatFormatter, {}), (OllamaChatFormatter, {}), (GeminiChatFormatter, {}), (DashScopeChatFormatter, {}),
    (OpenAIMultiAgentFormatter, {}), (OllamaMultiAgentFormatter, {}), (GeminiMultiAgentFormatter, {}),
    (DashScopeMultiAgentFormatter, {"promote_tool_result_videos": True})])
def test_pictures_of_tool_results_are_shown_by_a_user_if_asked(cls: Any, options: dict[str, Any]) -> None:
    said = [("bob", [use("1")], "assistant"), ("system", [result("1", [text("look"), image()])], "system"),
            ("bob", "nice", "assistant")]
    plain = formatted(cls(), *said)
    promoted = formatted(cls(promote_tool_result_images=True, **options), *said)
    assert PNG not in json.dumps(plain) and "- look\\n- (image 1, image/png)" in json.dumps(plain)
    assert len(promoted) == len(plain) + 1
    shown = json.dumps(promoted[2])
    assert PNG in shown and promoted[2]["role"] == "user" and "'find' returned" in shown


def test_what_an_api_does_not_take_is_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    video = {"type": "video", "source": {"type": "base64", "media_type": "video/mp4", "data": "AA=="}}
    with caplog.at_level(logging.WARNING):
        assert formatted(OpenAIChatFormatter(), ("user", [video, text("x")], "user"))[0]["content"] == [text("x")]
    assert "formatter_left_out formatter=OpenAIChatFormatter block=video" in caplog.text


def test_openai_gets_names_that_it_takes_and_no_sound_of_its_own() -> None:
    sound = {"type": "audio", "source": {"type": "base64", "media_type": "audio/wav", "data": "UklGRg=="}}
    user, bob = formatted(OpenAIChatFormatter(), ("Dr. House", [sound], "user"), ("bob", [sound, text("x")],
                                                                                 "assistant"))
    assert user["name"] == "Dr._House"
    assert user["content"] == [{"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}]
    assert bob["content"] == [text("x")]
    ogg = {"type": "audio", "source": {"type": "base64", "media_type": "audio/ogg", "data": ""}}
    with pytest.raises(MessageError, match=r"audio/ogg.*wav and mp3"):
        formatted(OpenAIChatFormatter(), ("user", [ogg], "user"))


def test_gemini_gets_its_thoughts_signatures_back() -> None:
    signature = base64.b64encode(b"sig").decode()
    [message] = formatted(GeminiChatFormatter(), ("bob", [{**text("x"), "thought_signature": signature},
                                                         {**use("1"), "thought_signature": signature}], "assistant"))
    assert [part["thought_signature"] for part in message["parts"]] == [b"sig", b"sig"]


# What is mended on the way out ------------------------------------------------------------------------------------

def turns(messages: list[dict[str, Any]]) -> list[str]:
    """Calls and results of a prompt, in order, each message's together; "text" for others. Fails on a blank text."""
    found = []
    for message in messages:
        parts = message.get("content") or message.get("parts") or []
        parts = [{"text": parts}] if isinstance(parts, str) else parts
        inner = [item for part in parts for item in (part.get("content") if isinstance(part.get("content"), list)
                                                     else [part])]
        assert all(item["text"].strip() for item in inner if "text" in item), message
        marks = [f"call {part['id']}" for part in message.get("tool_calls", ())]
        marks += [f"call {part['id']}" for part in parts if part.get("type") == "tool_use"]
        marks += ["call" for part in parts if "function_call" in part]
        marks += [f"result {part['tool_use_id']}" for part in parts if part.get("type") == "tool_result"]
        marks += [f"result {part['function_response']['id']}" for part in parts if "function_response" in part]
        marks += [f"result {message['tool_call_id']}"] if message["role"] == "tool" else []
        found.append(" ".join(marks) or "text")
    return found


@pytest.mark.parametrize("cls", [AnthropicChatFormatter, GeminiChatFormatter, AnthropicMultiAgentFormatter,
                                 GeminiMultiAgentFormatter])
def test_results_of_parallel_calls_go_in_one_message_where_calls_do(cls: Any) -> None:
    media = {"promote_tool_result_images": True} if "Gemini" in cls.__name__ else {}
    said = [("bob", [use("1"), use("2")], "assistant"), ("system", [result("1", [text("a"), image()])], "system"),
            ("system", [result("2", "b")], "system"), ("bob", [use("3")], "assistant"),
            ("system", [result("3", "c")], "system")]
    found = turns(formatted(cls(**media), *said))
    assert found[1] == "result 1 result 2" and found[-1] == "result 3"
    assert len(found) == (5 if media else 4)


def test_promoted_pictures_follow_all_results_of_a_round() -> None:
    said = [("bob", [use("1"), use("2")], "assistant"), ("system", [result("1", [image()])], "system"),
            ("system", [result("2", [image()])], "system"), ("bob", "So.", "assistant")]
    found = turns(formatted(OpenAIChatFormatter(promote_tool_result_images=True), *said))
    assert found == ["call 1 call 2", "result 1", "result 2", "text", "text", "text"]


@pytest.mark.parametrize("cls", [*CHAT, *MULTI])
def test_blank_texts_are_left_out_or_filled(cls: Any) -> None:
    found = formatted(cls(), ("system", " ", "system"), ("user", "", "user"),
                      ("bob", [text("\n\n"), use("1"), use("2")], "assistant"), ("system", [result("1", "")], "system"),
                      ("system", [result("2", [text(" "), text("x")])], "system"), ("bob", " ", "assistant"),
                      ("user", "Go on.", "user"))
    turns(found)
    assert "(no text)" in json.dumps(found) and "(no result)" in json.dumps(found)
    assert found[0]["role"] == "user" and not any(message["role"] == "system" for message in found)


@pytest.mark.parametrize("cls", CHAT)
def test_numbers_that_json_has_not_go_as_text_and_whoever_calls_is_the_assistant(cls: Any) -> None:
    call = {"type": "tool_use", "id": "1", "name": "f", "input": {"x": [float("nan"), float("inf"), 1.5]}}
    found = formatted(cls(), ("", "So?", "user"), ("al", [call], "user"), ("system", [result("1", "r")], "system"))
    said = json.dumps(found, allow_nan=False).replace("\\", "")
    assert '["NaN", "Infinity", 1.5]' in said and found[1]["role"] in ("assistant", "model")
    assert found[0].get("name", "_") == "_"


def test_a_call_is_in_the_turn_of_what_gemini_said_before_it_and_no_answer_ends_with_a_thought() -> None:
    said = [("al", "So?", "user"), ("bob", "Let me see.", "assistant"), ("bob", [use("1")], "assistant"),
            ("system", [result("1", "r")], "system"), ("bob", "There.", "assistant"), ("bob", "And so.", "assistant")]
    found = formatted(GeminiChatFormatter(), *said)
    assert [(message["role"], len(message["parts"])) for message in found] == [
        ("user", 1), ("model", 2), ("user", 1), ("model", 2)]
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    found = formatted(AnthropicChatFormatter(), ("al", "So?", "user"), ("bob", [thought], "assistant"),
                      ("bob", [thought, text("x"), thought], "assistant"))
    assert [[part["type"] for part in message["content"]] for message in found] == [["text"], ["thinking", "text"]]


@pytest.mark.parametrize("cls", CHAT)
def test_each_call_has_its_own_result_right_behind_it_whatever_the_memory_holds(cls: Any) -> None:
    found = turns(formatted(
        cls(), ("system", [result("0", "of no call")], "system"), ("bob", [use("1"), use("2")], "assistant"),
        ("al", "heard meanwhile", "user"), ("system", [result("2", "b")], "system"), ("bob", [use("1")], "assistant"),
        ("system", [result("1", "second")], "system"), ("bob", [use("4")], "assistant"), ("user", "Well?", "user")))
    ids = [mark for turn in found for mark in re.findall(r"result (\S+)", turn)]
    calls = [mark for turn in found for mark in re.findall(r"call (\S+)", turn)]
    assert len(set(ids)) == 4 and ids[:2] == ["1", "2"] and (calls == ids or cls is GeminiChatFormatter)
    kinds = [turn.split()[0] for turn in found]
    assert [kind for number, kind in enumerate(kinds) if kinds[number - 1:number] != [kind]] == [
        "call", "result", "text", "call", "result", "call", "result", "text"]
    said = json.dumps(formatted(cls(), ("bob", [use("1")], "assistant"), ("user", "Well?", "user")))
    assert "(no result)" in said
    assert turns(formatted(cls(), ("bob", [use("1")], "assistant")))[0].startswith("call")  # it may be under way


def test_what_one_provider_gave_another_does_not_get() -> None:
    mixed = ("bob", [{"type": "thinking", "thinking": "hm"}, {"type": "thinking", "thinking": "aha", "signature": "s"},
                     {**text("x"), "thought_signature": "c2ln"}, image(),
                     {**use("functions.find:0"), "name": "multi_tool_use.parallel", "extra": {"extra_content": 1}}],
             "assistant")
    claude, *_ = formatted(AnthropicChatFormatter(), mixed)
    assert claude["content"] == [{"type": "thinking", "thinking": "aha", "signature": "s"}, text("x"), {
        "id": "functions_find_0", "type": "tool_use", "name": "multi_tool_use_parallel", "input": {}}]
    openai, *_ = formatted(OpenAIChatFormatter(), mixed)
    assert openai["content"] == [text("x")] and openai["reasoning_content"] == "hm"
    assert openai["tool_calls"][0] | {"function": 0} == {"extra_content": 1, "id": "functions.find:0",
                                                         "type": "function", "function": 0}
    thought = {"type": "thinking", "thinking": "hm"}
    plain, *_ = formatted(OpenAIChatFormatter(), ("bob", [thought, text("x")], "assistant"))
    assert "reasoning_content" not in plain
    sound = {"type": "audio", "source": {"type": "base64", "media_type": "audio/wav", "data": "UklGRg=="}}
    _, told = formatted(AnthropicChatFormatter(), ("bob", [use("1")], "assistant"),
                        ("system", [result("1", [sound])], "system"))
    assert told["content"][0]["content"] == [text("(audio 1, audio/wav)")]


BLOCKS = st.one_of(st.builds(text, st.sampled_from(["a", "b"])), st.builds(use, st.sampled_from("12")),
                   st.builds(result, st.sampled_from("123"), st.sampled_from("xy")))


@pytest.mark.parametrize("cls", [OpenAIChatFormatter, AnthropicChatFormatter, OpenAIMultiAgentFormatter])
@settings(max_examples=150, deadline=None)
@given(said=st.lists(st.lists(BLOCKS, min_size=1, max_size=4), max_size=6))
def test_whatever_a_memory_holds_calls_and_results_go_in_pairs(cls: type, said: list[list[Any]]) -> None:
    msgs = [Msg("bob", blocks, "assistant") for blocks in said]
    ready = mended(msgs, cls.call_ids)  # type: ignore[attr-defined]
    assert [msg.content for msg in mended(ready, cls.call_ids)] == [msg.content for msg in ready]  # type: ignore[attr-defined]
    calls = sum(block["type"] == "tool_use" for blocks in said for block in blocks)
    seen, waiting = [], []
    for message in asyncio.run(cls().format(msgs)):  # type: ignore[attr-defined]
        parts = message["content"] if isinstance(message["content"], list) else []
        asked = [call["id"] for call in message.get("tool_calls") or ()]
        asked += [part["id"] for part in parts if part.get("type") == "tool_use"]
        told = [message["tool_call_id"]] if message["role"] == "tool" else [
            part["tool_use_id"] for part in parts if part.get("type") == "tool_result"]
        assert told or not waiting  # nothing comes between a call and its result
        for ident in told:
            waiting.remove(ident)
        seen += asked
        waiting += asked
    assert set(waiting) <= {ident for ident in seen[-4:] if said} and len(seen) == len(set(seen)) == calls
    assert not waiting or "tool_use" in {block["type"] for block in said[-1]}  # it may be under way


def test_ids_and_names_are_such_as_the_provider_takes() -> None:
    bad = [use("functions.find:0"), {**use("x" * 50), "name": "a.b"}]
    said = [("bob", bad, "assistant"),
            ("system", [result("functions.find:0", "found"), result("x" * 50, "y")], "system")]
    first = formatted(OpenAIChatFormatter(), *said)[0]["tool_calls"]
    assert first[0]["id"] == "functions.find:0" and len(first[1]["id"]) == 9 and first[1]["function"]["name"] == "a_b"
    parts = formatted(AnthropicChatFormatter(), *said)[0]["content"]
    assert parts[0]["id"] == "functions_find_0" and parts[1]["id"] == "x" * 50


def test_a_result_goes_to_the_last_call_of_its_id() -> None:
    said = [("bob", [use("1")], "assistant"), ("user", "well?", "user"), ("bob", [use("1")], "assistant"),
            ("system", [result("1", "the second")], "system"), ("system", [result("1", "nobody's")], "system")]
    messages = formatted(OpenAIChatFormatter(), *said)
    assert [message["role"] for message in messages] == ["assistant", "tool", "user", "assistant", "tool"]
    assert "no result" in messages[1]["content"] and messages[4]["content"] == "the second"
    assert messages[4]["tool_call_id"] == messages[3]["tool_calls"][0]["id"] != messages[0]["tool_calls"][0]["id"]


# Media -----------------------------------------------------------------------------------------------------------

def test_a_file_is_sent_as_data_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(base64.b64decode(PNG))
    for url in (str(tmp_path / "picture"), f"file://{tmp_path / 'picture'}"):
        for cls in (OpenAIChatFormatter, DashScopeChatFormatter, AnthropicChatFormatter, GeminiChatFormatter,
                    OllamaChatFormatter):
            said = json.dumps(formatted(cls(), ("user", [at(url)], "user")))
            assert PNG in said
            assert "image/png" in said or cls is OllamaChatFormatter


def test_a_file_that_is_no_medium_is_never_sent(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    for cls in (OpenAIChatFormatter, DashScopeChatFormatter, AnthropicChatFormatter, GeminiChatFormatter,
                OllamaChatFormatter):
        with pytest.raises(MessageError, match="'secret' is no image") as caught:
            formatted(cls(), ("user", [at(str(tmp_path / "secret"))], "user"))
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("cls", [OpenAIChatFormatter, GeminiChatFormatter])
def test_what_is_nowhere_is_named(cls: Any) -> None:
    with pytest.raises(MessageError, match=r"'pictures/gone\.png' is neither a file"):
        formatted(cls(), ("user", [at("pictures/gone.png")], "user"))


def test_files_are_sent_from_the_folders_of_the_settings_alone(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a b.png").write_bytes(base64.b64decode(PNG))
    (inside / "link.png").symlink_to(outside / "a b.png")
    (inside / "notes.au").write_text("hunter2")
    (inside / "fake.png").symlink_to("/etc/passwd")

    def sent(url: str) -> bool:
        try:
            return PNG in json.dumps(formatted(OpenAIChatFormatter(), ("user", [at(url)], "user")))
        except MessageError as exc:
            assert re.search("no folder whose|is no image|neither a file", str(exc)), exc
            return False

    with use_settings(Settings.load(media_folders=str(inside))):
        for url in (f"{inside}/a b.png", f"file://{inside}/a b.png", f"file://{inside}/a%20b.png",
                    f"file://localhost{inside}/a%20b.png"):
            assert sent(url), url
        for url in (f"{outside}/a b.png", f"{inside}/../out/a b.png", f"{inside}/link.png", f"{inside}/fake.png",
                    f"{inside}/notes.au", f"file://{inside}/%2e%2e/out/a%20b.png", "/etc/passwd", "/dev/zero",
                    "/proc/self/environ", "file:///etc/gone", "/etc/gone", os.path.relpath(outside / "a b.png"),
                    f"file://{os.path.relpath(outside / 'a b.png')}", f"./{os.path.relpath(outside)}/a%20b.png"):
            assert not sent(url), url


@pytest.mark.parametrize("cls", [OpenAIChatFormatter, AnthropicChatFormatter, GeminiChatFormatter,
                                 OllamaChatFormatter, DashScopeChatFormatter])
def test_data_are_sent_as_the_provider_takes_them(cls: Any) -> None:
    """As an address, as an address among data, on several lines, without its end; whatever type was told."""
    loose = PNG.replace("+", "-").replace("/", "_").rstrip("=")
    for told in (at(f"data:image/png;base64,{PNG}"), at(f" DATA:image/jpg;charset=utf-8;BASE64,{PNG}"),
                 at(f"data:image/png;base64,{PNG.replace('+', '%2B')}"), image(f"data:image/png;base64,{PNG}"),
                 image(f"{PNG[:40]}\n{PNG[40:]}\n"), image(loose),
                 {"type": "image", "source": {"type": "base64", "media_type": "image/jpg", "data": PNG}}):
        said = json.dumps(formatted(cls(), ("user", [told], "user")))
        assert PNG in said and "jpg" not in said and "DATA" not in said


def test_addresses_are_escaped_and_such_as_providers_fetch() -> None:
    for cls in (OpenAIChatFormatter, AnthropicChatFormatter):
        said = json.dumps(formatted(cls(), ("user", [at("https://x.example/a b%20ü.png?q=[1]")], "user")))
        assert "https://x.example/a%20b%20%C3%BC.png?q=[1]" in said
        for url in ("s3://bucket/a.png", "gs://b/a.png", "ftp://x/a.png", "blob:https://x/1"):
            with pytest.raises(MessageError, match="nor an address of the web"):
                formatted(cls(), ("user", [at(url)], "user"))
    bitmap = {"type": "image", "source": {"type": "base64", "media_type": "image/bmp", "data": "AAAA"}}
    with pytest.raises(MessageError, match=r"image/bmp.*image/jpeg"):
        formatted(AnthropicChatFormatter(), ("user", [bitmap], "user"))


class Web(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        raw, body = base64.b64decode(PNG), b""
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            body = b"x" * 100
        elif self.path == "/bomb.png":
            body = gzip.compress(raw + bytes(10_000_000))
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
        else:
            body = raw if self.path == "/a.png" else b"plain" if self.path == "/a.txt" else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "image/png")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_the_web_is_left_to_providers_that_fetch_and_fetched_for_others(web: int) -> None:
    url = f"http://127.0.0.1:{web}/a.png"
    said = ("user", [at(url)], "user")
    assert formatted(OpenAIChatFormatter(), said)[0]["content"][0]["image_url"]["url"] == url
    assert formatted(AnthropicChatFormatter(), said)[0]["content"][0]["source"] == {"type": "url", "url": url}
    assert formatted(DashScopeChatFormatter(), said)[0]["content"] == [{"image": url}]
    with use_settings(Settings.load(media_hosts="127.0.0.0/8")):
        assert formatted(OllamaChatFormatter(), said)[0]["images"] == [PNG]
        for at_url in (url, f"http://127.0.0.1:{web}/to//a.png"):
            inline = formatted(GeminiChatFormatter(), ("user", [at(at_url)], "user"))[0]["parts"][0]["inline_data"]
            assert inline == {"data": PNG, "mime_type": "image/png"}
        for name, why in (("gone.png", "404"), ("a.txt", "is no image"), ("bomb.png", "compressed"),
                          ("to/file:///etc/passwd", "fetched"), ("to/http://127.0.0.1:1/", "fetched")):
            with pytest.raises(MessageError, match=why):
                formatted(GeminiChatFormatter(), ("user", [at(url.replace("a.png", name))], "user"))


@pytest.mark.parametrize(("allowed", "host", "fetched"), [
    ("public", "127.0.0.1", False), ("public", "localhost", False),
    ("public", "[::ffff:127.0.0.1]", False), ("public", "0.0.0.0", False),
    ("public,10.0.0.0/8", "127.0.0.1", False), ("localhost", "127.0.0.1", False), ("", "localhost", False),
    ("127.0.0.1", "127.0.0.1", True), ("localhost", "localhost", True), ("127.0.0.0/8,public", "localhost", True),
])
def test_pictures_are_fetched_from_where_the_settings_allow(web: int, allowed: str, host: str, fetched: bool) -> None:
    said = ("user", [at(f"http://{host}:{web}/a.png")], "user")
    with use_settings(Settings.load(media_hosts=allowed)):
        if fetched:
            assert PNG in str(formatted(GeminiChatFormatter(), said))
        else:
            with pytest.raises(MessageError, match="CALLSHEET_MEDIA_HOSTS"):
                formatted(GeminiChatFormatter(), said)


@pytest.mark.parametrize(("address", "public"), [
    ("8.8.8.8", True), ("2606:4700::1111", True), ("10.0.0.1", False), ("169.254.169.254", False), ("::1", False),
    ("fe80::1%eth0", False), ("fd00:ec2::254", False), ("100.100.100.200", False), ("168.63.129.16", False),
    ("::ffff:10.0.0.1", False), ("64:ff9b::a9fe:a9fe", False), ("2002:a9fe:a9fe::1", False), ("224.0.0.1", False),
    ("::7f00:1", False), ("ff02::1", False), ("192.168.1.1", False), ("0.0.0.0", False),
])
def test_an_address_inside_is_no_public_one_however_it_is_written(address: str, public: bool) -> None:
    found = ipaddress.ip_address(address)
    assert admitted(found, "x", ["public"]) is public
    near = found.is_link_local or address.removeprefix("64:ff9b::").removeprefix("2002:").startswith("a9fe:a9fe")
    metadata = address in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")
    assert admitted(found, "pictures.inside", ["*.inside"]) is not (near or metadata)
    assert not admitted(found, "pictures.elsewhere", ["*.inside"])


# Tokens ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("cls", [*CHAT, *MULTI])
def test_the_oldest_messages_are_left_out_and_the_system_prompt_stays(cls: Any) -> None:
    said = [SYSTEM, *[("user", f"message {number} {'x' * 50}", "user") for number in range(20)]]
    whole = json.dumps(formatted(cls(), *said))
    short = json.dumps(formatted(cls(token_counter=CharTokenCounter(), max_tokens=700), *said))
    assert "message 0" in whole and "message 0" not in short
    assert "You are Bob." in short and "message 19" in short


def test_a_call_is_left_out_together_with_its_result() -> None:
    said = [("user", "x" * 300, "user"), ("bob", [use("1"), use("2")], "assistant"),
            ("system", [result("1", "y" * 300)], "system"), ("system", [result("2", "z")], "system"),
            ("bob", "done", "assistant")]
    short = formatted(OpenAIChatFormatter(token_counter=CharTokenCounter(), max_tokens=200), *said)
    assert [message["role"] for message in short] == ["assistant"] and short[0]["content"] == [text("done")]


def test_what_cannot_be_cut_is_an_error() -> None:
    counter = CharTokenCounter()
    with pytest.raises(MessageError, match="system prompt alone has more than 20 tokens"):
        formatted(OpenAIChatFormatter(token_counter=counter, max_tokens=20), SYSTEM, ("user", "hi", "user"))
    with pytest.raises(UsageError, match="max_tokens is 0"):
        OpenAIChatFormatter(token_counter=counter, max_tokens=0)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="not Msg"):
        asyncio.run(OpenAIChatFormatter().format(Msg("a", "b", "user")))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="number 1 of the list is str"):
        asyncio.run(OpenAIChatFormatter().format([Msg("a", "b", "user"), "c"]))  # type: ignore[list-item]


@pytest.mark.parametrize("cls", [*CHAT, *MULTI])
def test_a_formatter_travels_with_its_counter(cls: Any) -> None:
    before: FormatterBase = cls(token_counter=CharTokenCounter(), max_tokens=90)
    data = json.loads(json.dumps(Writer(AllowList(())).write(before, "argument 'formatter'")))
    after = Reader(AllowList(())).read(data)
    assert type(after) is cls and after.max_tokens == 90 and isinstance(after.token_counter, CharTokenCounter)
