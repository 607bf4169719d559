"""What tests of agents need: a model that follows a script, and a model server that behaves as badly as told."""

from callsheet.models.stub import Received, Reply, StubModelServer
from callsheet.testing.scripted import ModelCall, ScriptedModel, ScriptEnded, tool_call

__all__ = ["ModelCall", "Received", "Reply", "ScriptEnded", "ScriptedModel", "StubModelServer", "tool_call"]
