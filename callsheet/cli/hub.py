"""`callsheet hub`: group conversations by name."""

import asyncio
from typing import Any

import click

from callsheet import Msg
from callsheet.cli.terminal import moment, say, say_json, say_msg
from callsheet.hub import HubEvent, HubInfo, Member, listen
from callsheet.hub.broadcast import say as say_in
from callsheet.hub.entries import checked_name, missing
from callsheet.hub.place import the_hubs


@click.group(epilog="""\b
Examples:
  callsheet hub list
  callsheet hub show debate-7
  callsheet hub tail debate-7
  callsheet hub say debate-7 "Last round" --as host""")
def hub() -> None:
    """Group conversations, in the Redis at CALLSHEET_REDIS_URL."""


@hub.command("list")
@click.option("--most", default=50, show_default=True, type=click.IntRange(1), help="Show at most so many.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
def list_(most: int, as_json: bool) -> None:
    """The hubs that are open, the last used first."""
    found = asyncio.run(the_hubs().listed(most))
    for info in found:
        if as_json:
            say_json(_data(info))
        else:
            say(f"{info.name:40} {info.members:>5} members {info.messages:>7} messages  {moment(info.used)}")
    if not found and not as_json:
        say("No hubs are open.", err=True)


def _data(info: HubInfo) -> dict[str, Any]:
    return {"name": info.name, "members": info.members, "messages": info.messages, "last": info.last,
            "auto_broadcast": info.auto, "kept": info.kept, "openers": info.openers, "created": info.created,
            "used": info.used, "closed": info.closed}


@hub.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="As a JSON object.")
def show(name: str, as_json: bool) -> None:
    """A hub's settings, and its members with how many messages each has not heard yet."""
    async def look() -> tuple[HubInfo, list[Member]]:
        found = await the_hubs().info(checked_name(name))
        if found is None:
            raise missing(name)
        return found, [] if found.closed is not None else await the_hubs().members(name)

    info, members = asyncio.run(look())
    if as_json:
        seats = [{"id": one.id, "agent": one.label, "eager": one.eager, "behind": one.behind} for one in members]
        say_json({**_data(info), "seats": seats})
        return
    state = f"closed at {moment(info.closed)}" if info.closed is not None else "open"
    if info.closed is None:
        state += ", until it is closed" if info.kept else f" in {info.openers} program{'s' * (info.openers != 1)}"
    say(f"{info.name}: {state}; opened at {moment(info.created)}; {info.messages} messages; replies are "
               f"{'shared' if info.auto else 'not shared'}")
    for one in sorted(members, key=lambda one: (one.label, one.id)):
        say(f"  {one.label:30} {one.id:34} {one.behind:>6} behind{'  eager' if one.eager else ''}")


@hub.command()
@click.argument("name")
@click.option("-n", "--last", default=10, show_default=True, type=click.IntRange(0),
              help="Begin with so many of the last messages.")
@click.option("--since", metavar="WHERE", help="Begin at the start, now, or after the event with this id.")
@click.option("--no-follow", is_flag=True, help="Show what there is, and end.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
def tail(name: str, last: int, since: str | None, no_follow: bool, as_json: bool) -> None:
    """What is said in a hub, as it is said, until the hub is closed."""
    async def begin() -> tuple[str, int]:
        hubs = the_hubs()
        info = await hubs.info(checked_name(name))
        if info is None:
            raise missing(name)
        if since is not None or last == 0:
            return since or "now", info.messages
        entries = await hubs.recent(info.epoch, last + 1)
        return (entries[0].id if len(entries) > last else "start"), info.messages

    after, said = asyncio.run(begin())
    if no_follow and (said == 0 or after == "now" or (after != "start" and int(after.rpartition("-")[2]) >= said)):
        return
    try:
        for event in listen(name, after):
            _show(event, as_json)
            if no_follow and event.number >= said:
                return
    except KeyboardInterrupt:
        say(err=True)


def _show(event: HubEvent, as_json: bool) -> None:
    if as_json:
        say_json({"id": event.id, "number": event.number, "sender": event.sender, "time": event.time,
                  "missing": event.missing, "msg": event.msg.to_dict()})
        return
    say_msg(moment(event.time), event.msg)


@hub.command("say")
@click.argument("name")
@click.argument("text")
@click.option("--as", "sender", default="user", show_default=True, metavar="NAME", help="Who says it.")
@click.option("--role", default="user", show_default=True, type=click.Choice(["user", "assistant", "system"]))
def say_(name: str, text: str, sender: str, role: Any) -> None:
    """Say something in a hub that is open; prints the event's id."""
    say(say_in(name, Msg(sender, text, role)))
