"""What of a client may be in a message, beside what may be in any."""

from callsheet.errors import ModuleNotAllowed
from callsheet.mcp.specs import Spec, StdioSpec, declaration
from callsheet.settings import Settings


def refuse_program(spec: Spec, settings: Settings) -> None:
    """See that it is nothing that a message could have a worker start.

    Raises:
        ModuleNotAllowed: the settings do not say the same of a server of that name.
    """
    if isinstance(spec, StdioSpec) and not spec.is_declared(settings):
        raise ModuleNotAllowed(f"{spec.shown} is a program, and a worker starts none that "
                               "its settings do not name, with the same arguments, env and cwd. "
                               f"{declaration(spec.name, spec.command or 'program', spec.args)}")
