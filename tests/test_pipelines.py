"""Pipelines on real workers: the same results as inline, in order, and failures that stay where they belong."""

import asyncio
import json
import random
from itertools import pairwise

import pytest
from billiard.exceptions import WorkerLostError
from celery import Celery
from celery.result import AsyncResult

import callsheet
from callsheet import AgentFailed, AgentTimeout, BranchFailed, FanoutPipeline, JobCancelled, Msg, SequentialPipeline
from callsheet.resources import dead_letters
from callsheet.settings import use_settings
from callsheet.tasks.app import current_app
from tests.agents.basic import Compute, Echo, Sleeper
from tests.agents.files import Patient
from tests.agents.pipes import Broken, CpuRaises, CpuTag, Dies, Gated, Noting, Raises, Several, Tag, Timed, told
from tests.agents.user_tasks import add_now, add_soon, die
from tests.fleet import client_settings
from tests.services import wait_for, worker

HELLO = Msg("user", "hello", "user")


def outcome(call):
    """What a call gave or raised, without the ids that differ from run to run."""
    try:
        return told(call())
    except BranchFailed as exc:
        return f"BranchFailed {exc.branch}: {exc.remote_type} {exc.remote_message}"
    except AgentFailed as exc:
        return f"AgentFailed {exc.agent}: {exc.remote_type} {exc.remote_message}"


def inline(pipeline, *args, **kwargs):
    with callsheet.inline():
        return outcome(lambda: pipeline.submit(*args, **kwargs).get())


class Trees:
    """Random pipelines."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.count = 0

    def leaf(self):
        self.count += 1
        name = f"a{self.count}"
        roll = self.random.random()
        if roll < 0.08:
            return Broken(name)
        if roll < 0.16:
            return Several(name, self.random.randrange(3))
        return CpuTag(name) if roll < 0.3 else Tag(name)

    def tree(self, depth: int):
        if depth == 0 or self.random.random() < 0.2:
            return self.leaf()
        members = [self.tree(depth - 1) for _ in range(self.random.choice((0, 1, 1, 2, 2, 3)))]
        if self.random.random() < 0.5:
            return SequentialPipeline(members)
        reduce = self.tree(min(depth - 1, 1)) if self.random.random() < 0.3 else None
        return FanoutPipeline(members, enable_gather=self.random.random() < 0.7, reduce=reduce,
                              on_error=self.random.choice(("raise", "collect")))

    def pipeline(self, depth: int):
        while True:
            found = self.tree(depth)
            if isinstance(found, (SequentialPipeline, FanoutPipeline)):
                return found


def shape(member) -> str:
    """A pipeline as text, for the failure's message."""
    if isinstance(member, SequentialPipeline):
        return "S[" + " ".join(map(shape, member.agents)) + "]"
    if isinstance(member, FanoutPipeline):
        marks = ("" if member.enable_gather else "1") + ("c" if member.on_error == "collect" else "")
        reduce = f"->{shape(member.reduce)}" if member.reduce is not None else ""
        return f"F{marks}[" + " ".join(map(shape, member.agents)) + "]" + reduce
    return f"{type(member).__name__}({member.name})"


@pytest.mark.parametrize("seed", range(4))
def test_random_pipelines_give_what_they_give_inline(fleet, seed):
    trees = Trees(seed)
    pipelines = [trees.pipeline(trees.random.choice((2, 3, 4))) for _ in range(25)]
    jobs = [pipeline.submit(HELLO) for pipeline in pipelines]
    for pipeline, job in zip(pipelines, jobs, strict=True):
        assert outcome(lambda job=job: job.get(20)) == inline(pipeline, HELLO), shape(pipeline)


def members(kind: str):
    return {"seq": lambda *m: SequentialPipeline(m), "fan": lambda *m: FanoutPipeline(m),
            "one": lambda *m: FanoutPipeline(m, enable_gather=False)}[kind]


