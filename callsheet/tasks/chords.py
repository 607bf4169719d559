"""The result backend's half of chords: a call's result and its part of a chord are stored in one step.

Keys and values are those of Celery's Redis backend, so that its workers and ours may share a chord's header. What
differs: a worker that dies leaves either result and part or neither; whoever counts the last part gets all parts
with it; and on the asyncio pool nothing of this blocks the loop: parts travel with the gathered results, and the
body is published by a thread.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any
from uuid import uuid4

from celery import states
from celery._state import get_current_worker_task
from celery.backends.redis import CHORD_CLAIM_EXTEND_LUA, CHORD_CLEANUP_LUA, RedisBackend
from celery.canvas import maybe_signature
from celery.exceptions import BackendStoreError, ChordError, Ignore, Reject, Retry

from callsheet.resources.redis import Script
from callsheet.tasks.aside import aside
from callsheet.tasks.bridge import drive_unbroken, in_strand
from callsheet.tasks.patience import has_ended, patiently
from callsheet.tasks.writes import Entry, Part, gathered_writes, write

logger = logging.getLogger(__name__)

# Celery's own. Run by redis-py they fail where the server forgets a script that it has just been told.
_EXTEND, _CLEAN_UP = Script(CHORD_CLAIM_EXTEND_LUA), Script(CHORD_CLEANUP_LUA)

#: Tasks that take branches' failures as values.
GATHERERS = frozenset({"callsheet.gather", "callsheet.merge", "callsheet.reply"})
_HOLDS = 30  # seconds within which whoever counted the last part publishes the body, before another may
_MOST_BYTES = 256 * 1024  # of parts that come with the last one; more are fetched in a thread
_FETCHED = 1000  # results in one trip
_AGAIN = 0.5  # seconds between two looks at a chord that another process is finishing
_REMEMBERED = 300  # seconds for which it is known that a chord was finished
_BUSY = 1  # the script's answer then
_SENT = "callsheet_part_sent"  # set on a request


@dataclass(frozen=True)
class _Complete:
    """A chord whose last part this process has counted, and which it is to finish."""

    request: Any  # of the last part's task
    keys: list[bytes]  # as Celery names them: parts, difference, size, counted, shape, finisher
    token: str  # that this process holds the chord with
    since: float  # time.monotonic() when it asked
    shape: bytes | None  # the results' saved structure, where the header has groups
    parts: list[bytes] | None  # encoded; None where they have to be fetched


class ChordBackend(RedisBackend):
    """Celery's Redis backend with other means to store and finish a chord's parts."""

    # A result and its part

    def store_result(self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None,
                     **kwargs: Any) -> Any:
        """Celery's; what ends a chord's task is stored together with its part."""
        # What a task tells of itself, whatever the state, is not its end.
        ends = request is not None and request.chord and state in states.READY_STATES and has_ended()
        part = self._part(request, state, result) if ends else None
        if part is None:
            return super().store_result(task_id, result, state, traceback=traceback, request=request, **kwargs)
        encoded = self.encode_result(result, state)
        self._settle(self._entry(task_id, encoded, state, traceback, request, part), request,
                     fallback_exc=partial(BackendStoreError, task_id=task_id, state=state),
                     fallback_msg="failed to store result on the backend")
        request.__dict__[_SENT] = True
        return encoded

    def on_chord_part_return(self, request: Any, state: str, result: Any, propagate: Any = None,
                             **kwargs: Any) -> Any:
        """Count a finished task's part, unless it went with the result."""
        if request.__dict__.pop(_SENT, False):
            return
        part = self._part(request, state, result)
        if part is not None:
            self._settle(Entry(self.get_key_for_task(request.id), "", None, part), request)

    def _part(self, request: Any, state: str, result: Any) -> Part | None:
        """The part that a task's end is of its chord; a failure as a value, where a gathering step follows."""
        task_id, group_id, place = request.id, request.group, request.group_index
        if not task_id or not group_id:
            return None
        if state in states.PROPAGATE_STATES and _gathers(request.chord):
            if isinstance(result, (Retry, Ignore, Reject)):
                return None
            exc = result if isinstance(result, BaseException) else Exception(str(result))
            failure = {**self.prepare_exception(exc, "json"), "task_id": task_id, "state": state}
            state, result = states.SUCCESS, {"$error": failure}
        place = "+inf" if place is None else place
        # Celery does not look at the first: here it tells whether the result is stored, too.
        text = self.encode([int(not request.ignore_result), task_id, state, self.encode_result(result, state)])
        keys = [self.get_key_for_group(group_id, suffix) for suffix in (".j", ".t", ".s", ".d", "", ".c")]
        keep_back = self._deduplicates and state == states.SUCCESS
        return Part(text, keys, [f"{task_id}:{place}", int(self._chord_zset), place, self.chord_expires or 0,
                                 self._chord_result_expires, uuid4().hex, _HOLDS, int(keep_back), _MOST_BYTES])

    @cached_property
    def _deduplicates(self) -> bool:
        # Celery then takes a stored success for the end of the task, chord and all: before the body is published
        # there must be none, or nobody publishes it when this worker dies meanwhile.
        return bool(self.app.conf.worker_deduplicate_successful_tasks)

    def _entry(self, task_id: str, encoded: Any, state: str, traceback: Any, request: Any, part: Part) -> Entry:
        key = self.get_key_for_task(task_id)
        if self.may_overwrite(request) and self._get_task_meta_for(task_id)["status"] == states.SUCCESS:
            return Entry(key, "", None, part)
        meta = self._get_result_meta(result=encoded, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        expires = self.failure_expires if state == states.FAILURE else self.expires
        return Entry(key, self.encode(meta), int(expires or 0) or None, part)

    def may_overwrite(self, request: Any) -> bool:
        """Whether a result may be stored already: not at the first delivery, by the task itself."""
        delivery = getattr(request, "delivery_info", None)
        return not in_strand() or not delivery or bool(delivery.get("redelivered"))

    def send(self, entry: Entry) -> Any:
        """Store an entry, on the asyncio pool together with others; returns the script's answer."""
        if not in_strand():
            return write(self.client, entry)
        return drive_unbroken(gathered_writes().ask(entry))

    def _settle(self, entry: Entry, request: Any, **fallback: Any) -> None:
        part = entry.part
        assert part is not None
        since = time.monotonic()
        answer = self._ensure_retryable(self.send, entry, **fallback)
        while answer == _BUSY and (in_strand() or get_current_worker_task() is not None):
            # Delivered again after a worker died. Should that worker have been the one to publish the body, then it
            # falls to us once its time is up.
            self._sleep(_AGAIN)
            since = time.monotonic()
            answer = self._ensure_retryable(self.send, Entry(entry.key, "", None, part))
        if isinstance(answer, list):
            shape, parts = answer
            chord = _Complete(request, part.keys, str(part.args[5]), since, shape, parts)
            aside(self.app, partial(self._finish, chord))
            if part.args[7] and shape is None and entry.value:
                self._ensure_retryable(self.send, Entry(entry.key, entry.value, entry.expires), **fallback)

    # The end of a chord

    def _finish(self, chord: _Complete) -> None:
        """Publish the body with the header's results, or have the chord fail; as Celery does."""
        group_id = chord.request.group
        body = maybe_signature(chord.request.chord, app=self.app)
        try:
            results = patiently(lambda: self._results(chord))
            if not patiently(lambda: self._still_ours(chord, body)):
                logger.warning("The body of chord %s is not published here: another worker has taken it over.",
                               group_id)
                return
        except Exception as exc:
            logger.exception("Chord %r raised: %r", group_id, exc)
            error = exc if isinstance(exc, ChordError) else ChordError(f"Join error: {exc!r}")
            try:
                self.chord_error_from_stack(body, error)
            finally:
                self.delete(chord.keys[2])  # the size: a part that comes again shall not fail the chord again
            return
        try:
            self.app.amqp._retry_publish(body.delay, results)
        except Exception as exc:
            logger.exception("Chord callback for %r raised: %r", group_id, exc)
            self.chord_error_from_stack(body, ChordError(f"Callback error: {exc!r}"))
        finally:
            self._clean_up(chord)

    def _results(self, chord: _Complete) -> list[Any]:
        if chord.shape:
            return self._nested(chord)
        return [self._unpack_chord_result(part, self.decode) for part in self._parts(chord)]

    def _parts(self, chord: _Complete) -> list[bytes]:
        if chord.parts is not None:
            return chord.parts
        fetch = self.client.zrange if self._chord_zset else self.client.lrange
        parts: list[bytes] = fetch(chord.keys[0], 0, -1)
        return parts

    def _nested(self, chord: _Complete) -> list[Any]:
        """The results in the header's structure; None for a task that stores no result.

        A result that has expired is in the part, which is kept as long as the chord.
        """
        saved, found = self.decode(chord.shape), {}
        parts = {part[1]: part for part in map(self.decode, self._parts(chord))}
        task_ids = list(_leaves(saved["result"]))
        for start in range(0, len(task_ids), _FETCHED):
            ids = task_ids[start:start + _FETCHED]
            for task_id, text in zip(ids, self.mget([self.get_key_for_task(i) for i in ids]), strict=True):
                stores, _, state, value = parts.get(task_id, (0, "", states.PENDING, None))
                kept = {"status": state if stores else states.PENDING, "result": value}
                meta = self.decode_result(text) if text else kept
                if meta["status"] in states.PROPAGATE_STATES:
                    raise meta["result"] if text else self.exception_to_python(value)
                if meta["status"] == states.SUCCESS:
                    found[task_id] = meta["result"]
        filled: list[Any] = _filled(saved["result"], found)
        return filled

    def _still_ours(self, chord: _Complete, body: Any) -> bool:
        """Whether this process may publish the body: not if what came before took so long that another does."""
        needed = self._chord_publish_claim_expires(_HOLDS // 2, body)
        if time.monotonic() + needed < chord.since + _HOLDS:
            return True
        return bool(_EXTEND.run(self.client, [chord.keys[5], chord.keys[2]], [chord.token, needed]))

    def _clean_up(self, chord: _Complete) -> None:
        parts, diff, size, counted, _, finisher = chord.keys
        group_id = chord.request.group
        try:
            cleaned = patiently(lambda: _CLEAN_UP.run(self.client, [finisher, parts, diff, size, counted],
                                                      [chord.token, _REMEMBERED]))
        except Exception:
            # The body is published: the task that was the last part has ended well, and must not be told otherwise,
            # since Celery would then settle it again, and the chord with it.
            logger.exception("Chord %s could not be cleaned up; its parts are left to expire.", group_id)
        else:
            if not cleaned:
                logger.warning("Chord %s was taken over by another worker before it was cleaned up; its parts are "
                               "left to expire.", group_id)


def _gathers(body: Any) -> bool:
    """Whether a chord's body is one of our gathering steps, or a chain that begins with one."""
    while body:
        name = body.get("task")
        if name in GATHERERS:
            return True
        inner = (body.get("kwargs") or {}).get("tasks") if name == "celery.chain" else None
        body = inner[0] if inner else None
    return False


def _leaves(node: Any) -> Iterator[str]:
    """The ids of the tasks in the written form of a result: [[id, parent], children]."""
    (task_id, _), children = node
    if children is None:
        yield task_id
    else:
        for child in children:
            yield from _leaves(child)


def _filled(node: Any, found: dict[str, Any]) -> Any:
    (task_id, _), children = node
    return found.get(task_id) if children is None else [_filled(child, found) for child in children]
