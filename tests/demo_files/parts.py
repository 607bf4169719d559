"""A pipeline beside the agents that it is made of, one of them from another module."""

from callsheet import SequentialPipeline
from tests.agents.basic import Compute, Echo

hello = Echo("hello")
words = Compute("words")
whole = SequentialPipeline([hello, words])
