"""What `celery worker` is given on its command line, checked before Celery reads it."""

import re
from collections.abc import Mapping
from typing import Any

import click


class CheckedAutoscale(click.Option):
    """An option that nobody gives: it looks at `--autoscale` first.

    Celery takes MIN,MAX as well as MAX,MIN and any numbers, and ends with an AttributeError over two words.
    """

    def __init__(self) -> None:
        super().__init__(["--checked-autoscale"], hidden=True, is_eager=True, expose_value=False)

    def handle_parse_result(self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]) -> Any:
        """Called while the command line is read.

        Raises:
            click.BadParameter: names what was given, and what is right.
        """
        wrong = wrong_with(str(opts["autoscale"])) if opts.get("autoscale") is not None else ""
        if wrong:
            raise click.BadParameter(wrong, ctx, param_hint="--autoscale")
        return super().handle_parse_result(ctx, opts, args)


def wrong_with(value: str) -> str:
    """What is wrong with a "MAX,MIN" or "MAX", in words; "" if nothing is."""
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
