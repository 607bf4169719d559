"""The command line's parts that need no workers: help, inputs, targets, results, progress."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import callsheet
from callsheet.cli import main as main_module
from callsheet.cli.batch import Sent
from callsheet.cli.inputs import Input, Inputs, Malformed
from callsheet.cli.main import COMMANDS, main
from callsheet.cli.progress import Tally, clock
from callsheet.cli.results import Results
from callsheet.cli.stack import claimed
from callsheet.cli.target import load
from callsheet.errors import AgentFailed

DEMO = Path(__file__).parent / "demo_files"


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def invoke(*args: str) -> Any:
    return CliRunner().invoke(main, args)


def test_version_and_help() -> None:
    assert callsheet.__version__ in invoke("--version").output
    overview = invoke("--help").output
    assert "..." not in overview.partition("Commands:")[2]  # each is told in one line
    for name in COMMANDS:
        assert name in overview
        shown = invoke(name, "--help")
        assert shown.exit_code == 0 and shown.output.startswith(f"Usage: main {name}")
        if name != "stub-model":
            assert re.search(rf"Examples:\s+callsheet {name}", shown.output)


def test_wrong_usage_is_exit_code_2() -> None:
    for args in (["no-such-command"], ["up", "--io", "5,20"], ["up", "--io", "many"], ["up", "--redis-port", "70000"],
                 ["run", "no-such-file.py", "--input", "."], ["run"]):
        done = invoke(*args)
        assert done.exit_code == 2 and "Error: " in done.output, args


def test_a_misspelt_command_is_answered_with_the_nearest() -> None:
    assert "No such command 'sessions'. Did you mean 'session'?" in invoke("sessions", "list").output
    assert "Did you mean" not in invoke("no-such-command").output


def test_an_error_of_ours_is_one_message_unless_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def failing() -> None:
        raise AgentFailed("the message", "builtins.ValueError", "why", "Traceback: long")

    monkeypatch.setattr(main_module.Commands, "get_command", lambda *_: failing)
    done = invoke("failing")
    assert done.exit_code == 1 and done.stderr == "Error: the message\n"
    assert isinstance(invoke("--debug", "failing").exception, AgentFailed)


# Inputs -----------------------------------------------------------------------------------------------


def all_of(*paths: str, **options: Any) -> tuple[list[Input], list[Malformed], Inputs]:
    inputs = Inputs([Path(path) for path in paths], **options)
    items = list(inputs)
    return ([item for item in items if isinstance(item, Input)],
            [item for item in items if isinstance(item, Malformed)], inputs)


def test_jsonl_lines_of_each_kind(tmp_path: Path) -> None:
    full = {"name": "eve", "role": "assistant", "content": [{"type": "text", "text": "blocks"}], "metadata": {"a": 1}}
    lines = ["plain", {"text": "t", "id": 7, "metadata": {"b": 2}}, full, {"content": "c"}]
    (tmp_path / "in.jsonl").write_text("\ufeff" + "\r\n\n".join(json.dumps(line) for line in lines))
    good, bad, _ = all_of("in.jsonl")
    assert not bad
    assert [item.source for item in good] == ["in.jsonl:1", "in.jsonl:3", "in.jsonl:5", "in.jsonl:7"]
    assert [item.msg.get_text_content() for item in good] == ["plain", "t", "blocks", "c"]
    assert good[1].msg.metadata == {"id": 7, "b": 2} and good[1].msg.role == "user"
    assert (good[2].msg.name, good[2].msg.role, good[2].msg.metadata) == ("eve", "assistant", {"a": 1})


def test_what_is_wrong_with_a_line_is_said(tmp_path: Path) -> None:
    wrong: dict[bytes, str] = {
        b"{": "not JSON", b"3": "JSON number", b"null": "JSON null", b'{"text": 3}': "'text' is a JSON number",
        b'{"content": "x", "role": "boss"}': "role", b'{"content": "x", "odd": 1}': "odd", b"{}": "it has nothing",
        b'{"text": "x", "metadata": [1]}': "'metadata' is a JSON array", b'"\xff"': "not UTF-8",
        b"[" * 100_000: "nested too deeply"}
    (tmp_path / "in.jsonl").write_bytes(b"\n".join([*wrong, b'"good"']))
    good, bad, _ = all_of("in.jsonl")
    assert [item.msg.content for item in good] == ["good"]
    for number, (item, why) in enumerate(zip(bad, wrong.values(), strict=True), 1):
        assert item.source == f"in.jsonl:{number}" and why in item.why and "\n" not in item.why


def test_a_field_of_another_name_holds_the_text(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"body": "b", "text": "t"}\n')
    [item], _, _ = all_of("in.jsonl", text_field="body")
    assert item.msg.content == "b" and item.msg.metadata == {"text": "t"}


def test_folders_are_sorted_and_binary_files_left_out(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", ".git/config", ".env", "a/é.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "p.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    (tmp_path / "long.txt").write_text("é" * 8193)  # a character lies across the end of the look
    (tmp_path / "results.jsonl").write_text("{}")
    good, bad, inputs = all_of(".", exclude=frozenset({(tmp_path / "results.jsonl").resolve()}))
    assert [item.source for item in good] == ["b.txt", "long.txt", "a/z.txt", "a/é.md"] and not bad
    assert inputs.skipped == {"hidden files": 1, "hidden folders": 1, "not text": 2}
    assert good[0].msg.metadata == {"path": "b.txt"}

    good, bad, _ = all_of("latin.txt", "p.png", "b.txt", "b.txt")
    assert [item.source for item in good] == ["b.txt"]  # once
    assert [item.source for item in bad] == ["latin.txt", "p.png"]
    assert all(item.why.startswith("it is not UTF-8") for item in bad)


def test_ids_follow_content_and_not_line_numbers(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('"a"\n"b"\n"a"\n')
    first = [item.id for item in all_of("in.jsonl")[0]]
    assert len(set(first)) == 3
    file.write_text('"new"\n"a"\n\n"a"\n"b"\n')
    assert [item.id for item in all_of("in.jsonl")[0]][1:] == [first[0], first[2], first[1]]
    assert [item.id for item in all_of("in.jsonl", limit=1)[0]] == [all_of("in.jsonl")[0][0].id]


# Targets ----------------------------------------------------------------------------------------------


def refusal(file: Path, name: str | None = None) -> str:
    with pytest.raises(click.ClickException) as caught:
        load(file, name)
    return caught.value.message


def test_the_target_of_a_file() -> None:
    assert load(DEMO / "counted.py").name == "agent"
    assert load(DEMO / "counted.py", "chain").target.label == "SequentialPipeline(Counted(first), Counted(second))"
    whole = load(DEMO / "parts.py")
    assert whole.name == "whole" and whole.module == "parts" and whole.folder == DEMO.resolve()
    assert whole.modules() == ("parts", "tests.agents.basic")


def test_a_file_in_a_package_is_imported_by_its_full_name(tmp_path: Path) -> None:
    package = tmp_path / "somebody" / "reviews"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "parts.py").write_text((DEMO / "counted.py").read_text())
    (package / "panel.py").write_text("from .parts import agent\n")
    loaded = load(package / "panel.py")
    assert loaded.module == "somebody.reviews.panel" and loaded.folder == tmp_path.resolve()
    assert loaded.modules() == ("somebody.reviews.panel", "somebody.reviews.parts")


def test_a_file_that_does_not_say_what_to_run() -> None:
    several = refusal(DEMO / "several.py")
    assert "--target one" in several and "--target two" in several and "Echo(two)" in several
    assert "agent = Summarizer" in refusal(DEMO / "nothing.py")
    assert "is a class" in refusal(DEMO / "nothing.py", "Maker")
    assert re.search("is not there.*one, two", refusal(DEMO / "several.py", "three"))


def test_a_file_that_cannot_be_imported(tmp_path: Path) -> None:
    assert re.search(r"line 5: FileNotFoundError: .*/nowhere/at/all", refusal(DEMO / "broken.py"))
    (tmp_path / "my-agents.py").touch()
    assert "Rename it" in refusal(tmp_path / "my-agents.py")
    (tmp_path / "json.py").touch()
    assert "another module of that name" in refusal(tmp_path / "json.py")


# Results ----------------------------------------------------------------------------------------------


def record(input_id: str, status: str = "ok", result: Any = None) -> dict[str, Any]:
    return {"input_id": input_id, "status": status, "result": result}


def test_results_are_put_in_order_without_what_was_superseded(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.jsonl"
    results = Results(path)
    for line in (record("c"), record("a", "failed"), record("b", result="\ud800é"), record("a")):
        results.write(line)
    results.put_in_order(["a", "b", "x"])
    assert [json.loads(line)["input_id"] for line in path.read_text().splitlines()] == ["a", "b", "c"]
    results.close()
    again = Results(path)
    assert again.is_done("a") and not again.is_done("x")
    before = path.stat().st_ino
    again.put_in_order(["a", "b"])
    assert path.stat().st_ino == before
    again.close()


def test_a_fresh_run_forgets_only_when_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(json.dumps(record("a")) + "\n")
    results = Results(path, fresh=True)
    assert not results.is_done("a") and path.stat().st_size
    results.begin()
    assert not path.stat().st_size
    results.close()


def test_one_run_at_a_time_writes_an_output(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl.state"
    sent = Sent(path, "f.py:agent")
    sent.begin()
    sent.add([("i", "j")])
    with pytest.raises(click.ClickException, match=r"writes .*out\.jsonl now"):
        Sent(path, "f.py:agent")
    sent.close()
    path.write_text(path.read_text() + '{"half')
    again = Sent(path, "f.py:agent")
    assert again.jobs == {"i": "j"}
    again.add([("k", "l")])
    again.close()
    assert [json.loads(line) for line in path.read_text().splitlines()][1:] == [
        {"input_id": "i", "job_id": "j"}, {"input_id": "k", "job_id": "l"}]


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(click.ClickException, match="Give another --data"), claimed(tmp_path / "file" / "data"):
        pass


def test_progress_in_words() -> None:
    tally = Tally(10, 4)
    assert tally.eta == "-:--" and tally.done == 4
    tally.ok, tally.failed, tally.running = 5, 1, 0
    assert tally.eta == "0:00" and tally.line().startswith("10/10 done, 1 failed, 0 running")
    assert (clock(59.9), clock(61), clock(3661)) == ("0:59", "1:01", "1:01:01")
