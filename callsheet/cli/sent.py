"""Which job each input of a batch was sent as: what an interrupted run leaves for the next to pick up.

Beside the results file, as `<output>.state`: a line that says what the batch is, then a line for each job, written
before the job is sent.
"""

import fcntl
import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import click


class Sent:
    """The record, kept by one process at a time.

    Args:
        path: of the file.
        target: what runs, e.g. "review.py:pipeline".
        fresh: forget what is in it, once the run begins.

    Attributes:
        jobs: job ids by input id.

    Raises:
        click.ClickException: another run writes it, or it is about another target.
    """

    def __init__(self, path: Path, target: str, fresh: bool = False) -> None:
        self.path = path
        self.jobs: dict[str, str] = {}
        self._target = target
        self._file: IO[bytes] = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise click.ClickException(f"Another `callsheet run` writes {path.with_suffix('')} now. Wait for it, or "
                                       "give another --output.") from None
        lines = [] if fresh else self._read()
        before = lines[0]["target"] if lines else target
        if before != target:
            self.close()
            raise click.ClickException(f"{path.with_suffix('')} holds results of {before}, not of {target}. Give "
                                       "another --output, or --no-resume to replace them.")
        self._begun = bool(lines)
        self.jobs = {line["input_id"]: line["job_id"] for line in lines[1:]}

    def _read(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        lines, end = [], 0
        for line in self._file:
            try:
                lines.append(json.loads(line))
            except ValueError:  # half a line, written when the run before was killed
                break
            end += len(line)
        self._file.truncate(end)
        return lines

    def begin(self) -> None:
        """The run begins; what a fresh one forgets is forgotten now."""
        if not self._begun:
            self.finish()

    def finish(self) -> None:
        """Forget the jobs: all have ended, and their results are written."""
        self._begun = True
        self.jobs.clear()
        self._file.truncate(0)
        self._append([{"target": self._target}])

    def add(self, jobs: Iterable[tuple[str, str]]) -> None:
        """Note pairs of input id and job id, before the jobs are sent."""
        self.jobs.update(pairs := dict(jobs))
        self._append([{"input_id": input_id, "job_id": job_id} for input_id, job_id in pairs.items()])

    def _append(self, lines: list[dict[str, Any]]) -> None:
        self._file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        self._file.flush()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
