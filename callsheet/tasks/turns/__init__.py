"""Turns of agents with state: one reply at a time for each agent id, which finds what the replies before it left."""
