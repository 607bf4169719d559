"""Forms: pydantic models by which data are asked for, as schemas that every provider takes, and the data given."""

import functools
from typing import Any

from pydantic import BaseModel, RootModel
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticSerializationError, from_json, to_json

from callsheet.errors import UsageError

ROOT = "root"
"""The field of a form that is no object in itself (a RootModel), by which pydantic takes it back."""


class QuietSchema(GenerateJsonSchema):
    """Leaves defaults out that are not JSON, and says nothing."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 - as the base has it


class _FormSchema(QuietSchema):
    def model_field_schema(self, schema: Any) -> dict[str, Any]:
        alias = schema.get("validation_alias")
        paths = [] if not isinstance(alias, list) else alias if isinstance(alias[0], list) else [alias]
        if paths and all(len(path) > 1 for path in paths):
            raise PydanticInvalidForJsonSchema(f"a field is found by a path alone, {paths[0]}")
        return super().model_field_schema(schema)


class Form:
    """A pydantic model as it is asked for.

    Args:
        model: the form.

    Attributes:
        schema: JSON schema of the data, by alias; its root is an object.

    Raises:
        UsageError: no model could be asked for it.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self.model = model
        self._is_root = issubclass(model, RootModel)
        try:
            schema = model.model_json_schema(schema_generator=_FormSchema)
        except Exception as exc:  # pydantic has several for what it cannot show
            raise UsageError(f"The form {model.__name__} has no JSON schema: {str(exc).partition(chr(10))[0]}. "
                             "Give its fields types that JSON can hold, and names for aliases.") from exc
        definitions = schema.pop("$defs", {})
        if self._is_root:
            schema = {"type": "object", "properties": {ROOT: schema}, "required": [ROOT]}
        while str(schema.get("$ref", "")).startswith("#/$defs/"):  # of a form that holds itself
            schema = {**schema, "$ref": None, **definitions[schema["$ref"].removeprefix("#/$defs/")]}
        schema = {key: value for key, value in schema.items() if key != "$ref"}
        if schema.get("type") != "object":
            raise UsageError(f"The form {model.__name__} has a JSON schema whose root is no object, which no provider "
                             "takes. Put it into a field of another model.")
        self.schema: dict[str, Any] = {**schema, "$defs": definitions} if definitions else schema

    def read(self, said: str | dict[str, Any]) -> dict[str, Any]:
        """The data of a JSON text, or of what was read of one, as `model(**data)` takes them.

        Raises:
            ValidationError: they do not fit.
        """
        given: Any = said
        if isinstance(said, str):
            try:
                given = from_json(said)
            except ValueError:  # the model tells why
                return self._data(self.model.model_validate_json(said), {})
        own = given[ROOT] if self._is_root and isinstance(given, dict) and given.keys() == {ROOT} else given
        # As JSON, in which also a strict model takes a date's text for a date.
        return self._data(self.model.model_validate_json(to_json(own, inf_nan_mode="constants")), given)

    def _data(self, found: BaseModel, given: Any) -> dict[str, Any]:
        """What was found, by the names by which the model takes it back; else by its fields' aliases."""
        first: dict[str, Any] | None = None
        for by_alias, round_trip in ((True, False), (True, True), (False, False), (None, None)):
            try:
                data = given
                if by_alias is not None and round_trip is not None:
                    data = found.model_dump(mode="json", by_alias=by_alias, round_trip=round_trip)
                    data = {ROOT: data} if self._is_root else data
                first = data if first is None else first
                if self.model(**data) == found:
                    return dict(data)
            except (ValueError, TypeError, PydanticSerializationError):
                continue
        return dict(first or {})


@functools.lru_cache(maxsize=256)
def form_of(model: type[BaseModel]) -> Form:
    """A pydantic model's form; found once for each.

    Raises:
        UsageError: no model could be asked for it.
    """
    return Form(model)
