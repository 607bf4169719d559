"""What the settings say of MCP: programs that workers may start as servers, and bounds of all clients."""

import os
import re
from pathlib import Path

from pydantic import Field

from callsheet.settings.endpoints import Names, Part, fitting

SECRET_NAME = re.compile(r"(?i)key|token|secret|passw|credential|auth|cookie|session")
"""What the name of a header or a variable with a secret in it looks like."""


class McpServer(Part):
    """A program that is an MCP server and speaks over its standard input and output."""

    command: str = Field(min_length=1)  # the program
    args: tuple[str, ...] = ()  # its arguments
    env: dict[str, str] = Field(default_factory=dict)  # beside a few of the worker's own, PATH and HOME among them
    env_from: Names = ()  # more of the worker's own: for keys
    cwd: Path | None = None  # the folder that it runs in; the worker's without

    def environment(self) -> dict[str, str]:
        """The variables that it gets, as they are now."""
        return {**{name: os.environ[name] for name in self.env_from if name in os.environ}, **self.env}

    def secrets(self) -> list[str]:
        """Values of these that are not to be shown."""
        return [value for name, value in self.environment().items()
                if name in self.env_from or SECRET_NAME.search(name)]


class McpSettings(Part):
    """Bounds of MCP clients."""

    servers: dict[str, McpServer] = Field(default_factory=dict)  # by a client's name, or a pattern
    connect_timeout: float = Field(30.0, gt=0)  # seconds in which a server has to be there and greet
    call_timeout: float = Field(300.0, gt=0)  # seconds for a call of a tool that has no `execution_timeout`
    ping: float = Field(30.0, ge=0)  # seconds between two looks whether a connected server still answers; 0: never
    pong: float = Field(10.0, gt=0)  # seconds for the answer to that, else the session is closed
    idle: float = Field(600.0, ge=0)  # seconds without a call after which a worker closes a session; 0: never
    answer_max: int = Field(8 * 1024 * 1024, ge=1024)  # bytes of one message of a server
    text_max: int = Field(100_000, ge=100)  # characters of text that a model gets of one call

    def server(self, name: str) -> McpServer | None:
        """The program for a client of that name: by the name itself, or by the longest pattern that fits."""
        return fitting(self.servers, name)
