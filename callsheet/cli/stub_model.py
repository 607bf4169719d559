"""`callsheet stub-model`: a chat completions server without a model."""

import asyncio
import contextlib
import signal
from typing import Any

import click

from callsheet.cli.terminal import say
from callsheet.models.stub.app import StubApp, start
from callsheet.models.stub.planned import Behaviour


@click.command("stub-model", short_help="Serve a stub model that needs no key: works by extraction.", epilog="""\b
Examples:
  callsheet stub-model
  callsheet stub-model --latency 0.05 --tokens-per-second 0 --error-rate 0.1
  callsheet stub-model --rpm 60 --break-rate 0.05""")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8808, show_default=True, type=click.IntRange(0, 65535), help="Port; 0: any free one.")
@click.option("--latency", default=0.5, show_default=True, type=click.FloatRange(0), help="Seconds to the first token.")
@click.option("--jitter", default=0.2, show_default=True, type=click.FloatRange(0),
              help="Seconds that the latency varies, up and down.")
@click.option("--error-rate", default=0.0, show_default=True, type=click.FloatRange(0, 1),
              help="Share of calls answered with 429, 500 or 503.")
@click.option("--tokens-per-second", default=200.0, show_default=True, type=click.FloatRange(0),
              help="Pace of an answer; 0: all at once.")
@click.option("--seed", default=0, show_default=True, type=int, help="Of jitter, errors and breaks.")
@click.option("--rpm", default=0, show_default=True, type=click.IntRange(0),
              help="Requests that pass in a minute; others get 429 with Retry-After. 0: any number.")
@click.option("--tpm", default=0, show_default=True, type=click.IntRange(0),
              help="Tokens, of prompts and answers, that pass in a minute. 0: any number.")
@click.option("--max-concurrent", default=0, show_default=True, type=click.IntRange(0),
              help="Calls at once that pass; others get 429. 0: any number.")
@click.option("--break-rate", default=0.0, show_default=True, type=click.FloatRange(0, 1),
              help="Share of answers that break off in the middle.")
def stub_model(host: str, port: int, **how: Any) -> None:
    """Serve a stub model that speaks the APIs of OpenAI, Anthropic, Gemini and Ollama.

    It summarises, lists key terms, risks and questions, and scores, by extraction from the text it is given.
    The same text gives the same answer.
    """
    try:
        _run(Behaviour(**how), host, port)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        say(f"Cannot listen on {host}:{port}: {reason}. Give another --port, or end what uses it.", err=True)
        raise SystemExit(1) from None


def _run(behaviour: Behaviour, host: str, port: int) -> None:
    try:
        import uvloop  # a third more calls a second; there is none for Windows
    except ImportError:
        asyncio.run(_serve(behaviour, host, port))
    else:
        uvloop.run(_serve(behaviour, host, port))


async def _serve(behaviour: Behaviour, host: str, port: int) -> None:
    stop = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C raises KeyboardInterrupt instead
        for sig in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(sig, stop.set)
    runner, port = await start(StubApp(behaviour), host, port)
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what the user gave
    shown = f"[{reached}]" if ":" in reached else reached
    say(f"Stub model on http://{shown}:{port}/v1. Point callsheet at it: "
               f"CALLSHEET_ENDPOINTS__OPENAI__BASE_URL=http://{shown}:{port}/v1")
    try:
        await stop.wait()
    finally:
        await runner.cleanup()
