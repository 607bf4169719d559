"""What is wrong with the settings, in words."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

HIDDEN = "***"


def report(exc: ValidationError, prefix: str, secret: frozenset[str]) -> list[str]:
    """Every wrong value of `exc`, a line each: the variable, the value, what would be right.

    Args:
        exc: from pydantic.
        prefix: of the environment variables.
        secret: field names whose values are not shown.
    """
    lines = []
    for error in exc.errors(include_url=False, include_context=False):
        path = [str(part) for part in error["loc"]]
        name = f"{prefix}{'__'.join(path).upper()} (in callsheet.toml: {'.'.join(path)})"
        wrong = error["msg"].removeprefix("Value error, ")
        if error["type"] == "missing":
            lines.append(f"{name} is missing.")
        elif error["type"] == "extra_forbidden":
            lines.append(f"{name} is not a setting.")
        elif secret & set(path):
            lines.append(f"{name} is a value that is not shown: {wrong}.")
        else:
            lines.append(f"{name} is {masked(error['input'], secret)!r}: {wrong}.")
    return lines


def masked(value: Any, secret: frozenset[str]) -> Any:
    """`value` without what is secret in it: fields of those names, and the user and password of an address."""
    if isinstance(value, dict):
        return {key: HIDDEN if key in secret else masked(item, secret) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(item, secret) for item in value]
    return re.sub(r"//[^/\s]*@", f"//{HIDDEN}@", value) if isinstance(value, str) else value


def misspelt(prefix: str, fields: Iterable[str], names: Iterable[str]) -> list[str]:
    """A line for each variable that looks like a setting with a letter wrong.

    Other unknown variables pass: Kubernetes puts CALLSHEET_SERVICE_HOST and the like into every pod that sees
    a service named callsheet, and CALLSHEET_REDIS_PORT where one is named callsheet-redis.
    """
    known = [field.upper() for field in fields]
    lines = []
    for name in names:
        head = name.upper().split("__", maxsplit=1)[0]
        short = head.removeprefix(prefix)
        if short == head or short in known:
            continue
        near = difflib.get_close_matches(short, known, n=1, cutoff=0.8)
        if near:
            lines.append(f"{name} is not a setting. Did you mean {prefix}{near[0]}?")
    return lines


def unknown(where: str, given: Iterable[str], fields: Iterable[str]) -> list[str]:
    """A line for each key of a file of ours that is no setting."""
    known = list(fields)
    lines = []
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}."
            lines.append(f"{key} in {where} is not a setting. {hint}")
    return lines
