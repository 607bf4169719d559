"""Tasks that know nothing of Callsheet; on stock workers and on ours, under the same names."""

import os
import time
from pathlib import Path

from celery import shared_task


def note(folder, name, text):
    with (Path(folder) / name).open("a") as file:
        file.write(f"{text}\n")


@shared_task(name="compat.mark")
def mark(folder, number):
    note(folder, "marks", f"{number} {os.environ.get('KIND', 'ours')}")
    time.sleep(0.01)
    return number


@shared_task(name="compat.hold")
def hold(folder, number):
    note(folder, "held", str(number))
    while not (Path(folder) / "go").exists():
        time.sleep(0.02)
    return number
