"""Names of tools and ids of their calls, as every provider takes them."""

import hashlib
import re
import secrets

LONGEST = 64
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_OTHER = re.compile(r"[^A-Za-z0-9_-]")


def tool_name(name: str, *, told_apart: bool = False) -> str:
    """A tool's name, or one like it of letters, digits, _ and -, at most 64, that begins with a letter or _.

    Args:
        name: as its server or its function has it.
        told_apart: whether another name has led to the same; this one then ends with a mark of its own.
    """
    if _NAME.fullmatch(name) and not told_apart:
        return name
    made = _OTHER.sub("_", name)
    made = made if made[:1].isalpha() or made[:1] == "_" else f"_{made}"
    if told_apart or len(made) > LONGEST:
        made = f"{made[:LONGEST - 9]}_{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"
    return made


def new_call_id() -> str:
    """An id for a tool call: of nine letters and digits, which is what the strictest provider takes."""
    return secrets.token_hex(5)[:9]
