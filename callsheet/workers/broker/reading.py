"""Reading messages that anybody may have written: within bounds, and never with another error than Unreadable.

What kombu and Celery take for granted of a message is seen to here, once, as it comes off its list, out of the
`unacked` hash or from a channel: behind this reader nothing needs to expect other types.
"""

import bz2
import lzma
import re
import zlib
from datetime import datetime
from functools import partial
from typing import Annotated, Any

from celery.app.task import Context
from kombu.compression import get_decoder
from kombu.exceptions import DecodeError
from pydantic import ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from callsheet.messages.quick import DEEPEST, deeper, loads, too_deep
from callsheet.workers.broker.stock import json as kombu_json
from callsheet.workers.broker.stock import virtual

#: Header: bytes of a body that was too large to be read, and was left out.
OVERSIZE = "oversize"
#: Header: why a message is to be refused, where it is not as it should be.
UNREADABLE = "unreadable"

_BODY = re.compile(rb'"body": ?"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BESIDE = 64 * 1024  # bytes beside the body of a message that is looked at more closely
_MOST_BESIDE = 1024 * 1024  # bytes that headers and properties may take
_MOST_RETRIES = 100_000  # a pause that doubles each time is computed from their number
_LONGEST = 1e9  # seconds of a time limit
_TOLD = 3  # of the things that are wrong with one message
_JSON = "application/json"
_LARGE = 1024 * 1024  # bytes of a body that is looked at first
_MOST_PARTS = 2_000_000  # lists and objects in a body: each takes 80 bytes, of 3 in the text
_MOST_INFLATED = 1 << 30  # bytes, where the transport has no other bound
_LZMA_MEMORY = 128 * 1024 * 1024  # bytes that a dictionary may take
#: By kombu's decoders, which have no bound.
_INFLATERS: dict[Any, Any] = {
    zlib.decompress: zlib.decompressobj, bz2.decompress: bz2.BZ2Decompressor,
    lzma.decompress: partial(lzma.LZMADecompressor, memlimit=_LZMA_MEMORY)}
#: Headers become attributes of a task's request: these would take the place of what it can do.
_METHODS = frozenset(name for name in dir(Context) if name.startswith("_") or callable(getattr(Context, name)))

_Name = Annotated[str, Field(max_length=_MOST_BESIDE)]  # with a bound half a character is refused, too
_Seconds = Annotated[float, Field(ge=0, le=_LONGEST, allow_inf_nan=False)]
_List, _Object = InstanceOf[list[Any]], InstanceOf[dict[str, Any]]
_typed_dict: Any = TypedDict


def _fields(**kinds: Any) -> Any:
    """A dictionary whose keys, if they are there, are null or of these types."""
    names = {name.replace("content_", "content-"): kind | None for name, kind in kinds.items()}
    return with_config(ConfigDict(extra="allow", strict=True))(_typed_dict("_Fields", names, total=False))


def _named(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, _Name)


_Signature: Any = _fields(args=InstanceOf[tuple[Any, ...]] | _List, kwargs=_Object, options=_Object)
_Signatures: Any = list[_Signature]
_AFTER = {**dict.fromkeys(("callbacks", "errbacks", "chain"), _Signatures), "chord": _Signature}
_TASK: Any = TypeAdapter(_fields(
    **_named("task", "id", "root_id", "parent_id", "group", "shadow", "lang", "origin", "argsrepr", "kwargsrepr",
             "compression"),
    eta=_Name | datetime, expires=_Name | datetime, retries=Annotated[int, Field(ge=0, le=_MOST_RETRIES)],
    timelimit=Annotated[list[_Seconds | None], Field(min_length=2, max_length=2)], group_index=int,
    replaced_task_nesting=int, ignore_result=bool, stamps=_Object, stamped_headers=list[_Name], **_AFTER))
_NOTHING: dict[str, None] = dict.fromkeys(_AFTER)  # follows most tasks
_FOLLOWS: Any = TypeAdapter(_fields(**_AFTER))
_ENVELOPE: Any = TypeAdapter(_fields(
    body=str, **_named("content_type", "content_encoding"), headers=_Object, properties=_fields(
        delivery_info=_fields(**_named("exchange", "routing_key")), **_named("correlation_id", "reply_to"),
        body_encoding=Annotated[str, Field(pattern=r"(?i)^(base64|utf-8)?$")],
        priority=Annotated[float, Field(allow_inf_nan=False)])))
_QUEUE: Any = TypeAdapter(_Name)


class Unreadable(ValueError):
    """A message cannot be read; the text completes "it was refused: ..."."""


def read(text: bytes, most: int | None = None) -> dict[str, Any]:
    """A message as it is on a list or a channel.

    Args:
        text: JSON.
        most: bytes of body that are read; a larger one is left out, and OVERSIZE says so. It would take several times
            its size in memory.

    Returns:
        An envelope of the right types. What was not is left out, and the header UNREADABLE says what that was.

    Raises:
        Unreadable: it is no JSON object within bounds.
    """
    return _sound(*_parsed(text, most))


def read_entry(text: bytes, most: int | None = None) -> tuple[dict[str, Any], str]:
    """A message as it is in the `unacked` hash, likewise, and the queue that it came from.

    Raises:
        Unreadable: it is no JSON list of a message, an exchange and a routing key.
    """
    whole, size, wrong = _parsed(text, most)
    if type(whole) is not list or len(whole) != 3 or not _QUEUE.validator.isinstance_python(whole[2]):
        raise Unreadable("it is no list of a message, an exchange and a queue")
    return _sound(whole[0], size, wrong), whole[2]


def _parsed(text: bytes, most: int | None) -> tuple[Any, int, str]:
    """The data, the size of a body that was left out, and what is wrong."""
    size = 0
    if most and len(text) > most + _BESIDE:
        body = _BODY.search(text)
        taken = body.end() - body.start() if body else 0
        if len(text) - taken > _MOST_BESIDE:
            raise Unreadable(f"it is {len(text) - taken:,} bytes beside its body; at most {_MOST_BESIDE:,} are read")
        if body and taken * 3 // 4 > most:
            size = taken * 3 // 4
            text = b"".join((text[:body.start()], b'"body": ""', text[body.end():]))
    try:
        plain = loads(text)
    except ValueError as exc:
        raise Unreadable(f"it is no JSON: {exc}") from None
    if b'"__type__"' in text:  # kombu's own reader, which knows more types, is several times slower
        try:
            return kombu_json.loads(text.decode()), size, ""
        except Exception as exc:
            return plain, size, f"it marks a type that kombu cannot read ({type(exc).__name__}: {str(exc)[:200]})"
    return plain, size, ""


def _sound(payload: Any, size: int = 0, wrong: str = "") -> dict[str, Any]:
    if type(payload) is not dict:
        raise Unreadable("it is no JSON object")
    odd = [wrong] if wrong else []
    if not _ENVELOPE.validator.isinstance_python(payload):
        odd += _mend(_ENVELOPE, payload)
    headers, properties = payload.get("headers"), payload.get("properties")
    if properties is None or type(properties.get("delivery_tag")) not in (str, int):
        odd.append("it has no delivery tag")
        if not (headers and headers.get("id")):
            raise Unreadable("; ".join(odd[:_TOLD]))
        payload["properties"] = properties = {**(properties or {}), "delivery_tag": ""}
    if properties.get("delivery_info") is None:
        properties["delivery_info"] = {}
    if headers is None:
        payload["headers"] = headers = {}
    elif "task" in headers:
        if not _TASK.validator.isinstance_python(headers):
            odd += _mend(_TASK, headers)
        odd += _nameless(headers)
    if size:
        headers[OVERSIZE] = size
    if odd:
        headers[UNREADABLE] = "; ".join(odd[:_TOLD])
    return payload


def _mend(kind: Any, whole: dict[str, Any]) -> list[str]:
    """Leave out what has another type, and say what that was."""
    try:
        kind.validate_python(whole)
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_context=False, include_input=False)
        for error in errors:
            where = error["loc"]
            deep = (2 if where[1:2] != ("delivery_info",) else 3) if where[0] == "properties" else 1
            part: Any = whole
            for parent in where[:deep][:-1]:
                part = part.get(parent) or {}
            part.pop(where[:deep][-1], None)
        return _in_words(errors)
    return []


