"""Text for terminals and logs: whatever came from elsewhere moves no cursor, sets no title and ends no line early."""

import json
import re
from typing import Any

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A text with pictures (␛) in place of its control characters; line ends and tabs stay.

    So do halves of characters become "�", which no terminal could be sent, and what turns the direction of writing.
    """
    return text if text.isascii() and text.isprintable() else _CONTROLS.sub(_shown, text.replace("\r\n", "\n"))


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7f else "�"


def as_json(value: Any) -> str:
    """JSON on one line that reads back the same, with control characters as escapes and other letters as they are."""
    return escaped(json.dumps(value, ensure_ascii=False))


def escaped(text: str) -> str:
    """JSON with control characters as escapes."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
