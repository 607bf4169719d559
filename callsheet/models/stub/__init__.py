"""A chat model server that needs no model: it works on the text by extraction. For tests and trials."""

from callsheet.models.stub.app import StubModelServer
from callsheet.models.stub.planned import Received, Reply

__all__ = ["Received", "Reply", "StubModelServer"]
