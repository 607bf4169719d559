"""How an answer ended. The one place that knows the providers' words for it, and which of them leave no answer."""

from typing import Any

from callsheet.models.errors import Failures

_KNOWN = {
    "stop": "stop end_turn stop_sequence eos eos_token",
    "tool_calls": "tool_calls tool_use function_call",
    "length": "length max_tokens max_output_tokens model_length model_context_window_exceeded",
    "content_filter": "content_filter refusal safety recitation blocklist prohibited_content spii language sensitive "
                      "image_safety image_prohibited_content image_recitation model_armor guardrail_intervened",
    "error": "error other malformed_function_call unexpected_tool_call too_many_tool_calls malformed_response "
             "missing_thought_signature image_other no_image insufficient_system_resource network_error abort aborted "
             "cancelled failed timeout repetition",
    "": "finish_reason_unspecified null none",
}
_WORDS = {word: known for known, words in _KNOWN.items() for word in words.split()}


def reason(word: Any) -> str | None:
    """A provider's word in those of `ChatResponse.finish_reason`; one that is not known stays, in small letters."""
    small = str(word or "").lower()
    return _WORDS.get(small, small) or None


def ended(word: Any, said: bool, failures: Failures, status: int | None, why: str = "") -> None:
    """See to it that an answer that has ended is one.

    Args:
        word: the provider's for why it ended.
        said: whether it holds text, a tool call or sound.
        status: of the response.
        why: what the provider said beside that word.

    Raises:
        EndpointError: the model failed, which another try or another model may mend; or it refused and said nothing.
    """
    finish = reason(word)
    if finish == "error":
        raise failures.broken(f"The model failed amid its answer ({': '.join(filter(None, (word, why)))})",
                              "Try again, or ask another model.", status, retryable=True)
    if finish == "content_filter" and not said:
        raise failures.broken(f"The model refused: {why or word}", "Ask for something else.", status)
