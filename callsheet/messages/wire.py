"""Values as JSON and back: what crosses the wire, and nothing else.

JSON's own types travel as they are. The rest becomes a dictionary with one key that begins with "$":

$msg    a Msg's data                    $new    an object that recorded its construction
$tuple  [items]                         $fn     a function, "module:name"
$set    [items]                         $type   a class, "module:name"
$bytes  base64                          $model  a pydantic object
$dict   [[key, value], ...]             $data   a dataclass object
$iso    date, time or datetime          $enum   [class, member]
$value  [type, text]: Decimal, UUID, timedelta, path, float("nan")
$call   a functools.partial
"""

import base64
import dataclasses
import datetime as dt
import enum
import functools
import math
import pathlib
import types
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError

from callsheet.errors import CannotTravel
from callsheet.messages.allow import AllowList, reference
from callsheet.messages.msg import Msg
from callsheet.messages.recorded import Recorded

_ISO: dict[str, Any] = {"datetime": dt.datetime, "date": dt.date, "time": dt.time}
_VALUES: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "decimal": (Decimal, str, Decimal),
    "uuid": (uuid.UUID, str, uuid.UUID),
    "path": (pathlib.PurePath, str, pathlib.Path),
    "timedelta": (dt.timedelta, lambda value: repr(value.total_seconds()),
                  lambda text: dt.timedelta(seconds=float(text))),
    "float": (float, repr, float),
}


class Writer:
    """Writes values to JSON data.

    Args:
        allow: if given, classes and functions outside it are refused already here.
        local: if given, classes and functions are put there under a number instead of being named; for calls
            that stay in this process.
    """

    def __init__(self, allow: AllowList | None = None, local: list[Any] | None = None) -> None:
        self.allow = allow
        self.local = local

    def write(self, value: Any, where: str) -> Any:
        """`value` as JSON data.

        Args:
            value: what to write.
            where: what it is, for the error, e.g. "argument 'tool' of Summarizer".

        Raises:
            CannotTravel: names the part that cannot be written, and the remedy.
        """
        try:
            return self._write(value, where)
        except RecursionError:
            raise CannotTravel(f"{where} contains itself or is nested too deeply. Give it without the loop.") from None

    def _write(self, value: Any, where: str) -> Any:
        kind = type(value)
        if value is None or kind in (bool, str, int) or (kind is float and math.isfinite(value)):
            return value
        if kind is list:
            return [self._write(item, f"{where}[{i}]") for i, item in enumerate(value)]
        if kind is dict:
            return self._dict(value, where)
        if isinstance(value, Msg):
            return {"$msg": value.to_dict()}
        if isinstance(value, Recorded):
            return self._recorded(value)
        return self._rare(value, where)

    def _dict(self, value: dict[Any, Any], where: str) -> dict[str, Any]:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: self._write(item, f"{where}[{key!r}]") for key, item in value.items()}
        return {"$dict": [[self._write(key, f"a key of {where}"), self._write(item, f"{where}[{key!r}]")]
                          for key, item in value.items()]}

    def _recorded(self, value: Recorded) -> dict[str, Any]:
        cls = type(value)
        args, kwargs = value._recorded
        data = {
            "$new": self.name(cls, "class", cls.__name__),
            "args": [self._write(arg, f"argument {i + 1} of {cls.__name__}()") for i, arg in enumerate(args)],
            "kwargs": {key: self._write(arg, f"argument {key!r} of {cls.__name__}()")
                       for key, arg in kwargs.items()},
        }
        extras = value.wire_extras()
        if extras:
            data["extras"] = self._write(extras, f"what goes with {cls.__name__}")
        return data

    def _rare(self, value: Any, where: str) -> dict[str, Any]:
        if isinstance(value, (tuple, set, frozenset)) and type(value) in (tuple, set, frozenset):
            kind = "$tuple" if isinstance(value, tuple) else "$set"
            return {kind: [self._write(item, f"{where}[{i}]") for i, item in enumerate(value)]}
        if isinstance(value, (bytes, bytearray)):
            return {"$bytes": base64.b64encode(value).decode()}
        if isinstance(value, enum.Enum):
            return {"$enum": [self.name(type(value), "class", where), value.name]}
        for kind, cls in _ISO.items():
            if type(value) is cls:
                return {"$iso": [kind, value.isoformat()]}
        for kind, (cls, text, _) in _VALUES.items():
            if isinstance(value, cls):
                return {"$value": [kind, text(value)]}
        return self._named(value, where)

    def _named(self, value: Any, where: str) -> dict[str, Any]:
        if isinstance(value, types.FunctionType):
            return {"$fn": self.name(value, "function", where)}
        if isinstance(value, type):
            return {"$type": self.name(value, "class", where)}
        if isinstance(value, functools.partial):
            return {"$call": [self._write(value.func, where), self._write(list(value.args), where),
                              self._write(value.keywords, where)]}
        if isinstance(value, SecretStr):
            raise CannotTravel(f"{where} is a secret, and secrets never travel. Declare an endpoint with the key in "
                               "the workers' settings and name the endpoint.")
        if isinstance(value, BaseModel):
            return {"$model": self.name(type(value), "class", where), "data": value.model_dump(mode="json")}
        if dataclasses.is_dataclass(value):
            fields = {field.name: self._write(getattr(value, field.name), f"{where}.{field.name}")
                      for field in dataclasses.fields(value) if field.init}
            return {"$data": self.name(type(value), "class", where), "fields": fields}
        raise CannotTravel(f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which cannot travel to "
                           "a worker. Give what it is made from (text, numbers, lists, dictionaries, messages, "
                           "dataclasses, pydantic models, functions of a module) and create it in the agent.")

    def name(self, target: Any, what: str, where: str) -> str:
        """How the class or function `target` is named on the wire."""
        if self.local is not None and not getattr(target, "__qualname__", "").endswith("<lambda>"):
            if target not in self.local:
                self.local.append(target)
            return f"@{self.local.index(target)}"
        try:
            ref = reference(target, what)
        except CannotTravel as exc:
            raise CannotTravel(f"{where} cannot travel: {exc}") from None
        if self.allow is not None:
            self.allow.check(ref, what)
        return ref


