"""What the chat models behind an endpoint share: keys that stay where they are, streams, answers in a given form."""

import copy
import functools
import logging
from abc import abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

from pydantic import BaseModel, SecretStr

from callsheet.errors import UsageError
from callsheet.models.base import ChatModelBase, ChatResponse
from callsheet.models.errors import EndpointError, Failures
from callsheet.models.fallback import first_that_answers
from callsheet.models.structured import Misfit, added
from callsheet.resources import find_endpoint, refusals
from callsheet.resources.refusals import WANTS_LAST_WORD
from callsheet.settings import Endpoint
from callsheet.settings.secrets import keep_secret

log = logging.getLogger(__name__)

Messages = list[dict[str, Any]]
Chunks = AsyncGenerator[ChatResponse | None, None]
"""Of one attempt: None once the endpoint has accepted the request, then growing responses, the last one complete.
Where answers do not stream, that is the only one."""


@dataclass(frozen=True)
class Options:
    """What one call asks for."""

    parameters: dict[str, Any]  # of the request, without messages
    structured: type[BaseModel] | None  # the answer's form, if one is asked for
    without: frozenset[str] = frozenset()  # parameters that the endpoint has refused


class RemoteChatModel(ChatModelBase):
    """Base of the chat models that call an endpoint of the settings.

    Args:
        model_name: as the endpoint knows it.
        stream: answer with a generator of growing responses.
        api_key: a key to use instead of the endpoint's. A model that has one cannot travel to a worker.
        endpoint: name of the endpoint in the settings.
        client_kwargs: of the client, those that this class names in `client_options`.
        generate_kwargs: parameters of every call; a call's own beat them.
        stream_tool_parsing: whether a stream shows a tool call's input as it grows; {} until it is complete if not.

    Raises:
        UsageError: `client_kwargs` has what is not supported.
    """

    client_options: ClassVar[tuple[str, ...]] = ("base_url", "timeout", "default_headers")

    def __init__(self, model_name: str, stream: bool, *, api_key: str | SecretStr | None, endpoint: str,
                 client_kwargs: dict[str, Any] | None, generate_kwargs: dict[str, Any] | None,
                 stream_tool_parsing: bool = True) -> None:
        super().__init__(model_name, stream)
        self.endpoint = endpoint
        for name in client_kwargs or ():
            if name not in self.client_options:
                raise UsageError(f"client_kwargs[{name!r}] is not supported: {', '.join(self.client_options)} are. Set "
                                 f"what concerns the connection on the endpoint, as CALLSHEET_ENDPOINTS__"
                                 f"{endpoint.upper()}__...")
        self.client_kwargs = dict(client_kwargs or {})
        self.generate_kwargs = dict(generate_kwargs or {})
        self.stream_tool_parsing = stream_tool_parsing
        self._api_key = SecretStr(api_key) if isinstance(api_key, str) else api_key
        if self._api_key is not None:
            keep_secret(self._api_key.get_secret_value())
        if isinstance(api_key, str):
            # A SecretStr in the record: whoever would put this model on the wire refuses it by name.
            args, kwargs = self._recorded
            hidden = SecretStr(api_key)
            self._recorded = (tuple(hidden if arg == api_key else arg for arg in args),
                              {name: hidden if arg == api_key else arg for name, arg in kwargs.items()})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model_name!r}, endpoint={self.endpoint!r})"

    @abstractmethod
    def _attempt(self, messages: Messages, options: Options) -> Chunks:
        """Ask once.

        Raises:
            Misfit: the complete answer does not have the form asked for.
        """

    async def _run(self, messages: Messages, options: Options) -> ChatResponse | AsyncGenerator[ChatResponse, None]:
        """Ask, and once more where the answer has not the form asked for; then the endpoint's fallbacks."""
        elsewhere = self.client_kwargs.get("base_url") or self.client_kwargs.get("azure_endpoint")
        others = () if elsewhere else find_endpoint(self.endpoint).fallback
        if not others:
            return await self._ask(messages, options)
        return await first_that_answers([self, *map(self._at, others)], lambda model: model._ask(messages, options))

    def _at(self, endpoint: str) -> Self:
        """This model on another endpoint, with that one's key."""
        other = copy.copy(self)
        other.endpoint, other._api_key = endpoint, None
        return other

    async def _without(self, exc: EndpointError, options: Options) -> Options:
        """The options without what the endpoint does not take; learned for later calls of the model there.

        Raises:
            EndpointError: this is not why it refused.
        """
        name = exc.parameter
        if name is None or name in self._refused(options):
            raise exc
        log.warning("model_parameter_refused model=%s endpoint=%s parameter=%s: the call is made without",
                    self.model_name, self.endpoint, name)
        if exc.lasting:
            await refusals.learn(self._endpoint().base_url, self.model_name, name)
        return replace(options, without=options.without | {name})

    def _refused(self, options: Options) -> frozenset[str]:
        """What the endpoint does not take of this model's calls, or did not take of this one."""
        return refusals.refused(self._endpoint().base_url, self.model_name) | options.without

    async def _ask(self, messages: Messages, options: Options) -> ChatResponse | AsyncGenerator[ChatResponse, None]:
        await refusals.look(self._endpoint().base_url, self.model_name)
        # The generator's first step sends the request and yields None: its errors are raised here, and a stream that
        # nobody reads is closed by the loop like any begun generator.
        chunks = self._chunks(messages, options)
        await anext(chunks)
        if self.stream:
            return cast("AsyncGenerator[ChatResponse, None]", chunks)
        return [chunk async for chunk in chunks if chunk is not None][-1]

    async def _chunks(self, messages: Messages, options: Options) -> Chunks:
        """The chunks of an answer; asked for without what the endpoint refuses, and once more where it does not fit."""
        accepted = begun = False
        misfit: Misfit | None = None
        while True:
            try:
                async with aclosing(self._attempt(messages, options)) as chunks:
                    async for chunk in chunks:
                        begun = begun or chunk is not None
                        if chunk is not None and misfit is not None:
                            chunk.usage = added(misfit.usage, chunk.usage)
                        if chunk is not None or not accepted:
                            yield chunk
                        accepted = True
                return
            except EndpointError as exc:
                if begun:
                    raise
                options = await self._without(exc, options)
            except Misfit as exc:
                if misfit is not None:
                    raise exc.error from exc
                log.warning("model_answer_repair model=%s endpoint=%s: the answer does not fit and is asked for again: "
                            "%s", self.model_name, self.endpoint, exc.problems)
                misfit, begun, messages = exc, False, [*messages, *self._correction(exc)]

    def _base_url(self) -> str | None:
        """The address that `client_kwargs` give, or None."""
        found = self.client_kwargs.get("base_url")
        return None if found is None else str(found)

    def _endpoint(self) -> Endpoint:
        """The endpoint; a stranger to the settings' one where `client_kwargs` give another address."""
        endpoint = find_endpoint(self.endpoint)
        base_url = self._base_url()
        if base_url is None or base_url.rstrip("/") == endpoint.base_url:
            return endpoint
        return _stranger(base_url, endpoint.timeout, endpoint.connect_timeout, endpoint.max_connections)

    def _failures(self, timeout: Any) -> Failures:
        """The errors of a call of so many seconds, or as many as are set; refuses one without the key that it needs."""
        endpoint = self._endpoint()
        key = self._api_key.get_secret_value() if self._api_key else endpoint.key()
        seconds = float(timeout or self.client_kwargs.get("timeout") or endpoint.timeout)
        failures = Failures(self.endpoint, endpoint, self.model_name, key, seconds)
        failures.check_key()
        return failures

    def _correction(self, misfit: Misfit) -> Messages:
        """The messages that have a model correct its answer: that answer as the model's, and what it is told."""
        return [{"role": "assistant", "content": misfit.answer}, {"role": "user", "content": misfit.request()}]

    def _choice(self, tool_choice: str | None, tools: Sequence[dict[str, Any]] | None,
                structured: type[BaseModel] | None = None) -> str | None:
        """`tool_choice`, checked; the old name "any" is "required".

        Raises:
            TypeError, ValueError: as `_validate_tool_choice`.
        """
        if structured is not None and (tools or tool_choice):
            log.warning("model_tools_ignored model=%s: an answer in a given form calls no tools", self.model_name)
        if not tool_choice:
            return None
        choice = "required" if tool_choice == "any" else tool_choice
        self._validate_tool_choice(choice, list(tools) if tools else None)
        return choice

    def _headers(self, more: dict[str, str] | None) -> dict[str, str]:
        """The headers of a call: the model's, and `more`.

        Raises:
            UsageError: one names another host, to which a gateway would hand the call, with its key, on.
        """
        headers = {**(self.client_kwargs.get("default_headers") or {}), **(more or {})}
        if any(name.lower() == "host" for name in headers):
            raise UsageError("The header Host is not a call's to set: name the server in the endpoint's base_url.")
        return headers


