"""What no provider takes, mended on the way out: a memory holds what models, tools and people said as they said it."""

from typing import Any

from callsheet.messages import Msg
from callsheet.messages.names import tool_name

NO_TEXT, NO_RESULT = "(no text)", "(no result)"


def mended(msgs: list[Msg]) -> list[Msg]:
    """The messages without blank texts, each tool call followed by its result alone; themselves where that is so."""
    found = [one for msg in msgs if (one := _filled(msg)) is not None]
    return found if _in_order(found) else _paired(found)


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


def _in_order(msgs: list[Msg]) -> bool:
    """Whether each call is followed by its result before anything else is said, under an id of its own."""
    waiting: set[str] = set()
    seen: set[str] = set()
    for msg in msgs:
        late = set(waiting)
        for block in msg.get_content_blocks():
            if block["type"] == "tool_use":
                if late or block["id"] in seen:
                    return False
                waiting.add(block["id"])
                seen.add(block["id"])
            elif block["type"] == "tool_result":
                if block["id"] not in waiting:
                    return False
                waiting.remove(block["id"])
                late.discard(block["id"])
            elif late:
                return False
    return not waiting or msgs[-1].has_content_blocks("tool_use")


def _paired(msgs: list[Msg]) -> list[Msg]:
    """The messages with the results of each one's calls behind it: the next of that id; in place of one, that there is
    none; without results of no call. The last message's calls may be without."""
    results = [(index, block) for index, msg in enumerate(msgs) for block in msg.get_content_blocks("tool_result")]
    made: list[Msg] = []
    seen: set[str] = set()
    for index, msg in enumerate(msgs):
        said: list[Any] = []
        answers: list[Any] = []
        for block in msg.get_content_blocks():
            if block["type"] == "tool_result":
                continue
            if block["type"] == "tool_use":
                again = next((later for later in range(index + 1, len(msgs)) if any(
                    other["id"] == block["id"] for other in msgs[later].get_content_blocks("tool_use"))), len(msgs))
                found = next((one for one in results if one[1]["id"] == block["id"] and index <= one[0] <= again), None)
                own = block["id"] if block["id"] not in seen else f"{block['id']}_{len(seen)}"
                seen.add(own)
                if found is not None:
                    results.remove(found)
                    answers.append({**found[1], "id": own})
                elif index < len(msgs) - 1:
                    answers.append({"type": "tool_result", "id": own, "name": block["name"], "output": NO_RESULT})
                said.append({**block, "id": own})
            else:
                said.append(block)
        made += [msg.model_copy(update={"content": said})] if said else []
        made += [Msg("system", answers, "system")] if answers else []
    return made
