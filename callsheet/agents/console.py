"""Messages on the console as they grow."""

import json
import sys
from collections import OrderedDict

from callsheet.messages import Msg
from callsheet.messages.printable import printable

_shown: "OrderedDict[str, str]" = OrderedDict()  # message id -> text printed so far
_MOST_OPEN = 256


def print_to_console(msg: Msg, last: bool) -> None:
    """Write what is new of `msg` since the last chunk of its id."""
    text = _text(msg, last)
    before = _shown.pop(msg.id, "")
    new = text[len(before):] if text.startswith(before) else "\n" + text
    sys.stdout.write(printable(new) + ("\n" if last else ""))
    sys.stdout.flush()
    if not last:
        _shown[msg.id] = text
        while len(_shown) > _MOST_OPEN:
            _shown.popitem(last=False)


def _text(msg: Msg, last: bool) -> str:
    parts = []
    for block in msg.get_content_blocks():
        if block["type"] == "text":
            parts.append(f"{msg.name}: {block['text']}")
        elif block["type"] == "thinking":
            parts.append(f"{msg.name} (thinking): {block['thinking']}")
        elif last and block["type"] in ("tool_use", "tool_result"):
            parts.append(f"{msg.name}: {json.dumps(block, ensure_ascii=False)}")
    return "\n".join(parts)
