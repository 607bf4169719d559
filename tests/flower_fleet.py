"""Workers of both kinds, with a fixed size and with autoscaling, and a Flower with a password that watches them."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from callsheet import Settings
from callsheet.settings import use_settings
from tests.chromium import Page
from tests.flower_process import Flower, flower
from tests.services import RedisServer, Worker, wait_for

PASSWORD = "open-sesame-7"
ENV = {"CALLSHEET_MODULES": "tests.agents", "CALLSHEET_QUEUES": "extra,more", "CALLSHEET_RETRY_BACKOFF": "0.05"}
OPTIONS = {"io": ("io", "-c", "3"), "cpu": ("cpu", "-c", "1", "--prefetch-multiplier", "2"),
           "scaled": ("io", "--autoscale=20,2", "-Q", "extra"), "scaled cpu": ("cpu", "--autoscale=3,1", "-Q", "more")}


@dataclass
class Watched:
    """What runs, and a page that shows it to who knows the password."""

    server: RedisServer
    workers: dict[str, Worker]
    flower: Flower

    def address(self, credentials: str) -> str:
        return self.flower.url.replace("//", f"//{credentials}@")

    def enter(self, page: Page) -> None:
        """Sign in."""
        assert page.open(self.address(f"me:{PASSWORD}") + "/workers") == 200

    def worker_page(self, page: Page, kind: str) -> None:
        """Go to a worker's page, as it is now."""
        name = self.workers[kind].name
        told = page.js(f"fetch('/api/workers?refresh=1&workername={name}').then(answer => answer.status)")
        assert told == 200
        assert page.open(f"{self.flower.url}/worker/{name}") == 200

    def pool(self, page: Page, kind: str) -> dict[str, str]:
        """What a worker's page says of its pool."""
        self.worker_page(page, kind)
        rows: Any = page.js("[...document.querySelectorAll('#tab-pool tr')].map(row => "
                            "[...row.children].map(cell => cell.innerText))")
        return {row[0]: row[1] for row in rows if len(row) == 2}


@contextlib.contextmanager
def watched_fleet() -> Iterator[Watched]:
    """All of it, started side by side."""
    with contextlib.ExitStack() as stack:
        server = RedisServer()
        stack.callback(server.remove)
        workers = {}
        for kind, (app, *options) in OPTIONS.items():
            workers[kind] = process = Worker(f"callsheet.workers.{app}", server.url, "-E", *options, env=ENV,
                                             name=f"{kind.replace(' ', '-')}@example")
            stack.callback(process.log_path.unlink, missing_ok=True)
            stack.callback(process.kill)
        started = stack.enter_context(flower(server.url, CALLSHEET_FLOWER_AUTH=f"me:{PASSWORD}", **ENV))
        for process in workers.values():
            process.wait_ready(60)
        stack.enter_context(use_settings(Settings.load(redis_url=server.url, queues="extra,more")))
        yield Watched(server, workers, started)
        for process in workers.values():
            process.send_signal(signal.SIGTERM)


def shown_workers(page: Page) -> dict[str, list[str]]:
    """The rows of the page of workers."""
    rows: Any = page.js("[...document.querySelectorAll('#workers-table tbody tr')].map(row => "
                        "[...row.children].map(cell => cell.innerText.trim()))")
    return {row[0].replace("\n", ""): row[1:] for row in rows if len(row) > 1}


def wait_listed(page: Page, watched: Watched) -> dict[str, list[str]]:
    """Wait until the page of workers lists them all as online."""
    names = {process.name for process in watched.workers.values()}

    def listed() -> dict[str, list[str]]:
        rows = shown_workers(page)
        return rows if {name for name, row in rows.items() if row[0] == "Online"} >= names else {}

    page.open(f"{watched.flower.url}/workers")
    return wait_for(listed, 40, "the workers to be listed as online")
