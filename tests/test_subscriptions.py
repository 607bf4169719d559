"""Celery's own result objects on our backend: subscribed to when somebody waits, and never missed."""

import json
import threading
from typing import Any

import pytest
from celery import chord, group
from celery.exceptions import TimeoutError as CeleryTimeout

from callsheet import FanoutPipeline, Msg
from callsheet.tasks.app import current_app
from tests.agents.basic import Echo, Sleeper
from tests.agents.pipes import Gated
from tests.fleet import Fleet
from tests.services import wait_for


def channels(fleet: Fleet) -> int:
    return len([name for name in fleet.server.client().pubsub_channels() if "celery-task-meta" in name])


def task(name: str) -> Any:
    return current_app().tasks["callsheet.carry"].signature((name,), queue="io")


def test_a_fan_out_that_is_submitted_subscribes_to_nothing(fleet):
    before = channels(fleet)  # of other tests' results in this process
    job = FanoutPipeline([Sleeper("s"), Sleeper("s")]).submit(Msg("u", "x", "user"))
    assert channels(fleet) <= before
    job.cancel()


def test_a_group_is_waited_for_whatever_came_before_the_wait_and_whatever_after(fleet):
    first = group(task(str(number)) for number in range(50)).apply_async()
    again = group(task(str(number)) for number in range(50)).apply_async()
    assert first.get(timeout=30) == [str(number) for number in range(50)]
    assert again.get(timeout=30) == [str(number) for number in range(50)]


def test_threads_that_wait_for_different_results_each_get_theirs(fleet):
    found = {}

    def wait(name: str) -> None:
        found[name] = task(name).apply_async().get(timeout=30)

    threads = [threading.Thread(target=wait, args=(str(number),)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {str(number): str(number) for number in range(20)}


def test_a_wait_that_gave_up_can_be_taken_up_again_and_then_callbacks_are_called(fleet):
    gate = fleet.key("gate")
    late = current_app().AsyncResult(Gated("late", gate).submit().id)
    called = []
    late.then(lambda result: called.append(result.result))
    with pytest.raises(CeleryTimeout):
        late.get(timeout=0.05)
    fleet.open(gate)
    assert late.get(timeout=30)["$msg"]["content"] == "late:open"
    assert called == [late.result]


def test_a_chord_is_waited_for(fleet):
    body = current_app().tasks["callsheet.carry"].signature(queue="io")
    assert chord([task("a"), task("b")], body).apply_async().get(timeout=30) == ["a", "b"]


def test_what_nobody_waits_for_any_more_is_not_subscribed_to(fleet):
    kept = task("kept").apply_async()
    for number in range(20):
        task(str(number)).apply_async().then(lambda _: None)
    assert kept.get(timeout=30) == "kept"
    assert Echo("e").submit(Msg("u", "x", "user")).get(timeout=30).content == "e:x"


def test_a_result_whose_message_was_lost_is_found_all_the_same(fleet):
    app, task_id = current_app(), fleet.key("lost")
    result = app.AsyncResult(task_id)

    def store() -> None:  # others' subscriptions may end meanwhile
        wait_for(lambda: fleet.redis.pubsub_numsub(f"celery-task-meta-{task_id}")[0][1], what="the wait")
        meta = {"status": "SUCCESS", "result": "here", "task_id": task_id, "traceback": None, "children": []}
        fleet.redis.set(f"celery-task-meta-{task_id}", json.dumps(meta))  # and nothing is published

    thread = threading.Thread(target=store)
    thread.start()
    assert result.get(timeout=20) == "here"
    thread.join()
