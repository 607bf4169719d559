"""Msg: AgentScope's message, checked."""

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from callsheet import Base64Source, ImageBlock, Msg, TextBlock, URLSource
from callsheet.errors import MessageError

quick = settings(max_examples=60, deadline=None)
text = st.text(max_size=20)
numbers = st.integers(-10**40, 10**40) | st.floats(allow_nan=False)
plain = st.recursive(st.none() | st.booleans() | numbers | text,
                     lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=8)
extras = st.dictionaries(st.sampled_from(["cache_control", "signature", "index"]), plain, max_size=2)


def block(kind: str, **fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    shape = st.fixed_dictionaries({"type": st.just(kind), **fields})
    return st.builds(lambda one, more: {**more, **one}, shape, extras)


source = block("url", url=text) | block("base64", media_type=text, data=text)
media = block("image", source=source) | block("audio", source=source) | block("video", source=source)
blocks = (block("text", text=text) | block("thinking", thinking=text) | media
          | block("tool_use", id=text, name=text, input=st.dictionaries(text, plain, max_size=3))
          | block("tool_result", id=text, name=text,
                  output=text | st.lists(block("text", text=text) | media, max_size=3)))
contents = text | st.lists(blocks, max_size=4)
roles = st.sampled_from(["user", "assistant", "system"])
msgs = st.builds(Msg, text, contents, roles, st.none() | st.dictionaries(text, plain, max_size=3),
                 st.none() | text, st.none() | text)


@quick
@given(msgs)
def test_both_ways_through_json_give_an_equal_message(msg: Msg) -> None:
    assert Msg.from_dict(json.loads(json.dumps(msg.to_dict()))) == msg
    assert Msg.model_validate_json(msg.model_dump_json()) == msg
    assert Msg.model_validate(msg.model_dump()) == msg


@quick
@given(contents)
def test_every_block_is_kept_with_all_its_keys(content: Any) -> None:
    assert Msg("a", content, "user").content == content


@quick
@given(st.lists(blocks, max_size=5))
def test_blocks_are_found_by_type(content: list[Any]) -> None:
    msg = Msg("a", content, "user")
    kinds = {item["type"] for item in content}
    assert msg.get_content_blocks() == content
    assert msg.has_content_blocks() == bool(content)
    for kind in ("text", "thinking", "image", "audio", "video", "tool_use", "tool_result"):
        assert msg.get_content_blocks(kind) == [item for item in content if item["type"] == kind]
        assert msg.has_content_blocks(kind) == (kind in kinds)
    assert msg.get_content_blocks(["text", "image"]) == [b for b in content if b["type"] in ("text", "image")]
    texts = [item["text"] for item in content if item["type"] == "text"]
    assert msg.get_text_content("|") == ("|".join(texts) if texts else None)


def test_text_counts_as_one_text_block() -> None:
    msg = Msg("a", "hello", "user")
    assert msg.get_content_blocks() == [{"type": "text", "text": "hello"}]
    assert msg.get_content_blocks("text") == [{"type": "text", "text": "hello"}]
    assert msg.get_content_blocks("image") == []
    assert msg.get_text_content() == "hello"
    assert Msg("a", [TextBlock(type="text", text="x"), TextBlock(type="text", text="y")],
               "user").get_text_content() == "x\ny"


def test_block_types_are_dictionaries() -> None:
    picture = ImageBlock(type="image", source=URLSource(type="url", url="https://x/y.png"))
    inline = ImageBlock(type="image", source=Base64Source(type="base64", media_type="image/png", data="aGk="))
    assert Msg("a", [picture, inline], "user").get_content_blocks("image")[0]["source"]["url"] == "https://x/y.png"


def test_has_agentscopes_defaults() -> None:
    msg = Msg("a", "b", "user")
    assert msg.metadata == {}
    assert msg.invocation_id is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", msg.timestamp)
    assert msg.id != Msg("a", "b", "user").id
    assert list(msg.to_dict()) == ["id", "name", "role", "content", "metadata", "timestamp"]
    given = Msg("a", "b", "user", None, "2026-01-01 00:00:00.000", "call-1")
    assert given.timestamp == "2026-01-01 00:00:00.000"
    assert given.to_dict()["invocation_id"] == "call-1"
    assert Msg("a", "b", "user", timestamp="").timestamp


def test_from_dict_fills_what_may_be_missing() -> None:
    msg = Msg.from_dict({"name": "a", "content": "b", "role": "user"})
    assert msg.id
    assert msg.timestamp
    assert Msg.from_dict({"name": "a", "content": "b", "role": "user", "metadata": None}).metadata == {}
    assert Msg.from_dict({"name": "a", "content": "b", "role": "user", "id": "x"}).id == "x"


@pytest.mark.parametrize(("data", "named"), [
    ({}, "content, name, role"), ({"name": "a"}, "content, role"), ({"name": "a", "content": "b"}, "role"),
    ({"name": "a", "content": "b", "role": "user", "mood": 1}, "mood"),
    ({"name": "a", "content": "b", "role": "user", 5: 1}, "key 5"), ([], "list"), ("text", "str"), (None, "NoneType")])
def test_from_dict_says_what_is_wrong(data: Any, named: str) -> None:
    with pytest.raises(MessageError, match=named):
        Msg.from_dict(data)


def test_the_senders_lists_are_not_shared() -> None:
    metadata: dict[str, Any] = {"rows": [1]}
    content: list[Any] = [{"type": "tool_use", "id": "1", "name": "f", "input": {"q": []}}]
    msg = Msg("a", content, "user", metadata)
    metadata["rows"].append(2)
    content[0]["input"]["q"].append(1)
    assert msg.metadata == {"rows": [1]}
    assert msg.content[0]["input"] == {"q": []}  # type: ignore[typeddict-item, index]


@pytest.mark.parametrize(("content", "named"), [
    (5, "content: a text or a list of content blocks is needed"),
    (None, "content: a text or a list"),
    ({"type": "text", "text": "x"}, "content: a text or a list"),
    (["x"], r"content\.0"),
    ([{"text": "x"}], r"content\.0: .*'type'"),
    ([{"type": "txt", "text": "x"}], r"content\.0: .*'txt'.*'tool_result'"),
    ([{"type": "text", "text": "x"}, {"type": "text", "text": 5}], r"content\.1\.text\.text: .*given 5"),
    ([{"type": "image", "source": {"type": "url"}}], r"source\.url\.url"),
    ([{"type": "tool_use", "id": "1", "name": "f", "input": "x"}], r"tool_use\.input"),
    ([{"type": "tool_use", "id": "1", "name": "f", "input": {"a": object()}}], r"input\.a"),
    ([{"type": "tool_result", "id": "1", "name": "f", "output": [{"type": "thinking", "thinking": "x"}]}], "thinking"),
])
def test_bad_content_is_named(content: Any, named: str) -> None:
    with pytest.raises(MessageError, match=named) as caught:
        Msg("Bob", content, "user")
    assert "'Bob'" in str(caught.value)
    assert caught.value.__cause__ is None
    assert isinstance(caught.value, ValueError)


def test_every_wrong_part_is_named_at_once() -> None:
    with pytest.raises(MessageError) as caught:
        Msg(7, "x", "robot", metadata=[1])  # type: ignore[arg-type]
    for part in ("name", "role", "metadata", "'robot'"):
        assert part in str(caught.value)


def test_assignment_is_checked_and_leaves_the_message_as_it_was() -> None:
    msg = Msg("a", "b", "user")
    for field, value in (("role", "robot"), ("content", 5), ("metadata", {"x": object()}), ("mood", 1),
                         ("content", "\ud800")):
        with pytest.raises(MessageError, match=field):
            setattr(msg, field, value)
    assert (msg.role, msg.content, msg.metadata) == ("user", "b", {})
    msg.content = [TextBlock(type="text", text="c")]
    msg.metadata["k"] = 1
    assert msg.get_text_content() == "c"


@pytest.mark.parametrize("value", ["é", "日本", "👩‍👩‍👧", "\u0000", "\u2028", "a\nb"])
def test_any_unicode_is_kept(value: str) -> None:
    msg = Msg(value, [{"type": "text", "text": value, "k": value}], "user", {value: value})
    assert Msg.from_dict(json.loads(json.dumps(msg.to_dict()))) == msg


@pytest.mark.parametrize("args", [
    ("a", "x\ud800", "user"), ("\udfff", "x", "user"), ("a", [{"type": "text", "text": "\ud800"}], "user"),
    ("a", [{"type": "text", "text": "x", "more": "\ud800"}], "user"),
    ("a", [{"type": "tool_use", "id": "1", "name": "f", "input": {"q": ["\ud800"]}}], "user"),
    ("a", "x", "user", {"k": "\ud800"}), ("a", "x", "user", {"\ud800": 1})])
def test_half_surrogate_pairs_are_refused(args: tuple[Any, ...]) -> None:
    with pytest.raises(MessageError, match="surrogate"):
        Msg(*args)


def test_huge_numbers_are_kept_or_refused() -> None:
    msg = Msg("a", "x", "user", {"big": 10**4000})
    assert Msg.model_validate_json(msg.model_dump_json()) == msg
    with pytest.raises(MessageError, match="metadata: a whole number of over"):
        Msg("a", "x", "user", {"big": 10**5000})


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_that_are_not_finite_are_kept(value: float) -> None:
    msg = Msg("a", "x", "user", {"score": value})
    for again in (Msg.from_dict(json.loads(json.dumps(msg.to_dict()))), Msg.model_validate_json(msg.model_dump_json())):
        assert repr(again.metadata["score"]) == repr(value)


def test_a_message_is_a_field_of_a_pydantic_model() -> None:
    class Turn(BaseModel):
        said: list[Msg]

    turn = Turn(said=[Msg("a", "b", "user", {"k": 1})])
    assert Turn.model_validate_json(turn.model_dump_json()) == turn
    with pytest.raises(ValidationError, match="role"):
        Turn.model_validate({"said": [{"name": "a", "content": "b", "role": "robot"}]})


@quick
@given(st.fixed_dictionaries({}, optional={
    "name": plain, "content": plain | st.lists(st.dictionaries(st.sampled_from(["type", "text", "source"]), plain)),
    "role": plain, "metadata": plain, "timestamp": plain, "invocation_id": plain, "id": plain}))
def test_whatever_from_dict_is_given_only_message_errors_come(data: dict[str, Any]) -> None:
    try:
        msg = Msg.from_dict(data)
    except MessageError:
        return
    assert Msg.from_dict(msg.to_dict()) == msg
