"""What `pip install callsheet` brings is enough: nothing that only the tests install is needed."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.services import ROOT

MODULES = (
    "callsheet", "callsheet.workers.io", "callsheet.workers.cpu", "callsheet.workers.transport", "callsheet.models",
    "callsheet.models.stub", "callsheet.formatters", "callsheet.testing", "callsheet.tools", "callsheet.mcp",
    "callsheet.cli.main", "callsheet.cli.up", "callsheet.cli.runner", "callsheet.cli.flower",
    "callsheet.cli.stub_model", "callsheet.cli.show", "callsheet.cli.tree_page", "callsheet.cli.tree_text",
    "callsheet.workers.metrics.collector", "flower.app", "uvloop", "examples.review.demo",
)

PROGRAM = """
import importlib, sys
forbidden = set({forbidden!r})
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}: only the tests install it", name=name)
sys.meta_path.insert(0, Refuse())
for name in {modules!r}:
    importlib.import_module(name)
"""


def closure(name: str) -> set[str]:
    """The distributions that installing `name` brings, itself included."""
    found: set[str] = set()
    todo = [Requirement(name)]
    while todo:
        wanted = todo.pop()
        if canonicalize_name(wanted.name) in found and not wanted.extras:
            continue
        found.add(canonicalize_name(wanted.name))
        for line in distribution(wanted.name).requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                todo.append(needed)
    return found


def test_all_modules_import_with_what_a_user_installs() -> None:
    brought = closure("callsheet[embedded]")
    assert "pytest" not in brought and "celery" in brought
    forbidden = [module for module, names in packages_distributions().items()
                 if not brought & {canonicalize_name(name) for name in names} and re.fullmatch(r"\w+", module)
                 and module not in ("tests", "examples", "benchmarks")]
    program = PROGRAM.format(forbidden=forbidden, modules=MODULES)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ci_installs_by_hash_what_the_project_asks_for() -> None:
    text = (ROOT / "requirements-ci.txt").read_text()
    locked = {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", text, re.M)}
    assert text.count("==") >= len(locked) > 50
    assert all("--hash=sha256:" in part for part in re.split(r"(?m)^(?=[\w.-]+==)", text)[1:])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    for line in [*project["project"]["dependencies"], *extras["dev"], *extras["embedded"], *extras["mcp"],
                 *project["build-system"]["requires"]]:
        wanted = Requirement(line)
        if wanted.name != "callsheet":
            assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), line
