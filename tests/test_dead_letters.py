"""What no worker takes is kept apart, within bounds, whatever it is."""

import json

import pytest

from callsheet.resources import dead_letters
from callsheet.settings import use_settings
from tests.fleet import client_settings
from tests.services import free_port


@pytest.fixture
def settings(redis_server):
    with use_settings(client_settings(redis_server, key_prefix="letters:")) as settings:
        yield settings


def test_letters_are_kept_within_bounds_the_newest_first(settings, redis_server, monkeypatch):
    monkeypatch.setattr(dead_letters, "MOST", 3)
    for text in ("a", "half \ud800", b"\xff\x00", b"x" * (dead_letters.MOST_TEXT + 1)):
        assert dead_letters.add("io", text, "why", task_id="id", task="name", worker="w@x")
    found = dead_letters.read()
    assert [letter["size"] for letter in found] == [dead_letters.MOST_TEXT + 1, 2, 8]
    assert found[0]["text"] == "x" * dead_letters.MOST_TEXT
    assert found[1] | {"time": 0} == {"time": 0, "queue": "io", "reason": "why", "task_id": "id", "task": "name",
                                      "worker": "w@x", "size": 2, "text": "\\xff\x00"}
    client = redis_server.client()
    assert 0 < client.ttl("letters:dead-letters") <= dead_letters.KEPT
    assert json.loads(client.lrange("letters:dead-letters", 0, 0)[0]) == found[0]


def test_and_where_redis_does_not_take_one_the_log_says_so(settings, redis_server, caplog):
    with use_settings(client_settings(redis_server, redis_url=f"redis://127.0.0.1:{free_port()}/0")):
        assert not dead_letters.add("io", "what it was", "why")
    assert "what it was" in caplog.text
