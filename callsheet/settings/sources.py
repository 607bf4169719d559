"""The files that settings come from, with errors that name them."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
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

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return _table(file_path)

    def unknown(self, fields: Iterable[str]) -> list[str]:
        """A line for each key that is no setting."""
        return unknown("callsheet.toml", self.toml_data, fields)


class Pyproject(PyprojectTomlConfigSettingsSource):
    """`[tool.callsheet]` of `pyproject.toml` in the working directory."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return _table(file_path)

    def unknown(self, fields: Iterable[str]) -> list[str]:
        """A line for each key that is no setting."""
        return unknown("[tool.callsheet] of pyproject.toml", self.toml_data, fields)


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
