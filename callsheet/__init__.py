"""Multi-agent LLM applications on Celery."""
