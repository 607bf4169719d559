"""The public API as a type checker sees it; checked with `mypy --strict`, not run."""

from datetime import UTC, datetime
from typing import Any, assert_type

import callsheet
from callsheet import (
    AgentBase,
    AgentFailed,
    BranchFailed,
    CallOptions,
    CallsheetError,
    Event,
    FanoutPipeline,
    ImageBlock,
    Job,
    Msg,
    MsgHub,
    Question,
    SequentialPipeline,
    Settings,
    TextBlock,
    Toolkit,
    ToolResponse,
    ToolUseBlock,
    URLSource,
    UserAgent,
    fanout_pipeline,
    get_settings,
    sequential_pipeline,
    stream_printing_messages,
)
from callsheet.agents import TerminalUserInput


class Writer(AgentBase):
    def __init__(self, name: str, model: str = "small") -> None:
        super().__init__()
        self.name = name
        self.model = model

    async def reply(self, msg: Msg | list[Msg] | None = None) -> Msg:
        await self.print(Msg(self.name, "…", "assistant"), last=False)
        return Msg(self.name, [TextBlock(type="text", text="x")], "assistant", {"k": 1})

    async def observe(self, msg: Msg | list[Msg] | None) -> None:
        return None

    async def handle_interrupt(self, msg: Msg | None = None) -> Msg:
        return Msg(self.name, "interrupted", "assistant")


class Scorer(AgentBase, queue="gpu"):
    def reply(self, msg: Msg) -> Msg:
        return msg


def add(a: int, b: int = 0) -> int:
    return a + b


async def louder(call: ToolUseBlock, response: ToolResponse) -> ToolResponse | None:
    return None


async def tools() -> None:
    kit = Toolkit()
    kit.register_tool_function(add, preset_kwargs={"b": 1}, postprocess_func=louder, timeout=3, retries=1, queue="cpu")
    kit.register_tool_function(lambda: "x", namesake_strategy="rename")
    kit.register_tool_function(add, namesake_strategy="other")  # type: ignore[arg-type]
    assert_type(kit.get_json_schemas(), list[dict[str, Any]])
    block = ToolUseBlock(type="tool_use", id="1", name="add", input={"a": 1})
    async for response in await kit.call_tool_function(block):
        assert_type(response, ToolResponse)
        Msg("x", response.content, "assistant")


def messages() -> None:
    picture = ImageBlock(type="image", source=URLSource(type="url", url="https://x/y.png"))
    msg = Msg("a", [picture, TextBlock(type="text", text="b")], "user", metadata=None, timestamp=None)
    assert_type(msg.get_text_content(), str | None)
    assert_type(msg.has_content_blocks("image"), bool)
    assert_type(msg.to_dict(), dict[str, Any])
    assert_type(Msg.from_dict(msg.to_dict()), Msg)
    msg.content = [ToolUseBlock(type="tool_use", id="1", name="f", input={"q": [1, None, "x"]})]
    Msg("a", "b", "robot")  # type: ignore[arg-type]
    Msg("a", "b")  # type: ignore[call-arg]
    Msg(5, "b", "user")  # type: ignore[arg-type]


async def agents() -> None:
    writer = Writer("a")
    assert_type(await writer.reply(), Msg)
    await writer(Msg("a", "b", "user"))
    await writer.options(priority=3, timeout=5.0, eta=datetime.now(UTC))(None)
    writer.submit(Msg("a", "b", "user"), retries=3)
    writer.register_instance_hook("pre_reply", "h", lambda self, kwargs: None)
    Writer.register_class_hook("post_reply", "h", lambda self, kwargs, out: None)
    await writer.interrupt()
    assert_type(Writer.is_async(), bool)
    assert_type(writer.label, str)
    Writer()  # type: ignore[call-arg]
    CallOptions(nope=1)  # type: ignore[call-arg]


async def pipelines(writer: Writer, scorer: Scorer, msg: Msg) -> None:
    inner = FanoutPipeline([writer, SequentialPipeline([writer, scorer])], reduce=writer, on_error="collect")
    await SequentialPipeline([inner, scorer])(msg, tag="x")
    await sequential_pipeline([writer, scorer], msg)
    assert_type(await fanout_pipeline([writer, scorer], msg, enable_gather=False), list[Any])
    FanoutPipeline([writer], on_error="ignore")  # type: ignore[arg-type]
    SequentialPipeline(["a"])  # type: ignore[list-item]
    async for printed, last in stream_printing_messages([writer], writer(msg)):
        assert_type(printed, Msg)
        assert_type(last, bool)


async def jobs(job: Job) -> None:
    assert_type(Job.from_id("x"), Job)
    assert_type(job.status, str)
    assert_type(job.done, bool)
    job.cancel()
    job.get(timeout=5)
    await job
    async for event in job.stream():
        assert_type(event, Event)
        assert_type(event.msg, Msg)
    for event in job.stream(since="0"):
        assert_type(event.last, bool)
        assert_type(event.question, Question | None)
    assert_type(job.questions(), list[Question])
    assert_type(job.answer("yes", {"field": 1}, question="id"), Question)
    job.answer(7)  # type: ignore[arg-type]


async def people(msg: Msg) -> None:
    user = UserAgent("bob", input=lambda msg: "yes")
    assert_type(await user.reply(msg), Msg)
    user.override_instance_input_method(TerminalUserInput("> "))


async def many(writer: Writer, inputs: list[Msg]) -> None:
    for _ in callsheet.map(writer, inputs, progress=False, window=10, on_error="collect", retries=2):
        pass
    async for _ in callsheet.map(writer, inputs):
        pass


async def group(writer: Writer, msg: Msg) -> None:
    async with MsgHub([writer], announcement=[msg], enable_auto_broadcast=False, name="x") as hub:
        assert_type(hub, MsgHub)
        hub.add([writer])
        hub.delete(writer)
        await hub.broadcast(msg)
        assert_type(hub.broadcast_nowait(msg), str)
    assert_type(MsgHub.open("x", [writer]), MsgHub)
    assert_type(await MsgHub.open("x"), MsgHub)
    async for event in callsheet.hub.listen("x", since="now"):
        assert_type(event.msg, Msg)


def group_in_plain_code(writer: Writer, msg: Msg) -> None:
    with MsgHub([writer]) as hub:
        hub.broadcast(msg)
    for event in callsheet.hub.listen("x"):
        assert_type(event.number, int)


def settings() -> None:
    assert_type(get_settings(), Settings)
    assert_type(Settings.load(inline=True), Settings)
    with callsheet.inline():
        pass


def failures() -> None:
    try:
        pass
    except BranchFailed as exc:
        assert_type(exc.branch, str)
    except AgentFailed as exc:
        assert_type(exc.remote_type, str)
    except CallsheetError as exc:
        assert_type(CallsheetError.from_dict(exc.to_dict()), CallsheetError)
