"""Texts of errors from elsewhere, for people."""

import re

_TRACE = "Traceback (most recent call last)"
_ERROR = re.compile(r"(?m)^[A-Za-z_][\w.]*(?::|$)")
_MOST = 100_000  # characters that are looked through


def without_trace(text: str) -> str:
    """A text without the tracebacks in it: what stands before them, and the error at the end of the last one."""
    if _TRACE not in text:
        return text
    before, after = text[:text.index(_TRACE)], text[text.rindex(_TRACE) + len(_TRACE):][-_MOST:]
    found = [match.start() for match in _ERROR.finditer(after.replace("\r\n", "\n"))]
    error = after.replace("\r\n", "\n")[found[-1]:] if found else after
    return f"{before.strip()} {error.strip()}".strip()
