"""Every Redis key and channel of Callsheet's own. Celery's and kombu's keys are theirs.

payload(sha256)     string   JSON text of one large payload; expires `result_expires` after its last use
job(id)             hash     of a pipeline's job: `calls` (JSON list of its calls' task ids), `queues`, `plan`
                             (what runs after and beside what, described in tasks/plans.py); expires
events(id)          stream   what a job's agents printed, bounded; expires
events_channel(id)  channel  a notice that events(id) grew
questions(id)       hash     what a job's calls ask people: question's id -> JSON; expires `answers_expires` after the
                             last look of a call that waits
answers(id)         hash     question's id -> the answer as JSON; expires `answers_expires`
answers_channel(id) channel  the id of a question that was answered
waiting()           zset     "<question's id> <job's id>" of all open questions -> unix time when they were asked
breaker(endpoint)   hash     an endpoint's circuit breaker, described in breaker.lua; expires
breaker_channel(e)  channel  its changes: "open <ms>", "closed", "suspect"
learned(digest)     set      the parameters that an endpoint's model does not take; expires, see resources/learned.py
usage(job)          hash     what a job's outbound calls took, described in accounts.py; expires `result_expires`
usage_day(day)      hash     likewise of the whole fleet on a day, "2026-01-31" in UTC; expires `usage_expires`
usage_batch(id)     string   a batch of counts that was added; expires, so that none is added twice
limits(name, …)     several  of the limiter of one endpoint, see resources/limits/exchange.lua; expire when unused
limits_wake(gate)   channel  tells a gate, an event loop's queue for an endpoint, that it may have a turn
limits_pause()      channel  [endpoint, seconds], JSON: nobody may send to it for so long
state(agent)        hash     an agent's registered state: `class`, `format`, `version`, `base` and others, described in
                             turns.lua; expires `state_expires` after its last turn
memory(agent)       stream   the changes of its memories, each {"p": path, "c": JSON}, described in memory/journal.py;
                             the entries of turn 7 have the ids 7-0, 7-1, ...; expires likewise
turn(agent)         hash     whose turn it is: `token`, `call`, `until`, described in turns.lua; expires likewise
line(agent)         zset     calls that wait for their turn -> microseconds when they were sent
parked(agent)       hash     their messages, described in turns.lua
lines()             zset     agents for whose turn calls wait -> ms when somebody should look after it
states()            zset     agents with state -> ms of the last turn; without those that expired; expires
replied(call)       string   what a call of an agent with state came to, should it be delivered again; expires
hub(name)           hash     a hub: its settings, its last entry, who has it open; described in hub/log.lua and
                             hub.lua; expires, as the next ones, when the hub has not been used for `hub_expires`
hubs()              zset     names of open hubs -> ms of their last use, about
hub_log(epoch)      stream   what was said in a hub, {"s": sender's agent id, "m": message as JSON}; bounded. An epoch
                             is one life of a hub, from its opening to its closing
hub_members(epoch)  hash     its members, agent id -> JSON
hub_ids(epoch)      zset     ids of its last broadcasts
seats(agent)        hash     the hubs that an agent sits in, and what it has heard there
hub_exchange(name)  -        name of the hub's fanout exchange; its channel is kombu's, "/<db>.<exchange>"
home(client)        hash     the worker that holds the session of an MCP client with affinity, see homes.lua; expires
direct_queues()     zset     queues that one worker alone consumes, with its own -> ms until which it is known to live
epoch()             hash     this life of the data in Redis: `id`, and `looks`, how many there were at it; stays, see
                             resources/epoch.py
probe()             string   written by a worker to see whether a Redis that was in trouble takes writes; expires
revoked()           zset     task id -> unix time of its cancellation; workers read it when they start
dead_letters()      list     messages and calls that no worker takes, the newest first, each as JSON; bounded, and
                             expires a week after the last; described in resources/dead_letters.py
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Keys:
    """Names keys under one prefix."""

    prefix: str

    def payload(self, digest: str) -> str:
        """A large payload, by the SHA-256 of its bytes in hex."""
        return f"{self.prefix}payload:{digest}"

    def job(self, job_id: str) -> str:
        """What is known of a pipeline's job."""
        return f"{self.prefix}job:{job_id}"

    def events(self, job_id: str) -> str:
        """What a job's agents printed."""
        return f"{self.prefix}events:{job_id}"

    def events_channel(self, job_id: str) -> str:
        """Where growth of `events` is told."""
        return f"{self.prefix}events-channel:{job_id}"

    def questions(self, job_id: str) -> str:
        """What a job's calls ask people."""
        return f"{self.prefix}questions:{job_id}"

    def answers(self, job_id: str) -> str:
        """What people answered."""
        return f"{self.prefix}answers:{job_id}"

    def answers_channel(self, job_id: str) -> str:
        """Where answers are told."""
        return f"{self.prefix}answers-channel:{job_id}"

    def waiting(self) -> str:
        """The open questions of all jobs."""
        return f"{self.prefix}waiting"

    def breaker(self, endpoint: str) -> str:
        """An endpoint's circuit breaker."""
        return f"{self.prefix}breaker:{endpoint}"

    def breaker_channel(self, endpoint: str) -> str:
        """Where changes of an endpoint's breaker are told."""
        return f"{self.prefix}breaker-channel:{endpoint}"

    def learned(self, digest: str) -> str:
        """What a model of an endpoint does not take, by a hash of address and model."""
        return f"{self.prefix}learned:{digest}"

    def usage(self, job_id: str) -> str:
        """What a job's outbound calls took."""
        return f"{self.prefix}usage:{job_id}"

    def usage_day(self, day: str) -> str:
        """What the fleet's outbound calls took on a day."""
        return f"{self.prefix}usage-day:{day}"

    def usage_batch(self, batch: str) -> str:
        """A mark that a batch of counts was added."""
        return f"{self.prefix}usage-batch:{batch}"

    def limits(self, name: str, window: float, part: str) -> str:
        """A part of an endpoint's limiter; all parts are in one slot of a cluster."""
        return f"{self.prefix}limits:{{{name}/{window:g}}}:{part}"

    def limits_wake(self, gate: str) -> str:
        """Where a gate is told that it may have a turn."""
        return f"{self.prefix}limits-wake:{gate}"

    def limits_pause(self) -> str:
        """Where pauses of endpoints are told."""
        return f"{self.prefix}limits-pause"

    def home(self, client: str) -> str:
        """Where the session of an MCP client with affinity is."""
        return f"{self.prefix}home:{client}"

    def direct_queues(self) -> str:
        """The queues of workers that hold such sessions."""
        return f"{self.prefix}direct-queues"

    def probe(self) -> str:
        """What a worker writes to see whether Redis takes writes again."""
        return f"{self.prefix}probe"

    def epoch(self) -> str:
        """Which life of the data this is."""
        return f"{self.prefix}epoch"

    def revoked(self) -> str:
        """Cancelled task ids, for workers that start later."""
        return f"{self.prefix}revoked"

    def dead_letters(self) -> str:
        """What no worker takes."""
        return f"{self.prefix}dead-letters"

    def state(self, agent_id: str) -> str:
        """An agent's registered state."""
        return f"{self.prefix}state:{agent_id}"

    def memory(self, agent_id: str) -> str:
        """The changes of an agent's memories."""
        return f"{self.prefix}memory:{agent_id}"

    def turn(self, agent_id: str) -> str:
        """Whose turn it is."""
        return f"{self.prefix}turn:{agent_id}"

    def line(self, agent_id: str) -> str:
        """The calls that wait for their turn."""
        return f"{self.prefix}line:{agent_id}"

    def parked(self, agent_id: str) -> str:
        """The messages of the calls that wait for their turn."""
        return f"{self.prefix}parked:{agent_id}"

    def lines(self) -> str:
        """The agents for whose turn calls wait."""
        return f"{self.prefix}lines"

    def states(self) -> str:
        """The agents with state."""
        return f"{self.prefix}states"

    def replied(self, call_id: str) -> str:
        """What a call of an agent with state came to."""
        return f"{self.prefix}replied:{call_id}"

    def hub(self, name: str) -> str:
        """A hub."""
        return f"{self.prefix}hub:{name}"

    def hubs(self) -> str:
        """The open hubs."""
        return f"{self.prefix}hubs"

    def hub_log(self, epoch: str) -> str:
        """What was said in one life of a hub."""
        return f"{self.prefix}hub-log:{epoch}"

    def hub_members(self, epoch: str) -> str:
        """Its members."""
        return f"{self.prefix}hub-members:{epoch}"

    def hub_ids(self, epoch: str) -> str:
        """Ids of its last broadcasts."""
        return f"{self.prefix}hub-ids:{epoch}"

    def seats(self, agent_id: str) -> str:
        """The hubs that an agent sits in."""
        return f"{self.prefix}seats:{agent_id}"

    def hub_exchange(self, name: str) -> str:
        """The name of a hub's fanout exchange."""
        return f"{self.prefix}hub-exchange:{name}"
