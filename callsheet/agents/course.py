"""The course of one reply of a ReAct agent: what its model said last, and the results of its tool calls, in order."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from callsheet.memory import MemoryBase
from callsheet.messages import Msg, ToolUseBlock
from callsheet.messages.pairing import new_call_id
from callsheet.tools import Toolkit


@dataclass(eq=False)
class Course:
    """What one reply knows while it goes on; two replies of one agent object have one each.

    Whatever ends a round, `settle` leaves a history that every provider takes: a result for each tool call, after
    the message that made it.
    """

    owner: object  # the agent
    memory: MemoryBase
    form: type[BaseModel] | None = None  # of the data that are asked for
    finish: Toolkit | None = None  # with the tool by which the model gives them
    data: dict[str, Any] | None = None  # those that it gave, once they fit
    hints: list[Msg] = field(default_factory=list)  # for the model's next answer only; never remembered
    so_far: list[Any] = field(default_factory=list)  # texts of an answer that the model was stopped in
    taken: set[str] = field(default_factory=set)  # ids of the calls in the memory
    asked: set[str] = field(default_factory=set)  # ids of the messages that the reply is to
    blind: bool = False  # whether the endpoint has refused media: those that were not asked with are left out then
    adding: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while results are remembered

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A new round: the model has said nothing yet."""
        self._said: Msg | None = None
        self._own: dict[tuple[int, str], str] = {}
        self.calls: list[ToolUseBlock] = []
        self._results: dict[int, Msg] = {}
        self._kept = 0  # results in the memory: so many, from the first call on

    def named(self, blocks: Iterable[Any]) -> list[Any]:
        """The blocks of an answer, whose calls have ids that no earlier call has: some servers count anew each time."""
        found, number, taken = [], 0, set(self.taken)
        for block in blocks:
            if block["type"] == "tool_use":
                number += 1
                if block["id"] in taken:
                    own = self._own.setdefault((number, block["id"]), new_call_id())
                    block = {**block, "id": own}  # noqa: PLW2901
                taken.add(block["id"])
            found.append(block)
        return found

    async def said(self, msg: Msg) -> None:
        """Remember what the model said, in place of what this round remembered before, which hooks have changed."""
        if self._said == msg:
            return
        if self._said is not None:
            await self.memory.delete([self._said.id])
        self._said = deepcopy(msg)  # before it is remembered: whatever happens then, the calls are answered
        self.calls = msg.get_content_blocks("tool_use")
        await self.memory.add(msg)

    async def result(self, position: int, msg: Msg) -> None:
        """Remember a call's result, once those of the calls before it are there."""
        async with self.adding:
            self._results[position] = msg
            while self._kept in self._results:
                await self.memory.add(self._results[self._kept])
                self._kept += 1

    async def settle(self, text: str) -> list[Msg]:
        """Answer the calls that have no result.

        Returns:
            The messages that were made for that.
        """
        if self._said is None or self._kept == len(self.calls):
            return []
        others = await self._results_of_others(self._said.id)
        made: list[Msg] = []
        for position in range(self._kept, len(self.calls)):
            call = self.calls[position]
            if position not in self._results:
                if others is None or others[call["id"]] > 0:
                    if others is not None:
                        others[call["id"]] -= 1
                    continue
                self._results[position] = result_msg(call, text)
                made.append(self._results[position])
            await self.memory.add(self._results[position])
        self._kept = len(self.calls)
        return made

    async def _results_of_others(self, said: str) -> Counter[str] | None:
        """Results that a subclass's `_acting` remembered itself, by call; None if what the model said is forgotten."""
        found = await self.memory.get_memory(prepend_summary=False)
        start = next((place for place in range(len(found) - 1, -1, -1) if found[place].id == said), None)
        if start is None:
            return None
        seen = Counter(block["id"] for msg in found[start + 1:] for block in msg.get_content_blocks("tool_result"))
        return seen - Counter(self.calls[position]["id"] for position in range(self._kept))


#: The course of the reply in which code runs, and the position of the tool call.
current: ContextVar[Course | None] = ContextVar("callsheet_react_course", default=None)
place: ContextVar[int | None] = ContextVar("callsheet_react_place", default=None)


def result_msg(call: ToolUseBlock, output: Any) -> Msg:
    """The message with a tool call's result: text, or blocks."""
    return Msg("system", [{"type": "tool_result", "id": call["id"], "name": call["name"], "output": output}], "system")


def without_media(msg: Msg, why: str) -> Msg:
    """The message with a text in place of its pictures, sounds and films."""
    def told(block: Any) -> Any:
        if block["type"] == "tool_result" and not isinstance(block["output"], str):
            return {**block, "output": [told(item) for item in block["output"]]}
        media = block["type"] in ("image", "audio", "video")
        return {"type": "text", "text": f"({block['type']} that cannot be shown: {why})"} if media else block

    return msg.model_copy(update={"content": [told(block) for block in msg.get_content_blocks()]})


def joined(so_far: list[Any], rest: list[Any]) -> list[Any]:
    """The blocks of an answer and those with which it goes on amid a text."""
    texts = [block for block in rest if block["type"] == "text"]
    if not so_far or not texts:
        return [*so_far, *rest]
    return [*so_far[:-1], {**so_far[-1], "text": so_far[-1]["text"] + texts[0]["text"]}, *texts[1:]]


async def side_by_side(works: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    """What works give that run at once, in order; when this ends, whichever way, all of them have ended.

    Raises:
        BaseException: the first work's that raised, in their order.
    """
    tasks = [asyncio.create_task(work) for work in works]
    try:
        found = await asyncio.gather(*tasks, return_exceptions=True)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
    for item in found:
        if isinstance(item, BaseException):
            raise item
    return found