@pytest.mark.parametrize("failing", [False, True])
def test_all_nestings_of_three_kinds_to_depth_four(fleet, failing):
    kinds = ("seq", "fan", "one")
    trees = [(a, b, c, d) for a in kinds for b in kinds for c in kinds for d in kinds]
    pipelines = []
    for a, b, c, d in trees:
        core = members(d)(Tag("x"), Broken("y") if failing else CpuTag("y"))
        inner = members(c)(Tag("w"), core, Tag("v"))
        pipelines.append(members(a)(Tag("t"), members(b)(inner, Tag("u"))))
    jobs = [pipeline.submit(HELLO) for pipeline in pipelines]
    for tree, pipeline, job in zip(trees, pipelines, jobs, strict=True):
        assert outcome(lambda job=job: job.get(20)) == inline(pipeline, HELLO), (tree, shape(pipeline))


def test_results_keep_the_order_of_the_agents(fleet):
    gate, notes = fleet.key(), fleet.key()
    first = Gated("first", gate, notes)
    job = FanoutPipeline([first, Noting("second", notes), Noting("third", notes)]).submit(HELLO)
    fleet.wait_notes(notes, 3)
    fleet.open(gate)
    assert [msg.name for msg in job.get(10)] == ["first", "second", "third"]
    assert fleet.notes(notes)[-1] == "first ended"


def test_without_gather_branches_run_one_after_another_with_the_same_message(fleet):
    branches = [Timed(f"t{i}", 0.03) for i in range(4)]
    results = FanoutPipeline(branches, enable_gather=False).submit(HELLO).get(10)
    assert [msg.content for msg in results] == ["hello"] * 4
    for before, after in pairwise(results):
        assert after.metadata["began"] >= before.metadata["ended"]


def test_with_gather_branches_overlap(fleet):
    gate, notes = fleet.key(), fleet.key()
    job = FanoutPipeline([Gated(f"g{i}", gate, notes) for i in range(5)]).submit(HELLO)
    fleet.wait_notes(notes, 5)
    fleet.open(gate)
    assert len(job.get(10)) == 5


def test_without_gather_a_failure_keeps_those_behind_from_running(fleet):
    notes = fleet.key()
    job = FanoutPipeline([Noting("a", notes), Broken("b"), Noting("c", notes)], enable_gather=False).submit(HELLO)
    with pytest.raises(BranchFailed, match=r"branch 2 of 3, Broken\(b\)"):
        job.get(10)
    assert fleet.notes(notes) == ["a"]


def test_the_other_branches_finish_although_one_fails(fleet):
    gate, notes = fleet.key(), fleet.key()
    job = FanoutPipeline([Broken("b"), Gated("slow", gate, notes)]).submit(HELLO)
    fleet.wait_notes(notes, 1)
    fleet.open(gate)
    with pytest.raises(BranchFailed) as caught:
        job.get(10)
    assert fleet.notes(notes) == ["slow began", "slow ended"]
    error = caught.value
    assert (error.branch, error.remote_type, error.agent) == ("branch 1 of 2, Broken(b)", "builtins.ValueError",
                                                              "Broken(b)")
    assert "b broke" in str(error)
    assert "pipes.py" in error.remote_traceback


def test_collect_puts_a_message_with_the_error_in_the_place_of_the_branch(fleet):
    results = FanoutPipeline([Tag("a"), Broken("b"), Tag("c")], on_error="collect").submit(HELLO).get(10)
    assert [msg.name for msg in results] == ["a", "b", "c"]
    error = results[1].metadata["error"]
    assert (error["type"], error["message"], error["agent"]) == ("builtins.ValueError", "b broke", "Broken(b)")
    assert error["branch"] == "branch 2 of 3, Broken(b)"
    assert "b broke" in results[1].content


def test_a_failing_first_step_before_a_chord_fails_the_job(fleet):
    job = SequentialPipeline([Broken("b"), FanoutPipeline([Tag("x"), Tag("y")], reduce=Tag("r")), Tag("z")])
    with pytest.raises(AgentFailed, match="b broke"):
        job.submit(HELLO).get(10)


def test_a_failing_reducer_fails_the_job(fleet):
    with pytest.raises(AgentFailed, match="r broke"):
        FanoutPipeline([Tag("x"), Tag("y")], reduce=Broken("r")).submit(HELLO).get(10)


