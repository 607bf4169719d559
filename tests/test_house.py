"""The house rules that no tool checks for us."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

from tests.services import ROOT

MODULES = sorted((ROOT / "callsheet").rglob("*.py"))
MOST_LINES = 600  # a module
MOST_IN_FUNCTION = 50
#: What is used by its extension points alone. The last hands on kombu's modules.
FOREIGN = ("celery", "kombu", "billiard", "redis", "flower", "httpx", "aiohttp", "callsheet.workers.broker.stock")
CHANGING = ("update", "setdefault", "clear", "extend", "insert")  # a dict or a list in place


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_module_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_function_is_long(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MOST_IN_FUNCTION, f"{node.name}, line {node.lineno}: {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_nothing_is_left_for_later(path: Path) -> None:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            assert not any(word in token.string.upper() for word in ("TODO", "FIXME", "HACK")), token.string


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=name)
def test_packages_hold_names_and_no_logic(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert docstring or isinstance(node, (ast.Import, ast.ImportFrom, ast.Assign)), f"line {node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def foreign(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in FOREIGN)


def imported(tree: ast.AST) -> set[str]:
    """The names that stand for a foreign module, or for something of one."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names if foreign(alias.name)}
        elif isinstance(node, ast.ImportFrom) and foreign(node.module or ""):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def root(node: ast.expr) -> str:
    """The name that an expression such as `a.b["c"].d` begins with; "a class" behind `type(...)` or `__class__`."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        if isinstance(node, ast.Attribute) and node.attr == "__class__":
            return "a class"
        node = node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type":
        return "a class"
    return node.id if isinstance(node, ast.Name) else ""


def patches(source: str) -> list[str]:
    """Where a module changes what belongs to a foreign module or class: by assigning, deleting or in place.

    Names are followed no further than their import: an object of a foreign class is ours to configure.
    """
    tree = ast.parse(source)
    theirs = imported(tree) | {"a class"}
    found: list[tuple[ast.expr, ast.AST]] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            found.append((node, node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            found.append((node.args[0], node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
            found.append((node.func.value, node))
    return [ast.unparse(node) for changed, node in found if root(changed) in theirs]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_nothing_foreign_is_patched(path: Path) -> None:
    assert patches(path.read_text()) == []


@pytest.mark.parametrize(("line", "count"), [
    ("trace.build_tracer = ours", 1), ("celery.app.trace.build_tracer = ours", 1), ("ALIASES['io'] = 'ours'", 1),
    ("a, (b, Channel.ack) = 1, (2, 3)", 1), ("Channel.count += 1", 1), ("Channel.most: int = 1", 1),
    ("del Channel.ack", 1), ("for Channel.ack in (): pass", 1), ("setattr(Channel, 'ack', ours)", 1),
    ("type(channel).ack = ours", 1), ("self.channel.__class__.ack = ours", 1), ("ALIASES.update(io='ours')", 1),
    ("Channel.from_transport_options.extend(['ours'])", 1),
    ("app.conf.worker_pool = 'ours'", 0), ("app.steps['worker'].add(Channel)", 0), ("mine[Channel.ack] = 1", 0),
    ("class Mine(Channel):\n    ack = None", 0), ("mine.update(Channel.options)", 0), ("channel.ack = ours", 0),
])
def test_the_rule_finds_patches_and_nothing_else(line: str, count: int) -> None:
    source = f"""import celery.app.trace
from celery.app import trace
from celery.concurrency import ALIASES
from kombu.transport.redis import Channel
from callsheet.tasks.app import app
{line}"""
    assert len(patches(source)) == count
