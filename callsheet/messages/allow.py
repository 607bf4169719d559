"""Which classes and functions a message may name, and finding them."""

import importlib
import inspect
import sys
import types
from dataclasses import dataclass
from typing import Any

from callsheet.errors import CannotTravel, ModuleNotAllowed
from callsheet.messages.msg import Msg
from callsheet.messages.recorded import Recorded

#: Where Callsheet's own functions may be named from.
OWN_FUNCTIONS = ("callsheet.tools",)
#: Where its own classes may be named from, and what they have to be: what is made to travel.
OWN_CLASSES = ("callsheet.agents", "callsheet.formatters", "callsheet.hub", "callsheet.mcp", "callsheet.memory",
               "callsheet.messages", "callsheet.models", "callsheet.tasks.pipelines", "callsheet.tasks.toolcalls",
               "callsheet.testing", "callsheet.tools")
MADE_TO_TRAVEL = (Recorded, Msg)
_MOST_RESOLVED = 4096
_resolved: dict[tuple[tuple[str, ...], str, str], Any] = {}
_REMEDY = "Name its module in CALLSHEET_MODULES where the workers start (comma-separated dotted names)."


@dataclass(frozen=True)
class AllowList:
    """The modules, with what is under them, that may be imported for a message.

    Attributes:
        modules: dotted names, from the settings.
    """

    modules: tuple[str, ...]

    def admits(self, module: str) -> bool:
        """Whether `module` is one of the allowed ones or under one."""
        return any(module == name or module.startswith(name + ".") for name in self.modules)

    def check(self, ref: str, what: str) -> None:
        """Refuse `ref` ("module:qualified.name") if its module is not allowed.

        Raises:
            ModuleNotAllowed: names it and the setting.
        """
        module = ref.partition(":")[0]
        own = OWN_FUNCTIONS if what == "function" else OWN_CLASSES
        if not self.admits(module) and not AllowList(own).admits(module):
            allowed = ", ".join(self.modules) or "empty"
            raise ModuleNotAllowed(f"The {what} {ref} is outside the allowed modules ({allowed}). {_REMEDY}")

    def resolve(self, ref: str, what: str) -> Any:
        """The class or function that `ref` names.

        Only what the module itself defines is found: a name that it merely imported is refused, so that an
        allowed module does not open what it uses.

        Raises:
            ModuleNotAllowed: its module is not allowed, or does not define it.
            CannotTravel: its module cannot be imported here.
        """
        if not isinstance(ref, str):
            raise CannotTravel(f"{ref!r} does not name a {what}. Do the workers run another version of Callsheet?")
        known = _resolved.get((self.modules, ref, what))
        if known is None or not _is_still(known, ref):
            known = self._resolve(ref, what)
            if len(_resolved) < _MOST_RESOLVED:
                _resolved[self.modules, ref, what] = known
        return known

    def _resolve(self, ref: str, what: str) -> Any:
        self.check(ref, what)
        module, _, qualname = ref.partition(":")
        try:
            found: Any = importlib.import_module(module)
        except Exception as exc:
            raise CannotTravel(
                f"The module {module!r} of the {what} {ref} cannot be imported here: {type(exc).__name__}: {exc}. "
                "Install it for the workers, or put its folder on their PYTHONPATH.") from exc
        for part in qualname.split("."):
            if not isinstance(found, (types.ModuleType, type)) or part not in vars(found):
                raise CannotTravel(f"The {what} {ref} does not exist here. Do the workers run an older version?")
            found = inspect.getattr_static(found, part)
        if isinstance(found, staticmethod):
            found = found.__func__
        if getattr(found, "__module__", None) != module or getattr(found, "__qualname__", None) != qualname:
            raise ModuleNotAllowed(f"{ref} is not defined in {module}: only what an allowed module defines may "
                                   "be named. Name it by the module that defines it.")
        if not self.admits(module):
            check_own(found, ref, what)
        return found


def _is_still(found: Any, ref: str) -> bool:
    """Whether `ref` names what it did when it was found: its module may have been loaded again since."""
    module, _, name = ref.partition(":")
    loaded = sys.modules.get(module)
    return loaded is not None and vars(loaded).get(name) is found


def check_own(target: Any, ref: str, what: str) -> None:
    """Refuse a class of Callsheet's own that is not made to travel.

    Raises:
        ModuleNotAllowed: names it.
    """
    made = isinstance(target, type) and issubclass(target, MADE_TO_TRAVEL)
    if what == "class" and not made and AllowList(("callsheet",)).admits(ref.partition(":")[0]):
        raise ModuleNotAllowed(f"{ref} is a class of Callsheet's own that is not made to travel. Give what it is made "
                               "from, and create it in the agent.")


def reference(target: Any, what: str) -> str:
    """`target` (a class or a function) as "module:qualified.name".

    Raises:
        CannotTravel: it has no name that another process could import.
    """
    module, qualname = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if not module or not qualname:
        raise CannotTravel(f"the {what} {target!r} has no name to import it by. Define it with def or class.")
    if qualname.endswith("<lambda>"):
        raise CannotTravel("it is a lambda, which has no name to import it by. Write it as a def at the top level "
                           "of a module.")
    if "<locals>" in qualname:
        raise CannotTravel(f"the {what} {qualname} is defined inside a function, where no worker can import it. "
                           "Define it at the top level of a module.")
    if module == "__main__":
        raise CannotTravel(f"the {what} {qualname} is defined in the program's main file, which workers cannot "
                           "import. Move it to a module named in CALLSHEET_MODULES, or run the file with "
                           "`callsheet run FILE.py`.")
    if _found(sys.modules.get(module), qualname) is not target:
        raise CannotTravel(f"the {what} {qualname} is not what the module {module} has under that name, so a worker "
                           "would get another. Give it a name of its own at the top level of its module.")
    return f"{module}:{qualname}"


def _found(module: types.ModuleType | None, qualname: str) -> Any:
    found: Any = module
    for part in qualname.split("."):
        found = vars(found).get(part) if isinstance(found, (types.ModuleType, type)) else None
    return found.__func__ if isinstance(found, staticmethod) else found
