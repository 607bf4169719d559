"""What providers report of tokens, each in its own form, as one thing."""

from collections.abc import Mapping
from typing import Any, NamedTuple

# OpenAI and whoever speaks its API, OpenAI's responses and Anthropic, Gemini on the wire and in its SDK, Ollama,
# Bedrock. Anthropic and Bedrock count what they read from a cache, or wrote to it, apart from the input; where others
# report that too, as gateways do, it is within.
_INPUT = ("prompt_tokens", "promptTokenCount", "prompt_token_count", "prompt_eval_count", "input_tokens", "inputTokens")
_APART = ("input_tokens", "inputTokens")
_OUTPUT = ("completion_tokens", "candidatesTokenCount", "candidates_token_count", "eval_count", "output_tokens",
           "outputTokens")
_READ = ("cache_read_input_tokens", "cacheReadInputTokens")
_CACHED = ("cached_tokens", *_READ, "cachedContentTokenCount", "cached_content_token_count", "prompt_cache_hit_tokens")
_WRITTEN = ("cache_creation_input_tokens", "cacheWriteInputTokens", "cache_write_tokens", "ephemeral_5m_input_tokens")
_LASTING = ("ephemeral_1h_input_tokens",)
_TOOL_USE = ("toolUsePromptTokenCount", "tool_use_prompt_token_count")
_THOUGHTS = ("thoughtsTokenCount", "thoughts_token_count")


class Tokens(NamedTuple):
    """Tokens of a call; None where nothing was reported.

    Attributes:
        input: of the prompt, cached ones included.
        output: of the answer, reasoning included.
        cached: of the input, those that the provider had in its cache.
        written: of the input, those that it wrote to its cache.
        lasting: of those written, the ones for an hour.
    """

    input: int | None = None
    output: int | None = None
    cached: int | None = None
    written: int | None = None
    lasting: int | None = None


NOTHING = Tokens()


def numbers_in(usage: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of a usage object, and those of the objects in it that it does not have itself."""
    found: dict[str, int] = {}
    inner = [value for value in usage.values() if isinstance(value, dict)]
    deeper = [value for part in inner for value in part.values() if isinstance(value, dict)]
    for part in (*deeper, *inner, usage):
        found.update((name, value) for name, value in part.items()
                     if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53)
    return found


def tokens_of(numbers: Mapping[str, int]) -> Tokens:
    """The tokens that `numbers_in` found."""
    given, out = _first(numbers, _INPUT), _first(numbers, _OUTPUT)
    written, lasting = _first(numbers, _WRITTEN), _first(numbers, _LASTING)
    if given is not None:
        given += _first(numbers, _TOOL_USE) or 0
        if not any(name in numbers for name in _INPUT if name not in _APART):
            given += (_first(numbers, _READ) or 0) + (written or 0)
    if out is not None:
        out += _first(numbers, _THOUGHTS) or 0
        if "prompt_tokens" in numbers:  # some count reasoning in the total alone
            out = max(out, numbers.get("total_tokens", 0) - numbers["prompt_tokens"])
    return Tokens(given, out, _first(numbers, _CACHED), written, lasting)


def _first(numbers: Mapping[str, int], names: tuple[str, ...]) -> int | None:
    return next((numbers[name] for name in names if name in numbers), None)
