"""Workers for agents with state, and a look at what is kept of these."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

import callsheet
from callsheet import Msg
from callsheet.settings import use_settings
from tests.fleet import client_settings
from tests.services import RedisServer, Worker, wait_for, worker

LEASE = 2.0
ENV = {"CALLSHEET_MODULES": "tests.agents", "CALLSHEET_RETRY_BACKOFF": "0.05", "CALLSHEET_TURN_LEASE": str(LEASE),
       "CALLSHEET_LEASE": "4", "CALLSHEET_QUEUES": "extra"}


def say(text: str, **told: object) -> Msg:
    return Msg("u", text, "user", metadata=told)


class Office:
    """Workers on a Redis of their own."""

    def __init__(self, server: RedisServer) -> None:
        self.server, self.redis = server, server.client()
        self._stack = ExitStack()

    def hire(self, kind: str = "io", *options: str, **env: str) -> Worker:
        app, options = f"callsheet.workers.{kind}", options or ("-c", "20")
        return self._stack.enter_context(worker(app, self.server.url, *options, env={**ENV, **env}))

    def dismiss(self) -> None:
        self._stack.close()

    def notes(self, key: str) -> list[str]:
        return [str(text) for text in self.redis.lrange(key, 0, -1)]

    def wait_notes(self, key: str, count: int) -> list[str]:
        wait_for(lambda: len(self.notes(key)) >= count, 30, lambda: f"{count} notes, not {self.notes(key)}")
        return self.notes(key)

    def history(self, agent_id: str) -> list[str]:
        """What users said, as it is kept."""
        found = []
        for _, fields in self.redis.xrange(f"callsheet:memory:{agent_id}"):
            change = json.loads(fields["c"])
            told = [change["m"]] if "m" in change else [entry[0] for entry in change.get("set", [])]
            found += [one["content"] for one in told if one["role"] == "user"]
        return found

    def settled(self, agent_id: str) -> bool:
        """Nobody has a turn, waits for one, or keeps a lease."""
        turn = self.redis.hgetall(f"callsheet:turn:{agent_id}")
        return (turn.get("call", "") == "" and not self.redis.exists(f"callsheet:line:{agent_id}")
                and not self.redis.exists(f"callsheet:parked:{agent_id}")
                and self.redis.zscore("callsheet:lines", agent_id) is None)


@contextmanager
def office_on(server: RedisServer) -> Iterator[Office]:
    office = Office(server)
    try:
        with use_settings(client_settings(server, turn_lease=LEASE)):
            yield office
    finally:
        office.dismiss()


@pytest.fixture
def office(own_redis: RedisServer) -> Iterator[Office]:
    with office_on(own_redis) as found:
        yield found


@pytest.fixture(scope="session")
def shared_office(redis_server: RedisServer) -> Iterator[Office]:
    server = RedisServer()
    office = Office(server)
    office.hire("io")
    office.hire("cpu", "-c", "2")
    yield office
    office.dismiss()
    server.remove()


@pytest.fixture
def at(shared_office: Office) -> Iterator[Office]:
    """An io and a cpu worker, with this process's settings on them."""
    with use_settings(client_settings(shared_office.server, turn_lease=LEASE)):
        yield shared_office


@pytest.fixture(params=["inline", "workers"])
def anywhere(request: pytest.FixtureRequest) -> Iterator[str]:
    """Inline, and then on workers."""
    if request.param == "inline":
        with callsheet.inline():
            yield "inline"
    else:
        request.getfixturevalue("at")
        yield "workers"
