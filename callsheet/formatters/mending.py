"""What no provider takes, mended on the way out: a memory holds what models, tools and people said as they said it."""

import re
from typing import Any

from callsheet.messages import Msg
from callsheet.messages.names import tool_name
from callsheet.messages.pairing import NO_RESULT, paired

NO_TEXT = "(no text)"


def mended(msgs: list[Msg], ids: re.Pattern[str]) -> list[Msg]:
    """The messages without blank texts, each tool call followed by its result alone; themselves where that is so.

    Args:
        msgs: of a conversation.
        ids: what the provider takes for the id of a call.
    """
    return paired([one for msg in msgs if (one := _filled(msg)) is not None], ids)


def _filled(msg: Msg) -> Msg | None:
    """The message without what is blank; None where an agent, or the system, said nothing else."""
    before = msg.get_content_blocks()
    after = [one for block in before if (one := _block(block)) is not None]
    if after == before:
        return msg
    if not after and msg.role == "user":
        after = [{"type": "text", "text": NO_TEXT}]
    return msg.model_copy(update={"content": after}) if after else None


def _block(block: dict[str, Any]) -> dict[str, Any] | None:
    kind = block["type"]
    if kind in ("text", "thinking"):  # others than these two keys: a signature, which is wanted back
        return block if block[kind].strip() or len(block) > 2 else None
    if kind in ("tool_use", "tool_result") and (name := tool_name(block["name"] or "unnamed")) != block["name"]:
        block = {**block, "name": name}  # one that a model made up
    if kind == "tool_result":
        output = block["output"]
        if isinstance(output, str):
            return block if output.strip() else {**block, "output": NO_RESULT}
        full = [item for item in output if item["type"] != "text" or item["text"].strip()]
        return block if full and full == output else {**block, "output": full or NO_RESULT}
    return block
