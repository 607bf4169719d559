"""Answers that grow piece by piece, at a cost that does not grow with what is there already."""

_SMALL = 16 * 1024  # characters up to which each piece is shown
_STEP = 64  # beyond, an answer is shown anew when it has grown by this part


class Text:
    """A text that grows.

    Attributes:
        size: its characters.
    """

    __slots__ = ("_half", "_parts", "size")

    def __init__(self, text: str = "") -> None:
        self._parts = [""]
        self._half = ""  # of a character, whose other half may follow
        self.size = 0
        self.add(text)

    def add(self, piece: str) -> None:
        """One more piece. Half a character waits for its other half; one that stays alone becomes U+FFFD."""
        if self._half or not piece.isascii():
            piece = self._half + piece
            self._half = piece[-1] if "\ud800" <= piece[-1:] <= "\udbff" else ""
            piece = piece[:len(piece) - len(self._half)].encode("utf-16-le", "surrogatepass").decode(
                "utf-16-le", "replace")
        if piece:
            self._parts.append(piece)
            self.size += len(piece)

    def ends(self, mark: str) -> bool:
        """Whether its last piece ends with `mark`, but for blanks."""
        return self._parts[-1].rstrip().endswith(mark)

    def __bool__(self) -> bool:
        return self.size > 0

    def __str__(self) -> str:
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0]


class Pace:
    """When to show what has grown: each time while it is short, then so seldom that all in all it costs little."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0

    def due(self, size: int) -> bool:
        """Whether to show what has this size now."""
        if size > _SMALL and size < self._next:
            return False
        self._next = size + size // _STEP
        return True
