"""How a call of a model's endpoint fails, in words.

Everything that httpx, the endpoint or its answer can do wrong becomes an EndpointError here, and nowhere else.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from callsheet.errors import ModelError
from callsheet.resources.endpoints import shown_url
from callsheet.resources.record import without_trace
from callsheet.resources.refusals import RETRIED, asked_delay, is_spent, of_error, refused_parameter
from callsheet.resources.transport import UntrustedCertificate
from callsheet.settings import Endpoint
from callsheet.settings.endpoints import address_variable
from callsheet.settings.secrets import HIDDEN, scrubbed

SHOWN = 500
"""Characters of a server's own words that a message quotes."""

TRANSIENT = frozenset({"api_error", "overloaded", "overloaded_error", "rate_limit_error", "rate_limit_exceeded",
                       "server_error", "timeout_error", "internal_server_error", "internalservererror", "internal",
                       "unavailable", "service_unavailable", "engine_overloaded_error", "resource_exhausted",
                       "timeout"})
"""Codes and types of errors inside an answer that another try may mend."""

_KEYED = ("https://api.openai.com", "https://api.anthropic.com", "https://generativelanguage.googleapis.com",
          "https://dashscope", "https://api.deepseek.com", "https://ollama.com")
_EXAMPLE = "https://api.openai.com/v1"
_TOO_LONG = re.compile(
    r"(?i)context.?length.?exceeded|maximum context length|exceed.{0,30}context|context (?:window|size)|exceed_context|"
    r"(?:prompt|input) is too long|input token count.{0,40}exceeds|maximum prompt length|max_prompt_tokens|"
    r"(?:reduce|shorten) the length of the|range of input length|request_too_large|too large for model|"
    r"token limit exceeded")
_MEDIA = re.compile(r"image|picture|photo|audio|video|media|mime|inline_?data|base64|download", re.I)
_ERROR_TEXTS = ("message", "detail", "msg", "error_msg", "error_message", "errors")


class EndpointError(ModelError):
    """A model's endpoint refused a call, broke it off, or answered what cannot be used.

    Args:
        message: what happened and the remedy, for people.
        endpoint: its name in the settings.
        status: the HTTP status, or None where none arrived.
        retryable: whether the same call may succeed a little later.
        retry_after: seconds that the endpoint asked to be left alone, or None.
        too_long: whether the prompt was longer than the model's context.
    """

    def __init__(self, message: str = "", endpoint: str = "", status: int | None = None,
                 retryable: bool = False, retry_after: float | None = None, too_long: bool = False) -> None:
        super().__init__(message, endpoint, status, retryable, retry_after, too_long)
        self.endpoint = endpoint
        self.status = status
        self.retryable = retryable
        self.retry_after = retry_after
        self.too_long = too_long
        self.parameter: str | None = None  # that the endpoint does not take, if it said so; for the models alone
        self.lasting = True
        self.of_media = False  # whether it speaks of a picture, sound or film; for the agents


