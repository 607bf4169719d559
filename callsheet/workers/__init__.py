"""Callsheet's workers."""
