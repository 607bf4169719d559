"""What a batch works on: text files, folders of them, and JSONL, as messages."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from callsheet.errors import MessageError
from callsheet.messages import Msg

_JSONL = (".jsonl", ".ndjson")
_LOOK = 8192  # bytes of a file that tell whether it is text


@dataclass(frozen=True)
class Input:
    """One input."""

    id: str  # stable for the same content from the same file, wherever in the file it stands
    source: str  # file, or file:line
    msg: Msg  # what the agent gets


@dataclass(frozen=True)
class Malformed:
    """A line or file that is no input."""

    source: str  # file, or file:line
    why: str  # in words


@dataclass
class Inputs:
    """The inputs of a batch; to be iterated as often as needed, read anew each time, one at a time in memory."""

    paths: Sequence[Path]  # files and folders, as the user gave them
    text_field: str = "text"  # the field of a JSON object that holds the text
    exclude: frozenset[Path] = frozenset()  # files that are none, wherever they lie: what the batch itself writes
    limit: int | None = None  # inputs at most
    skipped: Counter[str] = field(default_factory=Counter)
    """How many files of folders were left out, by why; of the last iteration."""

    def __iter__(self) -> Iterator[Input | Malformed]:
        self.skipped.clear()
        seen: Counter[str] = Counter()
        count = 0
        for source, content, msg in self._read():
            if self.limit is not None and count >= self.limit:
                return
            if isinstance(msg, str):
                yield Malformed(source, msg)
                continue
            # The same content again in one file is an input of its own.
            file = source.rpartition(":")[0] if content is not None else source
            text = f"{file}\0{content if content is not None else msg.content}"
            digest = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
            seen[digest] += 1
            number = seen[digest]
            count += 1
            yield Input(digest[:24] + (f"-{number}" if number > 1 else ""), source, msg)

    def _read(self) -> Iterator[tuple[str, str | None, Msg | str]]:
        """(source, canonical content of a JSON line, the message or what is wrong)."""
        for path, chosen in self._files():
            if path.suffix.lower() in _JSONL:
                yield from self._lines(path)
                continue
            try:
                text = path.read_bytes().decode("utf-8-sig")
                msg: Msg | str = Msg("user", text, "user", metadata={"path": str(path)})
            except (OSError, UnicodeDecodeError, MessageError) as exc:
                msg = _unreadable(exc)
            else:
                if "\0" in text and chosen:
                    msg = "it is no text: it has zero bytes in it"
            yield str(path), None, msg

    def _files(self) -> Iterator[tuple[Path, bool]]:
        """Files, and whether the user named them; those of folders sorted, hidden and binary ones left out."""
        given: set[Path] = set()
        for path in self.paths:
            for file in self._under(path) if path.is_dir() else [path]:
                real = file.resolve()
                if real in given:
                    self.skipped["given twice"] += 1
                elif real not in self.exclude:
                    given.add(real)
                    yield file, file == path

    def _under(self, folder: Path) -> Iterator[Path]:
        for top, names, files in os.walk(folder):
            self.skipped["hidden files"] += sum(name.startswith(".") for name in files)
            hidden = [name for name in names if name.startswith(".")]
            self.skipped["hidden folders"] += len(hidden)
            names[:] = sorted(set(names) - set(hidden))
            for name in sorted(files):
                file = Path(top, name)
                if name.startswith("."):
                    continue
                if file.is_file() and _is_text(file):
                    yield file
                else:
                    self.skipped["not text"] += 1

    def _lines(self, path: Path) -> Iterator[tuple[str, str | None, Msg | str]]:
        try:
            file = path.open("rb")
        except OSError as exc:
            yield str(path), None, _unreadable(exc)
            return
        with file:
            for number, line in enumerate(file, 1):
                source = f"{path}:{number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                    if not text:
                        continue
                    data = json.loads(text)
                    yield source, json.dumps(data, sort_keys=True), self._message(data)
                except json.JSONDecodeError as exc:
                    yield source, None, f"it is not JSON: {exc.msg} at column {exc.colno}"
                except (UnicodeDecodeError, RecursionError) as exc:
                    yield source, None, _unreadable(exc)
                except MessageError as exc:
                    yield source, None, " ".join(str(exc).split())

    def _message(self, data: Any) -> Msg:
        """A JSON line as a message.

        Raises:
            MessageError: it is none.
        """
        if isinstance(data, str):
            return Msg("user", data, "user")
        if not isinstance(data, dict):
            raise MessageError(f"it is a JSON {_kind(data)}: a text or an object is needed")
        fields = dict(data)
        if self.text_field in fields:
            content = fields.pop(self.text_field)
            if not isinstance(content, str):
                raise MessageError(f"its {self.text_field!r} is a JSON {_kind(content)}: a text is needed")
            metadata = fields.pop("metadata", None) or {}
            name, role = fields.pop("name", "user"), fields.pop("role", "user")
            if not isinstance(metadata, dict):
                raise MessageError(f"its 'metadata' is a JSON {_kind(metadata)}: an object is needed")
            return Msg(name, content, role, metadata={**fields, **metadata})
        if "content" in fields:
            return Msg.from_dict({"name": "user", "role": "user", **fields})
        has = ", ".join(fields) or "nothing"
        raise MessageError(f"it has neither {self.text_field!r} nor 'content' (it has {has}); "
                           "--text-field says which field holds the text")


def _is_text(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(_LOOK)
    except OSError:
        return True  # reading it will say why not
    if b"\0" in start:
        return False
    try:
        start.decode()
    except UnicodeDecodeError as exc:
        return len(start) == _LOOK and exc.start > _LOOK - 4  # a character cut by the end of the look
    return True


def _unreadable(exc: Exception) -> str:
    if isinstance(exc, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte {exc.start})"
    if isinstance(exc, RecursionError):
        return "it is nested too deeply"
    return f"it cannot be read: {exc.strerror or exc}" if isinstance(exc, OSError) else str(exc)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names: dict[type, str] = {bool: "boolean", int: "number", float: "number", str: "string", list: "array",
                              dict: "object"}
    return names.get(type(value), type(value).__name__)
