"""Outbound calls: pooled HTTP clients and the transports under them, one an endpoint."""

from callsheet.resources.client import aclose_all, client
from callsheet.resources.endpoints import find_endpoint
from callsheet.resources.stack import transport

__all__ = ["aclose_all", "client", "find_endpoint", "transport"]
