"""Outbound calls: pooled HTTP clients, one an endpoint."""

from callsheet.resources.client import aclose_all, client
from callsheet.resources.endpoints import find_endpoint

__all__ = ["aclose_all", "client", "find_endpoint"]
