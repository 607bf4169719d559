"""Runs Celery's own integration tests on our pool, and on Celery's prefork pool those that fail.

The tests come from the source distribution of the Celery that is installed. A test that fails on both pools is
Celery's affair; one that fails on ours alone is ours, and makes this command fail.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import celery

from tests.services import ROOT, RedisServer

CACHE = ROOT / ".callsheet" / f"celery-{celery.__version__}"
PLUGINS = ("pytest-rerunfailures", "pytest-timeout", "pytest-order", "tblib")
MODULES = ("test_tasks", "test_canvas")


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


def fetch() -> Path:
    """The folder with the tests, and beside it `plugins` with the pytest plugins that they need; cached."""
    done = CACHE / "complete"
    if not done.exists():
        pip("download", "--no-deps", "--no-binary", "celery", "--dest", str(CACHE), f"celery=={celery.__version__}")
        with tarfile.open(next(CACHE.glob("celery-*.tar.gz"))) as archive:
            for member in archive.getmembers():
                # Not their copy of the package: the installed one is under test.
                _, _, member.name = member.name.partition("/")
                if member.name.startswith("t/"):
                    archive.extract(member, CACHE, filter="data")
        # A folder of its own: our own tests must not load these plugins.
        pip("install", "--no-deps", "--target", str(CACHE / "plugins"), *PLUGINS)
        (CACHE / "pytest.ini").write_text("[pytest]\npython_classes = test_*\nmarkers =\n    flaky\n    timeout\n")
        done.touch()
    return CACHE


def run(folder: Path, pool: str, tests: list[str], name: str, keyword: str | None,
        backend: str = "celery", transport: str = "kombu") -> dict[str, str]:
    """Run tests on a Redis of their own and return the outcome of each: passed, skipped or failed."""
    server = RedisServer()
    report = folder / f"{pool}-{name}.xml"
    report.unlink(missing_ok=True)
    env = {**os.environ, "CALLSHEET_TEST_POOL": pool, "CALLSHEET_TEST_BACKEND": backend,
           "CALLSHEET_TEST_TRANSPORT": transport, "CALLSHEET_REDIS_URL": server.url, "TEST_BROKER": server.url,
           "TEST_BACKEND": server.url, "REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(server.port),
           "PYTEST_ADDOPTS": "", "WORKER_LOGLEVEL": "INFO",
           "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "plugins"), str(ROOT)])}
    command = [sys.executable, "-m", "pytest", *tests, "-p", "celery.contrib.pytest",
               "-p", "tests.celery_integration.plugin", "-p", "no:cacheprovider", "-o", "junit_logging=no",
               f"--junit-xml={report}", "-v", "--tb=short", *(["-k", keyword] if keyword else [])]
    try:
        with (folder / f"{pool}-{name}.log").open("wb") as log:
            code = subprocess.run(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT,
                                  check=False).returncode
    finally:
        server.remove()
    if code not in (0, 1):
        sys.exit(f"pytest did not come to an end (exit code {code}): see {folder}/{pool}-{name}.log")
    return outcomes(report, name)


def outcomes(report: Path, name: str) -> dict[str, str]:
    """The outcome of each test, by its pytest address."""
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        class_name = case.get("classname", "").rpartition(".")[2]
        module = next((part for part in case.get("classname", "").split(".") if part in MODULES), name)
        address = "::".join([f"t/integration/{module}.py", *([class_name] if class_name != module else []),
                             case.get("name", "")])
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        if found.get(address) != "failed":  # subtests report under the name of their test
            found[address] = outcome
    return found


def summary(pool: str, module: str, results: dict[str, str]) -> str:
    counts = {kind: list(results.values()).count(kind) for kind in ("passed", "failed", "skipped")}
    return f"{pool:14} {module:12} " + "  ".join(f"{count} {kind}" for kind, count in counts.items())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.celery_integration", description=__doc__)
    parser.add_argument("--pool", choices=("asyncio", "asyncio-async", "prefork"), default="asyncio")
    parser.add_argument("--module", choices=MODULES, action="append")
    parser.add_argument("--backend", choices=("celery", "callsheet"), default="celery", help="whose result backend")
    parser.add_argument("--transport", choices=("kombu", "callsheet"), default="kombu", help="whose Redis transport")
    parser.add_argument("-k", dest="keyword", help="as pytest's -k")
    options = parser.parse_args()
    folder, modules = fetch(), options.module or MODULES
    failed: list[str] = []
    with ThreadPoolExecutor() as threads:
        runs = [(module, threads.submit(run, folder, options.pool, [f"t/integration/{module}.py"], module,
                                        options.keyword, options.backend, options.transport)) for module in modules]
        for module, outcome in runs:
            results = outcome.result()
            print(summary(options.pool, module, results), flush=True)
            failed += [test for test, outcome in results.items() if outcome == "failed"]
    if (options.pool, options.backend, options.transport) == ("prefork", "celery", "kombu") or not failed:
        print("\n".join(f"failed: {test}" for test in failed))
        return 0
    on_prefork = run(folder, "prefork", failed, "again", None)
    for test in failed:
        print(f"failed: {test}" + (" (on prefork too)" if on_prefork.get(test) == "failed" else " ON OURS ALONE"))
    return any(on_prefork.get(test) != "failed" for test in failed)


if __name__ == "__main__":
    sys.exit(main())
