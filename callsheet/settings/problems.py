"""What is wrong with the settings, in words."""

import difflib
from collections.abc import Iterable, Mapping

from pydantic import ValidationError


def report(exc: ValidationError, prefix: str, secret: frozenset[str]) -> str:
    """Every wrong value of `exc`, a line each: the variable, the value, what would be right.

    Args:
        exc: from pydantic.
        prefix: of the environment variables.
        secret: field names whose values are not shown.
    """
    lines = ["Some settings are wrong:"]
    for error in exc.errors(include_url=False, include_context=False):
        path = [str(part) for part in error["loc"]]
        name = prefix + "__".join(path).upper()
        dotted = ".".join(path)
        shown = "a value that is not shown" if secret & set(path) else repr(error["input"])
        wrong = error["msg"].removeprefix("Value error, ")
        lines.append(f"  {name} (in callsheet.toml: {dotted}) is {shown}: {wrong}.")
    lines.append("Correct them in the environment, in .env, in callsheet.toml or under [tool.callsheet].")
    return "\n".join(lines)


def misspelt(prefix: str, fields: Iterable[str], environ: Mapping[str, str]) -> list[str]:
    """A line for each variable that looks like a setting with a letter wrong.

    Other unknown variables pass: Kubernetes puts CALLSHEET_SERVICE_HOST and the like into every pod that sees
    a service named callsheet.
    """
    known = {prefix + field.upper() for field in fields}
    lines = []
    for name in environ:
        head = name.upper().split("__", maxsplit=1)[0]
        if not head.startswith(prefix) or head in known:
            continue
        near = difflib.get_close_matches(head, known, n=1, cutoff=0.85)
        if near:
            lines.append(f"{name} is not a setting. Did you mean {near[0]}?")
    return lines
