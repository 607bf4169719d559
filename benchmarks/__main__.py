"""`python -m benchmarks [NAME ...]`: measures, shows a table, and keeps the figures as JSON."""

import argparse
import importlib
import json
import logging
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Report, Stage

NAMES = {
    "http_calls": "4,000 calls of a 1 s HTTP endpoint through one worker",
    "latency": "submit to result of one job that does nothing",
    "cancel": "cancellation to the closed socket of the call's HTTP stream",
    "kills": "a loaded worker killed 20 times: what is lost, what runs twice",
    "idle": "CPU of a worker with nothing to do",
    "throughput": "jobs that do nothing, beside taskiq, arq, Ray and Celery",
    "memory": "memory that one HTTP call in flight takes",
    "overhead": "CPU that records, retries, breaker and limits add to an outbound call",
    "model_calls": "4,000 calls of a chat model in one process, beside OpenAI's SDK",
    "limits": "rate limits over four workers at full pressure, and a Retry-After",
    "autoscale": "a load step from nothing to 2,000 calls of a second, ten times",
    "drains": "a loaded worker ended by SIGTERM 20 times, warm and soft: what is lost, what runs twice",
    "watching": "CPU that the autoscaler, metrics and events add to a call that does nothing",
    "cpu": "agents that compute, on two processes",
    "mcp_calls": "calls of an MCP server's tool: a session that is kept against one a call",
    "hub": "group conversations: hubs of 10 and 1,000, pushes to listeners, 100 members in turn, accidents",
    "state": "a turn of an agent with state: Redis trips, CPU, and what a long conversation costs",
}
PACKAGES = ("callsheet", "celery", "kombu", "redis", "hiredis", "gevent", "requests", "httpx", "aiohttp", "uvloop",
            "openai", "mcp", "taskiq", "taskiq-redis", "ray")
FOLDER = Path(".callsheet/benchmarks")


def arguments() -> argparse.Namespace:
    listed = "\n".join(f"  {name:12} {about}" for name, about in NAMES.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures Callsheet beside its peers.", epilog=f"figures:\n{listed}")
    parser.add_argument("names", nargs="*", metavar="NAME", help="figures to measure; all without")
    parser.add_argument("--repeat", type=int, default=3, help="measurements of each contender (3); medians are shown")
    parser.add_argument("--jobs", type=int, default=5000, help="jobs of throughput (5,000)")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in NAMES]
    if unknown:
        parser.error(f"no such figure: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return args


def machine(redis: Any) -> dict[str, Any]:
    """Where and with what it was measured."""
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
              if line.startswith("model name")] if Path("/proc/cpuinfo").exists() else []
    return {"cpu": models[0] if models else platform.processor(), "cores": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9), "system": platform.platform(),
            "python": platform.python_version(), "redis-server": redis.info()["redis_version"],
            **{name: found for name in PACKAGES if (found := installed(name))}}


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def show(console: Console, report: Report) -> None:
    columns = list(dict.fromkeys(column for row in report.rows for column in row.values))
    table = Table(title=f"{report.figure}: {' '.join(report.about.split())}", title_justify="left", expand=False)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for row in report.rows:
        table.add_row(row.contender, *(_number(row.median(c)) if c in row.values else "" for c in columns))
    console.print(table)
    for goal in report.goals:
        console.print(f"  {'met   ' if goal.met else 'MISSED'} {goal.text}: {_number(goal.value)}", highlight=False)
    console.print()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"


def main() -> None:
    args = arguments()
    console = Console(width=160)
    stage, reports = Stage(args.repeat, args.jobs), []
    started = time.strftime("%Y-%m-%dT%H-%M-%S")
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{started}.json"
    try:
        about = machine(stage.redis.client())
        for name in args.names or NAMES:
            console.print(f"measuring {name}, {args.repeat} times each ...")
            reports.append(importlib.import_module(f"benchmarks.{name}").run(stage))
            path.write_text(json.dumps({"started": started, "repeat": args.repeat, "jobs": args.jobs, "machine": about,
                                        "reports": [report.to_dict() for report in reports]}, indent=2))
    finally:
        logging.getLogger("callsheet").setLevel(logging.ERROR)  # this process's subscription loses its Redis now
        stage.close()
    console.print()
    for report in reports:
        show(console, report)
    console.print(f"{', '.join(f'{key} {value}' for key, value in about.items())}\nkept in {path}", highlight=False)


if __name__ == "__main__":
    main()
