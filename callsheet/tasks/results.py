"""How results are stored, and what a stored result means.

The result backend is Celery's Redis backend, readable by stock clients, with additions: a failure also tells
which agent raised; a call's record tells when and where it ran; a branch of a fan-out that fails hands its failure
to the step that gathers, so that this step can name the branch, or keep the rest; and a revoked step ends the steps
behind it.
"""

import asyncio
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from typing import Any

from celery import states
from celery.backends.redis import ResultConsumer, SentinelBackend
from celery.exceptions import TaskRevokedError
from kombu.exceptions import EncodeError
from kombu.utils import json as kombu_json
from kombu.utils.compat import detect_environment
from pydantic_core import PydanticSerializationError, to_json

import callsheet.errors as errors_module
from callsheet.errors import (
    AgentFailed,
    AgentTimeout,
    CallRefused,
    CallsheetError,
    JobCancelled,
    JobError,
    JobExpired,
    PoisonedCall,
)
from callsheet.messages.quick import loads
from callsheet.resources.redis import async_client, sync_client, translated
from callsheet.settings import Settings, get_settings
from callsheet.settings.secrets import told_all
from callsheet.tasks.bridge import drive, in_strand
from callsheet.tasks.chords import ChordBackend
from callsheet.tasks.patience import PatientBackend, ended, patiently
from callsheet.tasks.records import noted
from callsheet.tasks.shown import Reply
from callsheet.tasks.writes import Entry

LOOK_ANYWAY = 3.0
"""Seconds after which one who waits looks at what is stored, whatever was heard."""

RESULT_KEY = "celery-task-meta-"
"""What the keys of results begin with."""

AGENT_ATTRIBUTE = "__callsheet_agent__"
"""Attribute of an error: the agent that raised it."""

_TOGETHER = 500  # results that are looked at in one trip
_UNREADABLE = "the stored result cannot be read"
_STORE_TRIES = 16  # with growing pauses: about half a minute
_FAILOVER_TRIES = 32  # about two minutes: sentinels wait, half a minute by default, before they take a master for lost
_TIMEOUTS = frozenset({"SoftTimeLimitExceeded", "TimeLimitExceeded"})
_to_json = kombu_json.JSONEncoder().encode


