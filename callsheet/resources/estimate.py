"""How many tokens a request will take, reckoned before it is sent."""

from typing import Any, NamedTuple

CHARACTERS = 4
"""Characters a token, in English text; the usage that comes back corrects what this gets wrong."""

MEDIA = 1000
"""Tokens of an image, a sound or a document: their bytes say nothing about it."""

_OUTPUT = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_CONTENT = ("messages", "input", "contents", "system", "systemInstruction", "instructions", "prompt", "tools",
            "response_format")
_MEDIA = ("image_url", "input_audio", "inlineData", "inline_data", "fileData", "file_data", "file", "source")


class Estimate(NamedTuple):
    """Tokens of a request.

    Attributes:
        input: of what is sent, at least 1.
        output: of the answer that it allows.
    """

    input: int
    output: int

    @property
    def total(self) -> int:
        """Both."""
        return self.input + self.output


def estimate(body: dict[str, Any], default_output: int) -> Estimate:
    """Tokens of a request's JSON body and of the answer it allows.

    Args:
        body: of a chat, responses, messages, generateContent or embeddings call.
        default_output: tokens of an answer where the body bounds none.
    """
    characters, media = _size([body[name] for name in _CONTENT if name in body])
    return Estimate(max(1, -(-characters // CHARACTERS) + media * MEDIA), _output(body, default_output))


def _output(body: dict[str, Any], default: int) -> int:
    config = body.get("generationConfig")
    for name, where in [*((name, body) for name in _OUTPUT), ("maxOutputTokens", config)]:
        value = where.get(name) if isinstance(where, dict) else None
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value * _choices(body)
    if "messages" not in body and "contents" not in body and ("input" in body and "encoding_format" in body):
        return 0  # embeddings
    return default * _choices(body)


def _choices(body: dict[str, Any]) -> int:
    count = body.get("n")
    return count if isinstance(count, int) and count > 0 else 1


def _size(value: Any) -> tuple[int, int]:
    """Characters of the texts in a JSON value, and how many media are among them."""
    characters = media = 0
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            if item.startswith("data:") and ";base64," in item[:100]:
                media += 1
            else:
                characters += len(item)
        elif isinstance(item, list):
            todo.extend(item)
        elif isinstance(item, dict):
            for name, part in item.items():
                characters += len(name)
                if name in _MEDIA and isinstance(part, dict) and part.get("type") != "text":
                    media += 1
                else:
                    todo.append(part)
    return characters, media
