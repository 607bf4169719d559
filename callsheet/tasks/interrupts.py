"""Interrupting replies that run on workers: how a caller asks, and which replies of this process can be interrupted."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from celery import Celery

from callsheet.agents import AgentBase
from callsheet.errors import UsageError
from callsheet.messages import Msg
from callsheet.messages.wire import Writer
from callsheet.settings import Settings
from callsheet.tasks.asking import ask

COMMAND = "interrupt_calls"  # workers answer {"interrupted": ids, "refused": ids}
_PATIENCE = 1.0  # seconds without another worker's answer

Said = Msg | list[Msg] | None


def ask_workers(app: Celery, calls: Sequence[str], msg: Said, label: str, settings: Settings) -> bool:
    """Have the workers interrupt those of the calls that run; whether any did.

    Raises:
        UsageError: one of them runs as plain code, and none could be interrupted.
    """
    data = None if msg is None else Writer().write(msg, "the message of an interrupt")
    answers = ask(app, settings, COMMAND, _PATIENCE, calls=list(calls), msg=data).values()
    told = [answer for answer in answers if isinstance(answer, dict)]
    interrupted = any(answer.get("interrupted") for answer in told)
    if not interrupted and any(answer.get("refused") for answer in told):
        raise UsageError(plain_code(label))
    return interrupted


def plain_code(label: str) -> str:
    """Why a reply is not interrupted."""
    return (f"{label} runs as plain code, or in a process of a cpu worker, and cannot be interrupted: only an async "
            "reply on an io worker can. Use cancel(), which ends the process, or write `async def reply`.")


class Running:
    """A call that runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, agent: AgentBase | None = None) -> None:
        self._loop = loop
        self._agent = agent
        self._pending: list[Said] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def interrupt(self, said: Said) -> bool:
        """Interrupt it; False for plain code. Any thread."""
        if self._agent is not None and not self._agent.is_async():
            return False
        self._loop.call_soon_threadsafe(self._deliver, said)
        return True

    def begin(self, agent: AgentBase) -> None:
        """The agent's reply begins now."""
        self._agent = agent
        for said in self._pending:
            self._deliver(said)

    def _deliver(self, said: Said) -> None:
        if self._agent is None:
            self._pending.append(said)
        else:
            task = self._loop.create_task(self._agent.interrupt(said))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


_running: dict[str, Running] = {}


def running(call_id: str) -> Running | None:
    """The call of this id, if it runs on a loop of this process."""
    return _running.get(call_id)


@contextmanager
def interruptible(call_id: str) -> Iterator[Running]:
    """A call runs in the block, on the running loop."""
    _running[call_id] = entry = Running(asyncio.get_running_loop())
    try:
        yield entry
    finally:
        if _running.get(call_id) is entry:
            del _running[call_id]
