"""Every Redis key and channel of Callsheet's own. Celery's and kombu's keys are theirs."""

from collections.abc import Callable
from dataclasses import dataclass


def _one(name: str) -> "Callable[[Keys], str]":
    return lambda keys: f"{keys.prefix}{name}"


def _of(name: str) -> "Callable[[Keys, str], str]":
    return lambda keys, part: f"{keys.prefix}{name}:{part}"


@dataclass(frozen=True)
class Keys:
    """Names keys under one prefix: `keys.hubs()` is the only one of its kind, `keys.hub(name)` one of many."""

    prefix: str

    # Calls and jobs

    payload = _of("payload")
    """string: JSON text of one large payload, by its SHA-256; expires `result_expires` after its last use"""
    job = _of("job")
    """hash: of a pipeline's job `calls` (JSON list of its calls' task ids), `queues`, `plan` (what runs after and
    beside what, described in tasks/plans.py); expires"""
    events = _of("events")
    """stream: what a job's agents printed, bounded; expires"""
    events_channel = _of("events-channel")
    """channel: a notice that events(job) grew"""
    revoked = _one("revoked")
    """zset: task id -> unix time of its cancellation; workers read it when they start"""
    dead_letters = _one("dead-letters")
    """list: messages and calls that no worker takes, the newest first, each as JSON; bounded, and expires a week after
    the last; described in resources/dead_letters.py"""
    epoch = _one("epoch")
    """hash: this life of the data in Redis: `id`, and `looks`, how many there were at it; stays, see
    resources/epoch.py"""
    probe = _one("probe")
    """string: written by a worker to see whether a Redis that was in trouble takes writes; expires"""

    # People

    questions = _of("questions")
    """hash: what a job's calls ask people, question's id -> JSON; expires `answers_expires` after the last look of a
    call that waits"""
    answers = _of("answers")
    """hash: question's id -> the answer as JSON, by job; expires `answers_expires`"""
    answers_channel = _of("answers-channel")
    """channel: the id of a job's question that was answered"""
    waiting = _one("waiting")
    """zset: "<question's id> <job's id>" of all open questions -> unix time when they were asked"""

    # Endpoints

    breaker = _of("breaker")
    """hash: an endpoint's circuit breaker, described in breaker.lua; expires"""
    breaker_channel = _of("breaker-channel")
    """channel: "open <ms>", "closed" or "suspect", when it changes"""
    learned = _of("learned")
    """set: the parameters that an endpoint's model does not take, by a hash of address and model; expires, see
    resources/refusals.py"""
    usage = _of("usage")
    """hash: what a job's outbound calls took, described in books.py; expires `result_expires`"""
    usage_day = _of("usage-day")
    """hash: likewise of the whole fleet on a day, "2026-01-31" in UTC; expires `usage_expires`"""
    usage_batch = _of("usage-batch")
    """string: the id of a batch of counts that was added; expires, so that none is added twice"""
    limits_wake = _of("limits-wake")
    """channel: tells a gate, an event loop's queue for an endpoint, that it may have a turn"""
    limits_pause = _one("limits-pause")
    """channel: [endpoint, seconds], JSON: nobody may send to it for so long"""

    def limits(self, name: str, window: float, part: str) -> str:
        """Several: a part of an endpoint's limiter, see resources/limits/exchange.lua; expire when unused.

        All parts are in one slot of a cluster.
        """
        return f"{self.prefix}limits:{{{name}/{window:g}}}:{part}"

    home = _of("home")
    """hash: the worker that holds the session of an MCP client with affinity, see homes.lua; expires"""
    direct_queues = _one("direct-queues")
    """zset: queues that one worker alone consumes, with its own -> ms until which it is known to live"""

    # Agents with state, by agent id

    state = _of("state")
    """hash: registered state: `class`, `format`, `version`, `base` and others, described in turns.lua; expires
    `state_expires` after its last turn"""
    memory = _of("memory")
    """stream: the changes of its memories, each {"p": path, "c": JSON}, described in memory/journal.py; the entries of
    turn 7 have the ids 7-0, 7-1, ...; expires likewise"""
    turn = _of("turn")
    """hash: whose turn it is: `token`, `call`, `until`, described in turns.lua; expires likewise"""
    line = _of("line")
    """zset: calls that wait for their turn -> microseconds when they were sent"""
    parked = _of("parked")
    """hash: their messages, described in turns.lua"""
    lines = _one("lines")
    """zset: agents for whose turn calls wait -> ms when somebody should look after it"""
    states = _one("states")
    """zset: agents with state -> ms of the last turn; without those that expired; expires"""
    replied = _of("replied")
    """string: what a call of an agent with state came to, by call, should it be delivered again; expires"""

    # Hubs; an epoch is one life of a hub, from its opening to its closing

    hub = _of("hub")
    """hash: a hub's settings, its last entry, who has it open; described in hub/log.lua and hub.lua; expires, as the
    next ones, when the hub has not been used for `hub_expires`"""
    hubs = _one("hubs")
    """zset: names of open hubs -> ms of their last use, about"""
    hub_log = _of("hub-log")
    """stream: what was said in an epoch, {"s": sender's agent id, "m": message as JSON}; bounded"""
    hub_members = _of("hub-members")
    """hash: an epoch's members, agent id -> JSON"""
    hub_ids = _of("hub-ids")
    """zset: ids of its last broadcasts"""
    seats = _of("seats")
    """hash: the hubs that an agent sits in, and what it has heard there"""
    hub_exchange = _of("hub-exchange")
    """The name of a hub's fanout exchange; its channel is kombu's, /<db>.<exchange>"""
