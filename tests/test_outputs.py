"""Texts from elsewhere on their way to terminals and pages: names, errors, questions, whatever a record holds."""

import base64
import hashlib
import io
import json
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from callsheet import Msg
from callsheet.agents.console import print_to_console
from callsheet.agents.terminal import tell
from callsheet.cli import main as main_module
from callsheet.cli.checks.findings import fail
from callsheet.cli.doctor import _print
from callsheet.cli.main import main
from callsheet.cli.progress import Display, Tally
from callsheet.cli.terminal import say, say_json, say_lines
from callsheet.cli.top_frame import frame
from callsheet.cli.top_look import Look, Quota, Rates
from callsheet.cli.tree_page import written
from callsheet.cli.tree_text import shown
from callsheet.errors import AgentFailed
from callsheet.hub.redis import HubLag
from callsheet.messages.printable import as_json, printable
from callsheet.tasks.tree.fill import filled
from callsheet.tasks.tree.nodes import JobNode

STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
EVIL = ("[/x][bold]\x1b]0;title\x07\x9b2J\r\x1b[8m\u202e\udc41"
        "<img src=x onerror=alert(1)>\"'><script>alert(1)</script>${x}{y}")


@given(st.text())
def test_printable_text_steers_nothing_and_json_reads_back_the_same(text: str) -> None:
    out = printable(text)
    assert not STEERING.search(out) and printable(out) == out
    assert json.loads(as_json({text: [text]})) == {text: [text]} and not STEERING.search(as_json(text))
    assert printable("Grüße, 世界\n\tאב") == "Grüße, 世界\n\tאב"


def hostile() -> JobNode:
    call = {"agent": f"A({EVIL})", "queue": EVIL, "worker": EVIL, "pid": EVIL,
            "sent": 1.0, "started": 2.0, "ended": 3.0}
    result = {"exc_type": EVIL, "exc_module": "builtins", "exc_message": [EVIL], "agent": EVIL}
    nodes = [filled(EVIL, EVIL, {"status": status, "result": result, "task_id": EVIL, "call": call}, None)
             for status in ("FAILURE", EVIL)]
    job = JobNode(EVIL, EVIL, EVIL, nodes[0], error=EVIL, looked=time.time())
    nodes[0].jobs.append(JobNode(EVIL, EVIL, EVIL, nodes[1], error=EVIL))
    return job


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.handlers: list[str] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "src"]
        self.scripts += [""] if tag == "script" else []

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            self.scripts[-1] += data


def test_a_page_holds_no_markup_but_its_own_and_runs_no_script_but_its_own() -> None:
    page = written(hostile())
    tags = Tags()
    tags.feed(page)
    assert not tags.handlers and len(tags.scripts) == 1 and not tags.names & {"img", "iframe"}
    policy = re.search(r"script-src ([^;]+);", page)
    script = page.partition("<script>")[2].partition("</script>")[0]
    assert policy and policy[1] == f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    page.encode("utf-8")


def frames() -> Iterator[Any]:
    told = {"slots": dict.fromkeys(("slots", "slots_used", "slots_waiting", "parked", "loop_lag_seconds"), 1.0),
            "pool": EVIL, "queues": [EVIL], "autoscale": {"bound": EVIL}, "agents": {f"A({EVIL})": [1.0, 1.0, 0.1]},
            "models": {EVIL: [1.0, 1.0, 1.0, 1.0]}, "tasks": 1}
    yield frame(Look(at=1.0, address=EVIL, waiting={EVIL: 3}, workers={EVIL: told, f"{EVIL}2": {}}, trouble=EVIL,
                     quotas={EVIL: Quota(breaker=EVIL, limits={"requests": (1, 2)})},
                     hubs=[HubLag(name=EVIL, members=1, messages=1, behind=1, used=0.0)]), Rates())
    yield from shown(hostile(), 120)


def test_what_rich_draws_steers_no_terminal_and_is_no_markup() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, highlight=False, width=4000)
    for one in frames():
        console.print(one)
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert not STEERING.search(text) and "[/x][bold]␛]0;title" in text
    assert "\x1b[8m" not in out.getvalue()


def test_what_commands_say_steers_no_terminal(capsys: pytest.CaptureFixture[str],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    say(EVIL, (EVIL, {"fg": "red"}))
    say_json({EVIL: EVIL})
    say_lines(json.dumps(EVIL, ensure_ascii=False) + "\n")
    Display(Tally(1, 0)).say(EVIL)
    _print([fail(EVIL, EVIL, EVIL)])
    text = EVIL.replace("\udc41", "")
    print_to_console(Msg(text, [{"type": "text", "text": text}, {"type": "thinking", "thinking": text}], "user"), True)
    tell(EVIL)
    out = capsys.readouterr()
    assert not STEERING.search(re.sub(r"\x1b\[[0-9;]*m", "", out.out + out.err)) and "\x1b[8m" not in out.out

    @click.command()
    @click.argument("how")
    def failing(how: str) -> None:
        raise AgentFailed(EVIL, "x", "y", "z") if how == "ours" else click.ClickException(EVIL)

    monkeypatch.setattr(main_module.Commands, "get_command", lambda *_: failing)
    for how in ("ours", "click"):
        assert not STEERING.search(CliRunner().invoke(main, ["failing", how]).output)
