"""The peer: plain Celery tasks that do what the agents do, on Celery's own pools."""

import functools
import os

import requests
from celery import Celery
from requests.adapters import HTTPAdapter

from benchmarks.agents import burn

app = Celery("stock")
# Read when first needed, as the run's Redis starts after this module is imported.
app.add_defaults(lambda: {"broker_url": os.environ["CALLSHEET_REDIS_URL"],
                          "result_backend": os.environ["CALLSHEET_REDIS_URL"],
                          "broker_connection_retry_on_startup": True})


@functools.cache
def session() -> requests.Session:
    """One session with a connection for each greenlet, as requests advises for many calls to one host."""
    made = requests.Session()
    made.mount("http://", HTTPAdapter(pool_connections=1, pool_maxsize=4000))
    return made


@app.task
def fetch(url: str, message: str) -> str:
    return str(session().get(url, timeout=300).json()["answer"])


@app.task
def noop(message: str = "") -> None:
    return None


@app.task
def compute(rounds: int, message: str = "") -> str:
    return str(burn(rounds))
