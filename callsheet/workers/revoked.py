"""A boot step: cancelled calls stay cancelled on a worker that starts, or comes back, after the cancellation."""

import logging
from typing import Any

from celery import bootsteps
from celery.worker import state
from celery.worker.consumer.mingle import Mingle

from callsheet.settings import get_settings
from callsheet.settings.keys import Keys
from callsheet.workers.later import drop_revoked_at

logger = logging.getLogger(__name__)


class ReadRevoked(bootsteps.StartStopStep):
    """Reads at each (re)connection which calls were cancelled; Celery tells only workers that listen at the time.

    It need not come before the consumer of tasks: the first message is delivered when all steps have started.
    """

    requires = (Mingle,)

    def start(self, c: Any) -> None:
        """Merge the cancelled ids into those that this worker drops; a broken connection is the consumer's affair."""
        key = Keys(get_settings().key_prefix).revoked()
        # Not on the channel's own client: its connection is the one that waits for messages.
        channel = c.connection.default_channel
        with channel.conn_or_acquire() as client:
            newest = client.zrange(key, -state.REVOKES_MAX, -1)
        if newest:
            ids = [task_id.decode(errors="replace") for task_id in newest]
            state.merge_revoked(ids)
            drop_revoked_at(channel, ids)
            logger.info("%d cancelled calls are known", len(newest))
