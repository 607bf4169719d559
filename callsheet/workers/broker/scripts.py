"""The Lua scripts, and how they are run."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redis.exceptions import NoScriptError

_HERE = Path(__file__).parent


class Script:
    """One script, known to the server by its hash once it has run there.

    Args:
        name: of its file, without `.lua`.
    """

    def __init__(self, name: str) -> None:
        self.text = (_HERE / f"{name}.lua").read_text(encoding="utf-8")
        self.sha = hashlib.sha1(self.text.encode()).hexdigest()  # noqa: S324 - Redis names scripts so

    def command(self, keys: Sequence[str], args: Sequence[Any], by_text: bool = False) -> tuple[Any, ...]:
        """The command that runs it: by its hash, or by its text, which the server then remembers."""
        return ("EVAL" if by_text else "EVALSHA", self.text if by_text else self.sha, len(keys), *keys, *args)

    def run(self, client: Any, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run it and wait for the answer."""
        try:
            return client.execute_command(*self.command(keys, args))
        except NoScriptError:
            return client.execute_command(*self.command(keys, args, by_text=True))


CLAIM = Script("claim")
RENEW = Script("renew")
EXPIRED = Script("expired")
GIVE_BACK = Script("giveback")
