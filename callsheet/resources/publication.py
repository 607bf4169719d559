"""The id of one message, which whoever sends it again gives it again: the broker takes it once."""

import os


class MessageId(str):
    """A delivery tag that was made for a message before it was first sent."""

    __slots__ = ()

    @classmethod
    def new(cls) -> "MessageId":
        """One that no other message has."""
        return cls(os.urandom(16).hex())

    @property
    def number(self) -> int:
        """Its random part, in 63 bits."""
        return int(self[:16], 16) >> 1
