"""AgentCall: one call of an agent as it travels."""

import time
from dataclasses import dataclass
from typing import Any, Self

from callsheet.agents import AgentBase, CallOptions
from callsheet.agents.naming import checked_id
from callsheet.errors import UsageError
from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Reader, Writer
from callsheet.resources.context import NO_CALL, CallContext, CallNotes, child_context, current_call
from callsheet.settings import Settings
from callsheet.tasks import payloads
from callsheet.tasks.homes import homes_of
from callsheet.tasks.scope import current_scope
from callsheet.tasks.turns.records import class_of, within_itself

#: What a call has from its options and its caller.
_HANDED_ON = ("job", "tenant", "priority", "deadline", "parents", "held")
#: What is on the wire where it is something.
_IF_ANY = ("args", "kwargs", "piped", "retries", "state", "path", "homes", "observe", "once")


@dataclass(frozen=True, kw_only=True)
class Gathering:
    """What the step after a fan-out has to do with the branches' results."""

    branches: Any  # the branches' labels, in order; on the wire perhaps a reference to them
    on_error: str  # "raise" or "collect"


@dataclass(frozen=True, kw_only=True)
class AgentCall:
    """One call, JSON on the wire."""

    agent: Any  # the agent as a Writer wrote it, or a reference to a large payload
    args: Any  # of `reply`, written; in a pipeline the piped value comes before them
    kwargs: Any  # of `reply`, written
    label: str  # the agent, for people
    job: str  # id of the job to whose events it prints
    piped: bool = False  # whether the value that a pipeline hands on is the first argument
    retries: int = 0  # how often it is tried again
    gathering: Gathering | None = None  # set on the step that reduces a fan-out
    # what it has from its options and its caller: job, tenant, priority, deadline, parents, held
    context: CallContext = NO_CALL
    state: tuple[str, str] | None = None  # of an agent with state its id and its class as "module:Name"
    path: str = ""  # names a call that a reply awaits; the same if that reply runs again. "" otherwise
    homes: tuple[str, ...] = ()  # names of the MCP clients with affinity that the agent has
    observe: bool = False  # whether it only hears what is new in its hubs, and does not reply
    once: bool = False  # whether its id names its work: sent again under the same id, it gives the reply that there is

    def to_wire(self) -> dict[str, Any]:
        """The call as JSON data."""
        data: dict[str, Any] = {"agent": self.agent, "label": self.label, "job": self.job}
        data |= {name: value for name in _IF_ANY if (value := getattr(self, name))}
        if self.gathering:
            data["gather"] = [self.gathering.branches, self.gathering.on_error]
        context = {name: value for name in _HANDED_ON if (value := getattr(self.context, name)) not in (None, ())}
        if context:
            data["context"] = context
        return data

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> Self:
        """The call that `to_wire` wrote."""
        gather, context = data.get("gather"), data.get("context")
        given: dict[str, Any] = {"args": [], "kwargs": {}, **{name: data[name] for name in _IF_ANY if name in data}}
        given |= {name: tuple(given[name]) for name in ("state", "homes") if name in given}
        return cls(agent=data["agent"], label=data["label"], job=data["job"], **given,
                   gathering=Gathering(branches=gather[0], on_error=gather[1]) if gather else None,
                   context=_context(context) if context else NO_CALL)

    def running(self, call_id: str | None, timeout: float | None, local: bool = False,
                notes: CallNotes | None = None, root: str | None = None) -> CallContext:
        """The context in which it runs, from now on."""
        given = self.context
        deadline = given.deadline
        if timeout:
            own = time.time() + timeout
            deadline = own if deadline is None else min(own, deadline)
        return CallContext(job=given.job or self.job, call=call_id, root=root, agent=self.label, tenant=given.tenant,
                           agent_id=self.state[0] if self.state else None, priority=given.priority, deadline=deadline,
                           local=local, parents=given.parents,
                           held=(*given.held, self.state[0]) if self.state else given.held, notes=notes)

    def build_agent(self, settings: Settings, local: list[Any] | None = None) -> AgentBase:
        """The agent, once large payloads are in their places.

        Raises:
            ModuleNotAllowed: the agent, or a function or class it was given, is outside the allowed modules.
            CannotTravel: it cannot be built here.
        """
        agent: AgentBase = Reader(AllowList(settings.modules), local).read(self.agent)
        return agent

    def arguments(self, value: Any, settings: Settings, local: list[Any] | None = None
                  ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of `reply`, once large payloads are in their places; raises what `build_agent` does."""
        reader = Reader(AllowList(settings.modules), local)
        args = reader.read(self.args)
        if self.piped:
            args = [reader.read(value), *args]
        return tuple(args), reader.read(self.kwargs)


def _context(data: dict[str, Any]) -> CallContext:
    given: dict[str, Any] = {name: data[name] for name in _HANDED_ON if name in data}
    return CallContext(**{**given, "parents": tuple(given.get("parents", ())), "held": tuple(given.get("held", ()))})


def writer_for(settings: Settings) -> Writer:
    """A Writer that refuses at submission what the settings of the submitter already exclude.

    Where the submitter's settings name no modules, the workers' settings decide.
    """
    return Writer(AllowList(settings.modules) if settings.modules else None)


def make_call(agent: AgentBase, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions, *, job: str,
              settings: Settings, writer: Writer, piped: bool = False,
              gathering: Gathering | None = None, awaited: bool = False,
              copies: int = 1) -> tuple[AgentCall, dict[str, bytes]]:
    """A call, and the large payloads to store before it is sent; `awaited`: its caller waits for it.

    As many messages as `copies` carry it.

    Raises:
        CannotTravel: part of the agent or an argument cannot be sent.
        PayloadTooLarge: the agent or the arguments are over the limit.
        UsageError: a reply of the agent itself would wait for it.
    """
    label, state = agent.label, None
    if agent.has_state():
        state = checked_id(agent.id), class_of(agent)
        if awaited and agent.id in current_call().held:
            raise UsageError(within_itself(label, agent.id))
    spec, blobs = payloads.pack(writer.write(agent, f"the agent {label}"), settings, f"The agent {label}", copies)
    written = [writer.write(arg, f"argument {i + 1} of {label}") for i, arg in enumerate(args)]
    named = {key: writer.write(arg, f"argument {key!r} of {label}") for key, arg in kwargs.items()}
    packed, more = [], dict(blobs)
    for index, item in enumerate(written):
        ref, blob = payloads.pack(item, settings, f"Argument {index + 1} of {label}", copies)
        packed.append(ref)
        more |= blob
    kept, blob = payloads.pack(named, settings, f"The keyword arguments of {label}", copies)
    scope = current_scope.get() if awaited else None
    call = AgentCall(agent=spec, args=packed, kwargs=kept, label=label, job=job, piped=piped, retries=options.retries,
                     gathering=gathering, context=child_context(options.tenant, options.priority, awaited),
                     state=state, path=scope.ordinal(label) if scope is not None else "",
                     homes=homes_of(agent), observe=agent._observing, once=agent._once)
    return call, more | blob
