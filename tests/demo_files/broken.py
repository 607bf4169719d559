"""Raises when it is imported."""

from pathlib import Path

KEY = Path("/nowhere/at/all").read_text()
