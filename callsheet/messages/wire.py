"""Values as JSON and back: what crosses the wire, and nothing else.

JSON's own types travel as they are. The rest becomes a dictionary with one key that begins with "$":

$msg    a Msg's data                    $new    an object that recorded its construction
$tuple  [items]                         $fn     a function, "module:name"
$set    [items]                         $type   a class, "module:name"
$frozen [items] of a frozenset          $model  a pydantic object
$bytes  base64                          $data   a dataclass object
$dict   [[key, value], ...]             $enum   [class, member, value where no member has it]
$iso    date, time or datetime          $call   a functools.partial
$value  [type, text]: Decimal, UUID, timedelta, path, float("nan")

A dictionary that kombu would take for one of its own marks, {"__type__": ..., "__value__": ...}, becomes a $dict; data
of a Msg or a pydantic object that hold one become a JSON text.
"""

import base64
import dataclasses
import datetime as dt
import enum
import functools
import json
import math
import pathlib
import types
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from pydantic import BaseModel, SecretBytes, SecretStr

from callsheet.errors import CallsheetError, CannotTravel
from callsheet.messages.allow import AllowList, reference
from callsheet.messages.msg import MOST_BITS, Msg
from callsheet.messages.quick import numbers_share_a_hash, share_a_hash
from callsheet.messages.recorded import Recorded
from callsheet.messages.secrecy import HEADER, among, inside, positional, refusal, refuse, refuse_known

_ISO: dict[str, Any] = {"datetime": dt.datetime, "date": dt.date, "time": dt.time}
_VALUES: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "decimal": (Decimal, str, Decimal),
    "uuid": (uuid.UUID, str, uuid.UUID),
    "path": (pathlib.PurePath, str, pathlib.Path),
    "timedelta": (dt.timedelta, lambda value: f"{value.days}:{value.seconds}:{value.microseconds}",
                  lambda text: dt.timedelta(*map(int, text.split(":")))),
    "float": (float, float.__repr__, float),  # a subclass's own repr need not be a number
}
_SETS: dict[type, str] = {tuple: "$tuple", set: "$set", frozenset: "$frozen"}
_MARK = {"__type__", "__value__"}  # the keys by which kombu knows data that JSON has no type for
_PLAIN = frozenset({str, bool, type(None), float})


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
            data = self._write(value, where)
            refuse_known(data, where)
        except RecursionError:
            raise CannotTravel(f"{where} contains itself or is nested too deeply. Give it without the loop.") from None
        return data

    def _write(self, value: Any, where: str, name: str = "") -> Any:
        kind = type(value)
        if kind is str:
            refuse(value, name, where)
            return value
        if value is None or kind is bool or (kind is float and math.isfinite(value)):
            return value
        if kind is int:
            return _whole(value, where)
        if kind is list:
            return [self._write(item, f"{where}[{i}]", among(name, value, i)) for i, item in enumerate(value)]
        if kind is dict:
            return self._dict(value, where, name)
        if kind is Msg:
            data = value.to_dict()
            return {"$msg": json.dumps(data) if _json(data, where) else data}
        if isinstance(value, Recorded):
            return self._recorded(value)
        return self._rare(value, where, name)

    def _dict(self, value: dict[Any, Any], where: str, name: str = "") -> dict[str, Any]:
        if all(type(key) is str and not key.startswith("$") for key in value) and value.keys() != _MARK:
            kept = inside(name)
            return {key: self._write(item, f"{where}[{key!r}]", kept + key if kept is HEADER else kept or key)
                    for key, item in value.items()}
        return {"$dict": [[self._write(key, f"a key of {where}"),
                           self._write(item, f"{where}[{key!r}]", inside(name) or str(key))]
                          for key, item in value.items()]}

    def _recorded(self, value: Recorded) -> dict[str, Any]:
        cls = type(value)
        value.leaving(self.local is not None)
        args, kwargs = value._recorded
        names = (*positional(cls.__init__)[1:], *[""] * len(args))
        data = {
            "$new": self.name(cls, "class", cls.__name__),
            "args": [self._write(arg, f"argument {i + 1} of {cls.__name__}()", names[i])
                     for i, arg in enumerate(args)],
            "kwargs": {key: self._write(arg, f"argument {key!r} of {cls.__name__}()", key)
                       for key, arg in kwargs.items()},
        }
        extras = value.wire_extras()
        if extras:
            data["extras"] = self._write(extras, f"what goes with {cls.__name__}")
        return data

    def _rare(self, value: Any, where: str, name: str) -> dict[str, Any]:
        if type(value) in _SETS:
            items = list(value)
            return {_SETS[type(value)]: [self._write(item, f"{where}[{i}]", among(name, items, i))
                                         for i, item in enumerate(items)]}
        if isinstance(value, (bytes, bytearray)):
            plain = value.decode("latin-1")
            refuse(plain, name, where)
            refuse_known(plain, where)
            return {"$bytes": base64.b64encode(value).decode()}
        if isinstance(value, enum.Enum):
            return self._enum(value, where)
        for kind, cls in _ISO.items():
            if type(value) is cls:
                return {"$iso": [kind, value.isoformat()]}
        for kind, (cls, text, _) in _VALUES.items():
            if isinstance(value, cls):
                refuse(text(value), name, where)
                return {"$value": [kind, text(value)]}
        return self._named(value, where)

    def _named(self, value: Any, where: str) -> dict[str, Any]:
        if isinstance(value, types.FunctionType):
            return {"$fn": self.name(value, "function", where)}
        if isinstance(value, type):
            return {"$type": self.name(value, "class", where)}
        if isinstance(value, functools.partial) and isinstance(value.func, types.FunctionType):
            given = zip(positional(value.func), value.args, strict=False)
            self._write({**dict(given), **value.keywords}, where)
            return {"$call": [self._write(value.func, where), self._write(list(value.args), where),
                              self._write(value.keywords, where)]}
        if isinstance(value, (SecretStr, SecretBytes)):
            raise refusal(where, "is a secret")
        if isinstance(value, BaseModel):
            named, data = self.name(type(value), "class", where), _dumped(value, where)
            self._write(data, where)  # for what of it may not travel
            return {"$model": named, **({"text": json.dumps(data)} if _json(data, where) else {"data": data})}
        if dataclasses.is_dataclass(value):
            fields = {field.name: self._write(getattr(value, field.name), f"{where}.{field.name}", field.name)
                      for field in dataclasses.fields(value) if field.init}
            return {"$data": self.name(type(value), "class", where), "fields": fields}
        raise CannotTravel(f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which cannot travel to "
                           "a worker. Give what it is made from (text, numbers, lists, dictionaries, messages, "
                           "dataclasses, pydantic models, functions of a module) and create it in the agent.")

    def _enum(self, value: enum.Enum, where: str) -> dict[str, Any]:
        named = [self.name(type(value), "class", where), value.name]
        of_class = type(value).__members__
        return {"$enum": named if value.name in of_class else [*named, self._write(value.value, f"{where}.value")]}

    def name(self, target: Any, what: str, where: str) -> str:
        """How the class or function `target` is named on the wire."""
        if self.local is not None and not getattr(target, "__qualname__", "").endswith("<lambda>"):
            if target not in self.local:
                self.local.append(target)
            return f"@{self.local.index(target)}"
        try:
            ref = reference(target, what)
            if self.allow is not None or ref.startswith("callsheet."):
                (self.allow or AllowList(())).check(ref, what)
        except CannotTravel as exc:
            raise type(exc)(f"{where} cannot travel: {exc}") from None
        return ref


