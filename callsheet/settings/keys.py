"""Every Redis key and channel of Callsheet's own. Celery's and kombu's keys are theirs.

payload(sha256)     string   JSON text of one large payload; expires `result_expires` after its last use
job(id)             hash     of a pipeline's job: `calls` (JSON list of its calls' task ids), `queues`; expires
events(id)          stream   what a job's agents printed, bounded; expires
events_channel(id)  channel  a notice that events(id) grew
revoked()           zset     task id -> unix time of its cancellation; workers read it when they start
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

    def revoked(self) -> str:
        """Cancelled task ids, for workers that start later."""
        return f"{self.prefix}revoked"
