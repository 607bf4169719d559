"""A chat model that answers by a script: no server, no key, no network."""

import asyncio
import builtins
import copy
import json
import threading
import types
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ValidationError

from callsheet.errors import CallsheetError, UsageError
from callsheet.models import ChatModelBase, ChatResponse, ChatUsage, Content
from callsheet.models.remote import check_messages

_BLOCKS = ("text", "thinking", "tool_use", "audio")
_ERROR, _DATA, _RESPONSE = "error", "data", "response"
_KEPT = 1000  # scripts of which a process keeps how far they have come
Item = str | Mapping[str, Any] | Sequence[Content] | BaseModel | ChatResponse | Exception | Callable[..., Any]


def tool_call(name: str, /, **arguments: Any) -> Any:
    """A tool_use block for a script. Its id is made when it is answered."""
    return {"type": "tool_use", "id": "", "name": name, "input": arguments}


class ScriptEnded(UsageError):
    """A scripted model was called more often than its script has answers."""


@dataclass(frozen=True)
class ModelCall:
    """A call that a scripted model got.

    Attributes:
        messages: as they were given.
        structured_model: name of the form asked for, or None.
        kwargs: the rest.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | None = None
    structured_model: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)


# An agent's model is built anew for each call: what its script was asked stays here, by the script's id.
_asked: OrderedDict[str, list[ModelCall]] = OrderedDict()
_lock = threading.Lock()


def _calls_of(ident: str) -> list[ModelCall]:
    calls = _asked.setdefault(ident, [])
    _asked.move_to_end(ident)
    if len(_asked) > _KEPT:
        _asked.popitem(last=False)
    return calls


class ScriptedModel(ChatModelBase):
    """Answers each call with the next item of a script, and keeps what it was asked.

    It travels to workers. There, and where an agent is built anew for each call, it goes on in the script where this
    process left it; each process has the script from its beginning.

    Args:
        script: the answers, in order: text; a block, or a list of blocks (`tool_call(name, **arguments)` makes one);
            data for `structured_model`, as a dictionary or a pydantic object; a ChatResponse; an exception of
            Callsheet or of Python itself, to be raised; or a module's function, which is given the messages and the
            call's other arguments by name, and returns any of these.
        stream: answer with a generator of growing responses, a word more each time.
        model_name: what it is called.
        then: what follows the last item: "error", "last" (it again) or "cycle" (the first again).
        delay: seconds before each answer.
        ident: the script's id, under which this process knows how far it has come; a new one if not given.

    Raises:
        UsageError: an item is none of these.
    """

    def __init__(self, script: Sequence[Item], stream: bool = False, model_name: str = "scripted", *,
                 then: Literal["error", "last", "cycle"] = "error", delay: float = 0.0,
                 ident: str | None = None) -> None:
        super().__init__(model_name, stream)
        self.then = then
        self.delay = delay
        self.ident = ident or uuid4().hex
        self.script = [_plain(item, number) for number, item in enumerate(script)]
        # What travels is plain data, and the same script.
        self._recorded = ((self.script, stream, model_name), {"then": then, "delay": delay, "ident": self.ident})

    @property
    def calls(self) -> list[ModelCall]:
        """The calls that this script has got in this process, the first one first."""
        with _lock:
            return _calls_of(self.ident)

    async def __call__(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None,
                       tool_choice: str | None = None, structured_model: type[BaseModel] | None = None,
                       **kwargs: Any) -> ChatResponse | AsyncGenerator[ChatResponse, None]:
        """The next answer.

        Raises:
            ScriptEnded: the script has no more.
            ValueError: `messages` or `tool_choice` cannot be right, or the answer does not fit `structured_model`.
            Exception: what the script says.
        """
        check_messages(messages, "content", "parts")
        if tool_choice:
            self._validate_tool_choice(tool_choice, tools)
        form = structured_model.__name__ if structured_model else None
        call = ModelCall(copy.deepcopy(messages), tools, tool_choice, form, kwargs)
        with _lock:
            calls = _calls_of(self.ident)
            number = len(calls)
            calls.append(call)
        if self.delay:
            await asyncio.sleep(self.delay)
        item = self._item(number)
        if isinstance(item, types.FunctionType):
            item = _plain(item(messages, tools=tools, tool_choice=tool_choice, structured_model=structured_model,
                               **kwargs), number)
        response = _response(item, number, call, structured_model)
        return _growing(response) if self.stream else response

    def _item(self, number: int) -> Any:
        if number < len(self.script):
            return self.script[number]
        if self.then == "error" or not self.script:
            raise ScriptEnded(f"The script has {len(self.script)} answers and was asked for number {number + 1}. Add "
                              'one, or give then="last" or then="cycle".')
        return self.script[-1] if self.then == "last" else self.script[number % len(self.script)]


def _plain(item: Any, number: int) -> Any:
    """An item as what it is and its JSON data, or a function."""
    if isinstance(item, types.FunctionType) or (isinstance(item, tuple) and item[:1] in ((_ERROR,), (_DATA,),
                                                                                        (_RESPONSE,))):
        return item
    if isinstance(item, str):
        return _RESPONSE, {"content": [{"type": "text", "text": item}]}
    if isinstance(item, ChatResponse):
        return _RESPONSE, asdict(item)
    if isinstance(item, CallsheetError):
        return _ERROR, item.to_dict()
    if isinstance(item, Exception) and getattr(builtins, type(item).__name__, None) is type(item):
        return _ERROR, {"builtin": type(item).__name__, "args": [str(arg) for arg in item.args]}
    if isinstance(item, BaseModel):
        return _DATA, item.model_dump(mode="json")
    if isinstance(item, Mapping):
        return (_RESPONSE, {"content": [dict(item)]}) if item.get("type") in _BLOCKS else (_DATA, dict(item))
    if isinstance(item, Sequence) and all(isinstance(block, Mapping) and block.get("type") in _BLOCKS
                                          for block in item):
        return _RESPONSE, {"content": [dict(block) for block in item]}
    raise UsageError(f"Item {number} of the script is a {type(item).__qualname__}: text, blocks, data, a pydantic "
                     "object, a ChatResponse, an exception of Callsheet or of Python itself, or a function is needed.")


def _response(item: tuple[str, Any], number: int, call: ModelCall, form: type[BaseModel] | None) -> ChatResponse:
    """The answer that an item stands for, or its error."""
    kind, data = item
    if kind == _ERROR:
        raise _error(data)
    if kind == _DATA:
        given: dict[str, Any] = {"content": [{"type": "text", "text": json.dumps(data, ensure_ascii=False)}]}
    else:
        given = copy.deepcopy(data)
    usage = given.pop("usage", None)
    response = ChatResponse(**given)
    for position, block in enumerate(response.content):
        if block["type"] == "tool_use":
            block["id"] = block["id"] or f"call_{number}_{position}"
    said = " ".join(str(block.get("text") or block.get("thinking") or block.get("input") or "")
                    for block in response.content)
    asked = " ".join(str(message.get("content")) for message in call.messages)
    response.usage = ChatUsage(**usage) if usage else ChatUsage(len(asked.split()), len(said.split()), 0.0)
    called = any(block["type"] == "tool_use" for block in response.content)
    response.finish_reason = response.finish_reason or ("tool_calls" if called else "stop")
    if form is not None and response.metadata is None:
        response.metadata = _fitting(response, number, form)
    return response


def _fitting(response: ChatResponse, number: int, form: type[BaseModel]) -> dict[str, Any]:
    texts = [block["text"] for block in response.content if block["type"] == "text"]
    try:
        return form.model_validate_json("".join(texts)).model_dump(mode="json")
    except ValidationError as exc:
        raise ValueError(f"Answer {number + 1} of the script does not fit {form.__name__}: {exc}") from None


def _error(data: dict[str, Any]) -> Exception:
    if "builtin" in data:
        cls = getattr(builtins, str(data["builtin"]), None)
        if isinstance(cls, type) and issubclass(cls, Exception):
            return cls(*data["args"])
    return CallsheetError.from_dict(data)


async def _growing(response: ChatResponse) -> AsyncGenerator[ChatResponse, None]:
    """The response a word at a time; usage, metadata and the reason of the end come with the last."""
    done: list[Any] = []
    for block in response.content:
        if block["type"] == "text":
            words = block["text"].split(" ")
            for count in range(1, len(words)):
                yield replace(response, content=[*done, {**block, "text": " ".join(words[:count])}], usage=None,
                              metadata=None, finish_reason=None)
                await asyncio.sleep(0)
        done.append(block)
    yield response
