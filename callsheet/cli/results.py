"""The results of a batch as a JSONL file: appended as they come, in the inputs' order in the end."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click


@dataclass(frozen=True)
class Place:
    """Where an input's latest line stands."""

    ok: bool  # whether it is a result rather than a failure
    offset: int  # of its first byte
    size: int  # in bytes


class Results:
    """A results file, open for appending.

    Args:
        path: of the file; made if it is not there.
        fresh: forget what is in it, once the run begins.

    Attributes:
        places: the latest line of each input, by its id.

    Raises:
        click.ClickException: it holds something else, or cannot be written.
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.path = path
        self.places: dict[str, Place] = {}
        self._superseded = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("r+b" if path.exists() else "w+b")
        except OSError as exc:
            raise click.ClickException(f"{path} cannot be written: {exc.strerror}. Give another --output.") from None
        self._fresh = fresh
        if not fresh:
            self._read()

    def begin(self) -> None:
        """The run begins; what a fresh one forgets is forgotten now."""
        if self._fresh:
            self._file.truncate(0)
            self._fresh = False

    def _read(self) -> None:
        end = 0
        for number, line in enumerate(self._file, 1):
            place = self._parsed(line, number, end)
            if place is None:
                break
            end += len(line)
        self._file.seek(end)
        self._file.truncate()  # half a line, written when the run before was killed

    def _parsed(self, line: bytes, number: int, offset: int) -> Place | None:
        """A line's place; None for the last if it was not written to its end."""
        if not line.endswith(b"\n"):
            return None
        try:
            data = json.loads(line)
            input_id, ok = data["input_id"], data["status"] == "ok"
        except (ValueError, KeyError, TypeError):
            raise click.ClickException(f"{self.path}:{number} is not a result of `callsheet run`. Give another "
                                       "--output, or --no-resume to replace the file.") from None
        self._superseded |= input_id in self.places
        place = self.places[input_id] = Place(ok, offset, len(line))
        return place

    def is_done(self, input_id: str) -> bool:
        """Whether there is a result of this input that is no failure."""
        place = self.places.get(input_id)
        return place is not None and place.ok

    def write(self, record: dict[str, Any]) -> None:
        """Append a line, to survive a kill from now on."""
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(line)
        self._file.flush()
        self._superseded |= record["input_id"] in self.places
        self.places[record["input_id"]] = Place(record["status"] == "ok", offset, len(line))

    def put_in_order(self, ids: Iterable[str]) -> None:
        """Leave one line an input, in the order of `ids`; lines of other inputs stand behind them.

        The file is replaced in one step, if it has to change at all.
        """
        first = [input_id for input_id in ids if input_id in self.places]
        known = set(first)
        order = first + [input_id for input_id in self.places if input_id not in known]
        offsets = [self.places[input_id].offset for input_id in order]
        if not self._superseded and offsets == sorted(offsets):
            return
        draft = self.path.with_name(self.path.name + ".tmp")
        with draft.open("wb") as out:
            for input_id in order:
                self._file.seek(self.places[input_id].offset)
                out.write(self._file.read(self.places[input_id].size))
            out.flush()
            os.fsync(out.fileno())
        draft.replace(self.path)
        self.close()
        self._file = self.path.open("r+b")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
