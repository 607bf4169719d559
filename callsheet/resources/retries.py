"""Sending a request again where that is safe, within bounds."""

import asyncio
import functools
import logging
import random
import time

import httpx

from callsheet.resources.boards import RetryBudget
from callsheet.resources.context import parking
from callsheet.resources.record import Layer, record_of
from callsheet.resources.refusals import SAID, Again, of_answer, of_error
from callsheet.resources.timings import count
from callsheet.settings.endpoints import RetryPolicy

log = logging.getLogger(__name__)


class Retrying(Layer):
    """Sends a request again when it failed in a way that another try may mend.

    Only what is safe: the connection could not be opened, or the server answered 408, 409, 425, 429 or 5xx. An answer
    under 400 is handed on at once and whatever becomes of its body is the caller's affair. A body that is sent from a
    stream cannot be sent twice. The pause is drawn between 0 and a bound that doubles each time (full jitter), or is
    what the server asked for; meanwhile the call is parked. Attempts, the call's deadline and the endpoint's budget
    bound it: where a retry cannot be had, the failure is handed on as it is.

    Args:
        inner: the next transport.
        name: the endpoint's.
        policy: of its settings.
        budget: that all of the process's requests to the endpoint share.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport, name: str, policy: RetryPolicy, budget: RetryBudget) -> None:
        super().__init__(inner)
        self._name = name
        self._policy = policy
        self._budget = budget

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request, and again if need be."""
        attempt = 1
        while True:
            try:
                response = await self._inner.handle_async_request(request)
            except httpx.TransportError as exc:
                if attempt == 1:
                    self._budget.earn()
                delay = self._delay(request, attempt, of_error(exc, self._policy.after_sent))
                if delay is None:
                    raise
            else:
                if attempt == 1:
                    self._budget.earn()
                if response.status_code < 400:
                    return response
                said = response.extensions.get(SAID, b"")
                delay = self._delay(request, attempt, of_answer(response.status_code, response.headers, said))
                if delay is None:
                    response.headers["x-should-retry"] = "false"  # an SDK above would multiply our tries
                    return response
            await self._pause(request, delay)
            attempt += 1

    def _delay(self, request: httpx.Request, attempt: int, again: Again | None) -> float | None:
        """Seconds until the next try; None: there is none."""
        repeated = request.headers.get("x-stainless-retry-count", "0") != "0"  # by an SDK, where nobody answered
        if again is None or repeated or not isinstance(request.stream, httpx.ByteStream):
            return None
        policy = self._policy
        if attempt >= policy.attempts:
            if policy.attempts > 1:
                self._refused(attempt, again, "attempts")
            return None
        longest = min(policy.backoff * 2 ** min(attempt - 1, 100), policy.backoff_max)
        # Callers that were sent away together come back apart.
        delay = random.uniform(0, longest) + (again.after or 0.0)  # noqa: S311 - spreads load
        record = record_of(request)
        bound = self._bound(again, delay, record.context.deadline if record is not None else None)
        if bound:
            self._refused(attempt, again, bound)
            return None
        count("retries", self._name, again.reason)
        if record is not None:
            record.retries += 1
        log.warning("outbound_retry endpoint=%s attempt=%d/%d reason=%r delay=%.2f agent=%s", self._name, attempt,
                    policy.attempts, again.reason, delay, (record.context.agent if record else None) or "-")
        return delay

    def _bound(self, again: Again, delay: float, deadline: float | None) -> str:
        """What forbids a retry after `delay` seconds, or ""."""
        if again.after is not None and again.after > self._policy.retry_after_max:
            return "retry_after_max"
        if deadline is not None and time.time() + delay >= deadline:
            return "deadline"
        # A rate limit's refusal costs the server nothing, and its Retry-After paces those who come back.
        return "" if again.invited or self._budget.spend() else "budget"

    def _refused(self, attempt: int, again: Again, bound: str) -> None:
        count("retries_refused", self._name, bound)
        log.warning("outbound_retry_refused endpoint=%s attempt=%d/%d reason=%r bound=%s", self._name, attempt,
                    self._policy.attempts, again.reason, bound)

    async def _pause(self, request: httpx.Request, delay: float) -> None:
        began = time.monotonic()
        async with parking():
            await asyncio.sleep(delay)
        record = record_of(request)
        if record is not None:
            record.paused += time.monotonic() - began


@functools.lru_cache(maxsize=256)
def budget_for(name: str, base_url: str, share: float, minimum: int) -> RetryBudget:
    """The budget that all requests of this process to an endpoint share."""
    return RetryBudget(share, minimum)
