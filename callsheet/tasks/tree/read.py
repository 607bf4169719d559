"""Reading a job's tree: what Redis keeps, level by level, and what workers and queues tell of the rest."""

import contextlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

from callsheet.errors import RedisUnavailable, UnknownJob
from callsheet.resources.books import job_usage
from callsheet.resources.redis import sync_client, translated
from callsheet.settings import Settings
from callsheet.settings.keys import Keys
from callsheet.tasks.app import current_app
from callsheet.tasks.results import RESULT_KEY, ready, stored_results
from callsheet.tasks.tree.fill import children_of, error_of, filled, put_live, shaped, status_of
from callsheet.tasks.tree.live import LiveCall, ask_workers, in_queues, put_aside
from callsheet.tasks.tree.nodes import LATER, NOT_RUN, UNKNOWN, CallNode, JobNode, Part, Steps

DEEPEST = 24
"""Levels of jobs below jobs that are read."""

Meta = dict[str, Any]


def read_tree(job_id: str, settings: Settings, most: int = 1000) -> JobNode:
    """The tree of a job as it is now; blocks, and where the job has not ended, waits for the workers' answers.

    Raises:
        UnknownJob: nothing is known of it.
        RedisUnavailable: no Redis answers.
    """
    with translated(settings):
        return _Reading(job_id, settings, most).tree()


def refuse_unknown(job_id: str, settings: Settings) -> None:
    """Refuse to wait for a job of which nothing is known; where that cannot be told for sure, nothing is refused."""
    reading = _Reading(job_id, settings, 1)
    with contextlib.suppress(RedisUnavailable), translated(settings):
        try:
            reading.tree()
        except UnknownJob:
            if reading.whole:
                raise


def kept_ids(beginning: str, settings: Settings) -> Iterator[str]:
    """The ids of jobs and calls that begin so and of which Redis keeps something; looks through all its keys."""
    begins = re.sub(r"[^\w-]", r"\\\g<0>", beginning)
    with translated(settings):
        for before in (RESULT_KEY, Keys(settings.key_prefix).job("")):
            for key in sync_client(settings).scan_iter(match=f"{before}{begins}*", count=1000):
                yield key.decode(errors="replace").removeprefix(before)