def _in_words(errors: Any) -> list[str]:
    return [f"its {'.'.join(map(str, error['loc'][:3]))[:100]} is wrong: {error['msg'][:100]}" for error in errors]


def _nameless(fields: dict[str, Any]) -> list[str]:
    """What is wrong with the fields of a task beside their types."""
    task, task_id = fields.get("task"), fields.get("id")
    if task and task_id and f"{task}{task_id}".isprintable() and _METHODS.isdisjoint(fields):
        return []
    odd = [f"it is a task without {what}" for key, what in (("task", "a name"), ("id", "an id")) if not fields.get(key)]
    odd += [f"its {key} has control characters" for key in ("task", "id")
            if not str(fields.get(key) or "").isprintable()]
    for name in _METHODS & fields.keys():
        del fields[name]
        odd.append(f"it has the header {name[:100]!r}, which is not for senders")
    return odd


def check_body(body: Any, in_headers: bool) -> None:
    """See that a task's body is as Celery takes it.

    Args:
        body: as JSON data.
        in_headers: whether the headers name the task, as with Celery's second protocol.

    Raises:
        Unreadable: it is not.
    """
    embed: Any
    if type(body) is dict and ("args" in body or not in_headers):
        args, kwargs, embed, kind = body.get("args", ()), body.get("kwargs", {}), body, _TASK
    elif type(body) in (list, tuple) and len(body) == 3:
        args, kwargs, embed = body
        kind = _FOLLOWS
    else:
        raise Unreadable("its body is no list of arguments, keyword arguments and what follows")
    odd = [] if type(args) in (list, tuple) else ["its arguments are no list"]
    if type(kwargs) is not dict:
        odd.append("its keyword arguments are no object")
    if type(embed) is dict and embed != _NOTHING:
        if kind is _TASK and not in_headers:
            odd += _nameless(dict(embed))
        elif _METHODS & embed.keys():
            odd.append("what follows it is not Celery's")
        if not kind.validator.isinstance_python(embed):
            try:
                kind.validate_python(embed)
            except ValidationError as exc:
                odd += _in_words(exc.errors(include_url=False, include_context=False, include_input=False))
    elif embed not in (None, _NOTHING):
        odd.append("what follows it is no object")
    if odd:
        raise Unreadable("; ".join(odd[:_TOLD]))


