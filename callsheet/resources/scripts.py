"""Lua scripts, and how they are run."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redis.exceptions import NoScriptError

Key = str | bytes


class Script:
    """One script, known to the server by its hash once it has run there.

    Args:
        source: its file, or its text.
        library: a file whose functions it uses.
    """

    def __init__(self, source: Path | str, library: Path | None = None) -> None:
        used = library.read_text(encoding="utf-8") if library is not None else ""
        self.text = used + (source if isinstance(source, str) else source.read_text(encoding="utf-8"))
        self.sha = hashlib.sha1(self.text.encode()).hexdigest()  # noqa: S324 - Redis names scripts so

    def command(self, keys: Sequence[Key], args: Sequence[Any], by_text: bool = False) -> tuple[Any, ...]:
        """The command that runs it: by its hash, or by its text, which the server then remembers."""
        return ("EVAL" if by_text else "EVALSHA", self.text if by_text else self.sha, len(keys), *keys, *args)

    def run(self, client: Any, keys: Sequence[Key], args: Sequence[Any]) -> Any:
        """Run it and wait for the answer."""
        try:
            return client.execute_command(*self.command(keys, args))
        except NoScriptError:
            return client.execute_command(*self.command(keys, args, by_text=True))

    async def arun(self, client: Any, keys: Sequence[Key], args: Sequence[Any]) -> Any:
        """As `run`, with an async client."""
        try:
            return await client.execute_command(*self.command(keys, args))
        except NoScriptError:
            return await client.execute_command(*self.command(keys, args, by_text=True))
