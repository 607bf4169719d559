"""`callsheet hub` on the command line."""

import json
import subprocess
import sys
from threading import Thread

import pytest
from click.testing import CliRunner

from callsheet import Msg, MsgHub
from callsheet.cli.main import main
from tests.agents.hubs import Talker, Watcher
from tests.office import say
from tests.services import wait_for


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["hub", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_list_show_say_and_tail(at):
    alice, bob = Talker("alice"), Watcher("bob", "cli-notes")
    hub = MsgHub.open("cli", [alice, bob], Msg("host", "Topic", "user"))
    at.wait_notes("cli-notes", 1)
    alice.submit(say("a reply")).get(20)
    at.wait_notes("cli-notes", 2)
    try:
        assert json.loads(run("list", "--json").splitlines()[0])["name"] == "cli"
        assert "2 members       2 messages" in run("list")
        wait_for(lambda: "0 behind  eager" in run("show", "cli"), what="bob to have heard")
        shown = run("show", "cli")
        assert shown.startswith("cli: open, until it is closed;")
        assert "2 messages; replies are shared" in shown
        seats = {one["agent"]: one for one in json.loads(run("show", "cli", "--json"))["seats"]}
        assert (seats["Talker(alice)"]["eager"], seats["Watcher(bob)"]["eager"]) == (False, True)
        first = run("say", "cli", "from the terminal", "--as", "me").strip()
        assert first.endswith("-3")
        lines = run("tail", "cli", "--no-follow").splitlines()
        assert [line.split("  ", 1)[1] for line in lines] == ["host: Topic", "alice: a reply", "me: from the terminal"]
        assert run("tail", "cli", "--no-follow", "-n", "1").count("\n") == 1
        assert run("tail", "cli", "--no-follow", "-n", "0") == run("tail", "cli", "--no-follow", "--since", first) == ""
        found = [json.loads(line) for line in run("tail", "cli", "--no-follow", "--json").splitlines()]
        assert [(one["number"], one["sender"]) for one in found] == [(1, ""), (2, alice.id), (3, "")]
        assert Msg.from_dict(found[2]["msg"]).name == "me"
    finally:
        hub.close()
    assert "closed at" in run("show", "cli")
    assert run("tail", "cli").count("\n") == 3, "what is kept, and then it ends"
    assert "No hub 'cli' is open" in run("say", "cli", "x", code=1)


def test_tail_follows_until_the_hub_is_closed(at):
    hub = MsgHub.open("followed")
    tail = subprocess.Popen([sys.executable, "-m", "callsheet.cli.main", "hub", "tail", "followed"], text=True,
                            stdout=subprocess.PIPE, env={"CALLSHEET_REDIS_URL": at.server.url, "PATH": ""})
    lines: list[str] = []
    assert tail.stdout is not None
    reader = Thread(target=lambda: lines.extend(tail.stdout))  # type: ignore[arg-type]
    reader.start()
    try:
        hub.broadcast(Msg("host", "one", "user"))
        wait_for(lambda: lines, 20, "the first line")
        hub.broadcast(Msg("host", "two", "user"))
        wait_for(lambda: len(lines) == 2, 20, "the second line")
    finally:
        hub.close()
    assert tail.wait(20) == 0
    reader.join(10)
    assert [line.rstrip().split("  ", 1)[1] for line in lines] == ["host: one", "host: two"]


@pytest.mark.parametrize("command", [("show", "nowhere"), ("tail", "nowhere"), ("say", "nowhere", "x")])
def test_a_hub_that_is_not_there_is_named(at, command):
    assert "No hub 'nowhere' is open" in run(*command, code=1)
