"""States of agents by id: save, load, fork, export and delete them.

Each function is there twice: `fork(...)` for plain code, `await afork(...)` for async code. Those that write take the
agent's turn: they wait until a reply that runs has ended.
"""

import functools
import json
from builtins import list as _list
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from callsheet.agents import AgentBase
from callsheet.hub.place import refuse_on_loop as _refuse_on_loop
from callsheet.messages import Msg, StateModule
from callsheet.tasks.loop import run_private
from callsheet.tasks.turns import sessions as _work
from callsheet.tasks.turns.records import Described as Session

P = ParamSpec("P")
T = TypeVar("T")

__all__ = [
    "Session", "adelete", "aexport", "afork", "alist", "aload", "amessages", "aput", "asave", "astate", "delete",
    "export", "fork", "list", "load", "load_session_state", "messages", "put", "save", "save_session_state", "state",
]


def _plain(work: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """The function for plain code."""
    name = work.__name__.removeprefix("a")

    @functools.wraps(work)
    def plain(*args: P.args, **kwargs: P.kwargs) -> T:
        _refuse_on_loop(f"sessions.{name}()", f"await sessions.a{name}()")
        return run_private(work(*args, **kwargs))

    plain.__name__ = plain.__qualname__ = name
    return plain


async def asave(agent: AgentBase, session_id: str | None = None) -> None:
    """Write the state of this object, in place of what is there.

    Args:
        agent: an agent in this process.
        session_id: the id to write under; by default the agent's own.

    Raises:
        StateMismatch: there is a state of another class.
        CannotTravel: the state is not JSON data.
        StateBusy: the agent's replies leave no turn for half a minute.
    """
    await _work.save(agent, session_id or agent.id)


async def aload(agent: AgentBase, session_id: str | None = None, allow_not_exist: bool = False) -> bool:
    """Read a state into this object.

    Args:
        agent: an agent in this process.
        session_id: the id to read from; by default the agent's own.
        allow_not_exist: give False, where there is no state, instead of raising.

    Raises:
        StateMissing: there is none.
        StateMismatch: it is of another class, or of a newer version.
    """
    there = await _work.load(agent, session_id or agent.id)
    if not there and not allow_not_exist:
        await _work.existing(session_id or agent.id)
    return there


async def afork(session_id: str, new_id: str, replace: bool = False) -> None:
    """Copy a state to another id: two conversations that go on from the same point.

    Args:
        session_id: the id of the state.
        new_id: the id of the copy.
        replace: whether a state that is there already may go.

    Raises:
        StateMissing: there is no state to copy.
        StateMismatch: there is one under the new id already.
        StateBusy: replies under the new id leave no turn for half a minute.
    """
    await _work.fork(session_id, new_id, replace)


async def aexport(session_id: str) -> str:
    """A state as JSON lines: a head with the registered attributes, then each change of its memories.

    Raises:
        StateMissing: there is none.
    """
    return await _work.export(session_id)


async def aput(text: str, session_id: str | None = None, replace: bool = False) -> str:
    """Write a state that `export` gave.

    Args:
        text: JSON lines.
        session_id: its id, in place of the one that it had.
        replace: whether a state that is there already may go.

    Returns:
        Its id.

    Raises:
        StateMismatch: the text is no state, or one of a newer version, or there is one under the id already.
        StateBusy: replies under the id leave no turn for half a minute.
    """
    return await _work.put(text, session_id, replace)


async def adelete(session_id: str) -> bool:
    """Remove a state; whether there was one.

    Raises:
        StateBusy: the agent's replies leave no turn for half a minute.
    """
    return await _work.delete(session_id)


async def alist(most: int = 1000) -> _list[Session]:
    """The states that are kept, the last used first; `most` of them."""
    return await _work.listed(most)


async def astate(session_id: str) -> dict[str, Any]:
    """A state's registered attributes by path.

    Raises:
        StateMissing: there is no state.
    """
    return {path: json.loads(text) for path, text in (await _work.existing(session_id)).fields.items()}


async def amessages(session_id: str, original: bool = False) -> _list[Msg]:
    """What an agent remembers.

    Args:
        session_id: the agent's id.
        original: as if nothing had been summarised.

    Raises:
        StateMissing: there is no state.
    """
    return _work.messages_of(await _work.existing(session_id), original)


async def save_session_state(session_id: str, **modules: StateModule) -> None:
    """AgentScope's: write the states of several modules of this process under one id, in one step.

    Args:
        session_id: the id.
        modules: agents, memories, toolkits and others, by names of your choice.

    Raises:
        StateMismatch: there is an agent's state under the id.
    """
    await _work.save_modules(session_id, modules)


async def load_session_state(session_id: str, allow_not_exist: bool = True, **modules: StateModule) -> None:
    """AgentScope's: read the states of several modules.

    Args:
        session_id: the id.
        allow_not_exist: do nothing, where there is no state, instead of raising.
        modules: by the names under which they were saved; one that was not stays as it is.

    Raises:
        StateMissing: there is no state.
    """
    await _work.load_modules(session_id, modules, allow_not_exist)


save = _plain(asave)
load = _plain(aload)
fork = _plain(afork)
export = _plain(aexport)
put = _plain(aput)
delete = _plain(adelete)
state = _plain(astate)
messages = _plain(amessages)
list = _plain(alist)