def inflated(body: bytes, coding: str, most: int) -> bytes:
    """What was compressed, within bounds.

    Args:
        body: of the message.
        coding: as its header `compression` names it.
        most: bytes of it, inflated.

    Raises:
        Unreadable: it is larger, not what it is said to be, or of a coding that is not read.
    """
    try:
        inflater = _INFLATERS[get_decoder(coding)]()  # type: ignore[no-untyped-call]
    except KeyError:
        raise Unreadable(f"its body is compressed as {coding[:50]!r}, and workers read gzip, bzip2 and lzma") from None
    try:
        found: bytes = inflater.decompress(body, most + 1)
    except (zlib.error, OSError, ValueError, EOFError, lzma.LZMAError) as exc:
        raise Unreadable(f"its body is not the {coding} that it is said to be ({exc})") from None
    if len(found) > most:
        raise Unreadable(f"its body is more than {most:,} bytes when it is inflated. Send a reference (a path, an "
                         "address) in place of the data, or raise CALLSHEET_PAYLOAD_MAX for the workers: they take "
                         "twice that")
    if not inflater.eof:
        raise Unreadable(f"its body is half of something compressed as {coding}")
    return found


class Message(virtual.Message):
    """Kombu's, of a payload that was read; making one never raises.

    What is wrong with it is in `errors`, where kombu's consumers look for what was wrong. Plain JSON, which is nearly
    every body, is read without kombu's hook for types that JSON lacks.
    """

    body: Any

    def __init__(self, payload: dict[str, Any], channel: Any = None, **kwargs: Any) -> None:
        headers = payload["headers"]
        coding = headers.get("compression")
        given = {**payload, "headers": {}} if coding else payload
        try:
            if UNREADABLE in headers:
                raise Unreadable(str(headers[UNREADABLE])[:1000])
            super().__init__(given, channel=channel, **kwargs)
            if coding:
                self.body = inflated(self.body or b"", str(coding), channel.message_max or _MOST_INFLATED)
        except Exception as exc:
            super().__init__({**given, "body": None}, channel=channel, **kwargs)
            if not isinstance(exc, Unreadable):
                exc = Unreadable(f"its body cannot be read ({type(exc).__name__}: {exc})")
            self.errors.append((Unreadable, exc, exc.__traceback__))
        self._raw, self.headers = payload, headers

    def _decode(self) -> Any:
        if self.content_type == _JSON and (self.accept is None or _JSON in self.accept):
            try:
                body = self.body.encode() if isinstance(self.body, str) else self.body or b""
                if len(body) > _LARGE and body.count(b"[") + body.count(b"{") > _MOST_PARTS:
                    raise DecodeError(f"it is made of more than {_MOST_PARTS:,} lists and objects")
                found = loads(body)
            except ValueError as exc:
                raise DecodeError(str(exc)) from None
            if b'"__type__"' not in body:
                return found
        found = super()._decode()
        if deeper(found, DEEPEST):
            raise DecodeError(str(too_deep()))
        return found
