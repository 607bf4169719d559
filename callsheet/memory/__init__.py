"""What an agent remembers."""

from callsheet.memory.base import MemoryBase
from callsheet.memory.compaction import KeepLast, Summarize
from callsheet.memory.inmemory import InMemoryMemory
from callsheet.memory.redis import RedisMemory

__all__ = ["InMemoryMemory", "KeepLast", "MemoryBase", "RedisMemory", "Summarize"]
