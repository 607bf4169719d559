"""A pydantic model's JSON schema in the dialect that endpoints enforce."""

from typing import Any

from pydantic import BaseModel

from callsheet.messages.forms import form_of

_NOT_STRICT = frozenset({"oneOf", "allOf", "not", "if", "prefixItems", "uniqueItems", "patternProperties",
                         "propertyNames", "contains", "dependentRequired", "dependentSchemas", "unevaluatedProperties"})
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})


def response_format(model: type[BaseModel]) -> dict[str, Any]:
    """The `response_format` that makes an endpoint answer with this model's data."""
    loose = form_of(model).schema
    schema, strict = _strict(loose)
    return {"type": "json_schema",
            "json_schema": {"name": _name(model), "schema": schema if strict else loose, "strict": strict}}


def as_tool(model: type[BaseModel]) -> dict[str, Any]:
    """A tool whose arguments are this model's data, for endpoints without `response_format`."""
    return {"type": "function",
            "function": {"name": _name(model), "parameters": form_of(model).schema,
                         "description": (model.__doc__ or "Give the answer in this form.").strip()}}


def _name(model: type[BaseModel]) -> str:
    return "".join(ch if ch.isascii() and (ch.isalnum() or ch in "_-") else "_" for ch in model.__name__)[:64]


def _strict(node: Any) -> tuple[Any, bool]:
    """The schema with every object closed and every field required, and whether that could be done.

    It cannot where keys or values are free, as in `dict[str, Any]`, nor with keywords that are not enforced.
    """
    if isinstance(node, list):
        parts = [_strict(item) for item in node]
        return [part for part, _ in parts], all(fine for _, fine in parts)
    if not isinstance(node, dict):
        return node, True
    if "$ref" in node:
        return {"$ref": node["$ref"]}, True  # nothing may stand beside a reference
    fine = bool(node) and not _NOT_STRICT & node.keys()
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key == "default" or (key == "format" and value not in _FORMATS):
            continue  # which strict endpoints refuse
        if key in ("properties", "$defs"):  # their keys are names, not keywords
            named = {name: _strict(part) for name, part in value.items()}
            out[key] = {name: part for name, (part, _) in named.items()}
            fine = fine and all(ok for _, ok in named.values())
        elif key in ("enum", "const", "required", "additionalProperties"):
            out[key] = value
        else:
            out[key], ok = _strict(value)
            fine = fine and ok
    if node.get("type") == "object":
        fine = fine and "properties" in node and not node.get("additionalProperties")
        out["additionalProperties"] = False
        out["required"] = list(out.get("properties", ()))
    return out, fine
