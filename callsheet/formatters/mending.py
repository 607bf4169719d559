"""What no provider takes, mended on the way out: a memory holds what models, tools and people said as they said it."""

import json
import re
from typing import Any

from callsheet.messages import Msg
from callsheet.messages.pairing import NO_RESULT, paired, tool_name

NO_TEXT = "(no text)"


def mended(msgs: list[Msg], ids: re.Pattern[str]) -> list[Msg]:
    """The messages without blank texts, each tool call followed by its result alone; themselves where that is so."""
    return paired([one for msg in msgs if (one := _filled(msg)) is not None], ids)


def _filled(msg: Msg) -> Msg | None:
    """The message without what is blank; None where an agent, or the system, said nothing else."""
    if isinstance(msg.content, str):
        return msg if msg.content.strip() else _with(msg, []) if msg.role == "user" else None
    after = [one for block in msg.content if (one := _block(block)) is not None]
    if any(block["type"] == "tool_use" for block in after) and msg.role != "assistant":
        msg = msg.model_copy(update={"role": "assistant"})  # nobody else can call
    if after == msg.content:
        return msg
    return _with(msg, after) if after or msg.role == "user" else None


def _with(msg: Msg, blocks: list[Any]) -> Msg:
    return msg.model_copy(update={"content": blocks or NO_TEXT})


def _block(block: Any) -> Any:
    kind = block["type"]
    if kind in ("text", "thinking"):  # others than these two keys: a signature, which is wanted back
        return block if block[kind].strip() or len(block) > 2 else None
    if kind in ("tool_use", "tool_result") and (name := tool_name(block["name"] or "unnamed")) != block["name"]:
        block = {**block, "name": name}  # one that a model made up
    if kind == "tool_use":
        try:
            json.dumps(block["input"], allow_nan=False)
        except ValueError:  # of a number that is none, or too large: Python reads these, and JSON has none
            block = {**block, "input": json.loads(json.dumps(block["input"]), parse_constant=str)}
    if kind == "tool_result":
        output = block["output"]
        full = output.strip() if isinstance(output, str) else [
            item for item in output if item["type"] != "text" or item["text"].strip()]
        if not full or (full != output and not isinstance(output, str)):
            return {**block, "output": full or NO_RESULT}
    return block
