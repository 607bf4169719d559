"""The endpoints that are there from the start: the public providers, at the addresses and keys of their own SDKs."""

import os
from typing import Any

OLLAMA_PORT = 11434


def default_endpoints() -> dict[str, Any]:
    """Endpoints by name, as they would be written into callsheet.toml; each may be changed there, in part too."""
    env = os.environ
    google = "GOOGLE_API_KEY" if "GOOGLE_API_KEY" in env and "GEMINI_API_KEY" not in env else "GEMINI_API_KEY"
    found = {
        "openai": _at("OPENAI_BASE_URL", "https://api.openai.com/v1", "OPENAI_API_KEY"),
        "anthropic": _at("ANTHROPIC_BASE_URL", "https://api.anthropic.com", "ANTHROPIC_API_KEY"),
        "gemini": _at("GOOGLE_GEMINI_BASE_URL", "https://generativelanguage.googleapis.com", google),
        "dashscope": _at("DASHSCOPE_BASE_URL", "https://dashscope.aliyuncs.com/compatible-mode/v1",
                         "DASHSCOPE_API_KEY"),
        "deepseek": _at("DEEPSEEK_BASE_URL", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
        "ollama": {"base_url": ollama_url(env.get("OLLAMA_HOST") or ""), "api_key_env": "OLLAMA_API_KEY"},
    }
    azure = env.get("AZURE_OPENAI_ENDPOINT")  # each customer has an address of their own
    if azure:
        found["azure"] = {"base_url": f"{azure.rstrip('/')}/openai/v1", "api_key_env": "AZURE_OPENAI_API_KEY"}
    return found


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


def _at(address: str, otherwise: str, key: str) -> dict[str, Any]:
    return {"base_url": os.environ.get(address) or otherwise, "api_key_env": key}
