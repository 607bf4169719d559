"""Tool calls and their results: which belong together in a conversation, and names and ids that all providers take."""

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from callsheet.messages.msg import Msg

NO_RESULT = "(no result)"
LONGEST = 64  # characters of a tool's name
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


@dataclass(slots=True, eq=False)
class ToolCall:
    """A call, and where its result is."""

    at: int  # number of its message
    block: Any  # the call
    result: Any  # the result's block, or None
    result_at: int  # number of its message; of the call's own where there is none


def calls_in(msgs: Sequence[Msg]) -> list[ToolCall]:
    """The calls in order, each with its result: the next one of its id, since ids may come again later."""
    calls: list[ToolCall] = []
    waiting: dict[Any, list[ToolCall]] = {}
    for at, msg in enumerate(msgs):
        for block in () if isinstance(msg.content, str) else msg.content:
            if block["type"] == "tool_use":
                call = ToolCall(at, block, None, at)
                known = waiting.setdefault(block["id"], [])
                if known and known[0].at != at:
                    known.clear()  # whoever says the same id again later has given those up
                known.append(call)
                calls.append(call)
            elif block["type"] == "tool_result" and waiting.get(block["id"]):
                call = waiting[block["id"]].pop(0)
                call.result, call.result_at = block, at
    return calls


def paired(msgs: list[Msg], ids: re.Pattern[str]) -> list[Msg]:
    """The messages as providers take them: each call has an id of its own and, right after its message, a result.

    The last message's calls may be without: they may be under way.

    Args:
        msgs: of a conversation; where nothing is wrong, they are what comes back.
        ids: what the provider takes for the id of a call.
    """
    calls = calls_in(msgs)
    orphans = sum(block["type"] == "tool_result" for msg in msgs if not isinstance(msg.content, str)
                  for block in msg.content) - sum(call.result is not None for call in calls)
    own = _ids(calls, ids)
    last = len(msgs) - 1 if msgs and not msgs[-1].has_content_blocks("tool_result") else len(msgs)
    fine = not orphans and all(ident == call.block["id"] and (_follows(call, msgs) or (
        call.result is None and call.at == last)) for call, ident in zip(calls, own, strict=True))
    return list(msgs) if fine else _rebuilt(msgs, calls, own, last)


def _ids(calls: list[ToolCall], ids: re.Pattern[str]) -> list[str]:
    """An id for each call that is no other call's; the same each time."""
    seen: set[str] = set()
    found = []
    for number, call in enumerate(calls):
        ident = call.block["id"]
        if not ids.fullmatch(ident):
            ident = _OTHER.sub("_", ident)
        if ident in seen or not ids.fullmatch(ident):
            ident = hashlib.sha256(f"{number} {ident}".encode("utf-8", "replace")).hexdigest()[:9]
        seen.add(ident)
        found.append(ident)
    return found


def _follows(call: ToolCall, msgs: Sequence[Msg]) -> bool:
    """Whether a call's result is there, and only other results are between their messages."""
    return call.result is not None and all(
        block["type"] == "tool_result" for msg in msgs[call.at + 1:call.result_at + 1]
        for block in msg.get_content_blocks())


def _rebuilt(msgs: list[Msg], calls: list[ToolCall], ids: list[str], last: int) -> list[Msg]:
    out: list[Msg] = []
    place = 0
    for at, msg in enumerate(msgs):
        if isinstance(msg.content, str):
            out.append(msg)
            continue
        blocks: list[Any] = []
        results: list[Any] = []
        for block in msg.content:
            if block["type"] == "tool_use":
                ident, call = ids[place], calls[place]
                place += 1
                blocks.append({**block, "id": ident})
                given: Any = call.result or {"type": "tool_result", "name": block["name"], "output": NO_RESULT}
                if call.result is not None or at != last:
                    results.append((call.result_at, {**given, "id": ident}))
            elif block["type"] != "tool_result":
                blocks.append(block)
        if blocks:
            out.append(msg.model_copy(update={"content": blocks}))
        if results:
            results.sort(key=lambda one: one[0])
            out.append(Msg("system", [block for _, block in results], "system"))
    return out
