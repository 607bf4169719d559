"""ReActAgent: an agent whose model reasons and calls tools until it has an answer."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, ClassVar, Literal, get_args

from pydantic import BaseModel

from callsheet.agents.base import AgentBase
from callsheet.agents.course import Course, current, joined, place, result_msg, side_by_side, without_media
from callsheet.errors import MessageError, UsageError
from callsheet.formatters import FormatterBase
from callsheet.memory import InMemoryMemory, MemoryBase
from callsheet.messages import Msg, ToolUseBlock
from callsheet.messages.forms import form_of
from callsheet.messages.pairing import calls_in
from callsheet.models import ChatModelBase, ChatResponse, EndpointError
from callsheet.resources.estimate import CHARACTERS
from callsheet.settings import get_settings
from callsheet.tools import Toolkit, ToolResponse
from callsheet.tools.groups import META_TOOL
from callsheet.tools.response import INTERRUPTED, NOTHING, cut, text_block

log = logging.getLogger(__name__)

ToolChoice = Literal["auto", "none", "required"]
OnCut = Literal["mark", "continue", "refuse"]
_WHY = "_finish_reason"  # in the metadata of an answer that is not whole
_BROKEN_OFF = "<system-info>This tool call was broken off: there is no result.</system-info>"
_REFUSED = "the model's endpoint refused what was here"
_SHORTER = 4  # times that a prompt is made shorter for one answer
_INTERRUPTED_REPLY = "You interrupted me. How shall I go on?"
_SAY_IT = "<system-hint>The data are complete. Now answer in words, from what you know.</system-hint>"
_GO_ON = ("<system-hint>The answer's data are still missing. Go on with the task, or, when you have all you need, call "
          "'{name}' with the data.</system-hint>")
_WRITE_ON = ("<system-hint>Your answer was cut off at a limit of tokens. Go on at the very place where it ends; repeat "
             "nothing.</system-hint>")
_SUM_UP = ("You have used up the steps that you had for this task. Answer now, without tools: sum up what you found "
           "and what remains open.")


class ReActAgent(AgentBase):
    """An agent whose model reasons and calls tools until it answers in plain text.

    Args:
        name: its name, the sender of its messages.
        sys_prompt: the model's instructions. The notes of active tool groups are added to it.
        model: asked in each round.
        formatter: makes the model's prompt of the messages.
        toolkit: the tools that the model may call; none if not given.
        memory: the conversation; an `InMemoryMemory` of its own if not given.
        enable_meta_tool: whether the model may switch tool groups on and off.
        parallel_tool_calls: whether the tool calls of one round run side by side.
        print_hint_msg: whether to print what the agent tells its model between rounds.
        max_iters: rounds of reasoning and acting; after these the model sums up.
        on_cut: what to do with an answer in words that the model was stopped in, at its limit of tokens: "mark" it
            (its metadata have `_finish_reason`, "length"), have the model "continue" it, or "refuse" it with an error.
            One that a filter cut is marked, or refused.

    Raises:
        UsageError: `max_iters` is no positive whole number, or `on_cut` none of these.
    """

    hookable: tuple[str, ...] = (*AgentBase.hookable, "_reasoning", "_acting")
    #: The tool by which the model gives the data of a `structured_model`; a method's name.
    finish_function_name: ClassVar[str] = "generate_response"

    def __init__(self, name: str, sys_prompt: str, model: ChatModelBase, formatter: FormatterBase,
                 toolkit: Toolkit | None = None, memory: MemoryBase | None = None, *, enable_meta_tool: bool = False,
                 parallel_tool_calls: bool = False, print_hint_msg: bool = False, max_iters: int = 10,
                 on_cut: OnCut = "mark") -> None:
        if on_cut not in get_args(OnCut):
            raise UsageError(f"on_cut={on_cut!r}: one of {', '.join(get_args(OnCut))} is needed.")
        if not isinstance(max_iters, int) or isinstance(max_iters, bool) or max_iters < 1:
            raise UsageError(f"max_iters={max_iters!r}: a whole number, 1 or more, is needed.")
        if not callable(model):
            raise UsageError(f"model={model!r}: a chat model is needed, e.g. OpenAIChatModel(\"gpt-4o-mini\").")
        if not callable(getattr(formatter, "format", None)):
            raise UsageError(f"formatter={formatter!r}: the formatter of the model's provider is needed, e.g. "
                             "OpenAIChatFormatter() of callsheet.formatters.")
        self.name = name
        self._sys_prompt = sys_prompt
        self.model = model
        self.formatter = formatter
        self.toolkit = Toolkit() if toolkit is None else toolkit
        self.memory = InMemoryMemory() if memory is None else memory
        self.parallel_tool_calls = parallel_tool_calls
        self.print_hint_msg = print_hint_msg
        self.max_iters = max_iters
        self.on_cut = on_cut
        # On a worker the toolkit has it already: what was registered travels with it.
        if enable_meta_tool and META_TOOL not in self.toolkit.tools:
            self.toolkit.register_tool_function(self.toolkit.reset_equipped_tools)

    @property
    def sys_prompt(self) -> str:
        """The model's instructions, with the notes of the tool groups that are active now."""
        notes = self.toolkit.get_activated_notes()
        return f"{self._sys_prompt}\n\n{notes}" if notes else self._sys_prompt

    # What is called from outside ----------------------------------------------------------------------

    async def reply(self, msg: Msg | list[Msg] | None = None,
                    structured_model: type[BaseModel] | None = None) -> Msg:
        """Reason and act until there is an answer.

        Args:
            msg: remembered first.
            structured_model: the form of data that the answer's `metadata` must have; the model gives them by
                calling `generate_response`. If it has not when `max_iters` is reached, `metadata` has `_no_data`.

        Raises:
            UsageError: `structured_model` is no pydantic model, or none that a provider can be asked for.
            EndpointError: the model could not be asked. Errors of tools are told the model.
        """
        course = Course(self, self.memory, structured_model, self._finish_tool(structured_model))
        course.asked = {one.id for one in ([msg] if isinstance(msg, Msg) else msg or ())}
        try:
            await self.memory.add(msg)
        except asyncio.CancelledError:
            await self.memory.add(msg)  # a memory that waits may have been cut off; twice is as good as once
            raise
        token = current.set(course)
        try:
            return await self._rounds(course)
        finally:
            current.reset(token)

    async def observe(self, msg: Msg | list[Msg] | None) -> None:
        """Remember messages without replying."""
        await self.memory.add(msg)

    async def handle_interrupt(self, msg: Msg | list[Msg] | None = None,
                               structured_model: type[BaseModel] | None = None) -> Msg:
        """The answer of a reply that was interrupted: a message whose metadata have `_is_interrupted`."""
        answer = Msg(self.name, _INTERRUPTED_REPLY, "assistant", {"_is_interrupted": True})
        await self.memory.add(answer)
        await self.print(answer, True)
        return answer

    # The loop -----------------------------------------------------------------------------------------

    async def _rounds(self, course: Course) -> Msg:
        """Rounds of reasoning and acting, and the summary if they do not lead to an answer."""
        choice: ToolChoice | None = "required" if course.form else None
        for _ in range(self.max_iters):
            said, given = await self._round(course, choice)
            called = said.has_content_blocks("tool_use")
            if not called and self.on_cut == "continue" and said.metadata.get(_WHY) == "length":
                course.so_far = joined(course.so_far, said.get_content_blocks("text"))
                await self._hint(course, _WRITE_ON)
            elif course.form is None or course.data is not None:
                if not called:
                    said.content = joined(course.so_far, said.get_content_blocks())
                    said.metadata = {**said.metadata, **(course.data or {})}
                    return said
            elif given is not None:
                course.data = given
                if texts := said.get_content_blocks("text"):
                    return Msg(self.name, texts, "assistant", given)
                choice = "none"
                await self._hint(course, _SAY_IT)
            elif not called:
                choice = "required"
                await self._hint(course, _GO_ON.format(name=self.finish_function_name))
        summary = await self._summarizing()
        missing = {"_no_data": True} if course.form is not None and course.data is None else {}
        if missing:
            log.warning("reply_without_data agent=%s: none came in %d rounds", self.label, self.max_iters)
        summary.metadata = {**summary.metadata, **(course.data or missing)}
        await self.memory.add(summary)
        return summary

    async def _round(self, course: Course, choice: ToolChoice | None) -> tuple[Msg, dict[str, Any] | None]:
        """What the model said, and the data that it gave by the finish tool; each of its calls has a result then."""
        course.begin()
        text = _BROKEN_OFF
        try:
            said = await self._reasoning(choice)
            if not isinstance(said, Msg):
                raise UsageError(f"{self.label}._reasoning, or a hook of it, gave a {type(said).__name__}: a Msg is "
                                 "needed.")
            await course.said(said)
            given = [data for data in await self._acts(course) if data is not None]
        except asyncio.CancelledError:
            text = INTERRUPTED
            raise
        finally:
            await self._settle(course, text)
        return said, given[-1] if given else None

    async def _settle(self, course: Course, text: str) -> None:
        for msg in await course.settle(text):
            await self.print(msg, True)

    async def _acts(self, course: Course) -> list[dict[str, Any] | None]:
        """What `_acting` gave for each call of the round."""
        if not self.parallel_tool_calls or len(course.calls) < 2:
            return [await self._act(position, call) for position, call in enumerate(course.calls)]
        return await side_by_side([self._act(position, call) for position, call in enumerate(course.calls)])

    async def _act(self, position: int, call: ToolUseBlock) -> dict[str, Any] | None:
        token = place.set(position)
        try:
            return await self._acting(call)
        finally:
            place.reset(token)

    async def _hint(self, course: Course, text: str) -> None:
        hint = Msg("user", text, "user")
        course.hints.append(hint)
        if self.print_hint_msg:
            await self.print(hint, True)

    # Its parts ----------------------------------------------------------------------------------------

    async def _reasoning(self, tool_choice: ToolChoice | None = None) -> Msg:
        """Ask the model, and remember what it says; interrupted, what it has said so far.

        Args:
            tool_choice: whether it may, must or must not call tools.
        """
        course = self._course()
        hints, course.hints = course.hints, []
        msg = Msg(self.name, [], "assistant")
        try:
            await self._ask(msg, hints, tools=self._schemas(course), tool_choice=tool_choice)
            self._judge(msg)
            await self.print(msg, True)
            await course.said(msg)
        except asyncio.CancelledError:
            if so_far := [block for block in msg.get_content_blocks()
                          if block["type"] != "tool_use" or block["name"]]:
                msg.content = so_far
                await course.said(msg)
                await self._settle(course, INTERRUPTED)
            raise
        return msg

    async def _acting(self, tool_call: ToolUseBlock) -> dict[str, Any] | None:
        """Call a tool, and remember its result.

        Args:
            tool_call: the model's call.

        Returns:
            The data that the model gave by the finish tool, if this is its call and they fit.
        """
        course, position = self._course(), place.get()
        if position is not None and position >= len(course.calls):
            position = None
        asked = tool_call if position is None else course.calls[position]  # a hook may have changed it
        finish = course.finish if tool_call["name"] == self.finish_function_name else None
        toolkit = self.toolkit if finish is None else finish
        result = result_msg(asked, [])
        output: Any = None
        data = None
        try:
            async with aclosing(await toolkit.call_tool_function(tool_call)) as responses:
                async for response in responses:
                    output = await self._bounded(response.content, len(course.calls))
                    result.content = result_msg(asked, output).content
                    await self.print(result, response.is_last)
                    if response.is_interrupted:
                        raise asyncio.CancelledError
                    if finish is not None and response.metadata and response.metadata.get("success"):
                        data = response.metadata.get("structured_output")
            output = output or [text_block(NOTHING)]
            result.content = result_msg(asked, output).content
        finally:
            if output is not None and position is not None:
                await course.result(position, result)
            elif output is not None:
                await self.memory.add(result)
        return data

    async def _summarizing(self) -> Msg:
        """Have the model answer from what is there, after the last round."""
        course = self._course()
        more = [Msg("user", _SUM_UP, "user")]
        msg = Msg(self.name, [], "assistant")
        # Some providers refuse a history with tool calls where no tools are named; with others the model calls them
        # whatever it is told, and has to be asked again without.
        if tools := self._schemas(course):
            await self._ask(msg, more, tools=tools, tool_choice="none")
        if not msg.has_content_blocks("text"):
            await self._ask(msg, more)
        msg.content = [block for block in msg.get_content_blocks() if block["type"] != "tool_use"]
        self._judge(msg)
        await self.print(msg, True)
        return msg

    async def generate_response(self, /, **kwargs: Any) -> ToolResponse:
        """Give the data of your answer, once you have all that they need."""
        form = self._course().form
        if form is None:
            return ToolResponse([text_block("No data are asked for: answer in words.")], {"success": False})
        data = form_of(form).read(kwargs)
        return ToolResponse([text_block("The data are complete.")], {"success": True, "structured_output": data})

    # Small things -------------------------------------------------------------------------------------

    def _course(self) -> Course:
        """The reply that this runs in; outside of one, e.g. in a test of `_acting`, an empty one."""
        course = current.get()
        return course if course is not None and course.owner is self else Course(self, self.memory)

    def _finish_tool(self, form: type[BaseModel] | None) -> Toolkit | None:
        """A toolkit of the reply's own: the agent's may be shared, and other replies may need no data."""
        if form is None:
            return None
        if not (isinstance(form, type) and issubclass(form, BaseModel)):
            raise UsageError(f"structured_model is {form!r:.200}: a subclass of pydantic's BaseModel is needed.")
        form_of(form)  # before anything is paid
        finish = Toolkit()
        finish.middlewares = self.toolkit.middlewares
        finish.register_tool_function(getattr(self, self.finish_function_name), func_name=self.finish_function_name)
        finish.set_extended_model(self.finish_function_name, form)
        return finish

    def _schemas(self, course: Course) -> list[dict[str, Any]]:
        schemas = self.toolkit.get_json_schemas()
        if course.finish is None:
            return schemas
        return [*(schema for schema in schemas if schema["function"]["name"] != self.finish_function_name),
                *course.finish.get_json_schemas()]

    def _judge(self, msg: Msg) -> None:
        """Say, or refuse, what the model was stopped in.

        Raises:
            EndpointError: it said nothing, or `on_cut` is "refuse".
        """
        why = msg.metadata.get(_WHY)
        if not why:
            return
        empty = not msg.has_content_blocks("tool_use") and not (msg.get_text_content() or "").strip()
        if empty or self.on_cut == "refuse":
            remedy = "Raise max_tokens of its model" if why == "length" else "Ask for something else"
            raise EndpointError(f"The model of {self.label} was stopped {'before' if empty else 'in'} its answer "
                                f"({why}). {remedy}.", getattr(self.model, "endpoint", ""))
        log.warning("model_answer_cut agent=%s reason=%s", self.label, why)

    async def _prompt(self, more: list[Msg]) -> list[dict[str, Any]]:
        found = await self.memory.get_memory()
        course, system = self._course(), Msg("system", self.sys_prompt, "system")
        course.taken = {call.block["id"] for call in calls_in(found)}
        if course.blind:
            found = [msg if msg.id in course.asked else without_media(msg, _REFUSED) for msg in found]
        try:
            return await self.formatter.format([system, *found, *more])
        except MessageError:  # a picture that is gone, a sound of another type: it would fail each reply from now on
            wrong = {msg.id: why for msg in found if (why := await self._refused(msg)) is not None}
            mine = [msg_id for msg_id in wrong if msg_id in course.asked]
            if not wrong or mine:
                await self.memory.delete(mine)
                raise
            log.warning("formatter_left_out agent=%s: %s", self.label, "; ".join(sorted(set(wrong.values()))))
            sendable = [without_media(msg, wrong[msg.id]) if msg.id in wrong else msg for msg in found]
            return await self.formatter.format([system, *sendable, *more])

    async def _refused(self, msg: Msg) -> str | None:
        """Why the formatter does not take the media of a message, if that is so."""
        if not any(block["type"] not in ("text", "thinking", "tool_use") for block in msg.get_content_blocks()):
            return None
        results = msg.get_content_blocks("tool_result")
        calls = Msg("bot", [{"type": "tool_use", "id": one["id"], "name": one["name"], "input": {}} for one in results],
                    "assistant")
        try:
            await self.formatter.format([calls, msg] if results else [msg])
        except MessageError as exc:
            return str(exc)
        return None

    async def _ask(self, msg: Msg, more: list[Msg], **options: Any) -> None:
        """Ask the model; `msg` grows with its answer, and is printed as it grows.

        The memory's compaction is asked before, and again where the model refuses the prompt's length. Media that its
        endpoint refuses are left out. What is refused all the same is forgotten: it would fail each reply from now on.
        """
        course = self._course()
        await self._compact()
        for left in reversed(range(_SHORTER + 1)):
            try:
                await self._ask_once(msg, await self._prompt(more), **options)
                return
            except EndpointError as exc:
                if exc.too_long and left and await self._compact(refused=True):
                    log.info("model_prompt_too_long agent=%s: the memory was compacted, and it is asked again",
                             self.label)
                elif exc.of_media and left and not course.blind:
                    log.warning("model_media_refused agent=%s: it is asked again without those of before", self.label)
                    course.blind = True
                else:
                    await self._forget(course, exc)
                    raise

    async def _forget(self, course: Course, exc: EndpointError) -> None:
        """Forget what this reply is to, if its media are refused; or all of this reply, if it is too long."""
        found = await self.memory.get_memory(prepend_summary=False)
        start = next((place for place, msg in enumerate(found) if msg.id in course.asked), len(found))
        await self.memory.delete([msg.id for msg in found[start:] if exc.too_long or (
            exc.of_media and msg.id in course.asked and msg.has_content_blocks(["image", "audio", "video"]))])

    async def _ask_once(self, msg: Msg, prompt: list[dict[str, Any]], **options: Any) -> None:
        course = self._course()
        answer = await self.model(prompt, **options)
        if isinstance(answer, AsyncGenerator):
            async with aclosing(answer):
                async for chunk in answer:
                    _take(msg, chunk, course)
                    await self.print(msg, False)
        else:
            _take(msg, answer, course)

    async def _compact(self, refused: bool = False) -> bool:
        """Whether the memory was compacted. What its policy raises is logged: the prompt may do as it is."""
        memory = self.memory
        if not isinstance(memory, InMemoryMemory) or memory.compaction is None or not (refused or memory.has_state()):
            return False  # one that others share is compacted by whoever is told to
        try:
            return await (memory.compact(refused=True) if refused else memory.compact())
        except Exception:
            log.exception("memory_not_compacted agent=%s", self.label)
            return False

    async def _bounded(self, given: Any, calls: int) -> list[Any]:
        """A tool's output, cut where it would fill the model's context."""
        output = [text_block(given)] if isinstance(given, str) else list(given)
        text = "".join(block["text"] for block in output if block["type"] == "text")
        most = get_settings().tool_text_max
        policy = getattr(self.memory, "compaction", None)
        for limit, counter in ((getattr(policy, "max_tokens", None), getattr(policy, "counter", None)),
                               (getattr(self.formatter, "max_tokens", None),
                                getattr(self.formatter, "token_counter", None))):
            if not isinstance(limit, int) or len(text) * max(1, calls) * 2 <= limit:
                continue
            tokens = -(-len(text) // CHARACTERS) if counter is None else await counter.count(
                [{"role": "system", "content": text}])
            most = min(most, len(text) * limit // (2 * max(1, calls) * max(1, tokens)))
        return cut(output, max(most, 100))


def _take(msg: Msg, response: ChatResponse, course: Course) -> None:
    msg.content = course.named(response.content)
    msg.invocation_id = response.id
    msg.metadata.pop(_WHY, None)  # of an answer before, in whose place this one is
    if response.finish_reason in ("length", "content_filter"):
        msg.metadata[_WHY] = response.finish_reason
