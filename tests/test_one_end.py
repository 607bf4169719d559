"""A call has one end: who waits, who asks later and who looks at the record are told the same."""

import asyncio
import json
import random
from functools import partial

import pytest
from celery import Celery

from callsheet import AgentBase, Msg, get_settings
from callsheet.errors import JobCancelled
from callsheet.settings.keys import Keys
from callsheet.tasks.app import current_app
from callsheet.tasks.shown import Reply
from tests.agents.basic import Sleeper
from tests.agents.work import SleeperOnCpu
from tests.services import wait_for


@pytest.fixture
def backend(redis_server):
    app = Celery("ends", broker=redis_server.url, set_as_current=False,
                 backend=f"callsheet.tasks.results:ResultBackend+{redis_server.url}")
    return app.backend


def ends(backend, ident, *steps):
    """What is stored after these steps, and what was published on the way."""
    key = backend.get_key_for_task(ident)
    with backend.client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(key)
        pubsub.get_message(timeout=5)
        for step in steps:
            step(ident)
        backend.client.publish(key, "over")
        told = []
        while not told or told[-1] != "over":
            message = pubsub.get_message(timeout=5)
            if message:
                text = message["data"].decode()
                told.append(text if text == "over" else json.loads(text)["status"])
    return json.loads(backend.client.get(key))["status"], told[:-1]


def test_the_first_end_that_is_told_is_the_one_that_stays(backend):
    def ended(ident, result, state="SUCCESS"):
        backend._set_with_state(backend.get_key_for_task(ident), backend.encode(
            {**backend._get_result_meta(result, state, None, None), "task_id": ident}), state)

    def done(ident):
        ended(ident, "result")

    def replied(ident):  # written by another encoder
        ended(ident, Reply({"content": "ä"}))

    def revoked(reason):
        return lambda ident: backend.mark_as_revoked(ident, reason)

    def failed(ident):
        backend.mark_as_failure(ident, ValueError("x"))

    def retried(ident):
        backend.mark_as_retry(ident, ValueError("x"))

    cancelled = Keys(get_settings().key_prefix).revoked()
    for number, reason in enumerate(("cancelled", "terminated", "revoked")):  # by whichever worker is the first
        if reason != "terminated":
            backend.client.zadd(cancelled, {f"end-{kind}{number}": 1 for kind in (1, 2, 3)})
        assert ends(backend, f"end-1{number}", revoked(reason), done) == ("REVOKED", ["REVOKED"])
        assert ends(backend, f"end-2{number}", done, revoked(reason)) == ("SUCCESS", ["SUCCESS"])
        assert ends(backend, f"end-3{number}", revoked(reason), failed, retried) == ("REVOKED", ["REVOKED"])
    # Celery's own: a task that is revoked, but not terminated, runs on; and one that has failed may be run again.
    assert ends(backend, "end-4", revoked("revoked"), done) == ("SUCCESS", ["REVOKED", "SUCCESS"])
    assert ends(backend, "end-5", failed, done) == ("SUCCESS", ["FAILURE", "SUCCESS"])
    assert ends(backend, "end-6", done, failed, retried, done) == ("SUCCESS", ["SUCCESS"])
    assert ends(backend, "end-7", retried, retried, done) == ("SUCCESS", ["RETRY", "RETRY", "SUCCESS"])
    for state in ("REVOKED", "FAILURE", "RETRY"):
        for first in (done, replied):
            late = partial(ended, result=None, state=state)
            assert ends(backend, f"end-{state}-{first.__name__}", first, late) == ("SUCCESS", ["SUCCESS"])
    backend.client.script_flush()
    assert ends(backend, "end-8", done) == ("SUCCESS", ["SUCCESS"])
    assert 0 < backend.client.ttl(backend.get_key_for_task("end-8")) <= 86400


async def outcome(job) -> str:
    try:
        await job
    except JobCancelled:
        return "REVOKED"
    return "SUCCESS"


async def cancelled_as_they_end(agent: AgentBase, count: int, about: float) -> list:
    """Jobs with the ends that were told to those who waited; each is cancelled at about the time of its end."""
    dice = random.Random(count)
    pairs = []

    async def one() -> None:
        job = await asyncio.to_thread(agent.submit, Msg("u", "x", "user"))
        told = asyncio.ensure_future(outcome(job))
        await asyncio.sleep(max(0.0, dice.gauss(about, 0.006)))
        await asyncio.to_thread(job.cancel)
        pairs.append((job, await told))

    for _ in range(count // 8):
        await asyncio.gather(*(one() for _ in range(8)))
    return pairs


@pytest.mark.parametrize(("agent", "count", "about"), [(Sleeper(0.05), 240, 0.055), (SleeperOnCpu(0.05), 40, 0.06)])
def test_a_call_that_ends_as_it_is_cancelled_has_one_end(fleet, agent, count, about):
    pairs = asyncio.run(cancelled_as_they_end(agent, count, about))
    told = [end for _, end in pairs]
    wait_for(lambda: not any((inspect_active(fleet) or {"": [1]}).values()), what="idle workers")
    assert [job.status for job, _ in pairs] == told
    print({end: told.count(end) for end in set(told)})


def inspect_active(fleet):
    return current_app(fleet.settings).control.inspect(timeout=5, limit=2).active()
