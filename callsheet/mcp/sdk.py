"""The modules here that need the MCP SDK, loaded when a client first connects."""

import importlib
from typing import Any

from callsheet.errors import UsageError


def sdk_module(name: str) -> Any:
    """A module of this package that imports the SDK.

    Args:
        name: of the module, e.g. "session".

    Raises:
        UsageError: the SDK is not installed; names the extra.
    """
    try:
        return importlib.import_module(f"callsheet.mcp.{name}")
    except ImportError as exc:
        raise UsageError(f"MCP clients need the MCP SDK, which cannot be imported here ({exc}). Install it where they "
                         "connect, in programs and on workers: pip install 'callsheet[mcp]'.") from exc
