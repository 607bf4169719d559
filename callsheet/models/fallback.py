"""Asking another endpoint, or another model, in place of one that cannot answer."""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from callsheet.errors import CallsheetError, MissingKey, ModelError, UsageError
from callsheet.models.base import ChatModelBase, ChatResponse
from callsheet.models.errors import EndpointError
from callsheet.resources.record import in_place_of
from callsheet.resources.timings import count

log = logging.getLogger(__name__)

T = TypeVar("T")
Reply = ChatResponse | AsyncGenerator[ChatResponse, None]

NOT_SERVED = frozenset({401, 402, 403, 429})
"""Statuses that say that this caller is not served there, whatever it asks."""


def falls_back(exc: BaseException) -> bool:
    """Whether another one is asked after this error: the endpoint failed or does not serve us, the call was right."""
    if isinstance(exc, EndpointError):
        return exc.retryable or exc.status is None or exc.status in NOT_SERVED
    return isinstance(exc, (ModelError, MissingKey))  # refused before it was sent: CircuitOpen and the like


async def first_that_answers(models: Sequence[T], ask: Callable[[T], Awaitable[Reply]]) -> Reply:
    """Ask one model after the other until one answers; a stream answers with its first chunk.

    Args:
        models: whose `repr` logs and records show.
        ask: asks one; gives a response or a stream of them.

    Raises:
        CallsheetError: what the last one failed with, or the first that is no reason to ask another.
    """
    failed = ""
    for model, following in zip(models, [*models[1:], None], strict=True):
        token = in_place_of.set(failed)
        try:
            reply = await ask(model)
            if following is None or isinstance(reply, ChatResponse):
                return reply
            return begun(await anext(reply, None), reply)
        except CallsheetError as exc:
            if following is None or not falls_back(exc):
                raise
            reason = type(exc).__name__ + (f" {exc.status}" if isinstance(exc, EndpointError) and exc.status else "")
            log.warning("model_fallback from=%r to=%r reason=%r", model, following, reason)
            failed = repr(model)
            count("fallbacks", failed, reason)
        finally:
            in_place_of.reset(token)
    raise UsageError("There is no model to ask.")


async def begun(first: T | None, stream: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """A stream whose first item was taken already; None: it was at its end."""
    async with aclosing(stream):
        if first is not None:
            yield first
            async for item in stream:
                yield item


class FallbackModel(ChatModelBase):
    """Several models as one: the first that can answer does.

    The next one is asked where an endpoint cannot be reached, fails (5xx), is left alone by its circuit breaker, limits
    or refuses us (429, 401, 402, 403), has no key, or answers what cannot be read, after the retries of its own; not
    where the call itself is wrong. A stream falls back until its first chunk has come. All get the same
    messages: models that take different ones, such as OpenAI's and Anthropic's, share those in plain text.

    Args:
        models: in the order in which they are asked; all stream, or none does.

    Raises:
        UsageError: `models` is empty, holds something else, or some stream and some do not.
    """

    def __init__(self, models: Sequence[ChatModelBase]) -> None:
        self.models = tuple(models)
        for model in self.models:
            if not isinstance(model, ChatModelBase):
                raise UsageError(f"FallbackModel takes chat models, not a {type(model).__name__}.")
        if not self.models:
            raise UsageError("FallbackModel needs at least one model: FallbackModel([first, second]).")
        if len({model.stream for model in self.models}) > 1:
            raise UsageError("FallbackModel's models must all stream, or none of them: give each the same stream=.")
        super().__init__(self.models[0].model_name, self.models[0].stream)

    def __repr__(self) -> str:
        return f"FallbackModel([{', '.join(map(repr, self.models))}])"

    async def __call__(self, *args: Any, **kwargs: Any) -> Reply:
        """Ask the first model that can answer; arguments as each of them takes them.

        Raises:
            CallsheetError: what the last model failed with.
        """
        return await first_that_answers(self.models, lambda model: model(*args, **kwargs))
