"""Who may use a Flower: told from all that Flower itself would go by, before it starts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import click

from callsheet.settings import Settings
from callsheet.workers.metrics.port import is_loopback

#: Flower's own options, as they are on the command line.
_OURS = frozenset({"address", "port", "basic_auth"})
LOCAL_USER = "local"
_TRUE = frozenset({"y", "yes", "t", "true", "on", "1"})
_REMEDY = ("Set user and password where Flower starts: CALLSHEET_FLOWER_AUTH=user:password (or Flower's own "
           "FLOWER_BASIC_AUTH), or keep to this machine with --address 127.0.0.1.")


@dataclass(frozen=True, kw_only=True)
class Access:
    """Where a Flower listens, and who may use it."""

    address: str  # host name or IP address; "" is all addresses of this machine
    port: int  # 0 is any free one
    unix_socket: str  # path, in place of both
    credentials: tuple[str, ...]  # each a "user:password"
    signs_in: bool  # whether people sign in with an account of theirs somewhere (Flower's `--auth`)
    open_api: bool  # whether FLOWER_UNAUTHENTICATED_API is set
    encrypted: bool  # whether it speaks TLS
    options: tuple[str, ...]  # for Flower's command line; without address, port and passwords

    @classmethod
    def of(cls, options: Sequence[str], settings: Settings) -> Self:
        """What these options, the environment, Flower's configuration file and our settings come to.

        Raises:
            click.ClickException: an option is wrong, credentials cannot work, or strangers could use it; with the
                remedy.
        """
        read = _read(options)
        given = read.basic_auth
        if not given and settings.flower_auth is not None:
            given = settings.flower_auth.get_secret_value().split(",")
        access = cls(address=read.address, port=read.port, unix_socket=read.unix_socket,
                     credentials=tuple(_checked(part) for part in given or ()), signs_in=bool(read.auth),
                     open_api=os.environ.get("FLOWER_UNAUTHENTICATED_API", "").lower() in _TRUE,
                     encrypted=bool(read.certfile and read.keyfile),
                     options=tuple(part for part in options if _name(part) not in _OURS))
        if not access.asks and not access.local:
            where = access.unix_socket or access.address or "all addresses of this machine"
            more = " FLOWER_UNAUTHENTICATED_API does not change that." if access.open_api else ""
            raise click.ClickException(f"Flower would let anyone who reaches {where} stop workers and read what agents "
                                       f"are told: it has no password.{more} {_REMEDY}")
        return access

    @property
    def asks(self) -> bool:
        """Whether it asks people who they are."""
        return bool(self.credentials) or self.signs_in

    @property
    def local(self) -> bool:
        """Whether only this machine reaches it."""
        return not self.unix_socket and is_loopback(self.address)

    @property
    def told(self) -> str:
        """Who may use it, for people."""
        if self.credentials:
            return "it asks for user and password"
        if self.signs_in:
            return "it asks people to sign in"
        return "for this machine only, without a password"

    @property
    def warning(self) -> str:
        """What people should know all the same; "" if there is nothing."""
        if not self.local and not self.encrypted and not self.unix_socket:
            return ("Passwords and pages travel unencrypted: keep Flower behind a proxy that speaks TLS, or give it "
                    "-- --certfile=... --keyfile=...")
        return ""

    def env(self) -> dict[str, str]:
        """The environment in which Flower keeps to this. Passwords are here: the command line is for all to see."""
        if self.credentials:
            return {"FLOWER_BASIC_AUTH": ",".join(self.credentials)}
        if self.signs_in or self.open_api:
            return {}
        return {"FLOWER_AUTH": LOCAL_USER, "FLOWER_AUTH_PROVIDER": "callsheet.cli.flower_login.LocalLogin"}


def _name(option: str) -> str:
    return option.lstrip("-").partition("=")[0].replace("-", "_")


def _checked(credential: str) -> str:
    user, colon, password = credential.strip().partition(":")
    wrong = ("it has no colon; a password cannot hold a comma" if not colon else "the user is missing" if not user else
             "the password is missing" if not password else
             "Flower can compare ASCII characters only" if not credential.isascii() else "")
    if wrong:
        raise click.ClickException("Flower's credentials (not shown) cannot work: " + wrong + ". Give user:password, "
                                   "several separated by commas, in CALLSHEET_FLOWER_AUTH or FLOWER_BASIC_AUTH.")
    return credential.strip()


def _read(options: Sequence[str]) -> Any:
    """Flower's options as Flower reads them: environment, configuration file, command line."""
    from flower import command  # slow to import, and it defines options for the whole process
    from tornado.options import Error
    from tornado.options import options as read

    unknown = [part for part in options if part.startswith("-") and not command.is_flower_option(part)]
    if unknown:
        raise click.ClickException(f"Flower has no option {_name(unknown[0])!r}. See: celery flower --help")
    try:
        command.apply_env_options()
        command.apply_options("flower", list(options))
    except (Error, ValueError) as exc:
        raise click.ClickException(f"An option of Flower is wrong: {exc}. See: celery flower --help") from None
    return read
