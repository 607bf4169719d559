"""`celery -A callsheet.workers.io worker --autoscale=500,20`: agents that wait on the network."""

from callsheet.workers.app import io_app

app = io_app()
