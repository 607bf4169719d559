"""What tests of agents need: a model that follows a script, and a model server that behaves as badly as told."""

from callsheet.models.stub import Received, Reply, StubModelServer
from callsheet.testing.scripted import ScriptedModel, tool_call
from callsheet.testing.scripts import ModelCall, ScriptEnded

__all__ = ["ModelCall", "Received", "Reply", "ScriptEnded", "ScriptedModel", "StubModelServer", "tool_call"]
