"""`callsheet top`: frames of real workers while they work, and of none."""

import io
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from callsheet import AgentFailed, Msg, MsgHub, Settings
from callsheet.cli.main import main
from callsheet.cli.top_frame import frame
from callsheet.cli.top_look import Look, Quota, Rates, look
from callsheet.errors import RedisUnavailable
from callsheet.hub.redis import HubLag
from callsheet.models import OpenAIChatModel
from callsheet.models.stub import StubModelServer
from callsheet.settings import use_settings
from tests.agents.asking import Asker
from tests.agents.basic import Compute, Echo, Failing
from tests.agents.hubs import Talker
from tests.agents.orchestra import Waits
from tests.fleet import Fleet, fleet_of_its_own
from tests.model_server import narrow_and_gone
from tests.services import RedisServer, free_port, wait_for, worker
from tests.terminal import Terminal

HELLO = Msg("u", "a prompt that stays here", "user")


@pytest.fixture(scope="module")
def fleet_workers(redis_server: RedisServer) -> Iterator[Fleet]:
    """Not those that other tests call: of over a hundred agents a worker tells only the classes."""
    with fleet_of_its_own() as found:
        yield found


def drawn(one: Look, rates: Rates | None = None, width: int = 140, lines: int = 12) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(frame(one, rates or Rates(), lines))
    return console.export_text()


