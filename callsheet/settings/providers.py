"""The endpoints that are there from the start: the public providers, at the addresses and keys of their own SDKs."""

import os
from typing import Any

OLLAMA_PORT = 11434
_ADDRESSES = {"openai": "OPENAI_BASE_URL", "anthropic": "ANTHROPIC_BASE_URL", "gemini": "GOOGLE_GEMINI_BASE_URL",
              "dashscope": "DASHSCOPE_BASE_URL", "deepseek": "DEEPSEEK_BASE_URL", "ollama": "OLLAMA_HOST",
              "azure": "AZURE_OPENAI_ENDPOINT"}


def default_endpoints() -> dict[str, Any]:
    """Endpoints by name, as they would be written into callsheet.toml; each may be changed there, in part too."""
    env = os.environ
    google = "GOOGLE_API_KEY" if "GOOGLE_API_KEY" in env and "GEMINI_API_KEY" not in env else "GEMINI_API_KEY"
    found = {
        "openai": _at("openai", "https://api.openai.com/v1", "OPENAI_API_KEY"),
        "anthropic": _at("anthropic", "https://api.anthropic.com", "ANTHROPIC_API_KEY"),
        "gemini": _at("gemini", "https://generativelanguage.googleapis.com", google),
        "dashscope": _at("dashscope", "https://dashscope.aliyuncs.com/compatible-mode/v1", "DASHSCOPE_API_KEY"),
        "deepseek": _at("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
        "ollama": {"base_url": ollama_url(env.get(_ADDRESSES["ollama"]) or ""), "api_key_env": "OLLAMA_API_KEY"},
    }
    azure = env.get(_ADDRESSES["azure"])  # each customer has an address of their own
    if azure:
        found["azure"] = {"base_url": f"{azure.rstrip('/')}/openai/v1", "api_key_env": "AZURE_OPENAI_API_KEY"}
    return found


def address_variable(name: str, base_url: str) -> str:
    """The environment variable that an endpoint's address stands in, or that would beat where it stands.

    Args:
        name: the endpoint's.
        base_url: its address, as in its settings.
    """
    given = _ADDRESSES.get(name, "")
    if os.environ.get(given) and default_endpoints()[name]["base_url"].rstrip("/") == base_url:
        return given
    return f"CALLSHEET_ENDPOINTS__{name.upper()}__BASE_URL"


def ollama_url(host: str) -> str:
    """The address of an Ollama server's compatible API, from what OLLAMA_HOST may hold: a host, with or without
    scheme, port and path; "" is this machine."""
    scheme, mark, rest = host.strip().rpartition("://")
    address, slash, path = rest.rstrip("/").partition("/")
    address = address or "127.0.0.1"
    if address.startswith(":"):
        address = f"127.0.0.1{address}"
    if not mark and ":" not in address.rpartition("]")[2]:
        address = f"{address}:{OLLAMA_PORT}"
    if address.startswith("0.0.0.0"):  # noqa: S104 - where a server listens, not where it is reached
        address = address.replace("0.0.0.0", "127.0.0.1", 1)  # noqa: S104
    path = f"{slash}{path}".removesuffix("/v1")
    return f"{scheme or 'http'}://{address}{path}/v1"


def _at(name: str, otherwise: str, key: str) -> dict[str, Any]:
    return {"base_url": os.environ.get(_ADDRESSES[name]) or otherwise, "api_key_env": key}
