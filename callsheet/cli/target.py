"""The pipeline or agent that a user's file defines."""

import importlib
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from callsheet.agents import AgentBase
from callsheet.messages.wire import Writer
from callsheet.tasks.pipelines import Pipeline

Target = AgentBase | Pipeline
_PREFERRED = ("pipeline", "agent")
_EXAMPLE = """    class Summarizer(AgentBase): ...

    agent = Summarizer("summarizer")                      # or:
    pipeline = SequentialPipeline([Reader("r"), Summarizer("s")])"""


@dataclass(frozen=True)
class Loaded:
    """A file that was imported."""

    file: Path  # as the user gave it
    folder: Path  # that workers need on their PYTHONPATH
    module: str  # the name under which they import it
    name: str  # of the variable
    target: Target  # the agent or pipeline

    def members(self) -> list[AgentBase]:
        """The agents in the target."""
        return self.target.members() if isinstance(self.target, Pipeline) else [self.target]

    def modules(self) -> tuple[str, ...]:
        """The modules that workers must allow to build the target: the file's, and those of what it is made of.

        Raises:
            CannotTravel: part of it cannot be sent.
        """
        writer = _Noting()
        for member in self.members():
            writer.write(member, f"the agent {member.label}")
        named = {name for name in writer.modules if name.partition(".")[0] != "callsheet"}
        return (self.module, *sorted(named - {self.module}))


def load(file: Path, name: str | None = None) -> Loaded:
    """Import a user's file and find its pipeline or agent, where there are several by the variable's name.

    Raises:
        click.ClickException: the file cannot be imported, or does not say what to run.
    """
    folder, module_name = _module_of(file)
    for path in (Path.cwd(), folder):  # the file's folder comes to stand first
        if str(path) in sys.path:
            sys.path.remove(str(path))
        sys.path.insert(0, str(path))
    module = _imported(file, module_name)
    found, target = _pick(file, module, name)
    return Loaded(file, folder, module_name, found, target)


def _module_of(file: Path) -> tuple[Path, str]:
    """Where the file is imported from, and under which name: dotted where its folder is a package."""
    folder, parts = file.resolve().parent, [file.stem]
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise click.ClickException(f"{file} cannot be imported by workers: its name must be a Python name and .py, "
                                   "such as review.py. Rename it.")
    while (folder / "__init__.py").exists() and folder.name.isidentifier():
        parts.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(parts)


def _imported(file: Path, name: str) -> ModuleType:
    try:
        module = importlib.import_module(name)
    except Exception as exc:
        why = f"{_where(exc, file)}{type(exc).__name__}: {exc}"
        raise click.ClickException(f"{file} cannot be imported: {why}") from exc
    origin = getattr(module, "__file__", None)
    if origin is None or Path(origin).resolve() != file.resolve():
        raise click.ClickException(f"{file} cannot be imported as {name!r}: there is another module of that name"
                                   f"{f', {origin}' if origin else ''}. Rename your file.")
    return module


def _where(exc: BaseException, file: Path) -> str:
    """The innermost line of the user's own file that is to blame."""
    mine = [frame for frame in traceback.extract_tb(exc.__traceback__)
            if Path(frame.filename).resolve() == file.resolve()]
    return f"line {mine[-1].lineno}: " if mine else ""


def _pick(file: Path, module: ModuleType, name: str | None) -> tuple[str, Target]:
    found: dict[str, Target] = {key: value for key, value in vars(module).items()
                                if isinstance(value, (AgentBase, Pipeline)) and not key.startswith("_")}
    if name is not None:
        return name, _named(file, module, name, found)
    for preferred in _PREFERRED:
        if preferred in found:
            return preferred, found[preferred]
    # An agent that is part of a pipeline beside it is not what is meant.
    parts = {id(part) for value in found.values() if isinstance(value, Pipeline) for part in _parts(value)}
    whole = {key: value for key, value in found.items() if id(value) not in parts}
    if len({id(value) for value in whole.values()}) == 1:
        return next(iter(whole.items()))
    if not found:
        raise click.ClickException(f"{file} defines no agent or pipeline to run. Give it a variable that is one:\n\n"
                                   f"{_EXAMPLE}")
    listed = "\n".join(f"    --target {key:<16} {value.label}" for key, value in found.items())
    raise click.ClickException(f"{file} defines several agents or pipelines. Say which to run:\n{listed}\nOr name one "
                               "of them `pipeline` or `agent`.")


def _parts(pipeline: Pipeline) -> list[Any]:
    direct = [*pipeline.agents, getattr(pipeline, "reduce", None)]
    return direct + [part for member in direct if isinstance(member, Pipeline) for part in _parts(member)]


def _named(file: Path, module: ModuleType, name: str, found: dict[str, Target]) -> Target:
    value = getattr(module, name, None)
    if isinstance(value, (AgentBase, Pipeline)):
        return value
    if isinstance(value, type) and issubclass(value, (AgentBase, Pipeline)):
        raise click.ClickException(f"--target {name} is a class of {file}. Make an object of it: agent = {name}(...)")
    there = f"a {type(value).__name__}" if hasattr(module, name) else "not there"
    known = f" It has: {', '.join(found)}." if found else ""
    raise click.ClickException(f"--target {name} of {file} is {there}: an agent or a pipeline is needed.{known}")


class _Noting(Writer):
    """Notes the modules of the classes and functions that it names."""

    def __init__(self) -> None:
        super().__init__()
        self.modules: set[str] = set()

    def name(self, target: Any, what: str, where: str) -> str:
        """As a Writer's."""
        ref = super().name(target, what, where)
        self.modules.add(ref.partition(":")[0])
        return ref