def test_a_branch_ended_by_its_timeout(fleet):
    branches = [Sleeper(0.01), Sleeper(60, "long")]
    with pytest.raises(BranchFailed, match=r"branch 2 of 2, Sleeper\(long\).*timeout") as caught:
        FanoutPipeline(branches).submit(HELLO, timeout=1.5).get(15)
    assert caught.value.remote_type.endswith("SoftTimeLimitExceeded")
    collected = FanoutPipeline(branches, on_error="collect").submit(HELLO, timeout=1.5).get(15)
    assert collected[0].content == "awake"
    assert collected[1].metadata["error"]["agent"] == "Sleeper(long)"
    with pytest.raises(AgentTimeout):
        SequentialPipeline([Sleeper(60, "long"), Tag("x")]).submit(HELLO, timeout=0.3).get(15)


def test_a_branch_whose_process_dies(fleet):
    notes = fleet.key()
    pipeline = FanoutPipeline([CpuTag("a"), Dies("d", notes), Tag("b")], on_error="collect")
    results = pipeline.submit(HELLO).get(30)
    assert [told(msg) for msg in results][::2] == ["a(hello)", "b(hello)"]
    assert "worker process" in results[1].content
    assert "Dies(d)" in results[1].content
    assert 1 <= len(fleet.notes(notes)) <= 2, "a reply that kills its process must not be run again and again"
    with pytest.raises(AgentFailed, match="worker process"):
        SequentialPipeline([Dies("d2"), Tag("x")]).submit(HELLO).get(30)
    assert CpuTag("after").submit(HELLO).get(20).content == "after(hello)"


def test_a_call_whose_process_died_once_is_done_by_another(fleet):
    notes = fleet.key()
    assert Dies("d", notes, times=1).submit(HELLO).get(30).content == "alive"
    first, second = fleet.notes(notes)
    assert first != second


def test_a_revoked_branch_fails_as_a_branch(fleet):
    gate, notes = fleet.key(), fleet.key()
    job = FanoutPipeline([Tag("a"), Gated("g", gate, notes)], on_error="collect").submit(HELLO)
    revoke_running(fleet, notes)
    results = job.get(10)
    assert told(results[0]) == "a(hello)"
    assert "cancelled" in results[1].content


def revoke_running(fleet, notes):
    """Revoke the call that noted its id, with a stock Celery client."""
    [call] = fleet.wait_notes(f"{notes}:ids")
    Celery(broker=fleet.server.url).control.revoke(call, terminate=True)


@pytest.mark.parametrize("wrap", [
    lambda member: SequentialPipeline([member, Tag("next")]),
    lambda member: FanoutPipeline([SequentialPipeline([member, Tag("next")]), Tag("side")]),
    lambda member: SequentialPipeline([member, FanoutPipeline([Tag("x"), Tag("y")]), Tag("z")]),
    lambda member: FanoutPipeline([member, Tag("side")], enable_gather=False),
], ids=["chain", "chain in a fan-out", "before a fan-out", "one by one"])
def test_a_revoked_step_ends_the_whole_job(fleet, wrap):
    gate, notes = fleet.key(), fleet.key()
    job = wrap(Gated("g", gate, notes)).submit(HELLO)
    revoke_running(fleet, notes)
    with pytest.raises((JobCancelled, BranchFailed), match="cancelled"):
        job.get(10)


def test_empty_pipelines(fleet):
    assert told(SequentialPipeline([]).submit(HELLO).get(5)) == "hello"
    assert FanoutPipeline([]).submit(HELLO).get(5) == []
    assert FanoutPipeline([], enable_gather=False).submit(HELLO).get(5) == []
    assert told(FanoutPipeline([], reduce=Tag("r")).submit(HELLO).get(5)) == "r([])"
    assert told(FanoutPipeline([SequentialPipeline([]), Tag("a")]).submit(HELLO).get(5)) == "[hello,a(hello)]"
    assert SequentialPipeline([]).submit().get(5) is None


def test_single_branch_fanout_gives_a_list_of_one(fleet):
    assert told(FanoutPipeline([Tag("a")]).submit(HELLO).get(5)) == "[a(hello)]"
    assert told(FanoutPipeline([FanoutPipeline([Tag("a")])]).submit(HELLO).get(5)) == "[[a(hello)]]"