class Reader:
    """Reads what a Writer wrote, naming only what `allow` admits.

    Args:
        allow: the modules that may be imported.
        local: the Writer's, for calls that stayed in this process.
    """

    def __init__(self, allow: AllowList, local: list[Any] | None = None) -> None:
        self.allow = allow
        self.local = local

    def read(self, data: Any) -> Any:
        """The value that was written.

        Raises:
            ModuleNotAllowed: it names something outside the allowed modules.
            CannotTravel: it is not what a Writer writes, or does not fit what is installed here.
        """
        if isinstance(data, list):
            return [self.read(item) for item in data]
        if not isinstance(data, dict):
            return data
        tag = next((key for key in data if key.startswith("$")), None)
        if tag is None:
            return {key: self.read(item) for key, item in data.items()}
        method = _READERS.get(tag)
        if method is None:
            raise CannotTravel(f"{tag!r} is not known here. Do the workers run an older version of Callsheet?")
        return method(self, data[tag], data)

    def named(self, ref: str, what: str) -> Any:
        """The class or function that the wire names `ref`."""
        if ref.startswith("@") and self.local is not None:
            return self.local[int(ref[1:])]
        return self.allow.resolve(ref, what)

    def _new(self, ref: str, data: dict[str, Any]) -> Any:
        cls = self.named(ref, "class")
        if not (isinstance(cls, type) and issubclass(cls, Recorded)):
            raise CannotTravel(f"{ref} is not an agent, a model or another class that may be built from a message.")
        value = cls(*self.read(data["args"]), **self.read(data["kwargs"]))
        if "extras" in data:
            value.apply_wire_extras(self.read(data["extras"]))
        return value

    def _model(self, ref: str, data: dict[str, Any]) -> Any:
        cls = self.named(ref, "class")
        if not (isinstance(cls, type) and issubclass(cls, BaseModel)):
            raise CannotTravel(f"{ref} is not a pydantic model here.")
        try:
            return cls.model_validate(data["data"])
        except ValidationError as exc:
            raise CannotTravel(f"The data of {ref} does not fit the class that is installed here: {exc}") from None

    def _data(self, ref: str, data: dict[str, Any]) -> Any:
        cls = self.named(ref, "class")
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            raise CannotTravel(f"{ref} is not a dataclass here.")
        return cls(**self.read(data["fields"]))

    def _function(self, ref: str, _data: dict[str, Any]) -> Any:
        found = self.named(ref, "function")
        if not isinstance(found, types.FunctionType):
            raise CannotTravel(f"{ref} is not a function here.")
        return found

    def _class(self, ref: str, _data: dict[str, Any]) -> Any:
        found = self.named(ref, "class")
        if not isinstance(found, type):
            raise CannotTravel(f"{ref} is not a class here.")
        return found

    def _partial(self, parts: list[Any], _data: dict[str, Any]) -> Any:
        if "$fn" not in parts[0]:
            raise CannotTravel("A partial must be of a function.")
        return functools.partial(self.read(parts[0]), *self.read(parts[1]), **self.read(parts[2]))

    def _enum(self, parts: list[Any], _data: dict[str, Any]) -> Any:
        cls = self.named(parts[0], "class")
        if not (isinstance(cls, type) and issubclass(cls, enum.Enum)) or parts[1] not in cls.__members__:
            raise CannotTravel(f"{parts[0]} has no member {parts[1]} here.")
        return cls[parts[1]]


_READERS: dict[str, Callable[[Reader, Any, dict[str, Any]], Any]] = {
    "$msg": lambda _r, value, _d: Msg.from_dict(value),
    "$tuple": lambda r, value, _d: tuple(r.read(value)),
    "$set": lambda r, value, _d: set(r.read(value)),
    "$bytes": lambda _r, value, _d: base64.b64decode(value),
    "$dict": lambda r, value, _d: {r.read(key): r.read(item) for key, item in value},
    "$iso": lambda _r, value, _d: _ISO[value[0]].fromisoformat(value[1]),
    "$value": lambda _r, value, _d: _VALUES[value[0]][2](value[1]),
    "$new": Reader._new,
    "$model": Reader._model,
    "$data": Reader._data,
    "$fn": Reader._function,
    "$type": Reader._class,
    "$call": Reader._partial,
    "$enum": Reader._enum,
}
