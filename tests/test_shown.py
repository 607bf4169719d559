"""What logs, `inspect` and Flower show of calls: agents, short arguments and replies without secrets, families."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callsheet import AgentFailed, FanoutPipeline, Msg, SequentialPipeline, Settings
from callsheet.messages.wire import Writer
from callsheet.settings import use_settings
from callsheet.settings.secrets import NONE, Secrets, secrets_of, without_keys
from callsheet.tasks.app import current_app
from callsheet.tasks.shown import Reply, hidden, shown
from tests.agents.basic import Echo
from tests.agents.family import Child, CpuParent, Parent, Spills
from tests.agents.gated import CpuGated, Gated
from tests.celery_events import events
from tests.services import wait_for

BLOCKS = [{"type": "text", "text": "Look  at\nthis"}, {"type": "image", "source": {"type": "url", "url": "https://x"}},
          {"type": "tool_use", "id": "1", "name": "search", "input": {}}]


def written(*values):
    return [Writer().write(value, "it") for value in values]


def arguments(*values, label="Reviewer(alice)", **kwargs):
    texts = shown(label, written(*values), kwargs)
    return texts["argsrepr"], texts["kwargsrepr"]


def test_a_call_is_shown_by_its_class_its_agent_and_what_was_said_to_it():
    assert shown("Reviewer(alice)", written(Msg("user", "Summarize this.", "user"))) == {
        "shadow": "Reviewer", "argsrepr": 'alice ← user: "Summarize this."', "kwargsrepr": "{}"}
    assert shown("Reviewer", [])["argsrepr"] == ""
    assert shown("Reviewer(alice)", [None])["argsrepr"] == "alice"


@pytest.mark.parametrize(("value", "text"), [
    (3, "3"), ("some  text\nof two lines", '"some text of two lines"'), ([1, "a"], '[1, "a"]'),
    ([1, 2, 3, 4, 5], "[1, 2, 3, … 2 more]"), ({"a": 1, "b": [True, None]}, "{a: 1, b: [True, None]}"),
    (Msg("bob", BLOCKS, "user"), 'bob: "Look at this" [image] [tool_use search]'),
    ([Msg("a", "x", "user"), Msg("b", "y", "user")], '[a: "x", b: "y"]'),
    ({"$payload": "0" * 64, "size": 1_200_000}, "(1,200,000 bytes, stored apart)"),
    ({"$error": {"exc_type": "ValueError"}}, "a failure (ValueError)"),
    (Echo("e"), "Echo"),
])
def test_values_are_shown_as_people_would_say_them(value, text):
    data = value if isinstance(value, dict) and any(key.startswith("$") for key in value) else written(value)[0]
    assert shown("A(a)", [data])["argsrepr"] == f"a ← {text}"


def test_long_values_are_cut():
    args, kwargs = arguments("word " * 100_000, text="x y " * 1000)
    assert len(args) < 120 and len(kwargs) < 120 and args.endswith('…"')
    assert len(arguments(*["word " * 100] * 50)[0]) <= 201
    assert len(repr(Reply(written(["word " * 100] * 50)[0]))) <= 201
    nested: list = []
    for _ in range(500):
        nested = [nested]
    assert "…" in shown("A(a)", [nested])["argsrepr"]


KEYS = ["sk-proj-abcdefghijkl0123", "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "AKIAIOSFODNN7EXAMPLE",
        "AIzaSyDaGmWKa4JsXZ-HjGw7ISLn_3namBGewQe", "xoxb-123456789012-abcdef", "hf_abcdefghijklmnop",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N", "0123456789abcdef0123456789abcdef",
        "-----BEGIN RSA PRIVATE KEY----- MIIEpAIBAAKCAQEA"]


@pytest.mark.parametrize("key", KEYS)
def test_what_looks_like_a_key_is_not_shown(key):
    for text in (key, f"use {key} for it", f"({key})"):
        args, _ = arguments(Msg("user", text, "user"), f"see {text}")  # a key alone does not travel
        assert "***" in args and key[4:] not in args, args
        assert key[4:] not in repr(Reply(written(Msg("a", text, "user"))[0]))


@pytest.mark.parametrize(("text", "left"), [
    ("password=hunter2 ok", "password=*** ok"), ('{"api_key": "abc123"}', '{"api_key": "***"}'),
    ("Authorization: Bearer abcdefgh1234", "Authorization: *** ***"),
    ("redis://me:hunter2@host/0", "redis://***@host/0"), ("DB_PASSWORD: hunter2", "DB_PASSWORD: ***"),
])
def test_what_is_called_a_secret_is_not_shown(text, left):
    assert hidden(text) == left


@pytest.mark.parametrize("text", ["The key point is that tokens: 500 were used", "claude-3-5-sonnet-20241022",
                                  "docs/2026/11/report-of-the-year.md", "a1b2c3d4-0000-4000-8000-00000000abcd",
                                  "donaudampfschifffahrtsgesellschaftskapitän"])
def test_ordinary_words_are_shown(text):
    assert hidden(text) == text


def test_what_the_arguments_names_call_a_secret_is_not_shown():
    _, kwargs = arguments(api_key="short", sentences=3, options={"db_password": "tiny", "key": "k"}, monkey="m")
    assert kwargs == "{api_key: ***, sentences: 3, options: {db_password: ***, key: ***}, … 1 more}"


def test_the_settings_secrets_are_not_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_KEY", "lazy dog")
    (tmp_path / "key").write_text("quick fox\n")
    settings = Settings.load(redis_url="redis://:swordfish@127.0.0.1:1/0", redis_sentinel_password="open sesame",
                             endpoints={"a": {"base_url": "http://x/v1", "api_key_env": "LOCAL_KEY"},
                                        "b": {"base_url": "http://x/v1", "api_key_file": str(tmp_path / "key")}})
    assert secrets_of(settings).values >= {"lazy dog", "quick fox", "swordfish", "open sesame"}
    with use_settings(settings):
        for secret in ("lazy dog", "quick fox", "swordfish", "open sesame"):
            args, kwargs = arguments(Msg("user", f"It is {secret}, no?", "user"), label=f"A({secret})", **{secret: 1})
            assert secret not in args + kwargs and args == '*** ← user: "It is ***, no?"'


@given(st.text(), st.text(alphabet=st.characters(categories=["L", "N"]), min_size=6, max_size=40), st.text())
def test_a_secret_of_the_settings_is_hidden_wherever_it_stands(before, secret, after):
    assert secret not in without_keys(before + secret + after, Secrets({secret}))


@pytest.mark.parametrize("part", ["-", "a", "_", "secret", "token-", "bearer ", "://a", "eyJ-", "key=", "sk-a", "a1 "])
def test_no_text_takes_long_to_look_through(part):
    began = time.process_time()
    without_keys(part * (400_000 // len(part)), NONE)
    assert time.process_time() - began < 5  # some hundredths; squared it would be minutes


# On workers


@pytest.mark.parametrize("parent", [Parent, CpuParent])
def test_a_call_knows_its_parent_and_the_root_however_it_was_sent(fleet, parent):
    job = parent("p").submit(Msg("user", "hello", "user"))
    told = job.get(timeout=60).metadata
    assert told["me"] == {"id": job.id, "parent": None, "root": job.id}
    for way in ("awaited", "submitted", "cpu", "thread", "mapped", "piped", "branch"):
        assert (told[way]["parent"], told[way]["root"]) == (job.id, job.id), way


def test_every_call_of_a_pipeline_has_the_job_as_its_root(fleet):
    job = SequentialPipeline([FanoutPipeline([Child("a"), Child("b")]), Child("c")]).submit(Msg("u", "x", "user"))
    assert job.get(timeout=30).metadata["root"] == job.id
    branches = FanoutPipeline([Child("a"), SequentialPipeline([Child("b"), Child("c")])]).submit(Msg("u", "x", "user"))
    assert {reply.metadata["root"] for reply in branches.get(timeout=30)} == {branches.id}


@pytest.mark.parametrize("agent", [Gated, CpuGated])
def test_inspect_shows_a_calls_arguments_as_people_read_them(fleet, agent, tmp_path):
    job = agent(str(tmp_path), name="g").submit(Msg("user", "my key is sk-abcdefgh12345678", "user"))
    worker = fleet.io if agent is Gated else fleet.cpu
    inspect = current_app(fleet.settings).control.inspect([worker.name], timeout=5, limit=1)

    def active():
        calls = (inspect.active() or {}).get(worker.name, [])
        return next((call for call in calls if call["id"] == job.id and call["time_start"]), None)

    call = wait_for(active, what="the call")
    assert (call["name"], call["args"], call["kwargs"]) == (agent.__name__, 'g ← user: "my key is ***"', "{}")
    (tmp_path / "gate").touch()
    job.get(timeout=30)


def test_logs_show_replies_short_and_without_secrets(fleet):
    job = Echo("e").submit(Msg("user", "the token is sk-abcdefgh12345678 " + "and more " * 100, "user"))
    assert "sk-abcdefgh12345678" in job.get(timeout=30).get_text_content()  # the reply itself is whole
    line = wait_for(lambda: next((line for line in fleet.io.log.splitlines() if job.id in line and "succ" in line), ""))
    assert 'e: "e:the token is *** and more' in line and len(line) < 300


def of_kind(seen, kind):
    return [event for event in list(seen) if event["type"] == kind]


def test_events_show_arguments_at_each_step_and_errors_without_secrets(fleet):
    with events(current_app(fleet.settings)) as seen:
        panel = SequentialPipeline([FanoutPipeline([Echo("a"), Echo("b")], reduce=Echo("c")), Echo("d")])
        panel.submit(Msg("user", "go", "user")).get(timeout=30)
        received = wait_for(lambda: len(found := of_kind(seen, "task-received")) == 4 and found, what="the calls")
        assert sorted(event["args"] for event in received) == [
            'a ← user: "go"', 'b ← user: "go"', 'c ← [a: "a:go", b: "b:go"]', 'd ← c: "c:a:go+b:go"']
        with pytest.raises(AgentFailed):
            Spills("so sk-abcdefgh12345678").submit().get(timeout=30)
        [failed] = wait_for(lambda: of_kind(seen, "task-failed"), what="the failure")
        assert "it is so ***" in failed["exception"] and "sk-abcdefgh" not in json.dumps(failed)
