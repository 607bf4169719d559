"""A panel of agents that reviews a folder of documents."""
