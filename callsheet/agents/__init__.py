"""Agents: their base class, hooks, and how one call of one runs."""

from callsheet.agents.asking import UserInputBase, UserInputData
from callsheet.agents.base import AgentBase, BoundCall
from callsheet.agents.options import CallOptions
from callsheet.agents.react import ReActAgent
from callsheet.agents.terminal import TerminalUserInput
from callsheet.agents.user import UserAgent

__all__ = ["AgentBase", "BoundCall", "CallOptions", "ReActAgent", "TerminalUserInput", "UserAgent", "UserInputBase",
           "UserInputData"]
