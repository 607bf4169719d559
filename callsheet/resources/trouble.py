"""Redis in trouble, in words: it does not answer, or it answers and takes no writes."""

import re
from collections.abc import Iterator
from urllib.parse import unquote

import redis
import redis.asyncio.sentinel
import redis.sentinel
from kombu.exceptions import BatchPublishError, OperationalError

from callsheet.errors import RedisUnavailable
from callsheet.settings import Settings

_REFUSALS = {
    "OOM": ("is out of memory and takes no more data",
            "Raise its maxmemory, or free some: results, events and payloads leave after CALLSHEET_RESULT_EXPIRES "
            "seconds. Keep maxmemory-policy at noeviction, as any other would drop calls"),
    "READONLY": ("is a read-only replica and takes no writes",
                 "Set CALLSHEET_REDIS_URL to the primary, or make this one the primary (REPLICAOF NO ONE)"),
    "NOREPLICAS": ("takes no writes, as too few replicas follow it",
                   "Bring the replicas back, or lower min-replicas-to-write"),
    "MISCONF": ("takes no writes, as it cannot save them to disk",
                "See its log, free disk space, and check the rights of its data folder"),
    "MASTERDOWN": ("is a replica that has lost its primary",
                   "Set CALLSHEET_REDIS_URL to the primary, or bring it back"),
    "LOADING": ("is still loading its data", "Try again once it has; INFO persistence tells how far it is"),
    "BUSY": ("is busy with somebody's script", "See SCRIPT KILL, and what else runs scripts there"),
}
# What waiting does not mend.
_CLUSTER = ("is a node of a cluster, which Callsheet does not support",
            "Set CALLSHEET_REDIS_URL to a server that is not in cluster mode, or to sentinels")
_DATABASE = ("has no database of this number",
             "Set the number at the end of CALLSHEET_REDIS_URL to one that it has: 0, or see `databases` in redis.conf")
_LASTING = {
    "NOPERM": ("refuses a command to this user",
               "Give the user in CALLSHEET_REDIS_URL all commands, keys and channels (ACL SETUSER … allcommands "
               "allkeys allchannels)"),
    "WRONGTYPE": ("has something else under the name of a key of ours",
                  "`callsheet doctor` names the key: rename it, or use another database or another Redis"),
    **dict.fromkeys(("MOVED", "ASK", "CROSSSLOT", "CLUSTERDOWN", "TRYAGAIN"), _CLUSTER),
    "DB": _DATABASE,
}
_ALL = {**_REFUSALS, **_LASTING}
# redis-py leaves the code out of a text where it has a class for it, and puts words of its own before the text of a
# command in a pipeline; a script's error has the code of the command in it behind a dash.
_CODE = re.compile(r"(?:^|of pipeline caused error: (?:\(['\"])?|: -)(?:ERR )?([A-Z]{3,}) ")
_NO_DATABASE = ("DB index is out of range", "SELECT is not allowed in cluster mode")
_NO_MASTER = (redis.sentinel.MasterNotFoundError, redis.asyncio.sentinel.MasterNotFoundError)


def _cause(exc: BaseException) -> BaseException:
    while isinstance(exc, (OperationalError, BatchPublishError, RedisUnavailable)) and exc.__cause__ is not None:
        exc = exc.__cause__
    return exc


def refusal(exc: BaseException) -> str:
    """The code with which Redis refused, of those in the tables above; "" where it is another error."""
    exc = _cause(exc)
    if not isinstance(exc, (redis.ResponseError, redis.ConnectionError)):
        return ""
    text, code = str(exc), str(exc.status_code or "")
    if text.endswith(_NO_DATABASE):
        return "DB"
    return next((found for found in (code, *_CODE.findall(text)) if found in _ALL), "")


def is_lasting(exc: BaseException) -> bool:
    """Whether Redis answers, and somebody has to change something before it does what it is asked for."""
    return refusal(exc) in _LASTING


def is_trouble(exc: BaseException) -> bool:
    """Whether Redis is away or takes no writes for now, rather than that the command was wrong."""
    exc = _cause(exc)
    away = isinstance(exc, (redis.ConnectionError, redis.TimeoutError, RedisUnavailable, OSError))
    return (away or refusal(exc) in _REFUSALS) and not is_lasting(exc)


def in_words(exc: BaseException, settings: Settings) -> str:
    """What is wrong, at which address, and the remedy; without a password."""
    exc, where = _cause(exc), settings.redis_address
    code = refusal(exc)
    if code:
        what, remedy = _ALL[code]
        said = f": {_plain(exc, settings)}" if code in _LASTING else ""
        return f"The Redis at {where} {what} ({code}){said}. {remedy}."
    if isinstance(exc, redis.AuthenticationError):
        remedy = "Put the right user and password into CALLSHEET_REDIS_URL."
    elif isinstance(exc, _NO_MASTER):
        remedy = ("See that the sentinels run and that the master is up. CALLSHEET_REDIS_SENTINEL_MASTER is the "
                  "name under which they watch it, CALLSHEET_REDIS_SENTINEL_PASSWORD what they ask for.")
    elif isinstance(exc, redis.TimeoutError):
        remedy = ("It, or the network before it, is too slow or has stopped: see its log and `redis-cli --latency`. "
                  "What was being sent may arrive all the same.")
    else:
        remedy = "Start one (`callsheet up` brings its own), or set CALLSHEET_REDIS_URL to where it runs."
    return f"No Redis answers at {where}: {type(exc).__name__}: {_plain(exc, settings)}. {remedy}"


def _plain(exc: BaseException, settings: Settings) -> str:
    """The error's text, without a password in it."""
    text, secret = str(exc).rstrip("."), settings.redis_url.get_secret_value()
    text = text.replace(secret, settings.redis_address)
    for password in _passwords(secret):
        text = text.replace(password, "***")
    return text


def _passwords(url: str) -> Iterator[str]:
    for chunk in url.split(";"):
        password = chunk.partition("://")[2].rpartition("@")[0].partition(":")[2]
        if password:
            yield password
            yield unquote(password)
