"""`callsheet show`: the tree of a job."""

from collections.abc import Iterable
from pathlib import Path

import click

from callsheet.cli.terminal import console, say, say_json
from callsheet.settings import get_settings

_WHOLE_ID = 36  # characters


@click.command(short_help="A job's calls as a tree: where, how long, tokens, cost, errors.", epilog="""\b
Examples:
  callsheet show 4f1c2f6e-0a2b-4d0e-9a55-5f6a2f0c1d3e
  callsheet show 4f1c                      the beginning of the job's id is enough
  callsheet show JOB --html job.html       a page with a time line, which needs nothing else
  callsheet show JOB --json | jq .calls""")
@click.argument("job_id", metavar="JOB")
@click.option("--html", "page", type=click.Path(dir_okay=False, writable=True, path_type=Path), metavar="FILE",
              help="Write a page with a time line, in place of the text.")
@click.option("--json", "as_json", is_flag=True, help="JSON, in place of the text.")
@click.option("--most", default=500, show_default=True, type=click.IntRange(1), help="Calls to show at most.")
def show(job_id: str, page: Path | None, as_json: bool, most: int) -> None:
    """What a job does, or did: its calls as a tree, with the jobs that they made.

    For each call: how it ended, on which worker and process, how long it waited and ran, its tokens and their cost,
    retries and errors. Prompts and replies are not shown. A job that goes on is shown as it is now.
    """
    from callsheet.tasks.jobs import Job
    from callsheet.tasks.tree.read import kept_ids, read_tree
    from callsheet.tasks.whereabouts import whereabouts

    settings = get_settings()
    if len(Job.from_id(job_id).id) < _WHOLE_ID:
        known = (*kept_ids(job_id, settings), *(call for call, _ in whereabouts(settings)))
        job_id = meant(job_id, known, "jobs and calls")
    tree = read_tree(job_id, settings, most)
    if as_json:
        from callsheet.cli.tree_rows import as_data

        say_json(as_data(tree))
    elif page is not None:
        from callsheet.cli.tree_page import written

        try:
            page.write_text(written(tree), encoding="utf-8")
        except OSError as exc:
            raise click.ClickException(f"{page} cannot be written: {exc.strerror}.") from None
        say(f"Written: {page.resolve().as_uri()}")
    else:
        from callsheet.cli.tree_text import shown

        terminal = console(piped=160)
        for line in shown(tree, terminal.width):
            terminal.print(line, soft_wrap=True)


def meant(beginning: str, ids: Iterable[str], what: str) -> str:
    """The one id that begins so; `beginning` itself where it is a whole one, or where none does.

    Raises:
        click.ClickException: several do; says `what` these are.
    """
    found = sorted({one for one in ids if one.startswith(beginning)})
    if beginning in found or not found:
        return beginning
    if len(found) > 1:
        raise click.ClickException(f"{len(found)} {what} begin with {beginning!r}: {', '.join(found[:5])}. Give "
                                   "more of the id.")
    return found[0]
