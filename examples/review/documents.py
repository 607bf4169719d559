"""Finds and reads the documents of a folder."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypedDict

from examples.review.extract import KINDS, decode, is_binary, readable
from examples.review.structure import headings
from examples.review.text import excerpt, tokens

MAX_BYTES = 1_000_000

_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "venv", "env", "site-packages", "build", "dist"})


@dataclass(frozen=True)
class Document:
    """A document to review.

    `path` is relative to the folder, with forward slashes; `text` is its readable text, with the line numbers of
    the file (but for HTML); `words` is how many words that is.
    """

    path: str
    title: str
    text: str
    words: int


class Notice(TypedDict):
    """Something a reader of the report should know of a file. `name` is one of:

    oversized (only its beginning was read), undecodable (some bytes were replaced), binary, symlink, unreadable,
    empty (these four were skipped).
    """

    path: str
    name: str
    detail: str


@dataclass(frozen=True)
class Library:
    """The documents of a folder, in order of path, all file paths in it (for links to them), and the notices."""

    folder: str
    documents: tuple[Document, ...]
    files: tuple[str, ...]
    notices: tuple[Notice, ...]

    def texts(self) -> dict[str, str]:
        """Path to text, as the comparing analyses take it."""
        return {document.path: document.text for document in self.documents}


def read_folder(folder: str | Path, *, only: Sequence[str] = (), max_bytes: int = MAX_BYTES) -> Library:
    """Read every document under `folder` whose path matches a pattern of `only` (all, if none are given).

    A pattern is as in a shell, and its `*` also matches slashes: ("README.md", "docs/*"). Hidden folders, virtual
    environments and build output are passed over; of a file over `max_bytes` bytes only the beginning is read.
    Raises ValueError where there is no such folder or nothing to read in it.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise ValueError(f"{root} {what}. Name a folder of documents: {kinds_read()}.")
    documents: list[Document] = []
    notices: list[Notice] = []
    files = find_files(root)
    for path in files:
        if Path(path).suffix.lower() in KINDS and (not only or any(fnmatchcase(path, p) for p in only)):
            document, noticed = _read(root, path, max_bytes)
            documents += [document] if document else []
            notices += noticed
        elif not only and (detail := _binary(root / path)):
            notices.append(Notice(path=_shown(path), name="binary", detail=detail))
    if not documents:
        matching = f" matching {', '.join(only)}" if only else ""
        passed = "".join(f"\n  {n['path']}: {n['name']}, {n['detail']}" for n in notices[:10])
        raise ValueError(f"No documents{matching} in {root}. What is read: {kinds_read()}.{passed}")
    return Library(str(root), tuple(documents), tuple(map(_shown, files)), tuple(notices))


def find_files(root: Path) -> list[str]:
    """The paths of all files under `root`, relative and sorted; hidden ones and generated folders left out."""
    found = []
    for place, folders, names in os.walk(root):  # does not follow symlinks, so it cannot go round in circles
        folders[:] = sorted(name for name in folders if _is_wanted(Path(place, name)))
        relative = Path(place).relative_to(root)
        found += [(relative / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(found)


def kinds_read() -> str:
    """The file kinds that are read, for messages: ".md and .markdown (Markdown), ..."."""
    by_kind: dict[str, list[str]] = {}
    for suffix, kind in KINDS.items():
        by_kind.setdefault(kind, []).append(suffix)
    return ", ".join(f"{' and '.join(suffixes)} ({kind})" for kind, suffixes in by_kind.items())


def _is_wanted(folder: Path) -> bool:
    name = folder.name
    if name.startswith(".") or name in _SKIPPED_FOLDERS or name.endswith(".egg-info"):
        return False
    return not (folder / "pyvenv.cfg").exists()  # a virtual environment under any name


def _read(root: Path, path: str, max_bytes: int) -> tuple[Document | None, list[Notice]]:
    notices: list[Notice] = []

    def notice(name: str, detail: str) -> None:
        notices.append(Notice(path=_shown(path), name=name, detail=detail))

    try:
        status = (root / path).lstat()
        if not stat.S_ISREG(status.st_mode):
            # A link may lead out of the folder or to a document read anyway; a pipe would never end.
            notice("symlink" if stat.S_ISLNK(status.st_mode) else "unreadable", "not a regular file")
            return None, notices
        with (root / path).open("rb") as file:
            raw = file.read(max_bytes)
    except OSError as error:
        notice("unreadable", error.strerror or type(error).__name__)
        return None, notices
    if is_binary(raw):
        notice("binary", f"{status.st_size:,} bytes that are no text")
        return None, notices
    if status.st_size > max_bytes:
        notice("oversized", f"read the first {max_bytes:,} of {status.st_size:,} bytes")
        raw = raw[: raw.rfind(b"\n") + 1] or raw
    source, damaged = decode(raw)
    if damaged:
        notice("undecodable", "bytes that are not valid text were replaced")
    document = _document(_shown(path), source)
    if document.words == 0:
        notice("empty", "no words to read")
        return None, notices
    return document, notices


def _document(path: str, source: str) -> Document:
    suffix = Path(path).suffix.lower()
    text = readable(suffix, source)
    named = [] if suffix == ".py" else headings(text)
    title = excerpt(named[0]["text"], 120) if named else ""
    return Document(path=path, title=title or path, text=text, words=len(tokens(text)))


def _binary(path: Path) -> str:
    """What to say of a file of another kind if it is binary; nothing if it is text, or cannot be read."""
    try:
        if not path.is_file() or path.is_symlink():
            return ""
        with path.open("rb") as file:
            return f"{path.stat().st_size:,} bytes that are no text" if is_binary(file.read(8192)) else ""
    except OSError:
        return ""


def _shown(path: str) -> str:
    """The path as valid Unicode: a name with bytes of another encoding could be neither printed nor sent."""
    return os.fsencode(path).decode("utf-8", "replace")
