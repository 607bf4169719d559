"""`celery -A callsheet`: the io workers' app; with it `inspect`, `status` and Flower see workers of either kind."""

from callsheet.workers.io import app

__all__ = ["app"]
