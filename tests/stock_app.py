"""An app of plain Celery, as somebody has who never heard of Callsheet."""

import os

from celery import Celery

URL = os.environ.get("CALLSHEET_REDIS_URL", "redis://127.0.0.1:6379/0")
app = Celery("stock", broker=URL, backend=URL, include=["tests.compat_tasks"])
app.conf.update(task_default_queue="io", task_acks_late=True, broker_connection_retry_on_startup=True)
