"""`callsheet show`: the tree of real jobs on real workers, while they run, when they have ended, when they are gone."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from callsheet import AgentFailed, FanoutPipeline, JobCancelled, Msg, SequentialPipeline, Settings
from callsheet.cli.main import main
from callsheet.cli.top_look import look
from callsheet.cli.tree_rows import rows, seconds
from callsheet.errors import UnknownJob
from callsheet.models.stub import StubModelServer
from callsheet.settings import use_settings
from callsheet.settings.keys import Keys
from callsheet.tasks.app import current_app
from callsheet.tasks.tree.nodes import CallNode, JobNode, Part, Steps, calls_in, seen
from callsheet.tasks.tree.read import read_tree
from tests.agents.orchestra import Breaks, Dies, Lead, Measures, Remembers, Waits, Writer
from tests.conftest import missing
from tests.services import RedisServer, Worker, wait_for, worker

PROMPT = "a prompt that nobody else is to read"
HELLO = Msg("u", PROMPT, "user")


class Stage:
    def __init__(self, redis: RedisServer, io: Worker, cpu: Worker, settings: Settings) -> None:
        self.redis, self.io, self.cpu, self.settings = redis, io, cpu, settings

    def tree(self, job: Any, most: int = 1000) -> JobNode:
        return read_tree(job if isinstance(job, str) else job.id, self.settings, most)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    own = RedisServer()
    with StubModelServer() as server:
        env = {"CALLSHEET_MODULES": "tests.agents", "CALLSHEET_ENDPOINTS__OPENAI__BASE_URL": server.base_url,
               "CALLSHEET_PRICES": '{"gpt-*": {"input": 2, "output": 8}}', "CALLSHEET_RETRY_BACKOFF": "0.05"}
        settings = Settings.load(redis_url=own.url, queues="nobody")
        try:
            with (worker("callsheet.workers.io", own.url, "-c", "20", env=env) as io,
                  worker("callsheet.workers.cpu", own.url, "-c", "1", env=env) as cpu, use_settings(settings)):
                yield Stage(own, io, cpu, settings)
        finally:
            own.remove()


def run(*args: str) -> Result:
    return CliRunner(env={"COLUMNS": "150"}).invoke(main, ["show", *args])


def labels(job: JobNode) -> list[tuple[int, str]]:
    return [(len(row.branches), row.label) for row in rows(job)]


def call(job: JobNode, label: str) -> CallNode:
    return next(call for call in job.all_calls() if call.label == label)


PANEL = SequentialPipeline([
    FanoutPipeline([Writer("a"), SequentialPipeline([Writer("b"), Measures("c")])], reduce=Writer("editor")),
    FanoutPipeline([Breaks("bad"), Writer("fine")], on_error="collect"), Writer("last")])


# What has ended -----------------------------------------------------------------------------------------------------

def test_a_pipelines_branches_and_steps_stand_as_they_were_written(stage: Stage) -> None:
    job = PANEL.submit(HELLO, retries=1)
    job.get(timeout=30)
    tree = stage.tree(job)
    assert tree.status == "SUCCESS"
    assert labels(tree) == [
        (0, "SequentialPipeline"), (1, "2 at once"), (2, "Writer(a)"), (2, "one after another"), (3, "Writer(b)"),
        (3, "Measures(c)"), (1, "Writer(editor)"), (1, "2 at once"), (2, "Breaks(bad)"), (2, "Writer(fine)"),
        (1, "Writer(last)")]
    bad, counted = call(tree, "Breaks(bad)"), call(tree, "Measures(c)")
    assert (bad.status, bad.retries) == ("FAILURE", 1) and bad.error.startswith("ValueError: bad cannot go on")
    assert (counted.worker, counted.queue) == (stage.cpu.name, "cpu") and counted.pid != stage.cpu.process.pid
    assert call(tree, "Writer(a)").worker == stage.io.name
    for one in tree.all_calls():
        assert one.sent is not None and one.started is not None and one.ended is not None
        assert one.sent - 0.1 <= one.started <= one.ended
    usage = job.usage
    assert sum(one.usage.input_tokens for one in tree.all_calls()) == usage.input_tokens > 0
    assert sum(one.usage.cost for one in tree.all_calls()) == pytest.approx(usage.cost)


def test_a_fanout_of_one_at_a_time_and_empty_pipelines_have_trees(stage: Stage) -> None:
    job = FanoutPipeline([Writer("a"), Writer("b")], enable_gather=False).submit(HELLO)
    job.get(timeout=30)
    assert labels(stage.tree(job)) == [(0, "FanoutPipeline"), (1, "Writer(a)"), (1, "Writer(b)")]
    empty = SequentialPipeline([]).submit(HELLO)
    empty.get(timeout=10)
    assert labels(stage.tree(empty)) == [(0, "SequentialPipeline")]


def test_jobs_that_calls_made_stand_below_them_awaited_or_submitted(stage: Stage) -> None:
    job = Lead("lead").submit(HELLO)
    job.get(timeout=30)
    tree = stage.tree(job)
    found = labels(tree)
    assert found[0] == (0, "Lead(lead)") and sorted(found[1:]) == sorted([
        (1, "Writer(draft)"), (1, "Lead(deputy)"), (2, "Writer(draft)"), (2, "Waits(waits)"),
        (2, "SequentialPipeline"), (3, "Writer(one)"), (3, "Measures(two)"),
        (1, "SequentialPipeline"), (2, "Writer(one)"), (2, "Measures(two)")])
    assert 0 < call(tree, "Lead(lead)").idle <= (call(tree, "Lead(lead)").ran(tree.looked) or 0)
    assert tree.usage == job.usage and tree.usage.calls == 4
    below = next(child for child in tree.part.jobs if child.label == "Lead(deputy)")  # type: ignore[union-attr]
    assert labels(stage.tree(below.id))[0] == (0, "Lead(deputy)")


def test_a_job_that_failed_or_was_cancelled_tells_why_and_what_did_not_run(stage: Stage, tmp_path: Path) -> None:
    failed = SequentialPipeline([Breaks("bad"), Writer("never")]).submit(HELLO)
    with pytest.raises(AgentFailed):
        failed.get(timeout=30)
    tree = stage.tree(failed)
    assert tree.status == "FAILURE" and "bad cannot go on" in tree.error
    assert call(tree, "Breaks(bad)").status == "FAILURE" and call(tree, "Writer(never)").started is None

    held = SequentialPipeline([Waits("held", str(tmp_path / "gate")), Writer("after")]).submit(HELLO)
    wait_for(lambda: call(stage.tree(held), "Waits(held)").status == "RUNNING", what="the call to run")
    held.cancel()
    with pytest.raises(JobCancelled):
        held.get(timeout=20)
    wait_for(lambda: (one := call(stage.tree(held), "Waits(held)")).status == "REVOKED" and one.worker,
             what=lambda: f"the call's end, as its worker tells it: {call(stage.tree(held), 'Waits(held)')}\n"
                          f"{stage.io.log[-3000:]}")
    tree = stage.tree(held)
    assert tree.status == "REVOKED" and call(tree, "Waits(held)").worker == stage.io.name


def test_a_cancelled_call_tells_where_it_ran_also_where_another_worker_told_of_its_end_first(
        stage: Stage, tmp_path: Path) -> None:
    job = SequentialPipeline([Waits("held", str(tmp_path / "gate")), Writer("after")]).submit(HELLO)
    wait_for(lambda: call(stage.tree(job), "Waits(held)").status == "RUNNING", what="the call to run")
    held = call(stage.tree(job), "Waits(held)").id
    current_app(stage.settings).backend.mark_as_revoked(held, "revoked", store_result=True)
    job.cancel()
    wait_for(lambda: call(stage.tree(job), "Waits(held)").worker == stage.io.name,
             what=lambda: f"where it ran: {stage.tree(job)}")
    assert stage.tree(job).status == "REVOKED"


def test_a_call_whose_process_was_killed_tells_where_it_ran_and_counts_as_failed(stage: Stage) -> None:
    job = Dies("poor").submit(HELLO)
    with pytest.raises(AgentFailed, match="died"):
        job.get(timeout=40)
    dead = call(stage.tree(job), "Dies(poor)")
    assert (dead.status, dead.worker, dead.queue) == ("FAILURE", stage.cpu.name, "cpu")
    assert dead.pid not in (0, stage.cpu.process.pid) and dead.started is not None and "died" in dead.error
    told = wait_for(lambda: look(stage.settings).agents().get("Dies(poor)"), what="the count")
    assert told[:2] == [1, 1]


# What has not -------------------------------------------------------------------------------------------------------

def test_a_job_that_goes_on_is_shown_with_what_runs_and_what_is_to_come(stage: Stage, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = SequentialPipeline([Lead("lead", str(gate)), Writer("after")]).submit(HELLO)

    def both_ended() -> JobNode | None:
        tree = stage.tree(job)
        drafts = [one for one in tree.all_calls() if one.label == "Writer(draft)" and one.status == "SUCCESS"]
        waits = any(one.label == "Waits(waits)" and one.status == "RUNNING" for one in tree.all_calls())
        return tree if len(drafts) == 2 and waits else None

    tree = wait_for(both_ended, what="the drafts")
    assert tree.status == "RUNNING"
    states = {one.label: one.status for one in tree.all_calls()}
    assert states == {"Lead(lead)": "RUNNING", "Writer(draft)": "SUCCESS", "Lead(deputy)": "RUNNING",
                      "Waits(waits)": "RUNNING", "Writer(after)": "LATER"}
    assert labels(tree)[:2] == [(0, "SequentialPipeline"), (1, "Lead(lead)")]
    assert (3, "Waits(waits)") in labels(tree)  # below the one that called it
    waits = call(tree, "Waits(waits)")
    assert waits.worker == stage.io.name and waits.started is not None and waits.ended is None
    assert "running" in run(job.id).output
    gate.touch()
    job.get(timeout=30)
    assert stage.tree(job).status == "SUCCESS"


def test_a_job_that_waits_in_a_queue_is_known(stage: Stage) -> None:
    job = Writer("patient").submit(HELLO, queue="nobody")
    tree = stage.tree(job)
    assert (tree.status, tree.label) == ("WAITING", "Writer(patient)")
    waiting = call(tree, "Writer(patient)")
    assert waiting.queue == "nobody" and waiting.started is None and (waiting.waited(time.time()) or 0) >= 0
    assert "queue nobody" in run(job.id).output
    later = Writer("later").submit(HELLO, queue="nobody", priority=9)  # behind others, in a list of its own
    assert stage.tree(later).status == "WAITING"


@pytest.mark.parametrize("seconds", [600, 86_400])  # held by the worker, and put away in Redis
def test_a_job_whose_time_has_not_come_is_known(stage: Stage, seconds: int) -> None:
    job = Writer("tomorrow").submit(HELLO, countdown=seconds)
    tree = wait_for(lambda: (found := stage.tree(job)).status == "LATER" and found, what="it to be taken")
    assert tree.label == "Writer(tomorrow)" and call(tree, "Writer(tomorrow)").started is None
    job.cancel()


def test_a_call_that_waits_for_its_agents_turn_is_known(stage: Stage, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    agent = Remembers("one", str(gate)).with_id(f"turns-{time.monotonic_ns()}")
    first, second = agent.submit(HELLO), agent.submit(HELLO)
    wait_for(lambda: stage.tree(first).status == "RUNNING", what="the first to run")
    tree = wait_for(lambda: (found := stage.tree(second)).status in ("WAITING", "TAKEN") and found, what="the second")
    assert tree.label == "Remembers(one)"
    gate.touch()
    assert second.get(timeout=20) is not None
    assert stage.tree(second).status == "SUCCESS"


def test_a_job_on_a_cpu_worker_is_shown_while_it_runs(stage: Stage, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = Waits("plain", str(gate)).submit(HELLO, queue="cpu")
    tree = wait_for(lambda: (found := stage.tree(job)).status == "RUNNING" and found, what="it to run")
    assert call(tree, "Waits(plain)").worker == stage.cpu.name
    gate.touch()
    job.get(timeout=20)


# What is gone -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("job_id", ["nothing", "4f1c2f6e-0a2b-4d0e-9a55-5f6a2f0c1d3e", "*", "日本"])
def test_a_job_that_is_not_known_is_an_error_with_a_remedy(stage: Stage, job_id: str) -> None:
    with pytest.raises(UnknownJob, match="have expired"):
        stage.tree(job_id)
    result = run(job_id)
    assert result.exit_code == 1 and "CALLSHEET_RESULT_EXPIRES" in result.output and "Traceback" not in result.output


def test_a_job_whose_records_have_expired_is_not_known(stage: Stage) -> None:
    job = SequentialPipeline([Writer("a"), Writer("b")]).submit(HELLO)
    job.get(timeout=30)
    calls = [one.id for one in stage.tree(job).all_calls()]
    client = stage.redis.client()
    client.delete(*(f"celery-task-meta-{one}" for one in calls))  # as Redis does in a day
    # The worker may yet have the last call when its result is there.
    wait_for(lambda: {one.status for one in stage.tree(job).all_calls()} <= {"UNKNOWN", "LATER", "NOT RUN"},
             what=lambda: f"nothing to be known: {stage.tree(job)}")
    client.delete(Keys(stage.settings.key_prefix).job(job.id))
    with pytest.raises(UnknownJob):
        stage.tree(job)


def test_of_a_job_with_many_calls_so_many_are_shown_and_the_rest_is_counted(stage: Stage) -> None:
    job = FanoutPipeline([Waits(f"w{number}") for number in range(30)]).submit(HELLO)
    job.get(timeout=30)
    tree = stage.tree(job, most=10)
    assert len(list(calls_in(tree.part))) == 10 and tree.left_out == 21  # the step that gathers is a call too
    assert "21 more calls" in run(job.id, "--most", "10").output


# What is printed and written ----------------------------------------------------------------------------------------

def test_text_json_and_page_show_neither_prompts_nor_secrets(stage: Stage, tmp_path: Path) -> None:
    job = PANEL.submit(HELLO)
    job.get(timeout=30)
    page = tmp_path / "job.html"
    text, data, said = run(job.id), run(job.id, "--json"), run(job.id, "--html", str(page))
    assert (text.exit_code, data.exit_code, said.exit_code) == (0, 0, 0)
    assert page.as_uri() in said.output
    for output in (text.output, data.output, page.read_text()):
        assert "Writer(editor)" in output and "bad cannot go on" in output
        assert PROMPT not in output and "sk-abcdef" not in output
    assert json.loads(data.output)["calls"] == 7 and json.loads(data.output)["status"] == "SUCCESS"
    assert max(map(len, text.output.splitlines())) <= 150
    assert "━" in text.output and "1 worker" not in text.output


def test_a_narrow_terminal_gets_fewer_columns_and_no_long_lines(stage: Stage) -> None:
    job = PANEL.submit(HELLO)
    job.get(timeout=30)
    result = CliRunner(env={"COLUMNS": "70"}).invoke(main, ["show", job.id])
    assert max(map(len, result.output.splitlines())) <= 70 and "Writer(editor)" in result.output


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_nobody_for_anything(stage: Stage, tmp_path: Path) -> None:
    job = SequentialPipeline([Writer("<b>&bold</b>"), Lead("lead")]).submit(HELLO)
    job.get(timeout=30)
    page = tmp_path / "job.html"
    assert run(job.id, "--html", str(page)).exit_code == 0
    html = page.read_text()
    parser = _Tags()
    parser.feed(html)
    assert not parser.open and "&lt;b&gt;&amp;bold&lt;/b&gt;" in html and "<b>&bold" not in html
    assert not re.search(r"https?://|@import|url\(|\ssrc=", html)


def test_chromium_draws_the_page_and_its_filter_works(stage: Stage, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        missing("Chromium")
    job = PANEL.submit(HELLO)
    job.get(timeout=30)
    page = tmp_path / "job.html"
    assert run(job.id, "--html", str(page)).exit_code == 0
    script = """
