"""`callsheet run`: a file's pipeline or agent over files, folders and JSONL."""

from pathlib import Path
from typing import Any

import click

from callsheet.cli.runner import Order, Runner
from callsheet.cli.up import autoscale


@click.command(epilog="""\b
Examples:
  callsheet run review.py --input docs --up
  callsheet run review.py --input tickets.jsonl --output answers.jsonl --text-field body
  callsheet run review.py --target critic --input a.txt --input b.txt --retries 2 --timeout 120

\b
A line of a JSONL input is a text, {"text": ...} or a message {"content": ..., "name": ..., "role": ...}; further
fields of {"text": ...} become its metadata. A file or an output line is one input. The exit code is 0 if all inputs
have a result, 1 if some failed or are malformed, 130 after Ctrl-C.""")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--input", "inputs", multiple=True, required=True, type=click.Path(exists=True, path_type=Path),
              metavar="PATH", help="A text file, a folder of them, or JSONL; may be given again.")
@click.option("--output", default="results.jsonl", show_default=True, type=click.Path(dir_okay=False, path_type=Path),
              help="Where results go, a line an input.")
@click.option("--target", "name", metavar="NAME",
              help="The variable of FILE to run. Default: `pipeline`, `agent`, or the only one.")
@click.option("--resume/--no-resume", default=None,
              help="Skip inputs with a result in the output, or replace the output. "
                   "Default: resume where the output is of these inputs.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The first N inputs only.")
@click.option("--text-field", default="text", show_default=True, metavar="FIELD",
              help="Field of a JSONL object that holds the text.")
@click.option("--window", default=1000, show_default=True, type=click.IntRange(1), help="Jobs under way at most.")
@click.option("--priority", type=click.IntRange(0, 9), help="0 (first) to 9 (last).")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS",
              help="That each reply may take.")
@click.option("--retries", default=0, show_default=True, type=click.IntRange(0),
              help="How often a reply that raised is tried again.")
@click.option("--queue", metavar="NAME", help="Queue of all calls, in place of the agents' own.")
@click.option("--stream", is_flag=True, help="Show what the agents print, as it comes.")
@click.option("--up", is_flag=True, help="Start Redis and workers for this run, and stop them after it.")
@click.option("--io", default="500,20", show_default=True, metavar="MAX,MIN", callback=autoscale,
              help="With --up: calls that the io worker runs at once; 0: no such worker.")
@click.option("--cpu", default="2,1", show_default=True, metavar="MAX,MIN", callback=autoscale,
              help="With --up: processes of the cpu worker; 0: no such worker.")
@click.option("--stub-model", is_flag=True, help="With --up: point the workers at a stub model.")
def run(**given: Any) -> None:
    """Run the pipeline or agent that FILE defines over many inputs.

    Without --up the workers at CALLSHEET_REDIS_URL do the work; they must allow FILE's module. A run that is
    interrupted, even killed, goes on where it was when the same command is given again: nothing that has ended is
    run again.
    """
    if given["stub_model"] and not given["up"]:
        raise click.UsageError("--stub-model goes with --up: running workers have their own settings.")
    raise SystemExit(Runner(Order(**given)).run())
