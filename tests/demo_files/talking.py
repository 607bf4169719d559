"""An agent that prints."""

from tests.agents.work import Printer

agent = Printer("p", 2, pause=0.05)