def _whole(value: int, where: str) -> int:
    if value.bit_length() > MOST_BITS:
        raise CannotTravel(f"{where} is a whole number of over 4,200 digits, which JSON in Python does not hold. "
                           "Give it as text, e.g. hex(value).")
    return value


def _json(data: Any, where: str) -> bool:
    """Check that data are JSON's own types alone: a message that was changed after it was checked need not be.

    Returns:
        Whether they hold what kombu would take for its own mark of a type.
    """
    held = False
    if type(data) in _PLAIN:
        return False
    if isinstance(data, dict) and all(isinstance(key, str) for key in data):
        held = data.keys() == _MARK
        for key, item in data.items():
            held = _json(item, f"{where}[{key!r}]") or held
    elif isinstance(data, list):
        for index, item in enumerate(data):
            held = _json(item, f"{where}[{index}]") or held
    elif isinstance(data, int):
        _whole(data, where)
    elif not isinstance(data, (str, float)):
        raise CannotTravel(f"{where} is a {type(data).__module__}.{type(data).__qualname__}, which is not JSON. In a "
                           "message give text, numbers, true, false, null, lists and dictionaries of them.")
    return held


def _dumped(value: BaseModel, where: str) -> Any:
    try:
        plain, data = value.model_dump(), value.model_dump(mode="json")
    except Exception as exc:
        raise CannotTravel(f"{where}, a {type(value).__qualname__}, cannot be written as JSON: {exc}. Give its field "
                           "a type that pydantic serialises, or a field_serializer.") from exc
    todo = [plain]
    while todo:
        item = todo.pop()
        if isinstance(item, (SecretStr, SecretBytes)):
            raise refusal(f"A field of {where}, a {type(value).__qualname__},", "is a secret")
        if isinstance(item, dict):
            todo.extend(item.values())
        elif isinstance(item, (list, tuple, set, frozenset)):
            todo.extend(item)
    return data


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
        try:
            return self._read(data)
        except CallsheetError:
            raise
        except RecursionError:
            raise CannotTravel("A message is nested too deeply to be read here.") from None
        except Exception as exc:
            raise CannotTravel(f"A message cannot be read here: {type(exc).__name__}: {exc}. Do the workers run "
                               "another version of Callsheet?") from exc

    def _read(self, data: Any) -> Any:
        kind = type(data)
        if kind is list:
            return [self._read(item) for item in data]
        if kind is not dict:
            return data
        tag = next((key for key in data if key.startswith("$")), None)
        if tag is None:
            return {key: self._read(item) for key, item in data.items()}
        method = _READERS.get(tag)
        if method is None:
            raise CannotTravel(f"{tag!r} is not known here. Do the workers run an older version of Callsheet?")
        return method(self, data[tag], data)

    def named(self, ref: str, what: str) -> Any:
        """The class or function that the wire names `ref`."""
        if ref.startswith("@") and self.local is not None:
            return self.local[int(ref[1:])]
        return self.allow.resolve(ref, what)

    def _class_of(self, ref: str, base: type, what: str) -> Any:
        """The class that the wire names `ref`, which is one of `base`."""
        cls = self.named(ref, "class")
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise CannotTravel(f"{ref} is not {what} here.")
        return cls

    def _new(self, ref: str, data: dict[str, Any]) -> Any:
        cls = self._class_of(ref, Recorded, "an agent, a model or another class that may be built from a message")
        value = _built(cls, ref, *self._read(data["args"]), **self._read(data["kwargs"]))
        value.arrived(self.local is not None)
        if "extras" in data:
            value.apply_wire_extras(self._read(data["extras"]))
        return value

    def _model(self, ref: str, data: dict[str, Any]) -> Any:
        cls = self._class_of(ref, BaseModel, "a pydantic model")
        # As JSON text, so that a strict model takes a date written as text; by name, as it was written.
        text = data["text"] if "text" in data else json.dumps(data["data"])
        if numbers_share_a_hash(json.loads(text) if "text" in data else data["data"]):
            raise _collides()
        return _built(cls.model_validate_json, ref, text, by_alias=True, by_name=True)

    def _data(self, ref: str, data: dict[str, Any]) -> Any:
        cls = self.named(ref, "class")
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            raise CannotTravel(f"{ref} is not a dataclass here.")
        return _built(cls, ref, **self._read(data["fields"]))

    def _function(self, ref: str, _data: dict[str, Any]) -> Any:
        found = self.named(ref, "function")
        if not isinstance(found, types.FunctionType):
            raise CannotTravel(f"{ref} is not a function here.")
        return found

    def _partial(self, parts: list[Any], _data: dict[str, Any]) -> Any:
        function = self._read(parts[0])
        if not isinstance(function, types.FunctionType):
            raise CannotTravel("A partial must be of a function.")
        return functools.partial(function, *self._read(parts[1]), **self._read(parts[2]))

    def _enum(self, parts: list[Any], _data: dict[str, Any]) -> Any:
        cls = self._class_of(parts[0], enum.Enum, "an enumeration")
        if len(parts) == 3:
            return _built(cls, parts[0], self._read(parts[2]))
        if parts[1] in cls.__members__:
            return cls[parts[1]]
        raise CannotTravel(f"{parts[0]} has no member {parts[1]} here.")


