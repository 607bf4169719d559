"""One Settings object, and what is made from it."""

from callsheet.settings.endpoints import Endpoint
from callsheet.settings.model import Settings, get_settings, use_settings

__all__ = ["Endpoint", "Settings", "get_settings", "use_settings"]
