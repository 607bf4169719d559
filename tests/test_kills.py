"""Loaded workers are killed: no call is lost, and what they ran begins once more elsewhere."""

import contextlib
from collections import Counter

from tests.agents.gated import Tells
from tests.feed import Feed
from tests.fleet import client_settings
from tests.services import Worker, wait_for

KILLS = 3
SLOTS = 10
ENV = {"CALLSHEET_MODULES": "tests.agents.gated", "CALLSHEET_LEASE": "2"}


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def test_three_kills_of_a_loaded_worker_lose_no_call(own_redis, tmp_path, capsys):
    client, begun, ended = own_redis.client(), tmp_path / "begun", tmp_path / "ended"

    def running_in(process):
        pid, over = str(process.process.pid), set(lines(ended))
        return {line.split()[0] for line in lines(begun) if line.endswith(f" {pid}")} - over

    with contextlib.ExitStack() as stack:
        workers = [Worker("callsheet.workers.io", own_redis.url, "-c", str(SLOTS), "--without-mingle", env=ENV)
                   for _ in range(KILLS + 1)]
        for one in workers:
            stack.callback(one.remove)
        for one in workers:
            one.wait_ready()
        cut_off = []
        with Feed(Tells(str(tmp_path), 0.2), 100, client_settings(own_redis)) as feed:
            for victim in workers[:KILLS]:
                wait_for(lambda victim=victim: len(running_in(victim)) >= SLOTS // 2, 30, "a loaded worker")
                victim.kill()
                cut = running_in(victim)
                cut_off.append(len(cut))
                wait_for(lambda cut=cut: cut <= set(lines(ended)), 30, "its calls to end elsewhere")
                # A call that loses two processes fails: so that they are acknowledged, too, before the next one goes.
                wait_for(lambda: not any('"redelivered": true' in entry for entry in client.hvals("unacked")),
                         what="none that was cut off under way")
            feed.finish(60)
        wait_for(lambda: not client.hlen("unacked") and not client.llen("io"), what="all acknowledged")
    times = Counter(line.split()[0] for line in lines(begun))
    again = {call for call, count in times.items() if count > 1}
    with capsys.disabled():
        print(f"\n{KILLS} kills, {len(feed.sent)} calls, {sum(cut_off)} cut off, {len(again)} begun twice ", end="")
    assert Counter(feed.results) == Counter(feed.sent)
    assert min(cut_off) > 0
    assert max(times.values()) == 2
    assert len(again) <= KILLS * SLOTS
