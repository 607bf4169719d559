"""JSON read by pydantic's reader says what the standard library's says."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callsheet.messages.quick import loads

DATA = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
                    max_leaves=20)
TAKEN = ['"\\ud800"', "NaN", "-Infinity", "[1e400]", "1" * 500, '{"a": 1, "a": 2}', "[" * 300 + "]" * 300,
         " [1 , 2.0]\n", "-0", "-0.0", "1E5", '"\\u0000"', "0.1234567890123456789"]
REFUSED = ["", "[1,]", "{'a': 1}", "[1] 2", '"\x01"', "01", "tru", '"\\x"', b"\xff\xfe"]


@given(DATA, st.booleans())
def test_it_says_the_same(data, ascii_only):
    text = json.dumps(data, ensure_ascii=ascii_only)
    expected = json.loads(text)
    found = loads(text)
    assert found == expected and repr(found) == repr(expected)
    try:
        raw = text.encode()
    except UnicodeEncodeError:  # half a character, which only an escape can say
        return
    assert repr(loads(raw)) == repr(expected)


@pytest.mark.parametrize("text", TAKEN)
def test_it_takes_what_the_standard_library_takes(text):
    assert repr(loads(text)) == repr(loads(text.encode())) == repr(json.loads(text))


@pytest.mark.parametrize("text", REFUSED)
def test_it_refuses_what_the_standard_library_refuses(text):
    with pytest.raises(ValueError):
        json.loads(text)
    with pytest.raises(ValueError):
        loads(text)