class LateConsumer(ResultConsumer):
    """Celery's, with subscriptions put off until a wait begins, and then made in one command."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._put_off: set[str] = set()
        # Under gevent and eventlet Celery reads results in the background, whether or not somebody waits.
        self._waits_are_seen = detect_environment() == "default"  # type: ignore[no-untyped-call]

    def consume_from(self, task_id: str) -> Any:
        """A result object exists."""
        if not self._waits_are_seen:
            return super().consume_from(task_id)
        with self._locked():
            if self._get_key_for_task(task_id) not in self.subscribed_to:
                self._put_off.add(task_id)
        return None

    def cancel_for(self, task_id: str) -> None:
        """A result object is done with; must not block."""
        if task_id in self._put_off:
            self._put_off.discard(task_id)
        else:
            super().cancel_for(task_id)

    def on_wait_for_pending(self, result: Any, **kwargs: Any) -> None:
        """Somebody waits: subscribe, then look at what is there already, so that none is missed."""
        self._subscribe()
        super().on_wait_for_pending(result, **kwargs)

    def _subscribe(self) -> None:
        with self._locked():
            put_off, self._put_off = self._put_off, set()
            if not put_off:
                return
            first = put_off.pop()
            super().consume_from(first)  # which also makes the connection, at the first time
            keys = {self._get_key_for_task(task_id) for task_id in put_off} - self.subscribed_to
            if keys:
                self.subscribed_to |= keys
                self._pending_unsubscribe -= keys
                with self.reconnect_on_error():
                    self._pubsub.subscribe(*keys)

    def drain_events_until(self, p: Any, timeout: float | None = None, on_interval: Any = None) -> Iterator[Any]:
        """Celery's, with a look at what is stored now and then.

        Redis may serve the look that comes with a subscription before the subscription, which went over another
        connection; what is published between the two is heard by nobody, and was waited for in vain.
        """
        looked = time.monotonic()
        for one in super().drain_events_until(p, timeout=timeout, on_interval=on_interval):
            yield one
            if time.monotonic() - looked > LOOK_ANYWAY and not p.ready:
                self._look()
                looked = time.monotonic()

    def _look(self) -> None:
        keys = list(self.subscribed_to)
        with suppress(*self._connection_errors):
            for start in range(0, len(keys), _TOGETHER):
                for text in filter(None, self.backend.client.mget(keys[start:start + _TOGETHER])):
                    meta = self._decode_result(text)
                    if meta["status"] in states.READY_STATES:
                        self.on_state_change(meta, None)

    def on_after_fork(self) -> None:
        """A forked child waits for nothing yet."""
        self._put_off = set()
        super().on_after_fork()


class ResultBackend(PatientBackend, ChordBackend):
    """Celery's Redis backend with the additions above."""

    ResultConsumer = LateConsumer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A result that cost a model call is not given up because Redis restarts meanwhile.
        self.always_retry = True
        self.max_retries = _STORE_TRIES

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Subscribe to nothing: who wants a result subscribes when it waits for it."""

    # Reading and writing; on the asyncio pool a call steps aside meanwhile, and the loop goes on

    def get(self, key: Any) -> Any:
        """The value of a key, or None."""
        return self._read("get", key)

    def mget(self, keys: Any) -> Any:
        """The values of keys, None for those that are not there."""
        return self._read("mget", keys)

    def _read(self, command: str, keys: Any) -> Any:
        def read() -> Any:
            if in_strand():
                return drive(getattr(async_client(get_settings()), command)(keys))
            return getattr(self.client, command)(keys)

        return patiently(read)

    def _store_result(self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None,
                      **kwargs: Any) -> Any:
        """Celery's; without the look at what is stored where nothing can be, at the first delivery of a call."""
        if self.may_overwrite(request):
            return super()._store_result(task_id, result, state, traceback=traceback, request=request, **kwargs)
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        self._set_with_state(self.get_key_for_task(task_id), self.encode(meta), state)
        return result

    def _set(self, key: Any, value: str, expires: float | None = None) -> None:
        expires = self.expires if expires is None else expires
        self.send(Entry(key, value, int(expires or 0) or None))

    def _sleep(self, amount: float) -> None:
        """Between two tries to store a result; on the asyncio pool the loop goes on meanwhile."""
        if in_strand():
            drive(asyncio.sleep(amount))
        else:
            super()._sleep(amount)

    def decode(self, payload: Any) -> Any:
        """Celery's; data that kombu takes for a mark of a type that it does not know stay as they are."""
        try:
            return super().decode(payload)
        except Exception:
            if not self._plain:
                raise
            return loads(payload)

    def decode_result(self, payload: Any) -> Any:
        """Celery's; of what cannot be read, a failure that says so: other results wait behind it."""
        try:
            meta = self.decode(payload)
        except Exception:
            meta = None
        return self.meta_from_decoded(_sound(meta))

    # What is stored

    def mark_as_revoked(self, task_id: str, reason: str = "", request: Any = None, store_result: bool = True,
                        state: str = states.REVOKED) -> None:
        """Celery's, and the steps chained behind are revoked too: otherwise nobody ever hears of their end."""
        super().mark_as_revoked(task_id, reason, request=request, store_result=store_result, state=state)
        with ended():
            self._fail_chain(getattr(request, "chain", None), TaskRevokedError(reason), store_result=store_result,
                             state=state)

    def prepare_exception(self, exc: Any, serializer: str | None = None) -> Any:
        """Celery's record of an exception, with the agent that raised it, and without secrets."""
        data = super().prepare_exception(exc, serializer)
        data = told_all(data) if isinstance(data, dict) else data
        agent = getattr(exc, AGENT_ATTRIBUTE, None)
        if agent and isinstance(data, dict):
            data["agent"] = agent
        return data

    def _get_result_meta(self, result: Any, state: str, traceback: Any, request: Any, *args: Any,
                         **kwargs: Any) -> dict[str, Any]:
        """Celery's record of a result, with when and where one of our calls ran."""
        traceback = told_all(traceback)
        if self._extended or args or kwargs:
            meta: dict[str, Any] = super()._get_result_meta(result, state, traceback, request, *args, **kwargs)
        else:  # the same, for a tenth of the time
            done = datetime.now(self.app.timezone).isoformat() if state in states.READY_STATES else None
            meta = {"status": state, "result": result, "traceback": traceback,
                    "children": self.current_task_children(request), "date_done": done}
            if request:
                if request.group:
                    meta["group_id"] = request.group
                if request.parent_id:
                    meta["parent_id"] = request.parent_id
        known = noted(request)
        if known is not None:
            meta["call"] = known.to_data()
        return meta

    @cached_property
    def _extended(self) -> bool:
        return bool(self.app.conf.find_value_for_key("extended", "result"))

    def encode(self, data: Any) -> Any:
        """Celery's encoding of a result."""
        if not self._plain:
            return super().encode(data)
        reply = data.get("result") if isinstance(data, dict) else None
        if type(reply) is Reply:  # plain data, and so is all the rest
            with suppress(PydanticSerializationError):  # such as half a character
                return to_json({**data, "result": reply.data}).decode()
        try:
            return _to_json(data)
        except Exception as exc:
            raise EncodeError(exc) from exc

    @cached_property
    def _plain(self) -> bool:
        """Whether results are kombu's JSON and no more."""
        return self.serializer == "json" and self.encoder is kombu_json.dumps and not self.compression