class _Reading:
    def __init__(self, job_id: str, settings: Settings, most: int) -> None:
        self._job_id, self._settings = job_id, settings
        self._room = most
        self._client: Any = sync_client(settings)
        self._keys = Keys(settings.key_prefix)
        self._live: dict[str, LiveCall] = {}
        self.whole = True  # whether all messages that wait were looked at
        self._placed: dict[str, CallNode] = {}
        self._children: dict[str, list[str]] = {}

    def tree(self) -> JobNode:
        meta = stored_results([self._job_id], self._settings).get(self._job_id)
        if meta is None or not ready(meta):
            self._look_around()
        if meta is None and not self._live and not self._stored([self._job_id]):
            self._look_around()  # it may have been on its way from where was yet to be looked to where had been
            if not self._live:
                raise UnknownJob(self._unknown())
        root, = level = self._jobs([self._job_id])
        for _ in range(DEEPEST):
            level = self._next_level(level)
            if not level:
                break
        self._place_others(root)
        root.usage = job_usage([self._job_id], self._settings)
        root.looked = time.time()
        return root

    def _look_around(self) -> None:
        stored = self._stored([self._job_id]).get(self._job_id, {})
        calls = json.loads(stored.get(b"calls", b"[]"))
        # In the order in which a call goes from one place to the next, which it may do meanwhile.
        waiting, self.whole = in_queues(self._job_id, self._settings)
        held = ask_workers(self._job_id, current_app(self._settings), self._settings)
        aside = put_aside(self._job_id, dict.fromkeys((self._job_id, *calls)), self._settings)
        self._live = {call.id: call for call in (*aside, *waiting, *held)}  # what a worker says counts more

    def _unknown(self) -> str:
        more = "" if self.whole else (" Or it waits in a queue that is too long to look through.")
        return (f"No job {self._job_id!r} is known at {self._settings.redis_address}. Either there never was one, or "
                f"its records have expired: they are kept for {self._settings.result_expires:,} s "
                f"(CALLSHEET_RESULT_EXPIRES).{more} Give the whole id, as job.id has it, and the CALLSHEET_REDIS_URL "
                "that its workers have.")

    # What Redis keeps

    def _stored(self, ids: Sequence[str]) -> dict[str, dict[bytes, bytes]]:
        with self._client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hgetall(self._keys.job(job_id))
            return {job_id: found for job_id, found in zip(ids, pipe.execute(), strict=True) if found}

    # Building

    def _jobs(self, ids: Sequence[str]) -> list[JobNode]:
        """Jobs with their own calls."""
        stored, plans, calls = self._stored(ids), dict[str, Meta](), dict[str, list[str]]()
        for job_id in ids:
            known = stored.get(job_id, {})
            calls[job_id] = json.loads(known[b"calls"]) if b"calls" in known else [job_id]
            if b"plan" in known:
                plans[job_id] = json.loads(known[b"plan"])
        kept = {job_id: some[:max(1, self._room)] for job_id, some in calls.items()}
        metas = stored_results([call for job_id, some in kept.items() for call in dict.fromkeys((*some, job_id))],
                               self._settings)
        found = []
        for job_id in ids:
            self._room -= len(kept[job_id])
            job = self._job(job_id, kept[job_id], plans.get(job_id), metas)
            job.left_out = len(calls[job_id]) - len(kept[job_id])
            found.append(job)
        return found

    def _job(self, job_id: str, ids: list[str], plan: Meta | None, metas: dict[str, Meta]) -> JobNode:
        meta = metas.get(job_id)
        over = meta is not None and ready(meta)
        labels = [plan["names"][number] for number in plan["of"]] if plan is not None else [""] * len(ids)
        calls = []
        for call_id, label in zip(ids, labels, strict=False):
            node = filled(call_id, label, metas.get(call_id), self._live.get(call_id))
            if node.status == UNKNOWN and len(ids) > 1:
                node.status = NOT_RUN if over else LATER
            self._placed[call_id] = node
            self._children[call_id] = children_of(metas.get(call_id), self._live.get(call_id))
            calls.append(node)
        if plan is None and len(calls) == 1:
            node = calls[0]
            return JobNode(job_id, node.label or f"job {job_id}", node.status, node)
        part: Part = (shaped(plan["shape"], calls) if plan is not None else None) or Steps(False, [*calls])
        job = JobNode(job_id, plan["label"] if plan is not None else f"job {job_id}", status_of(meta, calls), part)
        if meta is not None and over and meta["status"] != "SUCCESS":
            job.error = error_of(meta, job.label, job_id)
        return job

    def _next_level(self, level: list[JobNode]) -> list[JobNode]:
        """The jobs that the calls of some jobs made."""
        made: list[tuple[CallNode, str]] = []
        for job in level:
            for call in job.own_calls():
                for child in self._children.pop(call.id, ()):
                    if child in self._placed:  # a job that a call made twice is read once
                        continue
                    if len(made) >= self._room:
                        call.more_jobs += 1
                    else:
                        made.append((call, child))
        if not made:
            return []
        jobs = self._jobs([child for _, child in made])
        for (call, _), job in zip(made, jobs, strict=True):
            call.jobs.append(job)
        return jobs

    def _place_others(self, root: JobNode) -> None:
        """Calls that workers or queues told of, and that no call has named as its child."""
        first = next(root.own_calls(), None)
        others = [put_live(CallNode(live.id), live) for live in self._live.values() if live.id not in self._placed]
        self._placed |= {node.id: node for node in others}
        for node in others:
            above = self._placed.get(self._live[node.id].parent, first)
            if above is not None and above is not node:
                above.jobs.append(JobNode(node.id, node.label, node.status, node))
