"""Answers that a test plans, in place of what the stub would make of the text, and what the stub was asked."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from callsheet.models.stub.wire import ChatRequest, Completion, Part, finished, tokenize


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the server answers to one call.

    Attributes:
        text: of the answer; what the stub makes of the prompt if None and nothing else is said.
        thinking: reasoning before it.
        tools: tool calls after it: names and arguments.
        finish: why it ends: "stop", "length" or "tool_calls"; by the rest if None.
        input_tokens, output_tokens, cached_tokens: usage to tell; counted if None.
        status: an error is answered unless 200.
        message: of the error.
        headers: of the response, beside the usual ones.
        body: sent as it is, with `content_type`, in place of all of that.
        content_type: of `body`.
        delay: seconds before the answer, beside the server's latency.
        break_after: cut the connection after so many events of a stream, or bytes of a whole answer.
        silent: never answer.
    """

    text: str | None = None
    thinking: str = ""
    tools: Sequence[tuple[str, Mapping[str, Any]]] = ()
    finish: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    status: int = 200
    message: str = "planned"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | str | None = None
    content_type: str = "application/json"
    delay: float = 0.0
    break_after: int | None = None
    silent: bool = False

    def completion(self, request: ChatRequest) -> Completion | None:
        """The answer, or None where the stub is to make it."""
        parts = [Part("thinking", tokenize(self.thinking))] if self.thinking else []
        if self.text is not None:
            parts.append(Part("text", tokenize(self.text)))
        parts += [Part("tool", tokenize(json.dumps(arguments)), name) for name, arguments in self.tools]
        return self.adjusted(finished(request, parts)) if parts else None

    def adjusted(self, done: Completion) -> Completion:
        """The answer with the usage and the end that are planned."""
        return replace(
            done, finish=self.finish or done.finish, cached_tokens=self.cached_tokens,
            prompt_tokens=done.prompt_tokens if self.input_tokens is None else self.input_tokens,
            output_tokens=done.output_tokens if self.output_tokens is None else self.output_tokens)


@dataclass(frozen=True)
class Received:
    """A call as it came.

    Attributes:
        path: with the query.
        headers: names in small letters.
        body: JSON data, or the bytes where it is none.
    """

    path: str
    headers: dict[str, str]
    body: Any


ERRORS = {429: "Rate limit reached. Please try again later.", 500: "The server had an error while processing your "
          "request.", 503: "The engine is currently overloaded."}


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How the server behaves.

    Attributes:
        latency: seconds before the first token.
        jitter: seconds that the latency varies, up and down.
        error_rate: share of calls answered with 429, 500 or 503, 0 to 1.
        tokens_per_second: pace of an answer; 0: all at once.
        seed: of jitter, errors and breaks; the same seed and order of calls give the same ones.
        rpm: requests that pass in a minute; others get 429 with Retry-After; 0: any number.
        tpm: tokens, of prompts and answers together, that pass in a minute; 0: any number.
        window: seconds over which both are counted, in proportion: rpm=600 with 1 lets 10 pass in any second.
        max_concurrent: calls at once that pass; others get 429; 0: any number.
        break_rate: share of answers that break off in the middle, 0 to 1.
        api_key: calls that do not bring it get 401; None: any key will do, or none.
    """

    latency: float = 0.0
    jitter: float = 0.0
    error_rate: float = 0.0
    tokens_per_second: float = 0.0
    seed: int = 0
    rpm: int = 0
    tpm: int = 0
    window: float = 60.0
    max_concurrent: int = 0
    break_rate: float = 0.0
    api_key: str | None = None


@dataclass(frozen=True)
class Lot:
    """What chance has in store for one call."""

    wait: float  # seconds of latency
    status: int | None  # of an error, or None
    retry_after: int | None  # seconds that the error asks to wait, or None
    breaks: bool  # whether the answer breaks off


class Chance:
    """Draws the lots of calls, in the order in which they come."""

    def __init__(self, how: Behaviour) -> None:
        self._how = how
        self._random = random.Random(how.seed)  # noqa: S311 - errors by design, no secrets

    def draw(self) -> Lot:
        """One call's."""
        how, chance = self._how, self._random
        wait = max(0.0, how.latency + chance.uniform(-how.jitter, how.jitter))
        if chance.random() < how.error_rate:
            status = chance.choice(tuple(ERRORS))
            return Lot(wait, status, None if status == 500 else chance.randint(1, 3), False)
        return Lot(wait, None, None, bool(how.break_rate) and chance.random() < how.break_rate)
