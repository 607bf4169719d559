"""The files that settings come from, with errors that name them."""

import contextlib
import json
import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from dotenv import dotenv_values
from pydantic import SecretStr
from pydantic_settings import PyprojectTomlConfigSettingsSource, TomlConfigSettingsSource

from callsheet.errors import SettingsError
from callsheet.settings.problems import misspelt, unknown


def _table(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, ValueError) as exc:  # ValueError: not TOML, or not UTF-8
        raise SettingsError(f"The file {path} cannot be read: {exc}. Mend it, or take it away.") from None


class Toml(TomlConfigSettingsSource):
    """`callsheet.toml` in the working directory."""

    where = "callsheet.toml"

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return _table(file_path)

    def unknown(self, fields: Iterable[str]) -> list[str]:
        """A line for each key that is no setting."""
        return unknown(self.where, self.toml_data, fields)


class Pyproject(PyprojectTomlConfigSettingsSource, Toml):
    """`[tool.callsheet]` of `pyproject.toml` in the working directory."""

    where = "[tool.callsheet] of pyproject.toml"


def redis_here() -> SecretStr:
    """The Redis of a `callsheet up` of this user's that runs in the working directory; else the usual address."""
    info = Path(".callsheet/up.json")
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        if info.stat().st_uid == os.getuid():
            known = json.loads(info.read_text())
            os.kill(known["pid"], 0)
            return SecretStr(known["redis"])
    return SecretStr("redis://127.0.0.1:6379/0")


def redis_address(address: str) -> str:
    """The address of a Redis as redis-py, kombu and Celery all read it: with the password of its `password_file`, if it
    names one, and with TLS options in the one spelling that they share.

    Raises:
        ValueError: the file cannot be read, or an option is not for such an address.
    """
    parts = urlsplit(address)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    tls = [name for name in query if name.startswith("ssl_")]
    odd = [name for name in query if name not in (*tls, "password_file")]
    if odd and parts.scheme != "unix":  # kombu takes no others
        raise ValueError(f"{odd[0]!r} is no option of such an address: there are password_file, and ssl_cert_reqs, "
                         "ssl_ca_certs and the like")
    if tls and parts.scheme != "rediss":
        raise ValueError(f"{', '.join(tls)}: TLS options go with rediss:// only")
    if "ssl_cert_reqs" in query:
        query["ssl_cert_reqs"] = query["ssl_cert_reqs"].lower().removeprefix("cert_")
        if query["ssl_cert_reqs"] not in ("required", "optional", "none"):
            raise ValueError("its ssl_cert_reqs has to be required, optional or none")
    if "ssl_check_hostname" in query:
        checked = query["ssl_check_hostname"].lower() not in ("0", "f", "false", "n", "no")
        query["ssl_check_hostname"] = str(checked).lower()
    netloc, file = parts.netloc, query.pop("password_file", None)
    if file is not None:
        if parts.scheme not in ("redis", "rediss"):
            raise ValueError("password_file goes with redis:// and rediss:// only")
        try:
            password = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as exc:
            raise ValueError(f"its password_file {file} cannot be read: {exc}") from None
        user, _, host = netloc.rpartition("@")
        if ":" in user:
            raise ValueError("it has a password and a password_file")
        netloc = f"{user}:{quote(password, safe='')}@{host}"
    elif not tls:
        return address
    return parts._replace(netloc=netloc, query=urlencode(query)).geturl()


def misspelt_in(file: str, prefix: str, fields: Iterable[str]) -> list[str]:
    """A line for each variable in an env file that looks like a setting with a letter wrong.

    Raises:
        SettingsError: the file cannot be read.
    """
    path = Path(file)
    try:
        found = dotenv_values(path) if path.is_file() else {}
    except (OSError, ValueError) as exc:
        raise SettingsError(f"The file {path} cannot be read: {exc}. Mend it, or take it away.") from None
    return [f"{line} (in {file})" for line in misspelt(prefix, fields, found)]
