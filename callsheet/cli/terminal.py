"""What commands write to the terminal: all of it through here, so that no text from elsewhere steers a terminal."""

from typing import Any, Self

import click
import rich.table
import rich.text

from callsheet.messages.printable import as_json, escaped, printable


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