const find = document.getElementById("find"); find.value = "measures"; find.dispatchEvent(new Event("input"));
const bars = [...document.querySelectorAll("td b.run")].map(bar => bar.getBoundingClientRect());
const kept = rows.filter(row => !row.hidden), drawn = bars.filter(bar => bar.height > 5);
document.title = kept.length + " shown, " + drawn.length + " drawn";
"""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page.write_text(page.read_text().replace("script-src ", f"script-src 'sha256-{digest}' ")
                    .replace("</body>", f"<script>{script}</script></body>"))
    dom = subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,800",
                          f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
                         capture_output=True, text=True, timeout=90, check=True).stdout
    assert re.findall("<title>(.*?)</title>", dom) == ["1 shown, 1 drawn"]


def test_the_beginning_of_an_id_is_enough(stage: Stage, tmp_path: Path) -> None:
    ended, gate = Writer("w").submit(HELLO), tmp_path / "gate"
    ended.get(timeout=20)
    running = Waits("held", str(gate)).submit(HELLO)
    kept = FanoutPipeline([Writer("x"), Writer("y")]).submit(HELLO, job_id=f"[?*]{ended.id[:12]}")
    try:
        for job in (ended, running, kept):
            shown = run(job.id[:20])
            assert shown.exit_code == 0 and job.id in shown.output
        Writer("w").submit(HELLO, job_id=f"{ended.id[:20]}-again").get(timeout=20)
        several = run(ended.id[:20])
        assert several.exit_code == 1 and "Give more of the id" in several.output
        assert "No job 'nonsense' is known" in run("nonsense").output
    finally:
        gate.touch()


def test_a_file_that_cannot_be_written_is_named(stage: Stage, tmp_path: Path) -> None:
    job = Waits("w").submit(HELLO)
    job.get(timeout=20)
    result = run(job.id, "--html", str(tmp_path / "no" / "such" / "folder.html"))
    assert result.exit_code != 0 and "folder.html" in result.output and "Traceback" not in result.output


# Without workers ----------------------------------------------------------------------------------------------------

parts = st.recursive(
    st.builds(lambda label: CallNode("id", label), st.sampled_from(["", "A(a)", "B(b)"])),
    lambda inner: st.builds(Steps, st.booleans(), st.lists(inner, max_size=4)), max_leaves=12)


@given(parts)
def test_what_is_shown_of_a_plan_has_each_agents_call_once_and_in_order(part: Part) -> None:
    whole = [one for one in calls_in(part) if one.label]
    kept = seen(part)
    assert [id(one) for one in (calls_in(kept) if kept is not None else ())] == [id(one) for one in whole]
    lines = rows(JobNode("j", "Pipeline(x)", "SUCCESS", part if isinstance(part, Steps) else Steps(False, [part])))
    assert sum(row.call is not None for row in lines) == len(whole)
    assert all(len(row.branches) <= before + 1 for before, row in
               zip((len(row.branches) for row in lines), lines[1:], strict=False))


@pytest.mark.parametrize(("value", "text"), [
    (None, ""), (0.0, "0 ms"), (0.0002, "< 1 ms"), (0.25, "250 ms"), (0.9996, "1.00 s"), (9.99, "9.99 s"),
    (9.999, "10.0 s"), (99.9, "99.9 s"), (99.99, "1 m 40 s"), (3599.9, "60 m 00 s"), (7260, "2 h 01 m")])
def test_times_read_well(value: float | None, text: str) -> None:
    assert seconds(value) in (text, "1 h 00 m" if text == "60 m 00 s" else text)
