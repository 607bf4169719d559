"""What a check found."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

Level = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's."""

    level: Level  # "ok"; "warn": it works, and may not for long; "fail": it does not work; "skip": it was not looked at
    subject: str  # what it is about, in a word or two
    text: str  # what was found
    remedy: str = ""  # what to do, where it is not "ok"


ok = partial(Finding, "ok")
warn = partial(Finding, "warn")
fail = partial(Finding, "fail")
skip = partial(Finding, "skip")
