"""The transport that lets a request go when the endpoint's limits allow it."""

import asyncio
import logging
import random
import time

import httpx

from callsheet.errors import RateLimited
from callsheet.resources.context import CallContext, current_call, fence, parking
from callsheet.resources.estimate import Estimate, estimate
from callsheet.resources.limits.gate import Gate, gate_of
from callsheet.resources.limits.messages import Ask, Grant, Limits, Spent, Ticket, refusal
from callsheet.resources.limits.reported import Reported, reported
from callsheet.resources.record import CallRecord, Layer, json_body, record_of, watch
from callsheet.resources.refusals import asked_delay
from callsheet.resources.timings import count, turn_waited
from callsheet.settings import Endpoint, Settings

log = logging.getLogger(__name__)

PAUSING = frozenset({429, 503, 529})
"""Statuses whose Retry-After holds for everybody."""

UNASKED = 1.0
"""Seconds of the pause after a 429 that names none."""

LONGEST = 24 * 3600.0
"""Seconds of a pause at most."""

NEAR, WATCHED = 0.2, 60.0
"""Where no limit is set: the share left of a provider's limit from which it is kept to, and seconds for how long."""

TRIES = 5
"""How often a permit that has grown too old is given back for a new one."""

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)


class Limiting(Layer):
    """Sends a request when it is its turn.

    Args:
        inner: the next transport.
        name: the endpoint's.
        endpoint: its settings.
        settings: which Redis, and the tenants' weights.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport, name: str, endpoint: Endpoint, settings: Settings) -> None:
        super().__init__(inner)
        self._name = name
        self._endpoint = endpoint
        self._settings = settings
        self._limits = Limits.of(endpoint)
        self._gates: dict[bool, Gate] = {}
        # A permit is for now: late requests would meet those of later permits.
        self._fresh = max(0.05, endpoint.window / 200)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request when its turn has come.

        Raises:
            RateLimited: it would not be within its deadline.
            UsageError: it alone is reckoned to take more tokens than the limit allows in a minute.
            LimiterUnavailable: Redis does not answer.
        """
        record = record_of(request)
        gate = self._gate(record.context if record else current_call())
        grant, before = None, record.total_tokens if record else None
        if gate.limits.any or gate.watched_until > time.monotonic():
            grant, tokens = await self._turn(gate, request, record)
        elif gate.paused_until > time.monotonic():
            await self._pause_over(gate, request, record)
        sent = False
        try:
            if (doubt := fence()) is not None:
                await doubt
            sent = True
            response = await self._inner.handle_async_request(request)
        except BaseException as exc:
            if grant is not None:
                unsent = not sent or isinstance(exc, _NEVER_SENT)
                spent = Spent(0, 0) if unsent else self._spent(request, record, before, exc)
                gate.call(gate.ended, grant, tokens, spent)
            raise
        self._told(gate, grant, response)
        if grant is None:
            return response
        if response.status_code >= 400:
            return watch(response, lambda _: gate.call(gate.ended, grant, tokens, Spent(1, 0)))
        return watch(response, lambda error: gate.call(
            gate.ended, grant, tokens, self._spent(request, record, before, error)))

    def _gate(self, context: CallContext) -> Gate:
        """The gate of the fleet, or of this process alone.

        Inline runs have no Redis. A program's own request to an endpoint without limits is not worth a connection
        to it.
        """
        alone = self._settings.inline or context.local or (context.call is None and not self._limits.any)
        gate = self._gates.get(alone)
        if gate is None or not gate.usable:
            gate = self._gates[alone] = gate_of(self._name, self._limits, None if alone else self._settings)
        return gate

    # Turns

    async def _turn(self, gate: Gate, request: httpx.Request, record: CallRecord | None) -> tuple[Grant, int]:
        context = record.context if record else current_call()
        tokens = self._tokens(gate, request, record)
        began, until = time.monotonic(), _until(request, context)
        tenant = context.tenant or ""
        priority = self._endpoint.priority if context.priority is None else context.priority
        place, park, stale = "", True, 0
        try:
            while True:
                self._check_pause(gate, until)
                ask = Ask(id=0, priority=priority, tenant=tenant, tokens=tokens, place=place,
                          weight=self._settings.tenant_weights.get(tenant, 1.0))
                ticket = Ticket(ask, None if until is None else max(0.0, until - time.monotonic()))
                gate.call(gate.ask, ticket)
                try:
                    grant = await self._granted(gate, ticket, park)
                except BaseException as exc:
                    gate.call(gate.give_up, ticket)
                    if isinstance(exc, RateLimited):
                        count("limits_refused", self._name, exc.limit)
                    raise
                now = time.monotonic()
                park = gate.paused_until > now
                if not park:
                    if stale == TRIES or now - ticket.asked <= self._fresh:
                        return grant, tokens
                    stale += 1  # it has a slot again by now, and keeps it: it will stand first
                gate.call(gate.give_up, ticket)
                place = ticket.place
        finally:
            waited = time.monotonic() - began
            turn_waited(self._name, waited)
            if record is not None:
                record.queued += waited

    async def _granted(self, gate: Gate, ticket: Ticket, park: bool) -> Grant:
        left = None if ticket.until is None else ticket.until - time.monotonic()
        try:
            async with asyncio.timeout(left):
                if await ticket.first or not park:
                    return await ticket.permit
                async with parking():  # its slot works for others
                    return await ticket.permit
        except TimeoutError:
            if gate.failing_since is not None:
                raise gate.unavailable() from None
            raise refusal(self._name, gate.limit, 0, ticket.ask.tokens) from None

    def _tokens(self, gate: Gate, request: httpx.Request, record: CallRecord | None) -> int:
        if gate.limits.tokens is None and not gate.learned[1]:
            return 0
        if record is not None and record.estimate is not None:
            return record.estimate
        found = self._estimate(request).total
        if record is not None:
            record.estimate = found
        return found

    def _estimate(self, request: httpx.Request) -> Estimate:
        body = json_body(request)
        return estimate(body, self._endpoint.default_output_tokens) if body is not None else Estimate(1, 0)

    def _spent(self, request: httpx.Request, record: CallRecord | None, before: int | None,
               error: BaseException | None) -> Spent:
        """What a request took that was sent: as reported; as reckoned; of one that broke off, its input."""
        after = record.total_tokens if record is not None else None
        if after is not None and after != before:
            return Spent(1, after - (before or 0))
        if record is None or record.estimate is None:
            return Spent(1, 0)
        return Spent(1, record.estimate if error is None else min(record.estimate, self._estimate(request).input))

    # Pauses

    def _check_pause(self, gate: Gate, until: float | None) -> None:
        """Refuse what a pause would keep too long."""
        seconds = gate.paused_until - time.monotonic()
        if seconds > 0 and (seconds > self._endpoint.retry.retry_after_max
                            or (until is not None and gate.paused_until > until)):
            raise refusal(self._name, "pause", seconds, 0)

    async def _pause_over(self, gate: Gate, request: httpx.Request, record: CallRecord | None) -> None:
        """Wait for a pause's end where no limit is set, and come back one after the other."""
        until = _until(request, record.context if record else current_call())
        began = time.monotonic()
        async with parking():
            while (seconds := gate.paused_until - time.monotonic()) > 0:
                self._check_pause(gate, until)
                await asyncio.sleep(seconds + random.uniform(0, max(1.0, seconds / 4)))  # noqa: S311 - spreads load
        if record is not None:
            record.queued += time.monotonic() - began

    # What the endpoint says

    def _told(self, gate: Gate, grant: Grant | None, response: httpx.Response) -> None:
        requests, tokens = reported(response.headers)
        if response.status_code in PAUSING:
            seconds = asked_delay(response.headers)
            if seconds is None and response.status_code == 429:
                seconds = max([one.reset for one in (requests, tokens) if one and not one.left and one.reset and
                               one.per_minute], default=UNASKED)
            if seconds:
                log.warning("endpoint_paused endpoint=%s status=%d seconds=%.1f", self._name, response.status_code,
                            min(seconds, LONGEST))
                count("limits_paused", self._name, str(response.status_code))
                gate.paused(self._name, min(seconds, LONGEST))
                gate.call(gate.pause, min(seconds, LONGEST))
        if requests is not None or tokens is not None:
            self._learn(gate, grant, requests, tokens)

    def _learn(self, gate: Gate, grant: Grant | None, requests: Reported | None, tokens: Reported | None) -> None:
        limits = gate.limits
        learned = (_narrower(requests, limits.requests), _narrower(tokens, limits.tokens))
        if any(one is not None and one.per_minute and one.left < NEAR * one.limit for one in (requests, tokens)):
            gate.watched_until = time.monotonic() + WATCHED
        if any(learned):
            gate.learn(*learned)
        if grant is not None:
            beyond = (_beyond(requests, limits.requests, grant.requests), _beyond(tokens, limits.tokens, grant.tokens))
            if any(beyond):
                gate.call(gate.foreign, grant.number, *beyond)


def _narrower(one: Reported | None, own: int | None) -> int:
    """A provider's limit, where it is below our own; else 0."""
    if one is None or not one.per_minute:
        return 0
    return one.limit if own is None or one.limit < own else 0


def _beyond(one: Reported | None, own: int | None, counted: int) -> int:
    """How much less the provider says is left than we know of, over what the order of arrival may explain."""
    if one is None or not one.per_minute:
        return 0
    missing = min(one.limit, own or one.limit) - counted - one.left
    return missing if missing > max(2, one.limit // 20) else 0


def _until(request: httpx.Request, context: CallContext) -> float | None:
    """`time.monotonic()` at which the call's time is over: its deadline, or the client's time limit for a turn."""
    ends = []
    if context.deadline is not None:
        ends.append(context.deadline - time.time())
    pool = (request.extensions.get("timeout") or {}).get("pool")
    if pool is not None:
        ends.append(pool)
    return time.monotonic() + min(ends) if ends else None
