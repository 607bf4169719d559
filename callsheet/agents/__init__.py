"""Agents: their base class, hooks, and how one call of one runs."""

from callsheet.agents.base import AgentBase, BoundCall
from callsheet.agents.options import CallOptions
from callsheet.agents.react import ReActAgent

__all__ = ["AgentBase", "BoundCall", "CallOptions", "ReActAgent"]
