"""Takes the pictures of docs/flower.md: .venv/bin/python -m tests.flower_pictures"""

import contextlib
import sys
import tempfile
from pathlib import Path

from callsheet import AgentFailed, Msg
from tests.agents.basic import Echo, Failing
from tests.agents.family import Panel
from tests.agents.gated import FailsOnce
from tests.chromium import Page, chromium, chromium_binary
from tests.flower_fleet import Watched, wait_listed, watched_fleet
from tests.services import ROOT, wait_for

SIZE = 1200, 660
IMAGES = ROOT / "docs" / "images"


def busy(watched: Watched, folder: Path) -> str:
    """Some calls that have ended, and a job that runs; its id."""
    (folder / "gate").touch()
    FailsOnce(str(folder), "patient").submit(retries=1).get(timeout=30)
    for name, text in (("anna", "What does the contract say of notice?"), ("ben", "And my key sk-abcdefgh12345678?")):
        Echo(name).submit(Msg("user", text, "user")).get(timeout=30)
    with contextlib.suppress(AgentFailed):
        Failing("unlucky").submit(Msg("user", "Try it.", "user")).get(timeout=30)
    (folder / "gate").unlink()
    (folder / "started").unlink()
    job = Panel("board", str(folder)).submit(Msg("user", "Summarize the quarterly report for the board.", "user"))
    started = folder / "started"
    wait_for(lambda: started.exists() and len(started.read_text().split()) == 2, 30, "the reviewers")
    return job.id


def take(page: Page, watched: Watched, job_id: str) -> None:
    def picture(name: str) -> None:
        page.js("document.fonts.ready.then(() => true)")
        page.screenshot(IMAGES / f"flower-{name}.png")

    wait_listed(page, watched)
    wait_for(lambda: page.text("#workers-active") == "3", 20, "three that run")
    picture("workers")
    page.open(f"{watched.flower.url}/tasks")
    page.wait_text("Panel", "Reviewer", "Scorer", "Failing", selector="#tasks-table")
    picture("tasks")
    wait_for(lambda: page.open(f"{watched.flower.url}/task/{job_id}") == 200 and "Children" in page.text(), 20, "it")
    page.size(1200, 1250)
    picture("task")
    page.size(*SIZE)
    for kind in ("io", "cpu"):
        watched.worker_page(page, kind)
        picture(f"worker-{kind}")
    watched.worker_page(page, "scaled")
    page.js("document.querySelector('.worker-autoscaler-panel').scrollIntoView({behavior: 'instant'})")
    picture("autoscaler")


def main() -> int:
    binary = chromium_binary()
    if binary is None:
        print("Chromium is missing: apt-get install chromium", file=sys.stderr)
        return 1
    IMAGES.mkdir(exist_ok=True)
    with chromium(binary) as browser, watched_fleet() as watched, tempfile.TemporaryDirectory() as folder:
        page = browser.page()
        page.size(*SIZE)
        watched.enter(page)
        take(page, watched, busy(watched, Path(folder)))
        (Path(folder) / "gate").touch()
    for path in sorted(IMAGES.glob("flower-*.png")):
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1024:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
