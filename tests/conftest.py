"""Fixtures that every test may use."""

import gc
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.fleet import fleet, fleet_workers, nothing_sent  # noqa: F401 - fixtures
from tests.office import anywhere, at, office, shared_office  # noqa: F401 - fixtures
from tests.services import RedisServer, redis_binary


def pytest_configure() -> None:
    """A shell starts a run in the background with these ignored, and all that tests start would inherit that."""
    for sig, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(sig) is signal.SIG_IGN:
            signal.signal(sig, usual)
    # How fast a loaded machine draws examples says nothing of what is tested.
    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """What was loaded and collected stays for the whole run: the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()


def missing(what: str) -> None:
    """Skip on a laptop, fail in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and CI=true")
    pytest.skip(f"{what} is missing")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One redis-server for the run; tests use keys, queues and job ids of their own, or flush it."""
    if redis_binary() is None:
        missing("redis-server")
    server = RedisServer()
    yield server
    server.remove()


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A redis-server for one test, which may stop, restart or flush it."""
    if redis_binary() is None:
        missing("redis-server")
    server = RedisServer()
    yield server
    server.remove()
