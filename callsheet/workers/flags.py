"""What `celery worker` is given on its command line, checked before Celery reads it."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import click

from callsheet.errors import SettingsError


class First(click.Option):
    """An option that nobody gives, looked at before all others, and before Celery reads its configuration.

    Args:
        checks: for an option, what says in words what is wrong with its value, "" if nothing is.
        then: done where nothing is wrong.
    """

    def __init__(self, checks: Mapping[str, Callable[[str], str]], then: Callable[[], object]) -> None:
        super().__init__(["--callsheet-first"], hidden=True, is_eager=True, expose_value=False)
        self._checks, self._then = checks, then

    def handle_parse_result(self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]) -> Any:
        """Called while the command line is read.

        Raises:
            click.BadParameter: names what was given, and what is right.
            click.ClickException: a module of CALLSHEET_MODULES cannot be imported.
        """
        for name, check in self._checks.items():
            if opts.get(name) is not None and (wrong := check(str(opts[name]))):
                raise click.BadParameter(wrong, ctx, param_hint=f"--{name}")
        try:
            self._then()
        except SettingsError as exc:
            raise click.ClickException(str(exc)) from exc
        return super().handle_parse_result(ctx, opts, args)


def wrong_with(value: str) -> str:
    """What is wrong with a "MAX,MIN" or "MAX", in words; "" if nothing is.

    Celery takes MIN,MAX as well and any numbers, and ends with an AttributeError over two words.
    """
    found = re.fullmatch(r"\s*([+-]?\d+)\s*(?:,\s*([+-]?\d+)\s*)?", value)
    right = "Give MAX,MIN: two whole numbers, the greater first, such as --autoscale=500,20."
    if found is None:
        return f"{value!r} is not MAX,MIN. {right}"
    most, least = int(found[1]), int(found[2] or 0)
    if most < 1:
        return f"a MAX of {most} lets no call run. {right}"
    if least < 0:
        return f"a MIN of {least} is below nothing. {right}"
    if least > most:
        return f"the MAX of {most} is below the MIN of {least}. {right}"
    return ""
