"""Hooks around an agent's methods, on instances and on classes."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import callsheet
from callsheet import AgentBase, Msg
from callsheet.errors import CannotTravel, UsageError
from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Reader, Writer
from tests import travellers


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def echo_class() -> type[AgentBase]:
    """A class of its own for each test, because class hooks stay on a class."""

    class Echo(AgentBase):
        def __init__(self, name: str = "echo") -> None:
            self.name = name
            self.seen: list[str] = []

        async def reply(self, msg: Msg, suffix: str = ".") -> Msg:
            return Msg(self.name, f"{msg.get_text_content()}{suffix}", "assistant")

        async def observe(self, msg: Any) -> None:
            self.seen.append(msg.get_text_content())

    return Echo


def msg(text: str) -> Msg:
    return Msg("me", text, "user")


def note(log: list[str], word: str, is_async: bool = False) -> Callable[..., Any]:
    async def noting(self: AgentBase, kwargs: dict[str, Any], *out: Any) -> None:
        log.append(word)

    def noting_now(self: AgentBase, kwargs: dict[str, Any], *out: Any) -> None:
        log.append(word)

    return noting if is_async else noting_now


@pytest.mark.parametrize("is_async", [False, True])
def test_hooks_run_instance_before_class_in_order_of_registration(is_async: bool) -> None:
    echo, log = echo_class(), list[str]()
    agent = echo()
    for word in ("c1", "c2"):
        echo.register_class_hook("pre_reply", word, note(log, f"pre {word}", is_async))
        echo.register_class_hook("post_reply", word, note(log, f"post {word}", is_async))
    for word in ("i1", "i2"):
        agent.register_instance_hook("pre_reply", word, note(log, f"pre {word}", is_async))
        agent.register_instance_hook("post_reply", word, note(log, f"post {word}", is_async))
    assert run(agent.reply(msg("a"))).content == "a."
    assert log == ["pre i1", "pre i2", "pre c1", "pre c2", "post i1", "post i2", "post c1", "post c2"]


def test_pre_hooks_change_arguments_one_after_another() -> None:
    agent = echo_class()()

    def louder(self: AgentBase, kwargs: dict[str, Any]) -> dict[str, Any]:
        assert self is agent
        assert set(kwargs) == {"msg", "suffix"}
        return {**kwargs, "msg": msg(kwargs["msg"].content + "!")}

    async def questioning(self: AgentBase, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"suffix": kwargs["msg"].content[-1] + "?"}

    agent.register_instance_hook("pre_reply", "louder", louder)
    agent.register_instance_hook("pre_reply", "questioning", questioning)
    assert run(agent.reply(msg("a"))).content == "a!!?"
    assert run(agent.reply(msg=msg("b"), suffix="")).content == "b!!?"


def test_post_hooks_change_the_output_one_after_another() -> None:
    agent = echo_class()()

    def first(self: AgentBase, kwargs: dict[str, Any], out: Msg) -> Msg:
        return msg(out.content + kwargs["suffix"])

    async def second(self: AgentBase, kwargs: dict[str, Any], out: Msg) -> Msg:
        return msg(out.content + "2")

    agent.register_instance_hook("post_reply", "a", first)
    agent.register_instance_hook("post_reply", "b", second)
    agent.register_instance_hook("post_reply", "c", lambda self, kwargs, out: None)
    assert run(agent.reply(msg("a"))).content == "a..2"


def test_hooks_get_copies() -> None:
    agent, given = echo_class()(), msg("a")

    def vandal(self: AgentBase, kwargs: dict[str, Any], *out: Any) -> None:
        kwargs["msg"].content = "gone"
        for one in out:
            one.content = "gone"
        kwargs.clear()

    agent.register_instance_hook("pre_reply", "v", vandal)
    agent.register_instance_hook("post_reply", "v", vandal)
    assert run(agent.reply(given)).content == "a."
    assert given.content == "a"


@pytest.mark.parametrize("hook_type", ["pre_reply", "post_reply"])
def test_what_a_hook_raises_goes_to_the_caller(hook_type: str) -> None:
    agent = echo_class()()

    def failing(*_: Any) -> None:
        raise KeyError("hook")

    agent.register_instance_hook(hook_type, "f", failing)
    with pytest.raises(KeyError, match="hook"):
        run(agent.reply(msg("a")))
    agent.remove_instance_hook(hook_type, "f")
    assert run(agent.reply(msg("a"))).content == "a."


def test_observe_and_print_have_hooks(capsys: pytest.CaptureFixture[str]) -> None:
    agent, log = echo_class()(), list[str]()
    agent.register_instance_hook("pre_observe", "h", lambda self, kwargs: {"msg": msg("other")})
    agent.register_instance_hook("post_observe", "h", note(log, "observed"))
    agent.register_instance_hook("pre_print", "h", lambda self, kwargs: {**kwargs, "msg": msg("shown")})
    agent.register_instance_hook("post_print", "h", note(log, "printed"))
    run(agent.observe(msg("a")))
    run(agent.print(msg("b")))
    assert agent.seen == ["other"]  # type: ignore[attr-defined]
    assert capsys.readouterr().out == "me: shown\n"
    assert log == ["observed", "printed"]


def test_a_hook_of_the_same_name_takes_the_place_of_the_first() -> None:
    agent, log = echo_class()(), list[str]()
    agent.register_instance_hook("pre_reply", "h", note(log, "old"))
    agent.register_instance_hook("pre_reply", "h", note(log, "new"))
    run(agent.reply(msg("a")))
    assert log == ["new"]


def test_removing_and_clearing() -> None:
    echo, log = echo_class(), list[str]()
    agent = echo()
    for owner in ("instance", "class"):
        register = getattr(agent, f"register_{owner}_hook")
        remove, clear = getattr(agent, f"remove_{owner}_hook"), getattr(agent, f"clear_{owner}_hooks")
        for kind in ("pre_reply", "post_reply", "pre_print"):
            register(kind, "h", note(log, kind))
        with pytest.raises(ValueError, match="no pre_reply hook named 'other'"):
            remove("pre_reply", "other")
        remove("pre_reply", "h")
        with pytest.raises(ValueError, match="no pre_reply hook named 'h'"):
            remove("pre_reply", "h")
        clear("post_reply")
        run(agent.reply(msg("a")))
        assert log == []
        clear()
        run(agent.print(msg("a")))
        assert log == []


def test_an_unknown_hook_type_is_refused_with_those_there_are() -> None:
    echo = echo_class()
    agent = echo()
    for call in (lambda: agent.register_instance_hook("pre_think", "h", print),
                 lambda: echo.register_class_hook("reply", "h", print),
                 lambda: agent.remove_instance_hook("pre_think", "h"), lambda: echo.clear_class_hooks("pre_think")):
        with pytest.raises(UsageError, match="pre_reply, post_reply, pre_print, post_print, pre_observe, post_observe"):
            call()
    assert "pre_reply" in agent.supported_hook_types


def test_a_subclass_adds_hookable_methods() -> None:
    class Reasoner(AgentBase):
        hookable = (*AgentBase.hookable, "_reasoning")

        async def _reasoning(self, depth: int) -> int:
            return depth

    agent, log = Reasoner(), list[str]()
    agent.register_instance_hook("pre_reasoning", "h", lambda self, kwargs: {"depth": kwargs["depth"] + 1})
    agent.register_instance_hook("post_reasoning", "h", note(log, "done"))
    assert run(agent._reasoning(1)) == 2
    assert log == ["done"]
    with pytest.raises(UsageError):
        echo_class()().register_instance_hook("pre_reasoning", "h", print)


def test_class_hooks_hold_for_subclasses_and_not_for_siblings() -> None:
    base = echo_class()

    class Left(base):  # type: ignore[valid-type, misc]
        pass

    class Right(base):  # type: ignore[valid-type, misc]
        async def reply(self, msg: Msg, suffix: str = ".") -> Msg:
            return await super().reply(msg, suffix)  # type: ignore[no-any-return]

    log: list[str] = []
    base.register_class_hook("pre_reply", "b", note(log, "base"))
    Left.register_class_hook("pre_reply", "l", note(log, "left"))
    run(Right().reply(msg("a")))
    assert log == ["base"]  # once, although reply calls that of its base
    run(Left().reply(msg("a")))
    assert log == ["base", "left", "base"]
    run(base().reply(msg("a")))
    assert log == ["base", "left", "base", "base"]
    AgentBase.register_class_hook("pre_reply", "all", note(log, "all"))
    try:
        log.clear()
        run(echo_class()().reply(msg("a")))
        assert log == ["all"]
    finally:
        AgentBase.clear_class_hooks()


def test_a_mixins_reply_has_hooks() -> None:
    class Mixin:
        async def reply(self, msg: Msg) -> Msg:
            return msg

    class Agent(Mixin, AgentBase):
        pass

    agent, log = Agent(), list[str]()
    agent.register_instance_hook("pre_reply", "h", note(log, "pre"))
    run(agent.reply(msg("a")))
    assert log == ["pre"]
    assert not hasattr(Mixin.reply, "__callsheet_hooked__")


def test_concurrent_calls_run_their_hooks_each() -> None:
    class Slow(AgentBase):
        async def reply(self, word: str) -> str:
            await asyncio.sleep(0.01)
            return word

    agent, log = Slow(), list[str]()
    agent.register_instance_hook("pre_reply", "h", lambda self, kwargs: {"word": kwargs["word"] + "+"})
    agent.register_instance_hook("post_reply", "h", note(log, "post"))

    async def many() -> list[str]:
        return await asyncio.gather(*(agent.reply(str(i)) for i in range(50)))

    assert run(many()) == [f"{i}+" for i in range(50)]
    assert log == ["post"] * 50


def test_any_signature_is_shown_by_name() -> None:
    shown: list[dict[str, Any]] = []

    class Odd(AgentBase):
        async def reply(self, a: int, /, *args: int, b: int = 2, **more: int) -> tuple[Any, ...]:
            return (a, args, b, more)

    agent = Odd()
    agent.register_instance_hook("pre_reply", "h", lambda self, kwargs: shown.append(kwargs))
    assert run(agent.reply(1, 5, 6, c=7)) == (1, (5, 6), 2, {"c": 7})
    assert shown == [{"a": 1, "args": (5, 6), "b": 2, "more": {"c": 7}}]
    agent.register_instance_hook("pre_reply", "h", lambda self, kwargs: {"args": (9,), "more": {"d": 1}, "b": 3})
    assert run(agent.reply(1)) == (1, (9,), 3, {"d": 1})


def test_a_reply_without_parameters_has_hooks() -> None:
    class Bare(AgentBase):
        async def reply(self) -> int:
            return 1

    agent = Bare()
    agent.register_instance_hook("pre_reply", "h", lambda self, kwargs: {})
    agent.register_instance_hook("post_reply", "h", lambda self, kwargs, out: out + 1)
    assert run(agent.reply()) == 2


@pytest.mark.parametrize(("given", "match"), [(5, "int: a dictionary of arguments"), ({"nope": 1}, "nope")])
def test_a_hook_that_returns_nonsense_is_named(given: Any, match: str) -> None:
    agent = echo_class()()

    def my_hook(self: AgentBase, kwargs: dict[str, Any]) -> Any:
        return given

    agent.register_instance_hook("pre_reply", "h", my_hook)
    with pytest.raises(UsageError, match=match) as caught:
        run(agent.reply(msg("a")))
    assert "my_hook" in str(caught.value)


# A plain def --------------------------------------------------------------------------------------------------

class Counting(AgentBase):
    def reply(self, text: str) -> int:
        return len(text)


def test_hooks_around_a_plain_def() -> None:
    agent = Counting()
    agent.register_instance_hook("pre_reply", "h", lambda self, kwargs: {"text": kwargs["text"] + "xx"})
    agent.register_instance_hook("post_reply", "h", lambda self, kwargs, out: out * 10)
    assert agent.reply("a") == 30
    assert not agent.is_async()


def test_an_async_hook_around_a_plain_def_runs_off_the_loop_only() -> None:
    agent = Counting()

    async def more(self: AgentBase, kwargs: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"text": kwargs["text"] + "x"}

    agent.register_instance_hook("pre_reply", "h", more)
    assert agent.reply("a") == 2

    async def on_a_loop() -> Any:
        assert await asyncio.to_thread(agent.reply, "a") == 2
        return agent.reply("a")

    with pytest.raises(UsageError, match="running loop"):
        run(on_a_loop())


# Sent with the agent ------------------------------------------------------------------------------------------

def test_hooks_go_with_the_agent() -> None:
    agent = travellers.Holder("a")
    agent.register_instance_hook("pre_reply", "shout", travellers.pre_shout)
    data = Writer().write(agent, "the agent")
    assert data["extras"]["hooks"] == {"pre_reply": {"shout": {"$fn": "tests.travellers:pre_shout"}}}
    travellers.Holder.register_class_hook("post_reply", "shout", travellers.pre_shout)
    try:
        assert "class_hooks" in Writer().write(travellers.Holder("b"), "the agent")["extras"]
    finally:
        travellers.Holder.clear_class_hooks()
    assert set(Writer().write(travellers.Holder("b"), "the agent")["extras"]) == {"id"}


@pytest.mark.parametrize("owner", ["instance", "class"])
def test_a_lambda_as_hook_is_refused_when_the_agent_is_sent(owner: str) -> None:
    echo = echo_class()
    agent = echo()
    getattr(agent, f"register_{owner}_hook")("pre_reply", "mine", lambda self, kwargs: None)
    with pytest.raises(CannotTravel, match=r"'mine'.*lambda.*def at the top level"), callsheet.inline():
        agent.submit(msg("a"))


def test_hooks_of_both_kinds_hold_where_the_call_runs() -> None:
    echo, log = echo_class(), list[str]()
    agent = echo()
    echo.register_class_hook("pre_reply", "c", note(log, "class"))
    agent.register_instance_hook("pre_reply", "i", note(log, "instance", is_async=True))
    agent.register_instance_hook("post_reply", "i", lambda_free_post)

    async def call() -> Msg:
        with callsheet.inline():
            return await agent(msg("a"))  # type: ignore[no-any-return]

    assert run(call()).content == "a.!"
    assert log == ["instance", "class"]


def lambda_free_post(self: AgentBase, kwargs: dict[str, Any], out: Msg) -> Msg:
    return Msg(out.name, f"{out.content}!", "assistant")


def test_hooks_of_the_worker_itself_hold_where_the_caller_has_none() -> None:
    data, log = Writer().write(travellers.Holder("a"), "the agent"), list[str]()
    travellers.Holder.register_class_hook("pre_reply", "w", note(log, "worker's"))
    try:
        run(Reader(AllowList(("tests",))).read(data).reply())
    finally:
        travellers.Holder.clear_class_hooks()
    assert log == ["worker's"]
