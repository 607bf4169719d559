"""Flower's pages in a real browser while a job runs: what they show, and what a click does."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from callsheet import JobCancelled, Msg
from tests.agents.family import Panel
from tests.agents.gated import CpuGated, FailsOnce, Gated
from tests.chromium import Chromium, Page, chromium, chromium_binary
from tests.conftest import missing
from tests.flower_fleet import ENV, PASSWORD, Watched, wait_listed, watched_fleet
from tests.flower_process import flower
from tests.services import redis_binary, wait_for

TEXT = "Summarize the report for the board. The key is sk-abcdefgh12345678, by the way."
SHOWN = '"Summarize the report for the board. The key is ***, by the way."'


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    binary = chromium_binary()
    if binary is None:
        missing("chromium")
    with chromium(str(binary)) as running:
        yield running


@pytest.fixture(scope="module")
def watched(browser: Chromium) -> Iterator[Watched]:
    if redis_binary() is None:
        missing("redis-server")
    with watched_fleet() as fleet:
        yield fleet


@pytest.fixture(scope="module")
def page(browser: Chromium, watched: Watched) -> Page:
    page = browser.page()
    watched.enter(page)
    wait_listed(page, watched)
    return page


@pytest.fixture(autouse=True)
def gate_opens(tmp_path: Path) -> Iterator[None]:
    """A test that fails leaves no worker waiting."""
    yield
    (tmp_path / "gate").touch()


def started(folder: Path) -> list[str]:
    file = folder / "started"
    return file.read_text().split() if file.exists() else []


def state(page: Page) -> str:
    return page.text(".task-details-card .badge")


def open_task(page: Page, watched: Watched, job: Any, wanted: str) -> None:
    """Go to a task's page once it is in that state."""
    def there() -> bool:
        return page.open(f"{watched.flower.url}/task/{job.id}") == 200 and state(page) == wanted

    wait_for(there, 30, f"the page of the task, as {wanted}", every=0.2)


def fields(page: Page) -> dict[str, str]:
    """What a task's page tells."""
    rows: Any = page.js("[...document.querySelectorAll('.detail-row')].map(row => "
                        "[row.querySelector('dt').innerText, row.querySelector('dd').innerText.trim()])")
    return {re.sub(r"\s+", " ", name).strip().lower(): text for name, text in rows}


def told(page: Page) -> str:
    """What Flower tells of a click. It waits for a worker's answer for a second only, and may call a late one none."""
    return wait_for(lambda: page.text("#toast-container"), what="a word")


def test_wrong_credentials_are_refused_and_right_ones_pass(browser: Chromium, watched: Watched) -> None:
    for wrong in (f"me:{PASSWORD}x", f"you:{PASSWORD}"):
        page = browser.page()
        assert page.open(watched.address(wrong) + "/workers") == 401
        assert "Worker" not in page.text()
    page = browser.page()
    assert page.open(watched.address(f"me:{PASSWORD}") + "/workers") == 200
    assert "CLUSTER OVERVIEW" in page.text().upper()


def test_on_loopback_without_a_password_the_buttons_work(browser: Chromium, watched: Watched) -> None:
    with flower(watched.server.url, FLOWER_UNAUTHENTICATED_API="", **ENV) as local:
        here = Watched(watched.server, watched.workers, local)
        page = browser.page()
        assert page.open(f"{local.url}/workers") == 200
        wait_listed(page, here)
        for button, size in (("grow", 4), ("shrink", 3)):
            here.worker_page(page, "io")
            page.click(f"#worker-pool-{button}")
            told(page)
            wait_for(lambda size=size: size_shown(here.pool(page, "io")) == size, 20, "the new size")


def test_the_pages_show_a_running_job(page: Page, watched: Watched, tmp_path: Path) -> None:
    job = Panel("board", str(tmp_path)).submit(Msg("user", TEXT, "user"))
    wait_for(lambda: sorted(started(tmp_path)) == ["alice", "scores"], 30, "both reviewers")
    io, cpu = watched.workers["io"].name, watched.workers["cpu"].name

    def active() -> bool:
        rows = wait_listed(page, watched)
        return (rows[io][1], rows[cpu][1]) == ("2", "1")  # the panel waits for its reviewers

    wait_for(active, 20, "what runs where")
    page.open(f"{watched.flower.url}/tasks")
    listed = page.wait_text("Panel", "Reviewer", "Scorer", "STARTED", f"alice ← user: {SHOWN}",
                            f"scores ← user: {SHOWN}", selector="#tasks-table")
    assert "sk-abcdefgh" not in listed and "$msg" not in listed

    open_task(page, watched, job, "STARTED")
    told = fields(page)
    assert (told["name"], told["arguments"]) == ("Panel", f"board ← user: {SHOWN}")
    children = told["children"].split()
    assert len({child[:8] for child in children}) == 2
    page.click("dd a[href*='/task/']", "[...document.querySelectorAll('.detail-row')].find(row => "
               "row.querySelector('dt').innerText.trim() === 'Children')")
    page.wait_text("UUID", job.id)
    child = wait_for(lambda: told if "parent id" in (told := fields(page)) else None, what="the child's page")
    assert child["name"] in ("Reviewer", "Scorer")
    assert job.id in child["parent id"] and job.id in child["root id"] and child["uuid"] != job.id
    (tmp_path / "gate").touch()
    job.get(timeout=30)
    open_task(page, watched, job, "SUCCESS")
    assert fields(page)["result"] == 'board: "Accepted, with two remarks."'