def test_a_frame_tells_queues_workers_and_agents_while_a_job_runs(fleet: Fleet, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    Compute("c").submit(HELLO).get(timeout=20)
    held = [Waits("held", str(gate)).submit(HELLO) for _ in range(2)]
    settings = Settings.load(redis_url=fleet.server.url, queues="tops")  # which no other test uses
    fleet.redis.delete("_kombu.binding.celery.pidbox")  # as where Redis has lost data, or a worker's namesake has ended
    with use_settings(settings):
        left = Echo("left").submit(HELLO, queue="tops")

    def busy() -> Look | None:
        one = look(settings)
        used = one.workers.get(fleet.io.name, {}).get("slots", {}).get("slots_used", 0)
        return one if used >= 2 and one.agents().get("Compute(c)", [0])[0] >= 1 else None

    one = wait_for(busy, what="two calls that run, and one that a process has counted")
    assert set(one.workers) >= {fleet.io.name, fleet.cpu.name}
    assert one.waiting["tops"] == 1 and one.readers("tops") == 0 and one.readers("io") == 1
    assert one.held >= 2 and one.agents()["Compute(c)"][0] >= 1
    text = drawn(one)
    for word in ("no worker reads it", fleet.io.name, fleet.cpu.name, "asyncio", "prefork", "Compute(c)"):
        assert word in text
    assert "a prompt" not in text and max(map(len, text.splitlines())) <= 140
    gate.touch()
    for job in held:
        job.get(timeout=20)
    left.cancel()
    fleet.redis.delete("tops")


def test_rates_are_between_two_looks_and_unknown_after_a_worker_began_anew(fleet: Fleet) -> None:
    rates = Rates()
    rates.take(look(fleet.settings))
    assert rates.total("worker") is None
    for _ in range(5):
        Echo("rated").submit(HELLO).get(timeout=20)
    rates.take(look(fleet.settings))
    assert (rates.total("worker") or 0) > 0
    assert "tasks/s" in drawn(look(fleet.settings), rates)

    def at(moment: float, tasks: int) -> Look:
        return Look(at=moment, address="redis://x", workers={"io@mars": {"tasks": tasks}})

    for one in (at(10.0, 100), at(12.0, 120)):
        rates.take(one)
    assert rates.of("worker", "io@mars") == 10.0
    rates.take(at(14.0, 3))
    assert rates.of("worker", "io@mars") is None and rates.of("worker", "io@venus") is None


def test_failures_stand_out(fleet: Fleet) -> None:
    job = Failing("top").submit(HELLO)
    wait_for(lambda: job.done, what="its end")
    one = wait_for(lambda: (found := look(fleet.settings)).agents().get("Failing(top)", [0, 0])[1] and found,
                   what="the count")
    assert "(100%)" in next(line for line in drawn(one).splitlines() if "Failing(top)" in line)


def test_a_frame_of_limits_breakers_and_hubs() -> None:
    one = Look(at=time.time(), address="redis://x", quotas={
        "openai": Quota(limits={"requests": (590, 600), "under way": (3, 50)}, waiting=17),
        "local": Quota(breaker="open")},
        hubs=[HubLag(name="debate", members=3, messages=12, behind=4, used=time.time() - 5)],
        waiting={f"q{number}": number for number in range(30)})
    text = drawn(one, lines=10)
    assert "590/600 requests, 3/50 under way" in text and "17" in text and "open" in text and "debate" in text
    assert "… 20 more" in text and "No worker answers" in text


def test_a_look_finds_who_waits_for_a_limit_an_open_breaker_and_hubs(
        own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with StubModelServer() as server:
        for name, value in narrow_and_gone(server.base_url).items():
            monkeypatch.setenv(name, value)
        settings = Settings.load(redis_url=own_redis.url)
        with use_settings(settings), worker(
                "callsheet.workers.io", own_redis.url, "-c", "4", env={"CALLSHEET_MODULES": "tests.agents"}):
            narrow, gone = (Asker(OpenAIChatModel("m", endpoint=name, stream=False)) for name in ("narrow", "gone"))
            assert look(settings).quotas == {"narrow": Quota(limits={"requests": (0, 1)})}, "no other has a limit"
            narrow.submit(HELLO).get(timeout=30)
            with pytest.raises(AgentFailed):
                gone.submit(HELLO).get(timeout=30)
            MsgHub.open("looked-at", [Talker("bob")], announcement=HELLO)
            waits = narrow.submit(HELLO)

            def waiting() -> Look | None:
                found = look(settings)  # the workers are asked before Redis is
                parked = any(told.get("slots", {}).get("parked") for told in found.workers.values())
                return found if parked and found.quotas["narrow"].waiting else None

            one = wait_for(waiting, what="one that waits")
            assert one.quotas == {"narrow": Quota(limits={"requests": (1, 1)}, waiting=1),
                                  "gone": Quota(breaker="open")}
            assert [(hub.name, hub.members, hub.messages, hub.behind) for hub in one.hubs] == [("looked-at", 1, 1, 1)]
            (told,) = one.workers.values()
            assert (told["turns"]["narrow"], told["left_alone"], told["slots"]["parked"]) == (1, ["gone"], 1)
            lines = drawn(one).splitlines()
            assert "1/1 requests" in next(line for line in lines if "narrow" in line)
            assert "open" in next(line for line in lines if "gone" in line)
            assert any("looked-at" in line for line in lines)
            waits.cancel()
            wait_for(lambda: not look(settings).quotas["narrow"].waiting, what="nobody to wait")


def test_once_prints_one_frame_also_where_there_is_no_worker(own_redis: RedisServer) -> None:
    with use_settings(Settings.load(redis_url=own_redis.url)):
        result = CliRunner().invoke(main, ["top", "--once"])
    assert result.exit_code == 0 and "No worker answers" in result.output and "\x1b" not in result.output
    assert result.output.count("callsheet top") == 1


def test_once_without_redis_is_an_error_with_a_remedy() -> None:
    settings = Settings.load(redis_url=f"redis://me:secret-word@127.0.0.1:{free_port()}/0")
    with use_settings(settings):
        result = CliRunner().invoke(main, ["top", "--once"])
        with pytest.raises(RedisUnavailable):
            look(settings)
    assert result.exit_code == 1 and "No Redis answers" in result.output and "secret-word" not in result.output


@pytest.mark.parametrize("every", ["0.5", "0", "-1", "often"])
def test_it_looks_once_a_second_at_most(every: str) -> None:
    result = CliRunner().invoke(main, ["top", "--every", every])
    assert result.exit_code == 2 and "--every" in result.output


def test_live_it_outlasts_a_redis_that_is_away_and_ctrl_c_ends_it(own_redis: RedisServer) -> None:
    screen = Terminal(sys.executable, "-m", "callsheet.cli.main", "top", "--every", "1",
                      CALLSHEET_REDIS_URL=own_redis.url, TERM="xterm", COLUMNS="120", LINES="40")
    try:
        screen.until("No worker answers")
        own_redis.stop()
        screen.until("No Redis answers")
        own_redis.start()
        screen.until("No worker answers")
        screen.process.send_signal(signal.SIGINT)
        assert screen.ended() == 0
    finally:
        screen.close()
