"""Large payloads: stored once, found again, and refused where they are too large."""

import pytest

from callsheet import FanoutPipeline, Msg, SequentialPipeline
from callsheet.errors import AgentFailed, PayloadExpired, PayloadTooLarge
from callsheet.settings import use_settings
from tests.agents.basic import Compute
from tests.agents.work import Known, Large
from tests.fleet import client_settings

MEGABYTE = 1024 * 1024


def stored(fleet):
    """The large payloads in Redis, by size."""
    return {key: fleet.redis.strlen(key) for key in fleet.redis.scan_iter("callsheet:payload:*", count=1000)}


@pytest.fixture
def clean(fleet):
    """No payloads there before."""
    for key in stored(fleet):
        fleet.redis.delete(key)
    return fleet


def message(size):
    return Msg("u", "m" * size, "user")


def test_small_messages_travel_in_place(clean):
    assert Large(10).submit(message(60_000)).get(10).metadata["heard"] == 60_000
    assert stored(clean) == {}


def test_a_fan_out_over_a_large_message_stores_it_once(clean):
    notes = clean.key()
    results = FanoutPipeline([Large(5, notes) for _ in range(10)]).submit(message(MEGABYTE)).get(20)
    assert [msg.metadata["heard"] for msg in results] == [MEGABYTE] * 10
    assert [size // MEGABYTE for size in stored(clean).values()] == [1]
    assert all(0 < clean.redis.ttl(key) <= 2 * clean.settings.result_expires for key in stored(clean))


def test_large_results_are_stored_beside_and_handed_on(clean):
    job = SequentialPipeline([Large(MEGABYTE), FanoutPipeline([Large(5), Large(2 * MEGABYTE)], reduce=Large(7))])
    job = job.submit(message(5))
    assert job.get(20).metadata["heard"] == 2 * MEGABYTE + 5
    # Every reply has an id of its own, so each of the two large ones is a payload.
    assert sorted(size // MEGABYTE for size in stored(clean).values()) == [1, 2]
    big = FanoutPipeline([Large(MEGABYTE), Large(3)]).submit(message(5))
    assert [len(msg.content) for msg in big.get(20)] == [MEGABYTE, 3]
    assert len(clean.redis.get(f"celery-task-meta-{big.id}")) < 20_000


def test_one_by_one_and_cpu_agents_get_large_messages_too(clean):
    pipeline = FanoutPipeline([Compute("c"), Large(MEGABYTE)], enable_gather=False, reduce=Large(1))
    assert pipeline.submit(message(100_000)).get(20).metadata["heard"] == MEGABYTE + 3
    words = Msg("u", "word " * 50_000, "user")
    assert Compute("c").submit(words).get(15).metadata["words"] == 50_000


def test_large_agents(clean):
    facts = [f"fact {number}" for number in range(20_000)]
    agent = Known(facts)
    assert [agent.submit(message(1)).get(15).content for _ in range(3)] == ["20000"] * 3
    assert len(stored(clean)) == 1


def test_a_payload_that_redis_lost_is_stored_again(clean):
    text = message(100_000)
    assert Large(1).submit(text).get(10).metadata["heard"] == 100_000
    clean.redis.delete(*stored(clean))
    assert Large(1).submit(text).get(10).metadata["heard"] == 100_000


def test_an_expired_payload_is_told_with_its_remedy(clean):
    job = Large(1).submit(message(100_000), countdown=0.5)
    clean.redis.delete(*stored(clean))
    with pytest.raises(AgentFailed, match=r"PayloadExpired.*CALLSHEET_RESULT_EXPIRES") as caught:
        job.get(10)
    assert caught.value.remote_type == "callsheet.errors.PayloadExpired"
    done = Large(MEGABYTE).submit(message(1))
    clean.redis.expire(f"celery-task-meta-{done.id}", 60)
    assert len(done.get(10).content) == MEGABYTE
    clean.redis.delete(*stored(clean))
    with pytest.raises(PayloadExpired, match="no longer in Redis"):
        done.get(10)


def test_what_is_too_large_is_refused_before_anything_is_sent(clean, nothing_sent):
    huge = message(20 * MEGABYTE)
    for target in (Large(1), FanoutPipeline([Large(1)]), SequentialPipeline([])):
        with pytest.raises(PayloadTooLarge, match=r"20,971,\d+ bytes.*limit is 16,777,216.*CALLSHEET_PAYLOAD_MAX"):
            target.submit(huge)
    with pytest.raises(PayloadTooLarge, match="The agent Known"):
        Known("x" * 20 * MEGABYTE).submit(message(1))
    nothing_sent()
    assert stored(clean) == {}


def test_a_reply_that_is_too_large_fails_the_job(fleet):
    with pytest.raises(AgentFailed, match=r"PayloadTooLarge: The reply of Large") as caught:
        Large(17 * MEGABYTE).submit(message(1)).get(20)
    assert caught.value.remote_type == "callsheet.errors.PayloadTooLarge"


def test_the_limits_can_be_set(fleet):
    with use_settings(client_settings(fleet.server, payload_inline_max=2000, payload_max=5000)):
        assert Large(1).submit(message(3000)).get(10).metadata["heard"] == 3000
        with pytest.raises(PayloadTooLarge, match="5,000"):
            Large(1).submit(message(6000))
