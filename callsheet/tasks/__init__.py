"""Callsheet's tasks."""
