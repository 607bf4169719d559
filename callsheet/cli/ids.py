"""Ids as people write them: their beginnings."""

from collections.abc import Iterable

import click

WHOLE = 36
"""Characters of the ids that are made here."""


def meant(beginning: str, ids: Iterable[str], what: str) -> str:
    """The one id that begins so; `beginning` itself where it is a whole one, or where none does.

    Args:
        beginning: as given.
        ids: that there are.
        what: they are ids of, for people.

    Raises:
        click.ClickException: several do.
    """
    found = sorted({one for one in ids if one.startswith(beginning)})
    if beginning in found or not found:
        return beginning
    if len(found) > 1:
        raise click.ClickException(f"{len(found)} {what} begin with {beginning!r}: {', '.join(found[:5])}. Give "
                                   "more of the id.")
    return found[0]
