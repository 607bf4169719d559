"""The `callsheet` command."""

import difflib
import importlib
import os
import sys
import traceback
from typing import Any

import click

import callsheet
from callsheet.cli.terminal import say
from callsheet.errors import CallsheetError
from callsheet.messages.printable import printable

#: Where each command is; a module is imported when its command is asked for.
COMMANDS = {
    "up": ("callsheet.cli.up", "up"),
    "run": ("callsheet.cli.runner", "run"),
    "answer": ("callsheet.cli.answer", "answer"),
    "top": ("callsheet.cli.top", "top"),
    "show": ("callsheet.cli.show", "show"),
    "doctor": ("callsheet.cli.doctor", "doctor"),
    "scale": ("callsheet.cli.scale", "scale"),
    "session": ("callsheet.cli.session", "session"),
    "hub": ("callsheet.cli.hub", "hub"),
    "flower": ("callsheet.cli.flower", "flower"),
    "stub-model": ("callsheet.cli.stub_model", "stub_model"),
}


class Commands(click.Group):
    """A group that imports its commands late and shows Callsheet's errors as one message."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names, the usual ones first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(self, ctx: click.Context,
                        args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is meant by the first of the arguments; a misspelt one fails with the nearest."""
        name = args[0]
        near = difflib.get_close_matches(name, COMMANDS, 1) if name not in COMMANDS else []
        if near:
            ctx.fail(f"No such command {name!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of Callsheet's becomes its message and exit code 1."""
        try:
            return super().invoke(ctx)
        except CallsheetError as exc:
            if ctx.params.get("debug"):
                sys.excepthook = lambda _, error, where: say("".join(traceback.format_exception(error)), err=True)
                raise
            raise click.ClickException(printable(exc.message)) from None
        except click.ClickException as exc:
            exc.message = printable(exc.message)  # type: ignore[misc]
            raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(callsheet.__version__, prog_name="callsheet")
@click.option("--debug", is_flag=True, default=lambda: os.environ.get("CALLSHEET_DEBUG") == "1",
              help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Multi-agent LLM applications on Celery.

    \b
    callsheet up --modules myproject.agents     Redis, workers and Flower on this machine
    callsheet run review.py --input docs --up   a file's pipeline over a folder of documents
    callsheet top                               queues, workers and agents, live; callsheet doctor: what is wrong
    callsheet answer                            what jobs ask people, and the answers
    """


if __name__ == "__main__":
    main()
