"""A person at the terminal of this process."""

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel, ValidationError

from callsheet.agents.asking import UserInputBase, UserInputData, question_of
from callsheet.agents.base import printer
from callsheet.errors import UsageError
from callsheet.messages import Msg
from callsheet.messages.printable import printable
from callsheet.tools.threads import in_thread

Line = Callable[[str], Awaitable[str]]
#: Gives the data as they are to be kept, or raises ValueError with what is wrong with them, by field.
Check = Callable[[dict[str, Any]], dict[str, Any]]


class TerminalUserInput(UserInputBase):
    """Reads answers from standard input.

    Args:
        input_hint: shown before the cursor.
    """

    def __init__(self, input_hint: str = "User Input: ") -> None:
        self.input_hint = input_hint

    async def __call__(self, agent_id: str, agent_name: str, *args: Any,
                       structured_model: type[BaseModel] | None = None, msg: Msg | list[Msg] | None = None,
                       **kwargs: Any) -> UserInputData:
        """Read a line, and a line for each field of `structured_model`.

        Raises:
            UsageError: standard input is at its end.
        """
        question = question_of(msg)
        if question is not None and printer.get() is not None:  # else it was printed here
            tell(f"{question.name}: {question.get_text_content() or ''}")
        text = await line(self.input_hint)
        data = None
        if structured_model is not None:
            form = structured_model
            data = await filled_in(form.model_json_schema(), lambda given: checked(form, given))
        return UserInputData([{"type": "text", "text": text}], data)


class Unfit(ValueError):
    """Data do not fit their form."""

    def __init__(self, wrong: dict[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {why}" if name else why for name, why in wrong.items()))
        self.wrong = wrong


def checked(form: type[BaseModel], data: Any) -> dict[str, Any]:
    """Data as `form` keeps them, as JSON data.

    Raises:
        Unfit: they do not fit.
    """
    try:
        return form.model_validate(data).model_dump(mode="json")
    except ValidationError as exc:
        raise Unfit({".".join(map(str, error["loc"])): error["msg"].removeprefix("Value error, ")
                     for error in exc.errors(include_url=False, include_input=False, include_context=False)}) from None


async def filled_in(schema: dict[str, Any], check: Check, ask: Line | None = None) -> dict[str, Any]:
    """Ask for each field of a form, and again for those that do not fit.

    Args:
        schema: the form's JSON schema.
        check: see Check.
        ask: gives the line that somebody wrote after a text; by default at the terminal.
    """
    ask = ask or line
    fields = fields_of(schema)
    required = schema.get("required") or ()
    given: dict[str, Any] = {}
    left = list(fields)
    while True:
        for name in left:
            text = await ask(f"  {name}{_about(fields[name], name in required)}: ")
            if text:
                given[name] = _value(text, fields[name])
            else:
                given.pop(name, None)
        try:
            return check(given)
        except Unfit as exc:
            for name, why in exc.wrong.items():
                tell(f"  {name}: {why}" if name else f"  {why}")
            wrong = {name.partition(".")[0] for name in exc.wrong}
            left = [name for name in fields if name in wrong] or list(fields)


def fields_of(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A form's fields, each with what its reference within the schema says of it."""
    named, given = schema.get("$defs"), schema.get("properties")
    found = {}
    for name, field in (given if isinstance(given, dict) else {}).items():
        known = field if isinstance(field, dict) else {}
        ref = str(known.get("$ref", "")).removeprefix("#/$defs/")
        more = named.get(ref) if isinstance(named, dict) else None
        found[str(name)] = {**more, **known} if isinstance(more, dict) else known
    return found


def _about(field: dict[str, Any], required: bool) -> str:
    kinds = field.get("enum") or [one.get("type", "data") if isinstance(one, dict) else "data"
                                  for one in field.get("anyOf") or [field]]
    said = [str(field.get("description", "")), ("|" if "enum" in field else " or ").join(map(str, kinds)),
            "" if required else "optional"]
    return f" ({', '.join(part for part in said if part)})"


def _value(text: str, field: dict[str, Any]) -> Any:
    if field.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


async def line(hint: str) -> str:
    """A line of standard input, read by a thread: the loop goes on.

    Raises:
        UsageError: it is at its end.
    """
    try:
        text = await in_thread(lambda: input(printable(hint)))
    except EOFError:
        raise UsageError("Standard input is at its end, and a person's answer is needed. Run this at a terminal, say "
                         "who answers, UserAgent(name, input=function), or submit it and job.answer(text).") from None
    return text.encode("utf-8", "ignore").decode()


def tell(text: str) -> None:
    """Show a line."""
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()
