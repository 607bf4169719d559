"""Group conversations: a reply in a small and in a large hub, broadcasts to listening processes, a hub where each of
100 members replies once, and what a conversation loses when workers are killed and Redis restarts.

`python -m benchmarks.hub NAME` is one of the listening processes.
"""

import asyncio
import contextlib
import json
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import callsheet
from benchmarks.agents import Talker
from benchmarks.harness import IO, Goal, Report, Row, Stage, at_least, at_most, percentile, usage_of
from callsheet import Msg, MsgHub, Settings, get_settings
from callsheet.hub.records import Opening
from callsheet.hub.redis import RedisHubs
from callsheet.settings import use_settings
from tests.services import ROOT, RedisServer, Worker

REPLIES = 150
RATE, SECONDS, LISTENERS = 1000, 10, 4
MEMBERS = 100
CONVERSATION = 200
HUBS = 10_000
TEXT = "Number {} of a conversation's messages, of a usual length for one of them."


def said(number: int) -> Msg:
    return Msg("user", TEXT.format(number), "user")


# A reply in a small and in a large hub -----------------------------------------------------------------


def replies(stage: Stage, pid: int, members: int) -> dict[str, float]:
    """What a reply costs that all members will hear."""
    agents = [Talker(str(number)) for number in range(members)]
    assert stage.redis.process is not None

    async def talk(count: int) -> list[float]:
        took = []
        for number in range(count):
            began = time.perf_counter()
            await agents[0](said(number))
            took.append(1000 * (time.perf_counter() - began))
        return took

    async def all_of_it() -> tuple[list[float], Any, Any]:
        async with MsgHub(agents):
            await talk(30)
            assert stage.redis.process is not None
            with usage_of(pid) as usage, usage_of(stage.redis.process.pid) as redis:
                took = await talk(REPLIES)
            return took, usage, redis

    took, usage, redis = asyncio.run(all_of_it())
    return {"reply_ms": percentile(took, 0.5), "cpu_ms": 1000 * (usage.cpu + redis.cpu) / REPLIES,
            "others_cores": usage.others}


# Broadcasts to listening processes ---------------------------------------------------------------------


def listen(name: str) -> None:
    """Say that the first message came; tell how late each that says when came, in ms, when the hub is closed."""
    late = []
    for heard, event in enumerate(callsheet.hub.listen(name, since="now")):
        if not heard:
            print("listening", flush=True)
        if "at" in event.msg.metadata:
            late.append(1000 * (time.time() - event.msg.metadata["at"]))
    print(json.dumps(late))


async def paced(hub: MsgHub, count: int) -> float:
    """Broadcast so many messages at RATE; seconds that it took."""
    under_way: set[asyncio.Task[Any]] = set()
    began = time.perf_counter()
    for number in range(count):
        due = began + number / RATE
        if (pause := due - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        msg = Msg("user", TEXT.format(number), "user", {"at": time.time()})
        task = asyncio.ensure_future(hub.broadcast(msg))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    return time.perf_counter() - began


def pushes(stage: Stage, row: Row) -> None:
    """How late broadcasts reach four listening processes."""
    hub = MsgHub.open("pushes")
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(subprocess.Popen([sys.executable, "-m", "benchmarks.hub", "pushes"], text=True,
                                                          stdout=subprocess.PIPE, cwd=ROOT))
                     for _ in range(LISTENERS)]
        for one in listeners:
            assert one.stdout is not None
            while not select.select([one.stdout], [], [], 0.1)[0]:
                hub.broadcast(Msg("user", "Do you hear?", "user"))
            one.stdout.readline()
        with usage_of(listeners[0].pid) as usage:
            took = asyncio.run(paced(hub, RATE * SECONDS))
        hub.close()
        late = [ms for one in listeners for ms in json.loads(one.communicate(timeout=60)[0])]
    row.add(broadcasts_per_s=RATE * SECONDS / took, late_p50_ms=percentile(late, 0.5),
            late_p99_ms=percentile(late, 0.99),
            missed=float(LISTENERS * RATE * SECONDS - len(late)),
            listener_cpu=usage.cpu / usage.seconds, others_cores=usage.others)


def push_goals(row: Row) -> list[Goal]:
    """The rate and what is missed are judged by the worst run, how late messages come by the median of the runs."""
    return [at_least(f"{RATE:,} broadcasts/s are sustained: {0.99 * RATE:,.0f}/s reached",
                     min(row.values["broadcasts_per_s"]), 0.99 * RATE),
            at_most(f"none of them is missed by any of {LISTENERS} listeners", max(row.values["missed"]), 0),
            at_most("broadcast to push: median under 5 ms", row.median("late_p50_ms"), 5),
            at_most("broadcast to push: p99 under 25 ms", row.median("late_p99_ms"), 25)]


# Each of 100 members replies once ----------------------------------------------------------------------


def rounds(together: bool, in_hub: bool) -> float:
    """Seconds until each of the members has replied once, one after another or all at once."""
    members = [Talker(str(number)) for number in range(MEMBERS)]

    async def talk() -> float:
        hub = MsgHub(members)
        async with hub if in_hub else contextlib.nullcontext():
            began = time.perf_counter()
            if together:
                await asyncio.gather(*(one(said(0)) for one in members))
            else:
                for one in members:
                    await one(said(0))
            return time.perf_counter() - began

    return asyncio.run(talk())


