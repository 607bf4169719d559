"""A tool's failure as a text for the model, without what only the developer may see."""

from callsheet.errors import CallsheetError
from callsheet.resources.traces import without_trace
from callsheet.settings.secrets import told

LONGEST = 2_000
"""Characters of an error's text that a model gets."""
LONGEST_TRACE = 20_000
"""Characters of a traceback that are logged."""


class OutOfTime(Exception):
    """A call of a tool is over its time; never leaves the tools."""


def failure_text(exc: BaseException) -> str:
    """What the model is told of an error."""
    return f"Error: {failure_words(exc)}"


def failure_words(exc: BaseException) -> str:
    """An error's kind and text, and no traceback; of Callsheet's own errors the text alone."""
    text = safe(without_trace(exc.message if isinstance(exc, CallsheetError) else str(exc)))
    return text if text and isinstance(exc, CallsheetError) else f"{type(exc).__name__}: {text}".removesuffix(": ")


def safe(text: str, longest: int = LONGEST) -> str:
    """A text without the settings' secrets and without credentials in addresses; cut if it is long."""
    text = told(text)
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"
