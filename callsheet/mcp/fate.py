"""What became of a session."""

import asyncio


class Fate:
    """Why a session ended.

    Attributes:
        ended: set when it has, or is to.
        reason: why, in words; "" while it goes on.
        silent: whether its stream was given up, since nothing came for too long.
        last_words: the last line that a program wrote to its standard error.
    """

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.reason = ""
        self.silent = False
        self.last_words = ""

    def tell(self, reason: str) -> None:
        """It has ended, or is to; the first reason counts."""
        self.reason = self.reason or reason
        self.ended.set()

    def __str__(self) -> str:
        reason = self.reason or "it closed the connection"
        return f"{reason}; its last words: {self.last_words}" if self.last_words else reason