def measured_rounds(stage: Stage, pid: int, together: bool, in_hub: bool) -> dict[str, float]:
    """The same, with the CPU that worker and Redis took."""
    assert stage.redis.process is not None
    with usage_of(pid) as usage, usage_of(stage.redis.process.pid) as redis:
        seconds = rounds(together, in_hub)
    return {"seconds": seconds, "cpu_s": usage.cpu + redis.cpu, "others_cores": usage.others}


# Many open hubs ----------------------------------------------------------------------------------------


def idle(stage: Stage, pid: int) -> dict[str, float]:
    """What a worker with nothing to do takes in 5 s."""
    client = stage.redis.client()
    time.sleep(1.0)
    before = client.info("stats")["total_commands_processed"]
    with usage_of(pid) as usage:
        time.sleep(5.0)
    after = client.info("stats")["total_commands_processed"]
    return {"commands_in_5_s": after - before - 1, "cpu_ms_in_5_s": 1000 * usage.cpu, "others_cores": usage.others}


def many_hubs(stage: Stage) -> None:
    hubs = RedisHubs(get_settings())
    for number in range(HUBS):
        hubs.open(f"many-{number}", Opening(opener="", auto=True, kept=True))


# A conversation with accidents -------------------------------------------------------------------------


@contextlib.contextmanager
def hired(url: str) -> Iterator[Any]:
    workers: list[Worker] = []
    env = {"CALLSHEET_LEASE": "4", "CALLSHEET_TURN_LEASE": "2"}

    def hire() -> Worker:
        workers.append(Worker(IO, url, "-c", "4", env=env).wait_ready())
        return workers[-1]

    try:
        yield hire
    finally:
        for one in workers:
            one.kill()
            one.log_path.unlink(missing_ok=True)


def conversation() -> int:
    """Messages that are not once, and in order, in a member's history."""
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    try:
        settings = Settings.load(redis_url=server.url, turn_lease=2)
        with use_settings(settings), hired(server.url) as hire:
            first, second = hire(), hire()

            def restart() -> None:
                server.stop(signal.SIGKILL)
                server.start()

            accidents = {50: first.kill, 51: hire, 100: restart, 150: second.kill}
            members = [Talker(str(number)) for number in range(5)]
            hub = MsgHub.open("conversation", members)
            for number in range(CONVERSATION):
                job = members[number % 5].submit(said(number))
                accidents.get(number, int)()
                job.get(120)
            hub.close()
            expected = [TEXT.format(number) for number in range(CONVERSATION)]
            wrong = 0
            for one in members:
                heard = one.with_id(one.id).submit(Msg("user", "?", "user")).get(60).content.split("|")
                wrong += sum(1 for a, b in zip(heard, expected, strict=False) if a != b) + abs(
                    len([text for text in heard if text in expected]) - len(expected))
            return wrong
    finally:
        server.remove()


def run(stage: Stage) -> Report:
    small, large = Row("a reply in a hub of 10"), Row("a reply in a hub of 1,000")
    push = Row(f"{RATE:,} broadcasts/s to {LISTENERS} processes")
    turns = {(together, in_hub): Row(f"{MEMBERS} members reply {'at once' if together else 'in turn'}, "
                                     f"{'in a hub' if in_hub else 'alone'}")
             for together in (False, True) for in_hub in (False, True)}
    accidents = Row(f"{CONVERSATION} messages, two workers killed, Redis restarted")
    with stage.worker(IO, "-c", "100") as pid:
        rounds(True, False)
        for _ in range(stage.repeat):
            for row, members in ((small, 10), (large, 1000)):
                row.add(**replies(stage, pid, members))
            for (together, in_hub), row in turns.items():
                row.add(**measured_rounds(stage, pid, together, in_hub))
    for _ in range(stage.repeat):
        pushes(stage, push)
    few, many = Row("an idle worker"), Row(f"an idle worker beside {HUBS:,} open hubs")
    with stage.worker(IO, "-c", "100") as pid:
        few.add(**idle(stage, pid))
        many_hubs(stage)
        many.add(**idle(stage, pid))
    accidents.add(wrong=float(conversation()))
    ratio = {together: turns[together, True].median("seconds") / turns[together, False].median("seconds")
             for together in (False, True)}
    return Report("hub", __doc__ or "", [small, large, push, *turns.values(), few, many, accidents], [
        at_most("a reply in a hub of 1,000 takes at most 1.3 times as long as in one of 10",
                large.median("reply_ms") / small.median("reply_ms"), 1.3),
        *push_goals(push),
        at_most("100 members reply in turn: at most twice as long in a hub", ratio[False], 2),
        at_most("100 members reply at once: at most twice as long in a hub", ratio[True], 2),
        at_most("commands of an idle worker beside 10,000 open hubs: none more",
                many.median("commands_in_5_s") / few.median("commands_in_5_s"), 1.1),
        at_most("nothing missed, nothing twice in a conversation with accidents", accidents.median("wrong"), 0)])


if __name__ == "__main__":
    listen(sys.argv[1])