class SentinelResultBackend(ResultBackend, SentinelBackend):
    """The same where Sentinel names the server."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_retries = _FAILOVER_TRIES


def ready(meta: dict[str, Any]) -> bool:
    """Whether a stored result is final."""
    return meta.get("status") in states.READY_STATES


def stored_results(task_ids: Sequence[str], settings: Settings) -> dict[str, dict[str, Any]]:
    """What is stored of some tasks, by id, of those of which anything is. Blocks."""
    found, client = dict[str, dict[str, Any]](), sync_client(settings)
    with translated(settings):
        for start in range(0, len(task_ids), _TOGETHER):
            ids = task_ids[start:start + _TOGETHER]
            texts = client.mget([f"{RESULT_KEY}{task_id}" for task_id in ids])
            found |= {task_id: parse(text) for task_id, text in zip(ids, texts, strict=True) if text}
    return found


def parse(text: bytes | str) -> dict[str, Any]:
    """A stored result as Celery wrote it; of what is none, the record of a failure that says so."""
    try:
        return _sound(loads(text))
    except ValueError:
        return _sound(None)


def _sound(meta: Any) -> dict[str, Any]:
    if isinstance(meta, dict) and isinstance(meta.get("status"), str):
        meta.setdefault("task_id", "")
        meta.setdefault("result", None)
        return meta
    return {"status": states.FAILURE, "task_id": "", "traceback": None, "children": [], "result": {
        "exc_type": JobError.__name__, "exc_module": JobError.__module__, "exc_message": [_UNREADABLE]}}


def failure(meta: dict[str, Any], label: str = "", job_id: str = "") -> CallsheetError:
    """The error that a stored failure or revocation means.

    No class is looked up but ours, whatever the record names.
    """
    record = meta.get("result") if isinstance(meta.get("result"), dict) else {}
    assert isinstance(record, dict)
    kind, module, args = _unwrapped(record)
    who = str(record.get("agent") or label or f"job {job_id}")
    if meta.get("status") == states.REVOKED or kind in ("TaskRevokedError", "Terminated"):
        return _revoked(args, who, job_id)
    own = getattr(errors_module, kind, None) if module == errors_module.__name__ else None
    if args == [_UNREADABLE]:
        return JobError(f"The result of job {job_id} cannot be read: it is not Celery's JSON. Set result_serializer to "
                        "json where it is stored.")
    if isinstance(own, type) and issubclass(own, (AgentFailed, CallRefused)):
        with suppress(TypeError):  # what its constructor takes is for whoever stored it to say
            return own(*map(str, args))
    one = len(args) == 1 or (args and module.startswith("callsheet."))  # ours have their text first, then particulars
    text = str(args[0]) if one else ", ".join(map(str, args))
    trace = str(meta.get("traceback") or "")
    more = (f"{module}.{kind}", text, trace, who, job_id)
    if kind in _TIMEOUTS:
        return AgentTimeout(f"{who} was ended by its timeout ({text or 'soft limit'} s). Give the call more time with "
                            "timeout=, or make it do less.", *more)
    if kind == "WorkerLostError":
        return PoisonedCall(f"The worker process that ran {who} died ({text}): killed, out of memory, or crashed in "
                            "native code. So did the one before. See the worker's log; what it was given is among the "
                            "dead letters (docs/workers.md).", *more)
    if kind == "NotRegistered":
        return AgentFailed(f"The worker that took the call of {who} knows no task named {text}. Name the module that "
                           "defines it in CALLSHEET_MODULES of that worker, or send the call to another queue.", *more)
    return AgentFailed(f"{who} raised {kind}: {text}", *more)


def _unwrapped(record: dict[str, Any]) -> tuple[str, str, list[Any]]:
    kind, module = str(record.get("exc_type", "Exception")), str(record.get("exc_module") or "builtins")
    args = record.get("exc_message", [])
    args = list(args) if isinstance(args, (list, tuple)) else [args]
    if kind == "UnpickleableExceptionWrapper" and len(args) >= 3:  # Celery's stand-in: (module, class, args, text)
        return str(args[1]), str(args[0]), list(args[2]) if isinstance(args[2], (list, tuple)) else [args[2]]
    return kind, module, args


def _revoked(args: list[Any], who: str, job_id: str) -> JobError:
    if args and str(args[0]) == "expired":
        return JobExpired(f"The call of {who} expired before a worker took it (job {job_id}). Start more workers, or "
                          "give it more time with expires=.")
    return JobCancelled(f"The call of {who} was cancelled (job {job_id}).")


def failed_meta(exc: BaseException, label: str) -> dict[str, Any]:
    """What the backend would store of a call that failed so, where something else keeps it."""
    return {"status": states.FAILURE, "result": record_of(exc, label),
            "traceback": "".join(traceback.format_exception(exc))}


def record_of(exc: BaseException, label: str) -> dict[str, Any]:
    """What the backend would store of an error."""
    return {"exc_type": type(exc).__qualname__, "exc_module": type(exc).__module__,
            "exc_message": told_all([arg if isinstance(arg, (str, int, float, bool, type(None))) else repr(arg)
                                     for arg in exc.args]), "agent": label}
