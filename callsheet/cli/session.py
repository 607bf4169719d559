"""`callsheet session`: the states of agents by id."""

import json
import sys
from pathlib import Path

import click

from callsheet import sessions
from callsheet.cli.terminal import moment, say, say_json, say_lines, say_msg


@click.group(short_help="What agents remember, by id: list, show, copy, delete.", epilog="""\b
Examples:
  callsheet session list
  callsheet session show user-42
  callsheet session export user-42 > user-42.jsonl
  callsheet session import user-42.jsonl --id user-42-again
  callsheet session fork user-42 what-if
  callsheet session delete what-if""")
def session() -> None:
    """What agents remember, by id, in the Redis at CALLSHEET_REDIS_URL."""


@session.command("list")
@click.option("--most", default=50, show_default=True, type=click.IntRange(1), help="Show at most so many.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
def list_(most: int, as_json: bool) -> None:
    """The states that are kept, the last used first."""
    found = sessions.list(most)
    for one in found:
        if as_json:
            say_json({"id": one.id, "class": one.cls, "turns": one.turns, "created": one.created,
                      "updated": one.updated})
        else:
            say(f"{one.id:40} {one.turns:>6} turns  {moment(one.updated)}  {one.cls}")
    if not found and not as_json:
        say("No states are kept.", err=True)


@session.command()
@click.argument("session_id", metavar="ID")
@click.option("--original", is_flag=True, help="All messages, also those that were summarised.")
def show(session_id: str, original: bool) -> None:
    """What an agent remembers: its registered attributes and its messages."""
    for path, value in sorted(sessions.state(session_id).items()):
        say(f"{path} = {json.dumps(value, ensure_ascii=False)}")
    for msg in sessions.messages(session_id, original):
        say_msg(str(msg.timestamp), msg)


@session.command()
@click.argument("session_id", metavar="ID")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file; standard output without.")
def export(session_id: str, output: Path | None) -> None:
    """Write a state as JSON lines, which `import` reads."""
    text = sessions.export(session_id)
    if output is None:
        say_lines(text)
    else:
        output.write_text(text, encoding="utf-8")


@session.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--id", "session_id", metavar="ID", help="Its id, in place of the one that it had.")
@click.option("--replace", is_flag=True, help="In place of a state that is there already.")
def import_(file: Path, session_id: str | None, replace: bool) -> None:
    """Keep a state that `export` wrote; `-` reads standard input."""
    text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    say(sessions.put(text, session_id, replace))


@session.command()
@click.argument("session_id", metavar="ID")
@click.argument("new_id", metavar="NEW_ID")
@click.option("--replace", is_flag=True, help="In place of a state that is there already.")
def fork(session_id: str, new_id: str, replace: bool) -> None:
    """Copy a state to another id."""
    sessions.fork(session_id, new_id, replace)
    say(new_id)


@session.command()
@click.argument("session_ids", metavar="ID...", nargs=-1, required=True)
def delete(session_ids: tuple[str, ...]) -> None:
    """Remove states; exit code 1 if one was not there."""
    missing = [session_id for session_id in session_ids if not sessions.delete(session_id)]
    if missing:
        raise click.ClickException(f"No state is kept under {', '.join(map(repr, missing))}.")
