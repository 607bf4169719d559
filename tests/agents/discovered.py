"""Tasks that a module of the user's has Celery discover."""

from celery import shared_task


@shared_task
def found():
    return "found"
