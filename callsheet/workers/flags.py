"""What `celery worker` is given on its command line, checked before Celery reads it."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import click

from callsheet.errors import SettingsError
from callsheet.scaling import Limits


class First(click.Option):
    """An option that nobody gives, looked at before all others, and before Celery reads its configuration.

    Args:
        then: done where nothing is wrong with --autoscale.
    """

    def __init__(self, then: Callable[[], object]) -> None:
        super().__init__(["--callsheet-first"], hidden=True, is_eager=True, expose_value=False)
        self._then = then

    def handle_parse_result(self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]) -> Any:
        """Called while the command line is read.

        Raises:
            click.BadParameter: names what was given, and what is right.
            click.ClickException: a module of CALLSHEET_MODULES cannot be imported.
        """
        given = opts.get("autoscale")
        if given is not None and (wrong := wrong_with(str(given))):
            raise click.BadParameter(wrong, ctx, param_hint="--autoscale")
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
    try:
        Limits(maximum=int(found[1]), minimum=int(found[2] or 0))
    except SettingsError as exc:
        return f"{exc} {right}"
    return ""
