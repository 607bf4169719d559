"""The io app with Celery's own autoscaler, for comparison."""

from callsheet.workers.app import io_app

app = io_app()
app.conf.worker_autoscaler = "celery.worker.autoscale:Autoscaler"
