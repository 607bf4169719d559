"""The workers: who is there, whether their versions, modules and clocks agree, and whether each queue is read."""

import importlib
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from callsheet.cli.checks.findings import Finding, fail, ok, skip, warn
from callsheet.cli.checks.server import compared
from callsheet.messages.allow import AllowList
from callsheet.resources.backlog import backlogs, in_words
from callsheet.resources.redis import sync_client, translated
from callsheet.settings import Settings
from callsheet.tasks.app import current_app
from callsheet.tasks.control import ask
from callsheet.workers.status import STATUS, told, versions

_LONGEST = 200  # characters of an error


def check_fleet(settings: Settings) -> list[Finding]:
    """The findings; blocks until the workers have answered.

    Raises:
        RedisUnavailable: no Redis answers.
    """
    before = time.time()
    answers = told(ask(current_app(settings), settings, STATUS))
    after = time.time()
    ours = {name: one for name, one in answers.items() if "versions" in one}
    found = list(_workers(answers, ours))
    if ours:
        found += [*_versions(ours), *_worker_modules(ours, settings)]
        clocks = [compared("workers' clocks", f"{name}'s", one["time"], before, after) for name, one in ours.items()]
        found += [clock for clock in clocks if clock.level != "ok"] or clocks[:1]
    with translated(settings):
        queues = [queue for one in ours.values() for queue in one["queues"]]
        waiting = backlogs([*settings.known_queues, *queues], sync_client(settings))
    # Workers of other kinds do not say what they read.
    return [*found, *_queues(waiting, ours, known=len(ours) == len(answers))]


def _workers(answers: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[Finding]:
    if not answers:
        yield warn("workers", "No worker answers.", "Start some: callsheet up, or celery -A callsheet.workers.io "
                   "worker and celery -A callsheet.workers.cpu worker. They need the same CALLSHEET_REDIS_URL.")
    if ours:
        yield ok("workers", ", ".join(f"{name} ({one['pool']}, slots: {one['slots']['slots']:,.0f})"
                                      for name, one in sorted(ours.items())))
    others = [f"{name} ({one['unread']})" for name, one in answers.items() if name not in ours]
    if others:
        yield warn("workers", f"{', '.join(others)}: no worker of this version of Callsheet.",
                   "If they should run agents, start them as celery -A callsheet.workers.io worker, with this version.")


def _versions(ours: Mapping[str, Any]) -> Iterator[Finding]:
    here, agree = versions(), True
    for package, version in here.items():
        by_version: defaultdict[str, list[str]] = defaultdict(list)
        for name, one in sorted(ours.items()):
            by_version[one["versions"].get(package, "?")].append(name)
        if set(by_version) != {version}:
            agree = False
            where = "; ".join(f"{other} on {', '.join(names)}" for other, names in sorted(by_version.items()))
            remedy = ("Run the same Python everywhere." if package == "python" else
                      f"Install the same versions everywhere: pip install {package}=={version}")
            yield warn("versions", f"{package} is {version} here, and {where}.", remedy)
    if agree:
        yield ok("versions", ", ".join(f"{package} {version}" for package, version in here.items()))


def _worker_modules(ours: Mapping[str, Any], settings: Settings) -> Iterator[Finding]:
    wanted = set(settings.modules)
    for name, one in sorted(ours.items()):
        lacking = sorted(module for module in wanted if not AllowList(tuple(one["modules"])).admits(module))
        if not wanted:  # where they were started, others may be named than here
            yield (ok("modules", f"{name} builds agents from {', '.join(one['modules'])}") if one["modules"] else
                   warn("modules", f"{name} builds no agents of yours: its CALLSHEET_MODULES names none.",
                        "Start it with the modules that define them: CALLSHEET_MODULES=myproject.agents"))
        if lacking:
            yield fail("modules", f"{name} does not allow {', '.join(lacking)}.", "Start it with CALLSHEET_MODULES="
                       f"{','.join(settings.modules)}, so that it can build their agents.")


def _queues(waiting: Mapping[str, int], ours: Mapping[str, Any], known: bool) -> Iterator[Finding]:
    for queue, count in waiting.items():
        readers = [name for name, one in ours.items() if queue in one["queues"]]
        subject = f"queue {queue}"
        if readers:
            yield ok(subject, f"{count:,} waiting, read by {', '.join(sorted(readers))}")
        elif count:
            ours_by_name = queue in ("io", "cpu")
            command = (f"celery -A callsheet.workers.{queue} worker" if ours_by_name else
                       f"celery -A callsheet.workers.io worker -Q {queue}")
            say = fail if known else warn
            yield say(subject, f"{in_words(count)}, and no worker reads it.", f"Start one: {command}")
        else:
            yield skip(subject, "nothing waits, and no worker reads it")


def check_modules(settings: Settings, told: bool = False) -> Iterator[Finding]:
    """Whether the modules in the settings can be imported here, as a worker would from this folder.

    Args:
        settings: that name them.
        told: whether workers said which they have; it is nothing then that none is named here.
    """
    if not settings.modules and not told:
        yield warn("modules", "CALLSHEET_MODULES names none: workers build no agents of yours.",
                   "Name the modules that define them: CALLSHEET_MODULES=myproject.agents")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # as workers do
    for name in settings.modules:
        try:
            importlib.import_module(name)
        except Exception as exc:  # whatever a module does while it is imported
            why = " ".join(f"{type(exc).__name__}: {exc}".split())[:_LONGEST]
            yield fail(f"module {name}", f"It cannot be imported: {why}", "Install it, or put the folder that holds it "
                       "on PYTHONPATH; or correct CALLSHEET_MODULES.")
        else:
            yield ok(f"module {name}", "can be imported")