@functools.lru_cache(maxsize=64)
def _stranger(base_url: str, timeout: float, connect_timeout: float, max_connections: int) -> Endpoint:
    """An endpoint that the settings do not name; the same object each time, since connections belong to it."""
    return Endpoint(base_url=base_url, timeout=timeout, connect_timeout=connect_timeout,
                    max_connections=max_connections)


def one_of(client_kwargs: dict[str, Any] | None, client_args: dict[str, Any] | None) -> dict[str, Any] | None:
    """`client_kwargs`, which AgentScope called `client_args` before.

    Raises:
        UsageError: both are given.
    """
    if client_kwargs is not None and client_args is not None:
        raise UsageError("client_args is the old name of client_kwargs: give one of them.")
    return client_kwargs if client_args is None else client_args


def opened_by_user(messages: Messages, **said: Any) -> Messages:
    """The messages with one of the user's first, without which some providers take none."""
    fine = messages and messages[0]["role"] not in ("assistant", "model")
    return messages if fine else [{"role": "user", **said}, *messages]


def ended_by_user(messages: Messages, refused: frozenset[str]) -> Messages:
    """The messages with a word of the user's last, where the endpoint wants that."""
    if WANTS_LAST_WORD not in refused or not messages or messages[-1]["role"] != "assistant":
        return messages
    return [*messages, {"role": "user", "content": "Go on."}]


def check_messages(messages: Any, *needed: str) -> None:
    """Refuse what cannot be a conversation: dictionaries with a role and one of the `needed` keys.

    Raises:
        ValueError: says which message is wrong.
    """
    keys = needed or ("content",)
    wanted = f"'role' and {' or '.join(map(repr, keys))}"
    if not isinstance(messages, list):
        raise ValueError(f"messages is {type(messages).__name__}: a list of dictionaries is needed.")
    if not messages:
        raise ValueError(f"messages is empty: give at least one dictionary with {wanted}.")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message or not any(key in message for key in keys):
            raise ValueError(f"messages[{number}] is no dictionary with {wanted}. Give messages through a "
                             "formatter of callsheet.formatters, or as "
                             '{"role": msg.role, "content": msg.get_text_content()}.')