def test_reduce_by_a_pipeline(fleet):
    inner = SequentialPipeline([Tag("r"), FanoutPipeline([Tag("x"), CpuTag("y")])])
    assert told(FanoutPipeline([Tag("a"), Tag("b")], reduce=inner).submit(HELLO).get(10)) == (
        "[x(r([a(hello),b(hello)])),y(r([a(hello),b(hello)]))]")


def test_keyword_arguments_reach_those_that_get_the_message(fleet):
    pipeline = SequentialPipeline([FanoutPipeline([Tag("a"), SequentialPipeline([Tag("b"), Tag("c")])]), Tag("d")])
    assert told(pipeline.submit(HELLO, mood="!").get(10)) == "d([a!(hello),c(b!(hello))])"
    one = FanoutPipeline([Tag("a"), Tag("b")], enable_gather=False, reduce=Tag("r"))
    assert told(one.submit(HELLO, mood="?").get(10)) == "r([a?(hello),b?(hello)])"


def test_awaiting_pipelines(fleet):
    async def main():
        return await asyncio.gather(SequentialPipeline([Tag("a"), Tag("b")])(HELLO),
                                    callsheet.fanout_pipeline([Tag("a"), Tag("b")], HELLO, mood="!"),
                                    callsheet.sequential_pipeline([Tag("a")], HELLO))

    assert list(map(told, asyncio.run(main()))) == ["b(a(hello))", "[a!(hello),b!(hello)]", "a(hello)"]


def test_a_fanout_of_a_hundred(fleet):
    results = FanoutPipeline([Echo(str(i)) for i in range(100)]).submit(HELLO).get(20)
    assert [msg.name for msg in results] == [str(i) for i in range(100)]


def test_a_pipeline_of_cpu_agents_needs_no_io_worker(own_redis):
    with worker("callsheet.workers.cpu", own_redis.url, "-c", "1", env={"CALLSHEET_MODULES": "tests.agents"}), \
            use_settings(client_settings(own_redis)):
        empty = SequentialPipeline([])
        pipeline = SequentialPipeline([
            FanoutPipeline([CpuTag("a"), CpuTag("b"), empty], reduce=CpuTag("r")),
            FanoutPipeline([CpuTag("c"), CpuTag("d")], enable_gather=False), CpuTag("e"),
            FanoutPipeline([empty, CpuTag("f")])])
        assert told(pipeline.submit(HELLO).get(20)) == (
            "[e([c(r([a(hello),b(hello),hello])),d(r([a(hello),b(hello),hello]))]),"
            "f(e([c(r([a(hello),b(hello),hello])),d(r([a(hello),b(hello),hello]))]))]")


def test_one_slot_runs_a_wide_nested_pipeline(own_redis):
    def wide(depth: int):
        return Tag("t") if depth == 0 else FanoutPipeline(
            [SequentialPipeline([Tag("s"), wide(depth - 1)]) for _ in range(3)], reduce=Tag("r"))

    with worker("callsheet.workers.io", own_redis.url, "-c", "1", env={"CALLSHEET_MODULES": "tests.agents"}), \
            use_settings(client_settings(own_redis)):
        assert told(wide(3).submit(HELLO).get(30)) == inline(wide(3), HELLO)


def test_stock_celery_reads_the_result(fleet):
    job = SequentialPipeline([FanoutPipeline([Tag("a"), Tag("b")]), Tag("c")]).submit(HELLO)
    stock = Celery(broker=fleet.server.url, backend=fleet.server.url)
    result = AsyncResult(job.id, app=stock)
    wait_for(result.ready, 10)
    assert result.get(timeout=5)["$msg"]["content"] == "c([a(hello),b(hello)])"
    assert json.loads(fleet.redis.get(f"celery-task-meta-{job.id}"))["status"] == "SUCCESS"
    failed = SequentialPipeline([Broken("b"), Tag("c")]).submit(HELLO)
    with pytest.raises(ValueError, match="b broke"):
        AsyncResult(failed.id, app=stock).get(timeout=10)


def test_the_users_own_tasks_run_beside_on_the_right_queues(fleet):
    app = current_app()
    soon = app.tasks[add_soon.name].delay(1, 2)
    now = app.tasks[add_now.name].delay(3, 4)
    assert soon.get(timeout=10) == [3, "callsheet-loop"]
    total, host, queue = now.get(timeout=10)
    assert (total, host, queue) == (7, fleet.cpu.name, "cpu")