def test_the_worker_pages_show_pools_and_queues(page: Page, watched: Watched) -> None:
    io, cpu = watched.pool(page, "io"), watched.pool(page, "cpu")
    assert (io["Implementation"], io["Max concurrency"]) == ("Callsheet.workers.pool:AsyncioPool", "3")
    assert (io["Running"], io["Parked"]) == ("0", "0") and io["Worker PID"] == str(watched.workers["io"].process.pid)
    assert (cpu["Implementation"], cpu["Max concurrency"]) == ("Callsheet.workers.prefork:TaskPool", "1")
    assert cpu["Worker PID"] == str(watched.workers["cpu"].process.pid) != cpu["Processes"]
    for kind, queue in (("io", "io"), ("cpu", "cpu"), ("scaled", "extra"), ("scaled cpu", "more")):
        watched.worker_page(page, kind)
        page.click("#worker-tab-queues")
        assert page.wait_text(queue, selector="#worker-queues").split()[0] == queue
    page.open(f"{watched.flower.url}/broker")
    page.wait_text("io", "cpu", "extra", "more")


def test_a_workers_page_shows_the_arguments_of_what_runs_as_people_read_them(page: Page, watched: Watched,
                                                                            tmp_path: Path) -> None:
    job = Gated(str(tmp_path), "here").submit(Msg("user", TEXT, "user"))
    wait_for(lambda: started(tmp_path), 20, "the start")
    watched.worker_page(page, "io")
    page.click("#worker-tab-tasks")
    told = page.wait_text("Gated", f"here ← user: {SHOWN}", selector="#tab-tasks")
    assert "sk-abcdefgh" not in told and "$msg" not in told
    (tmp_path / "gate").touch()
    job.get(timeout=30)


@pytest.mark.parametrize("agent", [Gated, CpuGated])
def test_a_click_terminates_a_running_call(page: Page, watched: Watched, tmp_path: Path,
                                           agent: Callable[..., Any]) -> None:
    job = agent(str(tmp_path)).submit()
    wait_for(lambda: started(tmp_path), 20, "the start")
    open_task(page, watched, job, "STARTED")
    page.click("#task-terminate")
    with pytest.raises(JobCancelled):
        job.get(timeout=20)
    open_task(page, watched, job, "REVOKED")
    (tmp_path / "gate").touch()
    assert agent(str(tmp_path), "next").submit().get(timeout=30)  # the worker goes on
    assert (tmp_path / "ended").read_text() == "next\n"


def test_a_click_revokes_a_call_that_waits(page: Page, watched: Watched, tmp_path: Path) -> None:
    held = CpuGated(str(tmp_path), "held").submit()
    wait_for(lambda: started(tmp_path), 20, "a full worker")
    waits = CpuGated(str(tmp_path), "waits").submit()
    open_task(page, watched, waits, "RECEIVED")
    page.click("#task-revoke")
    told(page)
    (tmp_path / "gate").touch()
    held.get(timeout=30)
    with pytest.raises(JobCancelled):
        waits.get(timeout=20)
    assert started(tmp_path) == ["held"]


def size_shown(pool: dict[str, str]) -> int:
    """Slots of an io worker, processes of a cpu worker."""
    size = int(pool["Max concurrency"])
    return size if "Parked" in pool or size == len(pool["Processes"].split(", ")) else 0


@pytest.mark.parametrize(("kind", "size"), [("io", 3), ("cpu", 1)])
def test_clicks_grow_and_shrink_a_pool(page: Page, watched: Watched, kind: str, size: int) -> None:
    def grown(by: int) -> bool:
        return size_shown(watched.pool(page, kind)) == size + by

    assert grown(0)
    page.fill("#pool-size", "2")
    page.click("#worker-pool-grow")
    told(page)
    wait_for(lambda: grown(2), 20, "the growth")
    page.fill("#pool-size", "2")
    page.click("#worker-pool-shrink")
    wait_for(lambda: grown(0), 20, "the shrinking")


@pytest.mark.parametrize(("kind", "least"), [("scaled", 5), ("scaled cpu", 2)])
def test_a_click_sets_the_bounds_of_autoscaling(page: Page, watched: Watched, kind: str, least: int) -> None:
    watched.worker_page(page, kind)
    page.fill("#min-autoscale", str(least))
    page.fill("#max-autoscale", str(least + 2))
    page.click("#worker-pool-autoscale")
    told(page)
    wait_for(lambda: size_shown(watched.pool(page, kind)) == least, 20, "the new smallest size")
    assert watched.pool(page, kind)["Max"] == str(least + 2)

    def refused() -> bool:
        watched.worker_page(page, kind)
        page.click("#worker-pool-grow")
        return "autoscale" in told(page)  # with the reason

    wait_for(refused, 20, "the reason")


def test_the_page_of_a_task_shows_its_retries(page: Page, watched: Watched, tmp_path: Path) -> None:
    (tmp_path / "gate").touch()
    job = FailsOnce(str(tmp_path)).submit(retries=2)
    job.get(timeout=30)
    open_task(page, watched, job, "SUCCESS")
    assert fields(page)["retries"] == "1"
