"""A class, but no agent."""

from tests.agents.basic import Echo

Maker = Echo