@dataclass(slots=True, eq=False, repr=False)
class Failures:
    """Makes the errors of one endpoint's calls.

    Args:
        name: the endpoint's.
        endpoint: its settings.
        model: the model asked for.
        key: the key sent, so that no message repeats it.
        timeout: seconds that the call may take.
        asked: the request's parameters.
    """

    name: str
    endpoint: Endpoint
    model: str
    key: str | None
    timeout: float
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The endpoint by name and address."""
        return f"endpoint {self.name!r} ({shown_url(self.endpoint.base_url)})"

    def broken(self, what: str, remedy: str, status: int | None = None, *,
               retryable: bool = False) -> EndpointError:
        """An answer that arrived but cannot be used."""
        return EndpointError(f"{self.clean(what)} ({self.where}, model {self.model!r}). {remedy}", self.name,
                             status, retryable)

    def unreadable(self, text: str, status: int | None, why: str = "") -> EndpointError:
        """An answer that is no JSON."""
        text = text.strip()
        if text[:1] == "<":
            return self.broken(f"The answer is an HTML page: {text[:200]!r}",
                               "Check that the endpoint's base_url is an API's.", status)
        return self.broken(f"The answer is not JSON, or half of it: {text[:200]!r}{why}",
                           "Try again; if it stays so, look at the server.", status, retryable=text[:1] in "{[")

    def cut_off(self, status: int | None) -> EndpointError:
        """A stream that ended before the provider said why the answer ends."""
        return self.broken("The stream broke off before the answer was complete", "Try again.", status, retryable=True)

    def check_key(self) -> None:
        """Refuse to call a public provider, which answers nobody without a key, without one."""
        if not self.key and self.endpoint.base_url.startswith(_KEYED):
            raise EndpointError(f"No key for {self.where}. {self._key_remedy()}", self.name)

    def refused(self, status: int, body: bytes, headers: httpx.Headers) -> EndpointError:
        """A status that is not 2xx."""
        said, code = server_message(body)
        spent = is_spent(status, body)
        retryable = status in RETRIED and not spent
        too_long = not retryable and _TOO_LONG.search(f"{code} {said}") is not None
        remedy = "Pay for more with the provider." if spent else self._remedy(status, headers)
        if too_long:
            remedy = "Send less: an agent's memory has a `compaction` for that."
        told = self.clean(said)
        told += "" if told.endswith((".", "!", "?", "…", ":")) else "."
        error = EndpointError(
            f"{self.where} refused a call of {self.model!r} with status {status}: {told} {remedy}", self.name, status,
            retryable, asked_delay(headers) if retryable else None, too_long)
        return self._with_parameter(error, body.decode("utf-8", "replace"))

    def told(self, error: Any, status: int) -> EndpointError:
        """An error inside an answer whose status was fine."""
        said, code = server_message(json.dumps({"error": error}).encode())
        real = int(code) if code.isascii() and code.isdigit() and 400 <= int(code[:9]) < 600 else None
        retryable = real in RETRIED if real else code.lower() in TRANSIENT
        broken = self.broken(f"The answer has status {status} but is an error: {self.clean(said)}",
                             "Correct the call, or try it again if the server was at fault.", real or status,
                             retryable=retryable)
        return self._with_parameter(broken, said)

    def _with_parameter(self, error: EndpointError, said: str) -> EndpointError:
        error.parameter = refused_parameter(self.asked, said)
        error.of_media = not (error.retryable or error.too_long) and error.status not in (401, 402, 403, 404) and (
            _MEDIA.search(said) is not None)
        error.lasting = re.search(r"invalid (?:json.?)?schema", said, re.I) is None  # that is one form's own
        return error

    def transport(self, exc: httpx.HTTPError | TimeoutError, begun: bool = False) -> EndpointError:
        """What httpx raised; `begun`: part of the answer had come."""
        prefix = f"CALLSHEET_ENDPOINTS__{self.name.upper()}__"
        address = address_variable(self.name, self.endpoint.base_url)
        if isinstance(exc, httpx.ConnectTimeout):
            what = f"No connection to {self.where} within {self.endpoint.connect_timeout:g} s."
            remedy = f"Check the address and the network, or raise {prefix}CONNECT_TIMEOUT."
        elif isinstance(exc, httpx.TimeoutException | TimeoutError):
            what = (f"{self.where} {'fell silent within its answer' if begun else 'did not answer'} for "
                    f"{self.timeout:g} s.")
            remedy = f"If {self.model!r} is that slow, raise {prefix}TIMEOUT."
        elif isinstance(exc, httpx.ProxyError):
            what = f"The proxy before {self.where} does not connect: {self.clean(str(exc))}."
            remedy = f"Correct {prefix}PROXY, or HTTPS_PROXY where the endpoint has none of its own."
        elif isinstance(exc, UntrustedCertificate):
            return EndpointError(f"{self.where} shows a certificate that is not trusted: {self.clean(str(exc))}. Name "
                                 f"the file of its issuer's certificate in {prefix}CA_FILE, or correct {address}.",
                                 self.name)
        elif isinstance(exc, httpx.ConnectError):
            what = f"{self.where} cannot be reached: {self.clean(str(exc))}."
            remedy = f"Start the server, or correct {address}."
        elif isinstance(exc, httpx.DecodingError):
            return EndpointError(f"{self.where} answers what cannot be read: {self.clean(str(exc))}. Ask for less, or "
                                 f"correct {address}.", self.name)
        elif isinstance(exc, httpx.UnsupportedProtocol):
            return EndpointError(f"{self.where} cannot be spoken to: {self.clean(str(exc))}. "
                                 f"Correct {address}.", self.name)
        else:
            what = f"{self.where} broke off {'its answer' if begun else 'the call'}: {self.clean(str(exc))}."
            remedy = "Try again; if it stays so, look into the server's log."
        again = not isinstance(exc, httpx.TransportError) or of_error(exc, after_sent=True) is not None
        return EndpointError(f"{what} {remedy}", self.name, None, again)

    def _remedy(self, status: int, headers: httpx.Headers) -> str:
        if status in (401, 403):
            return self._key_remedy()
        if status == 404:
            return f"Check the model's name, and that the address ends with the version, as in {_EXAMPLE}."
        if 300 <= status < 400:
            target = headers.get("location", "nowhere")
            return f"It redirects to {shown_url(target)[:200]}: make that the endpoint's base_url."
        if status == 429:
            return "Call it less often, or ask the provider for a higher limit."
        return "Try again later." if status in RETRIED else "Correct the call."

    def _key_remedy(self) -> str:
        variable = self.endpoint.api_key_env or f"CALLSHEET_ENDPOINTS__{self.name.upper()}__API_KEY"
        return f"Set a valid key in the environment variable {variable} where the model is called."

    def clean(self, text: str) -> str:
        """A text for people: on one line, not too long, without the key and the settings' secrets."""
        shown = " ".join(without_trace(text).split())
        return scrubbed(shown.replace(self.key, HIDDEN) if self.key else shown, SHOWN)


def error_in(event: dict[str, Any]) -> Any:
    """The error that an answer or an event of a stream is, in whatever form it came; None if it is none."""
    if event.get("error"):
        return event["error"]
    choices = event.get("choices")
    if choices and isinstance(choices, list):
        return next((one["error"] for one in choices if isinstance(one, dict) and one.get("error")), None)
    said = any(isinstance(event.get(name), (str, list)) and event[name] for name in _ERROR_TEXTS)
    return event if said or "error" in (event.get("object"), event.get("type")) else None


def server_message(body: bytes) -> tuple[str, str]:
    """What an error body says, and its code, or ""; bodies of any form."""
    text = body.decode("utf-8", "replace").strip()
    if not text:
        return "(no text)", ""
    if text[:1] == "<":
        return f"(an HTML page) {text[:120]}", ""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return text, ""
    error = data.get("error", data) if isinstance(data, dict) else data
    if isinstance(error, dict):
        said = next((error[name] for name in _ERROR_TEXTS if error.get(name)), None) or json.dumps(error)
        return str(said), str(error.get("code") or error.get("type") or error.get("status") or "")
    return str(error), ""
