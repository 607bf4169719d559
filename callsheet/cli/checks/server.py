"""Redis: its version and role, whether it keeps what it is given, and its clock."""

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from redis.exceptions import NoPermissionError, ResponseError

from callsheet.cli.checks.findings import Finding, fail, ok, warn
from callsheet.errors import RedisUnavailable
from callsheet.resources.backlog import STEPS, UNACKED
from callsheet.resources.redis import sync_client, translated
from callsheet.settings import Settings
from callsheet.settings.keys import Keys

OLDEST = (6, 2)
SLOW = 0.05  # seconds that a trip to Redis may take
NEARLY_FULL = 0.9  # of its memory
APART, FAR_APART = 1.0, 30.0  # seconds between two clocks
_PINGS = 5
_REMEDY = re.compile(r"\. (?=(?:Start|See|Put|It,|Set|Give|Bring|Try|Raise|Free|Make|`callsheet)\b)")

_FOREVER = "in redis.conf, or in the parameters of your provider"


def check_server(settings: Settings) -> tuple[list[Finding], bool]:
    """The findings, and whether Redis answers at all; blocks."""
    try:
        with translated(settings):
            client = sync_client(settings)
            client.ping()
            took = min(_timed(client.ping) for _ in range(_PINGS))
            try:
                info = client.info()
            except NoPermissionError:  # as many providers have it
                found = [ok("redis", f"{settings.redis_address} answers; whether it is set up well it tells nobody but "
                            "its administrator (INFO)")]
            else:
                found = [_answers(settings, took, info), *_role(info), *_persistence(client, info), *_memory(info),
                         *_clients(info)]
            return [*found, _clock(client), *_keys(settings, client)], True
    except RedisUnavailable as exc:
        text, *remedy = _REMEDY.split(str(exc), maxsplit=1)
        return [fail("redis", f"{text}.", "".join(remedy) or "Correct CALLSHEET_REDIS_URL.")], False


def _timed(function: Any) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _answers(settings: Settings, took: float, info: Mapping[str, Any]) -> Finding:
    version = str(info.get("redis_version", ""))
    text = f"{settings.redis_address} answers in {max(0.1, took * 1000):.1f} ms, version {version}"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers and numbers < OLDEST:
        return fail("redis", text, "Callsheet needs Redis 6.2 or later: update it.")
    if took > SLOW:
        return warn("redis", text, "Each call makes some trips to it: bring workers and Redis nearer together, or see "
                    "what keeps it busy with redis-cli --latency and redis-cli slowlog get.")
    return ok("redis", text)


def _keys(settings: Settings, client: Any) -> Iterator[Finding]:
    """Keys under our names that are something else, or that this user may not touch."""
    queues = [name + step for name in settings.known_queues for step in STEPS]
    wanted = {**dict.fromkeys(queues, "list"), UNACKED: "hash", f"{UNACKED}_index": "zset",
              Keys(settings.key_prefix).states(): "zset"}
    for key, kind in wanted.items():
        found = client.type(key).decode()
        if found not in (kind, "none"):
            yield fail("keys", f"The key {key!r} is a {found} of somebody else's, where Callsheet has a {kind}.",
                       "Rename it, or give CALLSHEET_REDIS_URL another database or another Redis.")


def _role(info: Mapping[str, Any]) -> Iterator[Finding]:
    if info.get("redis_mode") == "cluster" or info.get("cluster_enabled"):
        yield fail("cluster", "It is in cluster mode, which Callsheet does not support: its scripts use several keys.",
                   "Set CALLSHEET_REDIS_URL to a server that is not, or to sentinels; of a provider, without sharding.")
    if info.get("role") in ("slave", "replica"):
        yield fail("role", "It is a replica, which takes no writes.", "Give CALLSHEET_REDIS_URL the master's address, "
                   "or a sentinel:// address, which finds the master.")


def _persistence(client: Any, info: Mapping[str, Any]) -> Iterator[Finding]:
    if info.get("aof_last_write_status", "ok") != "ok" or info.get("aof_last_bgrewrite_status", "ok") != "ok":
        yield fail("persistence", "Its append-only file cannot be written.", "Look for a full disk, and into its log.")
    elif info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield fail("persistence", "Its last snapshot failed; it may refuse writes.", "Look for a full disk or too "
                   "little memory, and into its log.")
    elif info.get("aof_enabled"):
        yield ok("persistence", "append-only file")
    else:
        try:
            saves = str(client.config_get("save").get("save", ""))
        except ResponseError:  # of a provider that lets nobody look
            saves = "?"
        what = ("It writes snapshots only: a restart loses the calls and results since the last one."
                if saves else "It writes nothing to disk: a restart loses all calls that wait, and all results.")
        yield warn("persistence", what, f"redis-cli CONFIG SET appendonly yes; and appendonly yes {_FOREVER}.")


def _memory(info: Mapping[str, Any]) -> Iterator[Finding]:
    policy = info.get("maxmemory_policy", "noeviction")
    most, used = info.get("maxmemory", 0), info.get("used_memory", 0)
    remedy = f"redis-cli CONFIG SET maxmemory-policy noeviction; and maxmemory-policy noeviction {_FOREVER}."
    if policy != "noeviction" and most:
        text = f"With maxmemory-policy {policy} it throws away calls and results when it is full."
        yield fail("eviction", text, remedy)
    elif policy != "noeviction":
        yield warn("eviction", f"maxmemory-policy is {policy}; without a maxmemory it throws nothing away yet.", remedy)
    else:
        yield ok("eviction", "noeviction")
    share = used / most if most else 0.0
    if share > NEARLY_FULL:
        yield warn("memory", f"{share:.0%} of its {most / 2**20:,.0f} MiB are used; full, it refuses writes.",
                   "Raise maxmemory, or lower CALLSHEET_RESULT_EXPIRES and CALLSHEET_STATE_EXPIRES.")


def _clients(info: Mapping[str, Any]) -> Iterator[Finding]:
    most, now = int(info.get("maxclients", 0) or 0), int(info.get("connected_clients", 0))
    if most and now > 0.8 * most:
        yield warn("connections", f"{now:,} of {most:,} connections are taken.",
                   f"Raise maxclients {_FOREVER}, or run fewer, larger workers.")


def _clock(client: Any) -> Finding:
    before = time.time()
    whole, micros = client.time()
    after = time.time()
    return compared("clock", "this machine's", int(whole) + int(micros) / 1e6, before, after)


def compared(subject: str, whose: str, theirs: float, before: float, after: float) -> Finding:
    """How far a clock, which told `theirs`, is from this machine's, which it was `before` and `after` that."""
    apart = max(before - theirs, theirs - after, 0.0)
    text = f"Redis' clock and {whose} differ by {apart:.1f} s" if subject == "clock" else (
        f"{whose} clock and this machine's differ by {apart:.1f} s")
    if apart <= APART:
        return ok(subject, "Redis' clock and this machine's agree" if subject == "clock" else "clocks agree")
    remedy = ("Deadlines, expires and times in queues are reckoned with both: run an NTP client (chrony, "
              "systemd-timesyncd) on both machines.")
    return fail(subject, text, remedy) if apart > FAR_APART else warn(subject, text, remedy)
