"""What the tests of the wire send: classes and functions at the top level of a module."""

import enum
import os
import subprocess  # noqa: F401 - imported so that a test can show that a message cannot reach it
from dataclasses import InitVar, dataclass, field
from datetime import date
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, SecretStr

from callsheet import AgentBase, Msg
from callsheet.messages import Recorded

T = TypeVar("T")
join = os.path.join


class Colour(enum.Enum):
    RED = "red"
    GREEN = (1, 2)


class Level(enum.IntEnum):
    LOW = 1


class Word(str, enum.Enum):  # noqa: UP042 - the older way is also met
    YES = "yes"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Point:
    x: int
    y: Any = None
    seen: int = field(default=0, init=False)


@dataclass(frozen=True, kw_only=True)
class Frozen:
    tags: tuple[str, ...]


@dataclass
class Fussy:
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("negative")


@dataclass
class Needy:
    extra: InitVar[int]


class Report(BaseModel):
    title: str
    score: float = 0.0
    raw: bytes = b""
    day: date | None = None
    tags: set[str] = set()
    inner: "Report | None" = None


class Aliased(BaseModel):
    full_name: str = Field(alias="fullName")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    day: date
    tags: tuple[str, ...]


class Linked(BaseModel):
    url: HttpUrl


class Boxed(BaseModel, Generic[T]):
    value: T


class Secretive(BaseModel):
    keys: dict[str, SecretStr]


class Odd(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    thing: Any


class Said(BaseModel):
    msg: Msg


class Tool(Recorded):
    def __init__(self, *items: Any, **named: Any) -> None:
        self.items = items
        self.named = named

    @staticmethod
    def fixed() -> str:
        return "fixed"

    def method(self) -> str:
        return "method"

    class Inner(Recorded):
        pass


class Grumpy(Recorded):
    def __init__(self, size: int) -> None:
        if size != 1:
            raise KeyError(size)


class Holder(AgentBase):
    def __init__(self, name: str, helper: Any = None, *, tools: list[Any] | None = None) -> None:
        self.name = name
        self.helper = helper
        self.tools = tools or []

    async def reply(self, msg: Msg | None = None) -> Msg:
        return Msg(self.name, "held", "assistant")


class MyMsg(Msg):
    """A message of a user's own kind."""

    mood: str = "calm"


class FloatLike(float):
    def __repr__(self) -> str:
        return f"FloatLike({float(self)})"


def add(a: int, b: int = 0) -> int:
    return a + b


def shadowed() -> int:
    return 1


first_shadowed = shadowed


def shadowed() -> int:  # type: ignore[no-redef]
    return 2


def pre_shout(agent: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    return kwargs


class _Hidden(Recorded):
    pass


def _hidden() -> None:
    pass


class Numbers(BaseModel):
    some: set[int]
    named: dict[int, int]


class Form(BaseModel):
    data: Any
