"""An agent that calls a model."""

from tests.agents.spenders import Spends

agent = Spends("spender", 2)
