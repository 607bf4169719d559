"""What commands write to the terminal: all of it through here, so that no text from elsewhere steers a terminal."""

import json
import os
import time
from typing import TYPE_CHECKING, Any, Self

import click
import rich.table
import rich.text

from callsheet.messages import Msg
from callsheet.messages.printable import as_json, escaped, printable

if TYPE_CHECKING:
    from rich.console import Console


def say(*parts: "str | tuple[str, dict[str, Any]]", err: bool = False) -> None:
    """Write a line of texts; one with a style, as click.style takes it, is a pair of both."""
    click.echo("".join(printable(part) if isinstance(part, str) else click.style(printable(part[0]), **part[1])
                       for part in parts), err=err)


def say_json(value: Any) -> None:
    """Write a line of JSON, which reads back the same."""
    click.echo(as_json(value))


def say_lines(text: str) -> None:
    """Write lines that are JSON already."""
    click.echo(escaped(text), nl=False)


def say_msg(when: str, msg: Msg) -> None:
    """Write a message: its text, and what else is in it as JSON."""
    say(f"{when}  {msg.name}: " + "\n    ".join(
        block["text"] if block["type"] == "text" else json.dumps(block, ensure_ascii=False)
        for block in msg.get_content_blocks()))


def moment(unix: float) -> str:
    """A unix time for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))


def console(piped: int) -> "Console":
    """The terminal for tables; of so many columns where the output is no terminal, and so has no edge."""
    from rich.console import Console

    made = Console(highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = piped
    return made


class Text(rich.text.Text):
    """A styled text."""

    def __init__(self, line: str = "", *args: Any, **kwargs: Any) -> None:
        super().__init__(printable(line), *args, **kwargs)

    def append(self, text: rich.text.Text | str, style: Any = None) -> Self:
        """Add a text."""
        super().append(printable(text) if isinstance(text, str) else text, style)
        return self

    @classmethod
    def assemble(cls, *parts: Any, **kwargs: Any) -> Self:
        """A text of several, each with a style if it is a pair."""
        made: Any = super().assemble(*parts, **kwargs)
        return made  # type: ignore[no-any-return]


class Table(rich.table.Table):
    """A table whose cells are texts as they are, and no markup."""

    def add_row(self, *cells: Any, **kwargs: Any) -> None:
        """Add a row."""
        super().add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells), **kwargs)
