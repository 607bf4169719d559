"""What an agent remembers."""

from callsheet.memory.base import MemoryBase
from callsheet.memory.inmemory import InMemoryMemory

__all__ = ["InMemoryMemory", "MemoryBase"]
