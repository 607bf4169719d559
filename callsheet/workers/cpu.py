"""`celery -A callsheet.workers.cpu worker --autoscale=2,1`: agents that compute."""

from callsheet.workers.app import cpu_app

app = cpu_app()
