"""AgentBase: what every agent derives from."""

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, Self
from uuid import uuid4
from weakref import WeakSet

from callsheet.agents.console import print_to_console
from callsheet.agents.dispatch import dispatcher
from callsheet.agents.hooks import Hooked
from callsheet.agents.naming import checked_id
from callsheet.agents.options import OPTION_NAMES, CallOptions, meant
from callsheet.errors import UsageError
from callsheet.messages import Msg, Recorded, StateModule
from callsheet.messages.allow import AllowList
from callsheet.messages.wire import Reader, Writer
from callsheet.settings.queues import wrong_with_name

#: Where `print` goes while a call runs as a job: (agent, message, last). Set by who runs the call.
printer: ContextVar[Callable[["AgentBase", Msg, bool], None] | None] = ContextVar("callsheet_printer", default=None)


class AgentBase(Hooked, StateModule, Recorded):
    """An agent: give it a `reply`, and call it.

    `async def reply` runs on the asyncio pool of an io worker, `def reply` on a process of a cpu worker; the class
    keyword `queue` says otherwise: `class Scorer(AgentBase, queue="gpu")`. With the keyword `observe="eager"` it is
    told what is said in its hubs at once, in calls of their own. The constructor's arguments travel to the worker,
    which builds the agent anew for each call: what it should know must be among them.

    `await agent(msg)` makes a job and waits for its reply; `agent.submit(msg)` makes a job and returns it;
    `await agent.reply(msg)` is a plain method call.
    """

    hookable: tuple[str, ...] = ("reply", "print", "observe")
    queue: ClassVar[str | None] = None
    #: Whether the hubs that it sits in hear its replies.
    shares_replies: ClassVar[bool] = True
    #: Whether a hub tells it each message at once, in a call of its own, and not with its next call.
    observes_at_once: ClassVar[bool] = False
    #: Whether its replies wait for a person.
    asks_people: ClassVar[bool] = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Give the agent its hooks here, so that a subclass need not call `super().__init__()`."""
        self = super().__new__(cls, *args, **kwargs)
        self._instance_hooks = {}
        self._replies = set()
        self._interrupted = {}
        self._jobs = _Jobs()
        self._console = True
        self._seated = self._observing = self._once = False
        self.msg_queue = None
        return self

    @functools.cached_property
    def id(self) -> str:
        """The agent's id, which its state is kept under; made when it is asked for, as a worker knows it already."""
        return uuid4().hex

    def __getstate__(self) -> object:
        assert self.id  # a copy is the same agent
        return super().__getstate__()

    def __init_subclass__(cls, *, queue: str | None = None, observe: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if observe is not None:
            if observe not in ("eager", "lazy"):
                raise UsageError(f"class {cls.__name__}(observe={observe!r}): \"eager\" or \"lazy\" is needed.")
            cls.observes_at_once = observe == "eager"
        if queue is not None:
            if wrong := wrong_with_name(queue) if isinstance(queue, str) else f"{queue!r} is no text":
                raise UsageError(f"class {cls.__name__}(queue=...): {wrong}.")
            cls.queue = queue
        if inspect.isasyncgenfunction(inspect.unwrap(cls.reply)):
            raise UsageError(f"{cls.__name__}.reply has a yield: it would be an async generator, which has no one "
                             "reply. Return a Msg, and show what grows with `await self.print(msg, last=False)`.")

    _replies: set["asyncio.Task[Any]"]
    _interrupted: dict["asyncio.Task[Any]", int]  # how often
    _jobs: "_Jobs"
    _console: bool
    _seated: bool  # it has sat in a hub
    _observing: bool  # its next call is to hear, not to reply
    _once: bool  # its next call is not run again, should it be sent once more under the same job_id
    msg_queue: "asyncio.Queue[Any] | None"

    # What a subclass writes ---------------------------------------------------------------------------

    if TYPE_CHECKING:
        # Any parameters, async or plain: no one signature is that of all subclasses.
        reply: Any
        handle_interrupt: Any
    else:

        async def reply(self, *args: Any, **kwargs: Any) -> Any:
            """The agent's work: a Msg, a list of them or None. Any parameters; a plain `def` for computing."""
            raise NotImplementedError(f"{type(self).__name__} has no reply method. Write `async def reply(self, msg)`.")

        async def handle_interrupt(self, *args: Any, **kwargs: Any) -> Any:
            """The reply in place of one that was interrupted; gets the arguments of `reply`."""
            raise NotImplementedError(f"{type(self).__name__} has no handle_interrupt method, and its reply was "
                                      "interrupted. Write `async def handle_interrupt(self, msg)`.")

    async def observe(self, msg: Msg | list[Msg] | None) -> None:
        """Take in messages without replying."""
        raise NotImplementedError(f"{type(self).__name__} has no observe method. Write `async def observe(self, msg)`.")

    # What a user calls --------------------------------------------------------------------------------

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `reply` as a job and wait for what it gives.

        Raises:
            AgentFailed: the reply raised; with the remote type, message and traceback.
            CannotTravel: an argument cannot be sent.
        """
        self.check_arguments(args, kwargs)
        return await dispatcher().call(self, args, kwargs, CallOptions())

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """Send `reply` as a job and return its Job at once.

        The keywords of CallOptions (queue, priority, expires, countdown, eta, timeout, retries, job_id) are taken
        out; the rest goes to `reply`.

        Raises:
            CannotTravel: an argument of the agent or of the call cannot be sent.
            UsageError: an option is wrong, or `reply` has a parameter of an option's name.
            UnknownQueue: the queue is not in the settings.
            RedisUnavailable: no Redis answers.
        """
        if not isinstance(self, AgentBase):
            raise UsageError("submit was called on the class: make an agent first, e.g. Summarizer(\"a\").submit(msg).")
        options = split_options(kwargs, [self])
        self.check_arguments(args, kwargs)
        return dispatcher().submit(self, args, kwargs, options)

    def options(self, **options: Any) -> "BoundCall":
        """This agent with call options: `agent.options(priority=3).submit(msg)`, `await agent.options(...)(msg)`.

        Raises:
            UsageError: an option that cannot be right.
        """
        return BoundCall(self, CallOptions.of(options))

    async def interrupt(self, msg: Msg | list[Msg] | None = None) -> None:
        """Interrupt the replies of this object, here and on workers; `handle_interrupt` answers instead.

        On workers these are the calls `await agent(...)` and the jobs that `agent.submit(...)` gave, not pipelines.

        Args:
            msg: the argument of the asyncio.CancelledError that `reply` gets where it awaits.

        Raises:
            UsageError: a reply on a worker is plain code, or runs in a process of a cpu worker.
        """
        for task in list(self._replies):
            self._interrupted[task] = self._interrupted.get(task, 0) + 1
            task.cancel(msg)
        await asyncio.gather(*(asyncio.to_thread(job.interrupt, msg) for job in list(self._jobs)))

    async def print(self, msg: Msg, last: bool = True) -> None:
        """Show a message, whole or as it grows.

        In a job it goes to `job.stream()`, elsewhere to the console, and to the message queue if that is enabled.

        Args:
            msg: the message so far; chunks of one message share its id.
            last: whether this is the message's last chunk.
        """
        if self.msg_queue is not None:
            await self.msg_queue.put((deepcopy(msg), last))
            await asyncio.sleep(0)
        sink = printer.get()
        if sink is not None:
            sink(self, msg, last)
        elif self._console:
            print_to_console(msg, last)

    def set_console_output_enabled(self, enabled: bool) -> None:
        """Whether `print` outside a job shows on the console."""
        self._console = enabled

    def set_msg_queue_enabled(self, enabled: bool, queue: "asyncio.Queue[Any] | None" = None) -> None:
        """Whether `print` also puts (message, last) into `queue`, or into a new one of 100 places."""
        self.msg_queue = (queue or self.msg_queue or asyncio.Queue(maxsize=100)) if enabled else None

    # State --------------------------------------------------------------------------------------------

    def _take_seat(self, hub: str) -> None:
        """It sits in a hub of this name from now on."""
        self._seated = True

    def has_state(self) -> bool:
        """Whether it registered attributes, or has a memory or another module with state, or sits in a hub.

        Agents in it have their own. Calls of an agent with state run one at a time, and each finds what the calls
        before it left.
        """
        return self._seated or self._remembers()

    def _remembers(self) -> bool:
        if self.__dict__.get("_registered") or type(self).state_dict is not StateModule.state_dict:
            return True
        return any(module.has_state() for module in vars(self).values()
                   if isinstance(module, StateModule) and not isinstance(module, AgentBase))

    def with_id(self, agent_id: str) -> Self:
        """The same agent under another id, and so with another state: `Assistant("a").with_id("user-42").submit(msg)`.

        Built anew of the same arguments, with the same hooks.

        Raises:
            UsageError: no id for a state.
            CannotTravel: an argument of the agent could not be sent.
        """
        checked_id(agent_id)
        local: list[Any] = []
        written = Writer(local=local).write(self, f"the agent {self.label}")
        other: Self = Reader(AllowList(()), local).read(written)
        other.id = agent_id
        return other

    # How it travels -----------------------------------------------------------------------------------

    @classmethod
    def is_async(cls) -> bool:
        """Whether `reply` is an `async def`."""
        return inspect.iscoroutinefunction(cls.reply)

    @classmethod
    def default_queue(cls) -> str:
        """Where its calls go: the class's `queue`, or `io` or `cpu` by the kind of its `reply`."""
        return cls.queue or ("io" if cls.is_async() else "cpu")

    @classmethod
    def check_arguments(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuse arguments that `reply` does not take, before they are sent."""
        signature = _signature(cls.reply)
        try:
            signature.bind(None, *args, **kwargs)
        except TypeError as exc:
            takes = ", ".join(map(str, list(signature.parameters.values())[1:])) or "no arguments"
            near = meant(name for name in kwargs if name not in signature.parameters)
            raise UsageError(f"{cls.__name__}.reply cannot be called so: {exc}. It takes {takes}.{near}") from None

    @property
    def label(self) -> str:
        """`Class(name)`, for people."""
        name = getattr(self, "name", None)
        return f"{type(self).__name__}({name})" if isinstance(name, str) else type(self).__name__

    def wire_extras(self) -> dict[str, Any]:
        """The id, and the hooks that hold for this agent here."""
        extras: dict[str, Any] = {"id": self.id}
        if self._seated and not self._remembers():
            extras["seated"] = True
        for key, hooks in (("hooks", self._instance_hooks), ("class_hooks", self.class_hooks())):
            if any(hooks.values()):
                extras[key] = hooks
        return extras

    def apply_wire_extras(self, extras: dict[str, Any]) -> None:
        """Take the id and the hooks of the agent that was sent."""
        self.id = extras["id"]
        self._seated = extras.get("seated", False)
        self._instance_hooks = extras.get("hooks", {})
        if "class_hooks" in extras:
            self._sent_class_hooks = extras["class_hooks"]

    def __repr__(self) -> str:
        return f"<{self.label} {self.id[:8]}>"


class _Jobs(WeakSet[Any]):
    """The jobs of one agent object's calls; a copy of the agent has none."""

    def __reduce__(self) -> Any:
        return _Jobs, ()


def split_options(kwargs: dict[str, Any], agents: Iterable[AgentBase]) -> CallOptions:
    """The call options among `kwargs`, taken out of it.

    Raises:
        UsageError: an option that cannot be right, or that is also a parameter of an agent's `reply`.
    """
    given = {name: kwargs.pop(name) for name in OPTION_NAMES & set(kwargs)}
    for agent in agents if given else ():
        clash = given.keys() & inspect.signature(type(agent).reply).parameters.keys()
        if clash:
            raise UsageError(f"{', '.join(sorted(clash))}: an option of submit and a parameter of "
                             f"{type(agent).__name__}.reply. Use .options(...).submit(...), which takes the "
                             "options apart from the arguments.")
    return CallOptions.of(given)


@functools.lru_cache(maxsize=1024)
def _signature(reply: Any) -> inspect.Signature:
    return inspect.signature(reply)


class BoundCall:
    """An agent or pipeline together with options of its calls."""

    def __init__(self, target: Any, options: CallOptions) -> None:
        self._target = target
        self._options = options

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """As AgentBase.submit, with the options given before."""
        return dispatcher().submit(self._target, args, kwargs, self._options)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As AgentBase.__call__, with the options given before."""
        return await dispatcher().call(self._target, args, kwargs, self._options)
