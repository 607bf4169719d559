"""Agents for the tests; workers import this package."""
