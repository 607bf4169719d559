"""Two agents, neither of them part of the other."""

from tests.agents.basic import Echo

one = Echo("one")
two = Echo("two")
