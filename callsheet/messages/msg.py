"""Msg: what agents say to each other."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from typing import Any, Literal, Self
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from callsheet.errors import MessageError
from callsheet.messages.blocks import BlockType, ContentBlock

Role = Literal["user", "assistant", "system"]
_NEEDED = frozenset({"name", "content", "role"})
MOST_BITS = 14_000  # of a whole number: Python reads and writes at most 4,300 digits as JSON


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


class Msg(BaseModel):
    """A message with a sender, a role and content; AgentScope's, checked.

    Args:
        name: the sender's name.
        content: text, or a list of content blocks.
        role: "user", "assistant" or "system".
        metadata: JSON data that goes with it, e.g. structured output; {} by default.
        timestamp: local time as "YYYY-MM-DD HH:MM:SS.mmm"; now by default.
        invocation_id: the model call that it came from, if any.

    Raises:
        MessageError: names each part that is wrong.
    """

    model_config = ConfigDict(validate_assignment=True, extra="forbid", ser_json_inf_nan="constants")

    id: str = Field(default_factory=lambda: uuid4().hex)
    name: str
    role: Role
    content: str | list[ContentBlock]
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    timestamp: str = Field(default_factory=_now)
    invocation_id: str | None = None

    def __init__(self, name: str, content: str | Sequence[ContentBlock], role: Role,
                 metadata: dict[str, Any] | None = None, timestamp: str | None = None,
                 invocation_id: str | None = None, **more: Any) -> None:
        given = {"name": name, "content": content, "role": role, "metadata": metadata or {},
                 "invocation_id": invocation_id, **more}
        if timestamp:
            given["timestamp"] = timestamp
        try:
            super().__init__(**given)
        except ValidationError as exc:
            raise MessageError(_explain(exc, name)) from None

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError as exc:
            raise MessageError(_explain(exc, self.name)) from None

    @field_validator("name", "content", "metadata", mode="after")
    @classmethod
    def _writable(cls, value: Any) -> Any:
        """Refuse what pydantic lets pass and JSON does not hold."""
        todo = [value]
        while todo:
            item = todo.pop()
            if isinstance(item, str):
                if not item.isascii():
                    _encoded(item)
            elif isinstance(item, dict):
                todo += item
                todo += item.values()
            elif isinstance(item, list):
                todo += item
            elif isinstance(item, int) and item.bit_length() > MOST_BITS:
                raise ValueError("a whole number of over 4,200 digits: give it as text, e.g. hex(value)")
        return value

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # As pydantic's, which walks through all fields, of which most are texts; memories copy each message.
        if type(self) is not Msg:
            return super().__deepcopy__(memo)
        copied = self.__copy__()
        fields = vars(copied)  # what is put there was checked before
        if not isinstance(self.content, str):
            fields["content"] = deepcopy(self.content, memo)
        fields["metadata"] = deepcopy(self.metadata, memo) if self.metadata else {}
        return copied

    def to_dict(self) -> dict[str, Any]:
        """The message as JSON data."""
        data = {"id": self.id, "name": self.name, "role": self.role, "content": self.content,
                "metadata": self.metadata, "timestamp": self.timestamp}
        if self.invocation_id is not None:
            data["invocation_id"] = self.invocation_id
        return data

    @classmethod
    def from_dict(cls, json_data: Mapping[str, Any]) -> Self:
        """The message that `to_dict` wrote.

        Raises:
            MessageError: it is not a message's data; the message says why.
        """
        if not isinstance(json_data, Mapping):
            raise MessageError(f"A message's data is a dictionary, not {type(json_data).__name__}.")
        missing = _NEEDED - json_data.keys()
        if missing:
            raise MessageError(f"A message's data lacks {', '.join(sorted(missing))}; it has "
                               f"{', '.join(map(str, json_data)) or 'nothing'}.")
        odd = [key for key in json_data if not isinstance(key, str)]
        if odd:
            raise MessageError(f"A message's data has the key {odd[0]!r}: its keys are texts.")
        return cls(**json_data)

    def get_text_content(self, separator: str = "\n") -> str | None:
        """The text blocks' texts joined by `separator`, or None if there are none."""
        if isinstance(self.content, str):
            return self.content
        texts = [block["text"] for block in self.content if block["type"] == "text"]
        return separator.join(texts) if texts else None

    def get_content_blocks(self, block_type: BlockType | list[BlockType] | None = None) -> list[Any]:
        """The content as blocks: all, or those of a type or of several; a text counts as one text block."""
        blocks: list[Any] = ([{"type": "text", "text": self.content}] if isinstance(self.content, str)
                             else list(self.content))
        if block_type is None:
            return blocks
        wanted = [block_type] if isinstance(block_type, str) else block_type
        return [block for block in blocks if block["type"] in wanted]

    def has_content_blocks(self, block_type: BlockType | list[BlockType] | None = None) -> bool:
        """Whether there is a block, or one of that type."""
        return bool(self.get_content_blocks(block_type))


def _encoded(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"half a surrogate pair at character {exc.start} of a text, which UTF-8 cannot hold: read "
                         "the file with errors=\"replace\"") from None


def shown(value: object) -> str:
    """A value, cut short."""
    try:
        text = repr(value)
    except Exception:  # a huge number, or an object that cannot show itself
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _explain(exc: ValidationError, name: object) -> str:
    lines = [f"The message from {name!r} is not valid:"]
    for error in exc.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in error["loc"] if not str(part).startswith("list["))
        if error["loc"][:2] == ("content", "str"):
            continue  # the other side of `str | list`: only worth saying if nothing else is wrong
        wrong = error["msg"].removeprefix("Value error, ")
        if error["type"] == "list_type" and where == "content":
            wrong = "a text or a list of content blocks is needed"
        lines.append(f"  {where}: {wrong} (given {shown(error['input'])})")
    lines.append("Roles are user, assistant and system; content is a text or a list of blocks with a type.")
    return "\n".join(lines)
