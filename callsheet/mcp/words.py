"""Errors of the SDK, of connections and of programs, in ours."""

from collections.abc import Iterator

import httpx2
from mcp.shared.exceptions import MCPError
from mcp_types import CONNECTION_CLOSED, REQUEST_TIMEOUT
from pydantic import ValidationError

from callsheet.errors import CallsheetError, McpError, McpTimeout, McpUnavailable
from callsheet.mcp.bounds import TOO_LARGE
from callsheet.mcp.specs import HttpSpec, Spec
from callsheet.settings.secrets import scrubbed

_UNKNOWN = "Whether it was carried out is not known. The next call connects anew."
_LONGEST = 1000  # characters of a server's own words


def in_words(exc: BaseException, spec: Spec, fate: str = "") -> CallsheetError:
    """The error for people: what was wrong, which server, the remedy.

    Args:
        exc: what was raised.
        spec: of the server.
        fate: what became of the session, if anything.
    """
    for leaf in _leaves(exc):
        if isinstance(leaf, CallsheetError):
            return leaf
    exc = next(_leaves(exc), exc)
    if isinstance(exc, MCPError):
        return _answered(exc, spec, fate)
    if isinstance(exc, ValidationError):
        return McpError(f"{spec.shown} answered what is not MCP: {exc.error_count()} problems, the first at "
                        f"{'.'.join(map(str, exc.errors()[0]['loc']))}. Is it of a version that this SDK knows?")
    if isinstance(exc, httpx2.ReadTimeout) and isinstance(spec, HttpSpec):
        return silent(spec)
    if isinstance(exc, (httpx2.TimeoutException, TimeoutError)):
        what = "did not accept a connection" if isinstance(exc, httpx2.ConnectTimeout) else "was silent for too long"
        return McpUnavailable(f"{spec.shown} {what}: {type(exc).__name__}. {_remedy(spec)}")
    if isinstance(exc, (httpx2.RemoteProtocolError, httpx2.ReadError)):
        return McpUnavailable(f"{spec.shown} was lost in the middle of a call: {type(exc).__name__}: {exc}. {_UNKNOWN}")
    if isinstance(exc, (httpx2.TransportError, OSError)):
        return McpUnavailable(f"{spec.shown} cannot be reached: {type(exc).__name__}: {exc}. {_remedy(spec)}")
    if isinstance(exc, httpx2.HTTPStatusError):
        return McpUnavailable(f"{spec.shown} answers with status {exc.response.status_code}. {_remedy(spec)}")
    return McpError(f"{spec.shown}: {type(exc).__name__}: {scrubbed(str(exc), _LONGEST)}")


def silent(spec: HttpSpec) -> McpTimeout:
    """The error of a call to a server from which nothing came for too long."""
    return McpTimeout(f"{spec.shown} was silent for too long: sse_read_timeout is {spec.sse_read_timeout:g} s. Give it "
                      "longer, or see what keeps it. Whether the call was carried out is not known.")


def _answered(exc: MCPError, spec: Spec, fate: str) -> CallsheetError:
    said = scrubbed(exc.message, _LONGEST)
    if exc.code == CONNECTION_CLOSED:
        return McpUnavailable(f"{spec.shown} was lost in the middle of a call: {fate or said}. {_UNKNOWN}")
    if exc.code == REQUEST_TIMEOUT:
        return McpTimeout(f"{spec.shown} did not answer in time: {said}.")
    if exc.code == TOO_LARGE:
        return McpError(f"{spec.shown}: {said}.")
    return McpError(f"{spec.shown} refused: {said} (code {exc.code}).")


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for part in exc.exceptions:
            yield from _leaves(part)
    else:
        yield exc


def _remedy(spec: Spec) -> str:
    if isinstance(spec, HttpSpec):
        return "Start it, or correct its url; see whether the network between lets this host through."
    return "See its log, above."
