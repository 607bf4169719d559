"""What of a client may be in a message."""

from urllib.parse import parse_qsl, urlsplit

from callsheet.errors import CannotTravel, ModuleNotAllowed
from callsheet.mcp.specs import HttpSpec, Spec, StdioSpec, declaration
from callsheet.settings import Settings
from callsheet.settings.mcp import SECRET_NAME


def refuse_secrets(spec: Spec) -> None:
    """See that nothing in it is a secret.

    Raises:
        CannotTravel: names it, and where it belongs.
    """
    if isinstance(spec, StdioSpec):
        for name, _ in spec.env:
            if SECRET_NAME.search(name):
                raise CannotTravel(
                    f"env[{name!r}] of {_within(spec)} is a secret by its name, and secrets never travel. "
                    f"{declaration(spec.name, spec.command or 'program', spec.args)} There, env_from = [\"{name}\"] "
                    "hands it the variable of the worker. Then give the client its name alone.")
        return
    for name, _ in spec.headers:
        if SECRET_NAME.search(name):
            raise CannotTravel(f"The header {name!r} of {_within(spec)} is a secret by its name, and secrets never "
                               f"travel. {_endpoint(spec)}")
    parts = urlsplit(spec.url or "")
    if parts.password or parts.username:
        raise CannotTravel(f"The url of {_within(spec)} has a user or a password in it, and secrets never travel. "
                           f"{_endpoint(spec)}")
    for name, _ in parse_qsl(parts.query):
        if SECRET_NAME.search(name):
            raise CannotTravel(f"The url of {_within(spec)} has {name!r} in it, which is a secret by its name, and "
                               f"secrets never travel. {_endpoint(spec)}")


def _within(spec: Spec) -> str:
    """The server, for the middle of a message."""
    return f"t{spec.shown[1:]}"


def _endpoint(spec: HttpSpec) -> str:
    variable = f"{spec.name.upper()}_KEY" if spec.name.isidentifier() else "THE_KEY"
    return (f'Declare an endpoint where the workers run, in callsheet.toml: [endpoints."{spec.name}"] with base_url '
            f'= "https://host/mcp" and api_key_env = "{variable}" (or headers), and give the client '
            f'endpoint="{spec.name}" in their place.')


def refuse_program(spec: Spec, settings: Settings) -> None:
    """See that it is nothing that a message could have a worker start.

    Raises:
        ModuleNotAllowed: the settings do not say the same of a server of that name.
    """
    if isinstance(spec, StdioSpec) and not spec.is_declared(settings):
        raise ModuleNotAllowed(f"{spec.shown} is a program, and a worker starts none that "
                               "its settings do not name, with the same arguments, env and cwd. "
                               f"{declaration(spec.name, spec.command or 'program', spec.args)}")
