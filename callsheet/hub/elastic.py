"""ElasticGroup: a participant of a hub whose work is shared by replicas of one agent, as many as the work asks for.

The group itself is an agent with state and eager ears: what is said in its hubs becomes work in its mailbox, in
the step in which it counts as heard. Each of its turns decides how many replicas there should be, and hands out work
to those that are free. A Shift is one piece of work on its way: it has a replica reply, then tells the group.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from callsheet.agents import AgentBase, CallOptions
from callsheet.agents.dispatch import dispatcher
from callsheet.errors import HubMissing, ResultTimeout, SettingsError, UsageError
from callsheet.hub.elastic_state import NOTICE, Ledger, Piece, Shift, notice
from callsheet.hub.patience import patient
from callsheet.hub.place import on_loop, the_hubs
from callsheet.hub.records import REPLICA, Seat
from callsheet.memory import InMemoryMemory
from callsheet.memory.base import messages_of
from callsheet.messages import Msg
from callsheet.resources.context import current_call
from callsheet.scaling import Decision, Limits, Load, Policy, Rules

_LOOKS = 8  # decisions in a cooldown in which nothing else happens


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatus:
    """A group as it is.

    Attributes:
        size: replicas that take work.
        busy: replicas at work.
        waiting: pieces of work that no replica has begun.
        done: pieces of work that were replied to.
        failed: pieces of work whose reply raised.
        failures: the last of these, in words.
        seconds: that a piece of work takes, lately; None where none has been done.
        bound: what fixed the size, as `callsheet.scaling.Bound` has it: "backlog", "busy", "minimum", "maximum" or
            "cooldown".
    """

    size: int
    busy: int
    waiting: int
    done: int
    failed: int
    failures: list[str]
    seconds: float | None
    bound: str


class ElasticGroup(AgentBase, observe="eager"):
    """Replicas of one agent that share the work of a hub: `MsgHub([host, ElasticGroup(Reviewer("rev"), max=20)])`.

    What the others in the hub say is work: a replica replies to each message, and the hub hears its reply as any
    member's. Each replica has an id, and so a state, of its own, and hears nothing but its work. More of them join
    when work waits, up to `max`; those that are not needed finish, keep their state, and leave after `cooldown`.

    A group remembers by its id what waits and who works: `with_id` gives it one that lasts.

    Args:
        template: the agent; replicas are built of its constructor's arguments.
        min: replicas at least.
        max: replicas at most.
        mailbox: "share": each message goes to one replica. "all": to each of them; then there are `min`, and `resize`
            changes that.
        target_wait: seconds within which what waits should be begun.
        cooldown: seconds after which replicas that are needed no more have left.
        retries: how often a reply that raised is tried again.

    Raises:
        UsageError: an argument that cannot be right.
    """

    shares_replies: ClassVar[bool] = False

    def __init__(self, template: AgentBase, min: int = 1, max: int = 20, *, mailbox: Literal["share", "all"] = "share",
                 target_wait: float = 1.0, cooldown: float = 30.0, retries: int = 0) -> None:
        if not isinstance(template, AgentBase) or isinstance(template, ElasticGroup):
            raise UsageError(f"ElasticGroup takes an agent as its template, not {template!r}.")
        if mailbox not in ("share", "all"):
            raise UsageError(f'ElasticGroup(mailbox={mailbox!r}): "share" or "all" is needed.')
        try:
            limits = Limits(minimum=min, maximum=max)
            rules = Rules(target_wait=target_wait, cooldown=cooldown)
        except SettingsError as exc:
            raise UsageError(f"ElasticGroup of {template.label}: {exc}") from None
        if mailbox == "all" and min < 1:
            raise UsageError('ElasticGroup(mailbox="all", min=0): nobody would get the messages. Give a min over 0.')
        self.name = getattr(template, "name", type(template).__name__)
        self.template, self.mailbox, self.retries = template, mailbox, CallOptions(retries=retries).retries
        self._limits, self._rules = limits, rules
        self.work = InMemoryMemory()
        self.ledger: dict[str, Any] = asdict(Ledger(size=min))
        self.register_state("ledger")
        self._sits_in: list[str] = []

    # In its hubs ---------------------------------------------------------------------------------------

    def _take_seat(self, hub: str) -> None:
        super()._take_seat(hub)
        if hub not in self._sits_in:
            self._sits_in.append(hub)

    def wire_extras(self) -> dict[str, Any]:
        """Also the hubs that it sits in."""
        return {**super().wire_extras(), "hubs": self._sits_in}

    def apply_wire_extras(self, extras: dict[str, Any]) -> None:
        """Take them."""
        super().apply_wire_extras(extras)
        self._sits_in = list(extras.get("hubs", ()))

    def replica(self, number: int) -> AgentBase:
        """One of the replicas, from 1."""
        made = self.template.with_id(f"{self.id}{REPLICA}{number}")
        made._seated = True
        return made

    # Its turns -----------------------------------------------------------------------------------------

    async def observe(self, msg: Msg | list[Msg] | None) -> None:
        """Take work."""
        ledger = self._open()
        for one in messages_of(msg, "observe") if msg is not None else []:
            takers: list[int | None] = [None] if self.mailbox == "share" else [*range(1, ledger.size + 1)]
            for taker in takers:
                piece = Piece(at=time.time(), taker=taker, msg=one.to_dict())
                await self.work.add(Msg(self.name, "", "user", metadata=asdict(piece)))
        await self._go_on(ledger)

    async def reply(self, msg: Msg | None = None) -> Msg | None:
        """Hear what became of a piece of work, or tell how things are. Not for work: that is what its hubs hear.

        Raises:
            UsageError: it is called with a message of another kind.
        """
        told: Any = msg.metadata.get(NOTICE) if isinstance(msg, Msg) else None
        if not isinstance(told, dict):
            raise UsageError(f"{self.label} takes its work from the hubs that it sits in: broadcast the message there.")
        ledger = self._open()
        if "ended" in told:
            ledger.ended(told["ended"], told["seconds"], told["error"])
        elif "look" in told:
            ledger.looked(told["look"])
        elif "resize" in told:
            ledger.size = told["resize"]
        await self._go_on(ledger)
        return notice(self.name, self._status(ledger)) if "status" in told else None

    def _open(self) -> Ledger:
        ledger = Ledger(**self.ledger)
        # Under its life's name work is handed out: the second run of a turn that was lost must give the same.
        ledger.life = ledger.life or f"{self.id}-{current_call().call or ''}"[-100:]
        ledger.hubs += [hub for hub in self._sits_in if hub not in ledger.hubs]
        return ledger

    async def _go_on(self, ledger: Ledger) -> None:
        """Decide on the size, hand out work, and keep the ledger."""
        if self.mailbox == "share":
            self._decide(ledger)
        pieces = [Piece.from_data(msg.metadata) for msg, _ in self.work.content]
        await self._seat(ledger, {piece.taker for piece in pieces})
        handed = ledger.hand_out(pieces)
        await self.work.delete([position for position, _, _ in handed])
        for position, number, taker in handed:
            piece = pieces[position]
            ledger.waited = max(0.0, time.time() - piece.at)
            await _submit(Shift(self, taker, number, f"{ledger.life}-{number}"), Msg.from_dict(piece.msg),
                          CallOptions(job_id=f"{ledger.life}-{number}"))
        await self._look_again(ledger)
        self.ledger = asdict(ledger)

    def _decide(self, ledger: Ledger) -> None:
        now, waiting = time.time(), self.work.content
        oldest = now - Piece.from_data(waiting[0][0].metadata).at if waiting else None
        known = [waited for waited in (ledger.waited, oldest) if waited is not None] if waiting else []
        policy = Policy(self._limits, self._rules)
        if ledger.policy:
            policy.recall(ledger.policy)
        decision: Decision = policy.decide(
            Load(size=ledger.size, busy=len(ledger.busy), backlog=len(waiting), seconds=ledger.seconds,
                 waited=max(known, default=None)), now)
        ledger.size, ledger.bound, ledger.policy = decision.size, str(decision.bound), policy.remembered

    async def _seat(self, ledger: Ledger, wanted: Collection[int | None]) -> None:
        """Have new replicas join the group's hubs, and those that have finished, and are not wanted, leave them."""
        joining, leaving = ledger.to_seat(wanted)
        if not (joining or leaving):
            return
        seats = [Seat(id=f"{self.id}{REPLICA}{number}", label=self.template.label, deaf=True) for number in joining]
        ids = [f"{self.id}{REPLICA}{number}" for number in leaving]
        for hub in list(ledger.hubs):
            try:
                if seats:
                    await _aside(lambda hub=hub: the_hubs().add(hub, "", self.id, seats))  # type: ignore[misc]
                if ids:
                    await _aside(lambda hub=hub: the_hubs().delete(hub, "", ids))  # type: ignore[misc]
            except HubMissing:
                ledger.hubs.remove(hub)
        ledger.seated = [number for number in ledger.seated if number not in leaving] + joining

    async def _look_again(self, ledger: Ledger) -> None:
        """See that there is another turn when replicas may have become too many."""
        if self.mailbox == "share" and the_hubs().remote and ledger.size > self._limits.minimum and not ledger.looks:
            look = ledger.look_ahead()
            await _submit(self, notice(self.name, {"look": look}), CallOptions(
                countdown=max(0.1, self._rules.cooldown / _LOOKS), job_id=f"{ledger.life}-look-{look}"))

    # For its user --------------------------------------------------------------------------------------

    def status(self) -> Any:
        """How many replicas there are, and what waits: `await group.status()`; in plain code without await.

        Returns:
            A GroupStatus.
        """
        return self._told({"status": True})

    def resize(self, size: int) -> Any:
        """Have so many replicas from now on; of a group whose mailbox is "all". As `status`.

        Raises:
            UsageError: the size is not between 1 and `max`, or the group finds its size itself.
        """
        if self.mailbox != "all":
            raise UsageError(f"{self.label} finds its size itself, between min and max; resize is for a group with "
                             'mailbox="all".')
        if not 1 <= size <= self._limits.maximum:
            raise UsageError(f"resize({size}): 1 to {self._limits.maximum} (max) replicas are possible.")
        return self._told({"resize": size, "status": True})

    def join(self, timeout: float | None = None) -> Any:
        """Wait until all work is done: `await group.join()`; in plain code without await.

        Args:
            timeout: seconds, or None.

        Returns:
            A GroupStatus.

        Raises:
            ResultTimeout: there is work left after that.
        """
        if on_loop():
            return self._joined(timeout, lambda: self._told({"status": True}))
        return asyncio.run(self._joined(timeout, lambda: asyncio.to_thread(self._told, {"status": True})))

    async def _joined(self, timeout: float | None, status: Callable[[], Awaitable[GroupStatus]]) -> GroupStatus:
        until = None if timeout is None else time.monotonic() + timeout
        pause = 0.01
        while True:
            found = await status()
            if not (found.waiting or found.busy):
                return found
            if until is not None and time.monotonic() > until:
                raise ResultTimeout(f"{self.label} has work left after {timeout:g} s: {found.busy} replicas are at "
                                    f"work, and {found.waiting} pieces wait.")
            pause = min(0.5, pause * 1.5)
            await asyncio.sleep(pause)

    def _told(self, told: dict[str, Any]) -> Any:
        msg = notice(self.name, told)
        if not on_loop():
            return GroupStatus(**dispatcher().submit(self, (msg,), {}, CallOptions()).get().metadata[NOTICE])

        async def tell() -> GroupStatus:
            answer = await dispatcher().call(self, (msg,), {}, CallOptions())
            return GroupStatus(**answer.metadata[NOTICE])

        return tell()

    def _status(self, ledger: Ledger) -> dict[str, Any]:
        return {"size": ledger.size, "busy": len(ledger.busy), "waiting": len(self.work.content), "done": ledger.done,
                "failed": ledger.failed, "failures": ledger.failures, "seconds": ledger.seconds, "bound": ledger.bound}


async def _aside(work: Callable[[], Any]) -> None:
    """Run what takes a blocking trip to Redis; inline there is none, and calls belong to the loop that runs."""
    if the_hubs().remote:
        await patient(lambda: asyncio.to_thread(work))
    else:
        work()


async def _submit(agent: AgentBase, msg: Msg, options: CallOptions) -> None:
    await _aside(lambda: dispatcher().submit(agent, (msg,), {}, options))