def _built(make: Callable[..., Any], ref: str, /, *args: Any, **kwargs: Any) -> Any:
    try:
        return make(*args, **kwargs)
    except CallsheetError:
        raise
    except Exception as exc:
        raise CannotTravel(f"{ref} cannot be built here of what was sent: {type(exc).__name__}: {exc}. Do the workers "
                           "run another version of it, or lack what its constructor needs?") from exc


def _apart(make: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    """A set, or a dictionary, of items that are all different, as those of a set that was written are."""
    if share_a_hash(items):
        raise _collides()
    made = make(items)
    if len(made) != len(items):
        raise CannotTravel("Some items of a set, or keys of a dictionary, are equal here (1, 1.0 and true are): one "
                           "would be lost.")
    return made


def _collides() -> CannotTravel:
    return CannotTravel("A message holds very many different numbers of one hash, of which no set or dictionary could "
                        "be made in time.")


_READERS: dict[str, Callable[[Reader, Any, dict[str, Any]], Any]] = {
    "$msg": lambda _r, value, _d: Msg.from_dict(json.loads(value) if isinstance(value, str) else value),
    "$tuple": lambda r, value, _d: tuple(r._read(value)),
    "$set": lambda r, value, _d: _apart(set, r._read(value)),
    "$frozen": lambda r, value, _d: _apart(frozenset, r._read(value)),
    "$bytes": lambda _r, value, _d: base64.b64decode(value, validate=True),
    "$dict": lambda r, value, _d: dict(zip(_apart(dict.fromkeys, [r._read(key) for key, _ in value]),
                                          [r._read(item) for _, item in value], strict=True)),
    "$iso": lambda _r, value, _d: _ISO[value[0]].fromisoformat(value[1]),
    "$value": lambda _r, value, _d: _VALUES[value[0]][2](value[1]),
    "$new": Reader._new,
    "$model": Reader._model,
    "$data": Reader._data,
    "$fn": Reader._function,
    "$type": lambda r, value, _d: r._class_of(value, object, "a class"),
    "$call": Reader._partial,
    "$enum": Reader._enum,
}
