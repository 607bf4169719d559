"""Errors: they survive a process boundary, read well, and are drawn as they are."""

import json
import pickle
import re

import pytest
from celery import Celery
from hypothesis import given, settings
from hypothesis import strategies as st

from callsheet import errors
from callsheet.errors import AgentFailed, AgentTimeout, BranchFailed, CallsheetError, JobError

CLASSES = [getattr(errors, name) for name in vars(errors)
           if isinstance(getattr(errors, name), type) and issubclass(getattr(errors, name), CallsheetError)]
FULL = ("the message", "builtins.ValueError", "no luck", "Traceback: ...", "Echo(a)", "job-1")


def arguments(cls: type[CallsheetError]) -> tuple[str, ...]:
    if issubclass(cls, BranchFailed):
        return (*FULL, "branch 1 of 2, Echo(a)")
    return FULL if issubclass(cls, AgentFailed) else ("what was wrong. What to do.",)


def same(before: CallsheetError, after: object) -> None:
    assert type(after) is type(before)
    assert after.args == before.args
    assert vars(after) == vars(before)
    assert str(after) == str(before)


@pytest.mark.parametrize("cls", CLASSES)
def test_survives_pickle(cls: type[CallsheetError]) -> None:
    error = cls(*arguments(cls))
    same(error, pickle.loads(pickle.dumps(error)))


@pytest.mark.parametrize("cls", CLASSES)
def test_survives_json(cls: type[CallsheetError]) -> None:
    error = cls(*arguments(cls))
    same(error, CallsheetError.from_dict(json.loads(json.dumps(error.to_dict()))))


@pytest.mark.parametrize("cls", CLASSES)
def test_survives_the_json_of_celery(cls: type[CallsheetError]) -> None:
    backend = Celery("t", backend="cache+memory://", set_as_current=False).backend
    error = cls(*arguments(cls))
    same(error, backend.exception_to_python(json.loads(json.dumps(backend.prepare_exception(error, "json")))))


@pytest.mark.parametrize("cls", CLASSES)
def test_shows_its_message(cls: type[CallsheetError]) -> None:
    error = cls(*arguments(cls))
    assert str(error).startswith(error.args[0])
    assert str(cls()) == ""


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if issubclass(cls, AgentFailed)])
def test_an_agents_error_tells_what_happened_there(cls: type[AgentFailed]) -> None:
    error = cls(*arguments(cls))
    assert (error.message, error.remote_type, error.remote_message) == FULL[:3]
    assert (error.remote_traceback, error.agent, error.job_id) == FULL[3:]
    assert "Remote traceback:\nTraceback: ..." in str(error)
    assert cls("only this").remote_type == ""


def frame(path: str, name: str) -> str:
    return f'  File "{path}", line 7, in {name}\n    {name}()\n    ^^^^^^\n'


def test_a_message_shows_the_remote_traceback_from_where_the_agents_code_begins() -> None:
    ours = [frame("/venv/celery/app/trace.py", "trace_task"), frame("/venv/callsheet/tasks/reply.py", "run"),
            frame("/venv/callsheet/agents/running.py", "run_reply")]
    begin, users, react = "Traceback (most recent call last):\n", frame("/home/me/agents.py", "reply"), frame(
        "/venv/callsheet/agents/react.py", "reply")
    end = "ValueError: no luck\n"

    def shown(*parts: str) -> str:
        error = AgentFailed("the message", "builtins.ValueError", "no luck", "".join(parts))
        assert error.remote_traceback == "".join(parts)  # all of it, for whoever wants it
        return str(error).partition("Remote traceback:\n")[2]

    note = "  ... 3 frames of Celery's and Callsheet's are left out; `remote_traceback` has them\n"
    assert shown(begin, *ours, users, end) == begin + note + users + end
    assert shown(begin, *ours, react, ours[2], users, end) == begin + note + react + ours[2] + users + end
    cause = begin + users + "KeyError: 1\n\nThe above exception was the direct cause of the following exception:\n\n"
    assert shown(cause, begin, *ours, users, end) == cause + begin + note + users + end
    # Where Callsheet itself raised, the place is shown.
    assert shown(begin, *ours, end) == begin + note.replace("3", "2") + ours[2] + end
    assert shown(begin, users, end) == begin + users + end


def test_a_job_error_has_its_message() -> None:
    assert JobError("gone").message == "gone"
    assert JobError().message == ""


def test_a_branch_keeps_its_label() -> None:
    failed = BranchFailed("branch 2 failed", *FULL[1:], "branch 2")
    assert failed.branch == "branch 2"
    assert failed.remote_message == "no luck"
    same(failed, pickle.loads(pickle.dumps(failed)))


def test_errors_are_also_pythons_own() -> None:
    assert issubclass(errors.SettingsError, ValueError)
    assert issubclass(errors.MessageError, ValueError)
    assert issubclass(errors.UnknownQueue, ValueError)
    assert issubclass(errors.AnswerRefused, ValueError)
    assert issubclass(errors.CannotTravel, TypeError)
    assert issubclass(errors.BadReply, TypeError)
    assert issubclass(errors.UsageError, TypeError)
    assert issubclass(errors.ResultTimeout, TimeoutError)
    assert issubclass(AgentTimeout, TimeoutError)
    assert issubclass(errors.RedisUnavailable, ConnectionError)


@pytest.mark.parametrize("data", [
    {}, {"error": "Nope", "args": ["x"]}, {"error": "CannotTravel"}, {"error": None, "args": None},
    {"error": "BranchFailed", "args": list("123456789")}, {"error": "SystemExit", "args": [1]}, {"args": "text"}])
def test_from_dict_takes_what_a_newer_version_wrote(data: dict[str, object]) -> None:
    assert isinstance(CallsheetError.from_dict(data), CallsheetError)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CLASSES), st.lists(st.text(), max_size=9))
def test_any_texts_survive(cls: type[CallsheetError], args: list[str]) -> None:
    if issubclass(cls, BranchFailed):
        args = args[:7]
    elif issubclass(cls, OSError) and not issubclass(cls, AgentFailed):
        args = args[:1]  # Python reads two to five of them as error number, text and file
    error = cls(*args)
    same(error, pickle.loads(pickle.dumps(error)))
    same(error, CallsheetError.from_dict(json.loads(json.dumps(error.to_dict()))))


def test_the_tree_is_drawn_as_it_is() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"((?:[│├└─ ]{4})*)([A-Z]\w+)\b(.*)", line)
        if not match or ("──" not in line and match[2] != "CallsheetError"):
            continue
        depth, name, rest = len(match[1]) // 4, match[2], match[3]
        above[depth:] = [name]
        drawn[name] = above[depth - 1] if depth else ""
        cls = getattr(errors, name)
        also = re.search(r"\(also (\w+)\)", rest)
        extra = [base.__name__ for base in cls.__bases__ if not issubclass(base, CallsheetError)]
        assert [also[1]] == extra if also else extra in ([], ["Exception"]), name
    real = {cls.__name__: next((base.__name__ for base in cls.__bases__ if issubclass(base, CallsheetError)), "")
            for cls in CLASSES}
    assert drawn == real
