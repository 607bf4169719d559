"""Callsheet's cli."""
