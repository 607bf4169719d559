"""Whether endpoints answer, each asked for its list of models, which costs nothing."""

import asyncio
import os
import time

import httpx

from callsheet.cli.checks.findings import Finding, fail, ok, skip, warn
from callsheet.errors import CallsheetError
from callsheet.resources.transport import pooled_transport
from callsheet.settings import Endpoint, Settings
from callsheet.settings.endpoints import address_of

PATIENCE = 8.0
"""Seconds that an endpoint is given to answer."""

_PUBLIC = ("openai.com", "anthropic.com", "googleapis.com", "aliyuncs.com", "deepseek.com", "azure.com")


def check_endpoints(settings: Settings) -> list[Finding]:
    """The findings, in the order of the settings; all are asked at once."""
    async def ask_all() -> list[Finding]:
        return await asyncio.gather(*(_check(name, endpoint) for name, endpoint in settings.endpoints.items()))

    return asyncio.run(ask_all())


async def _check(name: str, endpoint: Endpoint) -> Finding:
    subject = f"endpoint {name}"
    try:
        key = endpoint.key()
    except CallsheetError as exc:
        text, _, remedy = str(exc).partition(". ")
        return fail(subject, f"{text}.", remedy)
    where = address_of(endpoint.base_url)
    if key is None and _is_public(where):
        return skip(subject, f"no key ({_where_keys_go(name, endpoint)}), not asked")
    began = time.perf_counter()
    try:
        async with httpx.AsyncClient(transport=pooled_transport(endpoint), timeout=PATIENCE) as http:
            async with asyncio.timeout(PATIENCE):
                answer = await http.get(_models_of(name, endpoint), headers=_signed(name, endpoint, key))
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, CallsheetError) as exc:
        return _silent(subject, name, where, exc)
    return _judged(subject, name, endpoint, answer, key, time.perf_counter() - began)


def _is_public(address: str) -> bool:
    host = address.rpartition("//")[2].partition(":")[0]
    return any(host == name or host.endswith(f".{name}") for name in _PUBLIC)


def _models_of(name: str, endpoint: Endpoint) -> str:
    version = {"anthropic": "/v1", "gemini": "/v1beta"}.get(name, "")
    return f"{endpoint.base_url}{'' if endpoint.base_url.endswith(version) else version}/models"


def _signed(name: str, endpoint: Endpoint, key: str | None) -> dict[str, str]:
    headers = dict(endpoint.headers)
    if key is not None:
        of_key = {"anthropic": "x-api-key", "gemini": "x-goog-api-key", "azure": "api-key"}.get(name)
        headers.setdefault(of_key or "Authorization", key if of_key else f"Bearer {key}")
    if name == "anthropic":
        headers.setdefault("anthropic-version", "2023-06-01")
    return headers


def _where_keys_go(name: str, endpoint: Endpoint) -> str:
    return endpoint.api_key_env or (str(endpoint.api_key_file) if endpoint.api_key_file else
                                    f"CALLSHEET_ENDPOINTS__{name.upper()}__API_KEY_ENV")


def _silent(subject: str, name: str, where: str, exc: BaseException) -> Finding:
    if name == "ollama" and not os.environ.get("OLLAMA_HOST"):
        return skip(subject, f"no Ollama at {where}")
    what = "does not answer in time" if isinstance(exc, (httpx.TimeoutException, TimeoutError)) else "cannot be reached"
    return fail(subject, f"{where} {what} ({type(exc).__name__}).", "Start the server, correct base_url, or look at "
                "proxies and certificates (proxy, ca_file) between here and there.")


def _judged(subject: str, name: str, endpoint: Endpoint, answer: httpx.Response, key: str | None,
            took: float) -> Finding:
    where, status = address_of(endpoint.base_url), answer.status_code
    text = f"{where} answers in {took * 1000:.0f} ms"
    if status in (401, 403):
        keys = _where_keys_go(name, endpoint)
        if key is None:
            return warn(subject, f"{text}, and wants a key.", f"Put one into {keys}.")
        return fail(subject, f"{text}, and refuses the key ({status}).", f"Correct the key in {keys}.")
    if status == 429:
        return warn(subject, f"{text}, that it is asked too often (429).", "Set its limits (rpm, tpm) in the settings; "
                    "Callsheet then keeps to them over all workers.")
    if status >= 500:
        return fail(subject, f"{text} with status {status}.", "Look at the server, or give the endpoint a fallback.")
    return ok(subject, text if status < 400 else f"{text} ({status} to /models)")
