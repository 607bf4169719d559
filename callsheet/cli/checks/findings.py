"""What a check found."""

from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's."""

    level: Level  # "ok"; "warn": it works, and may not for long; "fail": it does not work; "skip": it was not looked at
    subject: str  # what it is about, in a word or two
    text: str  # what was found
    remedy: str = ""  # what to do, where it is not "ok"

    def to_dict(self) -> dict[str, str]:
        """As JSON data."""
        return asdict(self)


def ok(subject: str, text: str) -> Finding:
    """It is right."""
    return Finding("ok", subject, text)


def warn(subject: str, text: str, remedy: str) -> Finding:
    """It works, and may not for long."""
    return Finding("warn", subject, text, remedy)


def fail(subject: str, text: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding("fail", subject, text, remedy)


def skip(subject: str, text: str) -> Finding:
    """It was not looked at."""
    return Finding("skip", subject, text)
