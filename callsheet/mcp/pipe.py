"""A server that is a program of ours: messages as lines over its standard input and output.

Not the SDK's own `stdio_client`, which gathers a line of any length.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from callsheet.errors import McpUnavailable
from callsheet.mcp.bounds import Lines
from callsheet.mcp.lifecycle import Fate
from callsheet.mcp.specs import StdioSpec
from callsheet.settings import Settings
from callsheet.settings.secrets import scrubbed, told

logger = logging.getLogger(__name__)
_GRACE = 2.0  # seconds after its input is closed, and after each signal
_PIECE = 64 * 1024
_LONGEST_LOGGED = 500  # characters of a line

Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]


@contextlib.asynccontextmanager
async def piped(spec: StdioSpec, settings: Settings, fate: Fate) -> AsyncIterator[Streams]:
    """Start the server, and end it with all that it has started.

    Args:
        spec: which one.
        settings: of the process.
        fate: is told how it ended.

    Raises:
        McpUnavailable: it cannot be started.
        SettingsError: the settings do not say what to start.
    """
    process = await _start(spec, settings)
    to_us, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write, to_server = anyio.create_memory_object_stream[SessionMessage](0)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_read, process, spec, settings.mcp.answer_max, to_us, fate)
            group.start_soon(_write, process, spec, to_server)
            group.start_soon(_read_errors, process, spec.name, fate)
            try:
                yield read, write
            finally:
                read.close()
                write.close()
                with anyio.CancelScope(shield=True):
                    await _stop(process)
                group.cancel_scope.cancel()
    finally:
        _kill(process, signal.SIGKILL)  # whatever broke off the above
        for stream in (to_us, read, write, to_server):
            stream.close()


async def _start(spec: StdioSpec, settings: Settings) -> asyncio.subprocess.Process:
    program = spec.program(settings)
    try:
        return await asyncio.create_subprocess_exec(
            program.command, *program.args, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, env=get_default_environment() | program.environment(),
            cwd=program.cwd, start_new_session=True)
    except (OSError, ValueError) as exc:
        raise McpUnavailable(f"{spec.shown} cannot be started: {exc}. Is it installed here, and its folder on PATH? "
                             f"PATH is {get_default_environment().get('PATH', '')}.") from exc


async def _read(process: asyncio.subprocess.Process, spec: StdioSpec, limit: int,
                to_us: MemoryObjectSendStream[SessionMessage | Exception], fate: Fate) -> None:
    assert process.stdout is not None
    lines = Lines(limit)
    async with to_us:
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionError):
            while piece := await process.stdout.read(_PIECE):
                for line in lines.feed(piece):
                    message = _message(line, spec)
                    if message is not None:
                        await to_us.send(message)
        ended = await _has_ended(process, _GRACE)
        fate.tell(f"it ended with exit code {process.returncode}" if ended else "it closed its output")


def _message(line: bytes, spec: StdioSpec) -> SessionMessage | None:
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line.decode(spec.encoding, spec.errors),
                                                                    by_name=False))
    except ValueError:  # a server that prints its log there, for example
        if line.strip():
            said = scrubbed(line.decode("utf-8", "replace"), _LONGEST_LOGGED)
            logger.warning("mcp_not_a_message server=%s line=%r", spec.name, said)
        return None


async def _write(process: asyncio.subprocess.Process, spec: StdioSpec,
                 to_server: MemoryObjectReceiveStream[SessionMessage]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError, RuntimeError):  # it is gone: the reader notices
        async with to_server:
            async for sent in to_server:
                text = sent.message.model_dump_json(by_alias=True, exclude_unset=True)
                process.stdin.write(f"{text}\n".encode(spec.encoding, spec.errors))
                await process.stdin.drain()


async def _read_errors(process: asyncio.subprocess.Process, name: str, fate: Fate) -> None:
    assert process.stderr is not None
    lines = Lines(_PIECE)
    while piece := await process.stderr.read(_PIECE):
        for line in lines.feed(piece):
            text = told(line.decode("utf-8", "replace").strip())[:_LONGEST_LOGGED]
            if text:
                fate.last_words = text
                logger.info("mcp_server_says server=%s %s", name, text)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Close its input, then end its group of processes."""
    assert process.stdin is not None
    process.stdin.close()
    for sig in (None, signal.SIGTERM, signal.SIGKILL):
        if sig is not None:
            _kill(process, sig)
        if await _has_ended(process, _GRACE):
            break
    transport: Any = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()


async def _has_ended(process: asyncio.subprocess.Process, within: float) -> bool:
    """Whether it ends in so many seconds. Not `wait()`, which also waits for who else has its pipes."""
    end = asyncio.get_running_loop().time() + within
    while process.returncode is None and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)
    return process.returncode is not None


def _kill(process: asyncio.subprocess.Process, sig: signal.Signals) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sig)
