"""UserAgent: a person among the agents."""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

from pydantic import BaseModel

from callsheet.agents.asking import UserInputBase, UserInputData, asker
from callsheet.agents.base import AgentBase
from callsheet.agents.terminal import TerminalUserInput, checked
from callsheet.errors import UsageError
from callsheet.messages import Msg
from callsheet.tools.threads import in_thread

InputMethod = Callable[..., Any]


class UserAgent(AgentBase):
    """A person: its reply is what somebody answers.

    In a job on a worker the question is an event of `job.stream()` whose `type` is "input_required", and the call waits
    without a slot until `job.answer(text)`, or `callsheet answer`, supplies the answer. With an input method of its own
    it asks that instead. Inline it reads standard input.

    Args:
        name: the person's name, the sender of its messages.
        input: supplies answers: a `UserInputBase`, or a function, plain or async, that is given by name what it takes
            of `agent_id`, `agent_name`, `structured_model` and `msg`, and gives a text, a Msg, content blocks or
            `UserInputData`. It runs where the agent does, and travels: a function of a module.

    Raises:
        UsageError: `input` cannot be called.
    """

    asks_people = True
    _class_input: ClassVar[InputMethod | None] = None
    _override: InputMethod | None = None

    def __init__(self, name: str, *, input: InputMethod | None = None) -> None:
        self.name = name
        self.input = _callable(input) if input is not None else None

    async def reply(self, msg: Msg | list[Msg] | None = None,
                    structured_model: type[BaseModel] | None = None) -> Msg:
        """What the person answers.

        Args:
            msg: what is to be answered.
            structured_model: the form of data that the answer's `metadata` must have.
        """
        method, found = self._method(), asker.get()
        if method is None and found is not None:
            data = await found.ask(self, msg, structured_model)
        else:
            async with found.waiting() if found is not None else nullcontext():
                data = await _asked(method or TerminalUserInput(), structured_model, agent_id=self.id,
                                    agent_name=self.name, msg=msg)
        out = Msg(self.name, _content(data), "user", data.structured_input)
        await self.print(out, True)
        return out

    async def observe(self, msg: Msg | list[Msg] | None) -> None:
        """Nothing is remembered: the person was there."""

    async def handle_interrupt(self, *args: Any, **kwargs: Any) -> Msg:
        """The reply in place of an answer that did not come: its metadata have `_is_interrupted`."""
        return Msg(self.name, "The question was taken back before it was answered.", "user", {"_is_interrupted": True})

    def override_instance_input_method(self, input_method: InputMethod) -> None:
        """Have `input_method` supply this agent's answers; as the constructor's `input`.

        Raises:
            UsageError: it cannot be called.
        """
        self._override = _callable(input_method)

    @classmethod
    def override_class_input_method(cls, input_method: InputMethod) -> None:
        """Have `input_method` supply the answers of all agents of this class that have none of their own.

        Raises:
            UsageError: it cannot be called.
        """
        cls._class_input = staticmethod(_callable(input_method))

    def _method(self) -> InputMethod | None:
        return self._override or self.input or type(self)._class_input

    def wire_extras(self) -> dict[str, Any]:
        """As other agents', and the input method that was set here."""
        extras = super().wire_extras()
        method = self._method()
        return extras if method is self.input else {**extras, "input": method}

    def apply_wire_extras(self, extras: dict[str, Any]) -> None:
        """Take what was sent."""
        super().apply_wire_extras(extras)
        self._override = extras.get("input")


def _callable(method: Any) -> InputMethod:
    if not callable(method) or isinstance(method, type):
        raise UsageError(f"{method!r:.200} is no input method: a UserInputBase object or a function is needed.")
    found: InputMethod = method
    return found


async def _asked(method: InputMethod, form: type[BaseModel] | None, **offered: Any) -> UserInputData:
    """What an input method gives."""
    offered["structured_model"] = form
    call = type(method).__call__ if isinstance(method, UserInputBase) else method
    parameters = inspect.signature(call).parameters.values()
    if not any(one.kind is one.VAR_KEYWORD for one in parameters):
        offered = {one.name: offered[one.name] for one in parameters if one.name in offered}
    if inspect.iscoroutinefunction(call):
        given = await method(**offered)
    else:
        given = await in_thread(lambda: method(**offered))
        given = await given if inspect.isawaitable(given) else given
    data = _data_of(given, method)
    if form is not None and not isinstance(method, TerminalUserInput):
        data.structured_input = checked(form, data.structured_input or {})
    return data


def _data_of(given: Any, method: Any) -> UserInputData:
    if isinstance(given, UserInputData):
        return given
    if isinstance(given, (str, list)):
        given = Msg("user", given, "user")  # checks the blocks
    if isinstance(given, Msg):
        return UserInputData(given.get_content_blocks(), dict(given.metadata) or None)
    raise UsageError(f"The input method {method!r:.200} gave a {type(given).__name__}: a text, a Msg, content blocks "
                     "or UserInputData is needed.")


def _content(data: UserInputData) -> Any:
    blocks = data.blocks_input or []
    if len(blocks) == 1 and blocks[0]["type"] == "text":
        return blocks[0]["text"]
    return blocks or ""