@pytest.mark.parametrize("put_back", [False, True], ids=["fresh", "put back unbegun before"])
def test_a_users_task_that_ends_its_process_gets_one_second_chance_and_then_fails(fleet, tmp_path, put_back):
    tally = tmp_path / "tally"
    result = current_app().tasks[die.name].apply_async((str(tally),), queue="nobody" if put_back else "cpu")
    if put_back:  # as by a worker that stopped, or was lost, before it began with it
        message = json.loads(fleet.redis.lpop("nobody"))
        message["headers"] |= {"redelivered": True, "deliveries": 2, "lost": 1}
        message["properties"]["delivery_info"]["redelivered"] = True
        fleet.redis.lpush("cpu", json.dumps(message))
    with pytest.raises(WorkerLostError):
        result.get(timeout=20)
    assert tally.read_text().splitlines() == ["died", "died"]
    letter = next(letter for letter in dead_letters.read() if letter["task_id"] == result.id)
    assert letter["task"] == die.name and str(tally) in letter["text"]


@pytest.mark.parametrize("kind", ["MemoryError", "Odd"])
@pytest.mark.parametrize(("agent", "neighbour"), [(Raises, Tag), (CpuRaises, CpuTag)], ids=["io", "cpu"])
def test_what_celerys_callbacks_cannot_take_is_a_failure_as_others(fleet, agent, neighbour, kind):
    """Celery ends a worker over a MemoryError, whose message would end the next."""
    jobs = [agent("r", kind).submit(HELLO) for _ in range(3)]
    for job in jobs:
        with pytest.raises(AgentFailed, match="too much") as found:
            job.get(timeout=20)
        assert found.value.remote_type.endswith(kind)
    assert neighbour("n").submit(HELLO).get(timeout=20).content == "n(hello)"
    wait_for(lambda: not any(job.id in entry for entry in fleet.redis.hvals("unacked") for job in jobs),
             what="their messages to be settled")


def test_compute_says_where_it_ran(fleet):
    reply = Compute("c").submit(HELLO).get(10)
    assert reply.content == "c:1"


def test_many_steps_that_are_nested_fanouts_are_published_at_once(fleet, tmp_path):
    """More of them than the broker's pool has connections."""
    def nested(depth):
        return FanoutPipeline([nested(depth - 1), Tag("x")]) if depth else Tag("y")

    pipeline = SequentialPipeline([Patient(str(tmp_path)), nested(4)])
    jobs = [pipeline.submit(HELLO) for _ in range(40)]
    (tmp_path / "go").touch()
    told_of = {outcome(lambda job=job: job.get(timeout=60)) for job in jobs}
    assert told_of == {inline(pipeline, HELLO)}


@pytest.mark.parametrize("reduce", [None, Tag("sum"), CpuTag("sum")], ids=["gathered", "by io", "by cpu"])
@pytest.mark.parametrize("on_error", ["collect", "raise"])
def test_a_wide_fanout_gives_what_it_gives_inline(fleet, reduce, on_error):
    """Its labels and its reducing step are stored apart from the branches' messages."""
    members = [Broken(f"b{i}") if i in (17, 90) else Tag(f"a{i}") for i in range(150)]
    pipeline = FanoutPipeline(members, reduce=reduce, on_error=on_error)
    assert outcome(lambda: pipeline.submit(HELLO).get(timeout=60)) == inline(pipeline, HELLO)


def test_a_wide_fanout_of_cpu_agents_needs_no_io_worker(fleet):
    pipeline = FanoutPipeline([CpuTag(f"c{i}") for i in range(60)])
    assert outcome(lambda: pipeline.submit(HELLO).get(timeout=60)) == inline(pipeline, HELLO)


def test_messages_of_a_fanout_do_not_grow_with_its_width(fleet):
    """Each carries the step behind the fan-out."""
    for reduce in (None, Tag("x" * 2000)):
        FanoutPipeline([Tag(f"a{i}") for i in range(600)], reduce=reduce).options(queue="nobody").submit(HELLO)
        sizes = [len(text) for text in fleet.redis.lrange("nobody", 0, -1)]
        fleet.redis.delete("nobody")
        assert len(sizes) == 600
        assert max(sizes) < 8000
