"""A chat completions server that needs no model: it works on the text by extraction. For tests and trials."""

from callsheet.models.stub.server import StubModelServer

__all__ = ["StubModelServer"]
