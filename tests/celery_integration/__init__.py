"""Celery's own integration tests, run on our pool: `python -m tests.celery_integration`."""
