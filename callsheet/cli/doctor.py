"""`callsheet doctor`: what is wrong, and what to do."""

import shutil
import textwrap
from dataclasses import asdict

import click

from callsheet.cli.checks.findings import Finding
from callsheet.cli.terminal import say, say_json
from callsheet.errors import RedisUnavailable, SettingsError
from callsheet.settings import get_settings

_SIGNS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red"), "skip": ("–", "bright_black")}
_WIDEST = 110  # columns
_SUBJECT = 24  # of what a line is about, at most


@click.command(short_help="What is wrong with Redis, workers or endpoints, and the remedy.", epilog="""\b
Examples:
  callsheet doctor
  callsheet doctor --no-endpoints          ask nobody but Redis and the workers
  callsheet doctor --json | jq 'select(.level == "fail")'

Ends with 1 where something failed; with --strict also where something may.""")
@click.option("--endpoints/--no-endpoints", "ask", default=True, help="Whether to ask model servers for their models.")
@click.option("--strict", is_flag=True, help="Warnings are failures.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
def doctor(ask: bool, strict: bool, as_json: bool) -> None:
    """Look at Redis, clocks, workers, versions, modules, queues and endpoints, and say what to do.

    Keys are used, and never shown. Nothing is changed, and no model is called.
    """
    found = _findings(ask)
    if as_json:
        for finding in found:
            say_json(asdict(finding))
    else:
        _print(found)
    bad = {"fail", "warn"} if strict else {"fail"}
    if any(finding.level in bad for finding in found):
        raise SystemExit(1)


def _findings(ask: bool) -> list[Finding]:
    from callsheet.cli.checks.findings import fail

    try:
        settings = get_settings()
    except SettingsError as exc:
        text, _, remedy = str(exc).rpartition("\n")
        return [fail("settings", " ".join(text.split()), remedy)]
    from callsheet.cli.checks.endpoints import check_endpoints
    from callsheet.cli.checks.fleet import check_fleet, check_modules
    from callsheet.cli.checks.server import check_server

    found, answers = check_server(settings)
    if answers:
        try:
            found += check_fleet(settings)
        except RedisUnavailable as exc:  # since then
            found.append(fail("redis", str(exc), "Ask again when it answers."))
    found += check_modules(settings, told=any(finding.subject == "modules" for finding in found))
    return found + (check_endpoints(settings) if ask else [])


def _print(found: list[Finding]) -> None:
    width = min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns)
    column = min(_SUBJECT, max(len(finding.subject) for finding in found))
    room, indent = max(30, width - column - 5), " " * (column + 4)
    for finding in found:
        sign, colour = _SIGNS[finding.level]
        lines = textwrap.wrap(finding.text, room) or [""]
        if finding.remedy:
            lines += textwrap.wrap(finding.remedy, room - 2, initial_indent="→ ", subsequent_indent="  ")
        subject = finding.subject
        if len(subject) > column:
            say((sign, {"fg": colour}), f" {subject}")
        for number, line in enumerate(lines):
            first = number == 0 and len(subject) <= column
            dim = finding.level == "skip" or line.startswith(("→ ", "  "))
            say(*((sign, {"fg": colour}), f" {subject:<{column}}  ") if first else (indent,), (line, {"dim": dim}))
    counts = {level: sum(finding.level == level for finding in found) for level in _SIGNS}
    say(f"\n{counts['ok']} right, {counts['warn']} to look at, {counts['fail']} wrong.")
