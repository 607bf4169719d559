"""Which classes and functions a message may name, and finding them."""

import importlib
import inspect
import types
from dataclasses import dataclass
from typing import Any

from callsheet.errors import CannotTravel, ModuleNotAllowed

#: Where Callsheet's own functions may be named from; its classes may be named if they are made to travel.
OWN_FUNCTIONS = ("callsheet.tools",)
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
        own = OWN_FUNCTIONS if what == "function" else ("callsheet",)
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
        return found


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
    return f"{module}:{qualname}"
