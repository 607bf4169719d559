"""Forms: whatever pydantic model data are asked for by, its schema has an object at the root and its data come back."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    ValidationError,
    computed_field,
)
from pydantic.alias_generators import to_camel

from callsheet.errors import UsageError
from callsheet.messages.forms import form_of
from callsheet.models.structured import read_fitting, response_format


class Node(BaseModel):
    name: str
    children: list["Node"] = []


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)
    first_name: str
    inner: Node


class Read(BaseModel):
    first: str = Field(validation_alias="firstName")


class Written(BaseModel):
    first: str = Field(serialization_alias="firstName")


class Both(BaseModel):
    first: str = Field(validation_alias="a", serialization_alias="b")


class Choices(BaseModel):
    first: str = Field(validation_alias=AliasChoices("x", "y"))


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def b(self) -> int:
        return self.a + 1


class Hidden(BaseModel):
    a: int = Field(exclude=True)


class Numbers(RootModel[list[int]]):
    pass


class Tree(RootModel[dict[str, "Tree"]]):
    pass


@pytest.mark.parametrize(("form", "said", "names"), [
    (Node, '{"name": "a", "children": [{"name": "b"}]}', {"name", "children"}),
    (Camel, '{"firstName": "a", "inner": {"name": "b"}}', {"firstName", "inner"}), (Read, '{"firstName": "a"}', None),
    (Written, '{"first": "a"}', {"first"}), (Both, '{"a": "x"}', {"a"}), (Choices, '{"x": "a"}', {"x"}),
    (Computed, '{"a": 1}', {"a"}), (Hidden, '{"a": 1}', {"a"}), (Numbers, '{"root": [1, 2]}', {"root"}),
    (Numbers, "[1, 2]", {"root"}), (Tree, '{"root": {"a": {"b": {}}}}', {"root"})])
def test_a_form_is_asked_for_as_an_object_and_its_data_make_it_again(form: Any, said: str, names: Any) -> None:
    schema = form_of(form).schema
    assert schema["type"] == "object" and "$ref" not in schema
    assert set(schema["properties"]) == (names or {"firstName"})
    assert response_format(form)["json_schema"]["schema"]["type"] == "object"
    data = read_fitting(form, said)
    assert set(data) == set(schema["properties"]) | ({"b"} if form is Computed and "b" in data else set())
    found = form(**data)
    assert found == form(**form_of(form).read(data))


def test_a_form_that_cannot_be_asked_for_is_refused() -> None:
    class Calls(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        f: Callable[[int], int]

    class ByPath(BaseModel):
        first: str = Field(validation_alias=AliasPath("x", "y"))

    class Odd(BaseModel):
        model_config = ConfigDict(json_schema_extra={"type": "string"})

    for form in (Calls, ByPath, Odd):
        with pytest.raises(UsageError, match=f"The form {form.__name__} has "):
            form_of(form)


@pytest.mark.parametrize("said", [
    '<think>Perhaps {"first": "no"}?</think>\n{"first": "a"}', 'Here:\n```json\n{"first": "a"}\n```\nAnything else?',
    'Say {"b": 1}, or: {"first": "a"} {so}', "```\n{\"first\": \"a\"}\n```"])
def test_data_are_found_behind_thoughts_and_amid_prose(said: str) -> None:
    assert read_fitting(Written, said) == {"first": "a"}


def test_what_does_not_fit_is_told_of_the_data_not_of_the_prose() -> None:
    with pytest.raises(ValidationError, match="Field required"):
        read_fitting(Written, 'It is {"second": 1}.')
    with pytest.raises(ValidationError, match="Invalid JSON"):
        read_fitting(Written, "{" * 100_000)
