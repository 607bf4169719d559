"""`callsheet stub-model`: a chat completions server without a model."""

import asyncio
import contextlib
import signal

import click

from callsheet.models.stub.server import Behaviour, StubApp, start


@click.command("stub-model", epilog="""\b
Examples:
  callsheet stub-model
  callsheet stub-model --latency 0.05 --tokens-per-second 0 --error-rate 0.1""")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8808, show_default=True, type=click.IntRange(0, 65535), help="Port; 0: any free one.")
@click.option("--latency", default=0.5, show_default=True, type=click.FloatRange(0), help="Seconds to the first token.")
@click.option("--jitter", default=0.2, show_default=True, type=click.FloatRange(0),
              help="Seconds that the latency varies, up and down.")
@click.option("--error-rate", default=0.0, show_default=True, type=click.FloatRange(0, 1),
              help="Share of calls answered with 429, 500 or 503.")
@click.option("--tokens-per-second", default=200.0, show_default=True, type=click.FloatRange(0),
              help="Pace of an answer; 0: all at once.")
@click.option("--seed", default=0, show_default=True, type=int, help="Of jitter and errors.")
def stub_model(host: str, port: int, latency: float, jitter: float, error_rate: float, tokens_per_second: float,
               seed: int) -> None:
    """Serve a stub model that speaks OpenAI's API.

    It summarises, lists key terms, risks and questions, and scores, by extraction from the text it is given.
    The same text gives the same answer.
    """
    behaviour = Behaviour(latency=latency, jitter=jitter, error_rate=error_rate,
                          tokens_per_second=tokens_per_second, seed=seed)
    try:
        _run(behaviour, host, port)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        click.echo(f"Cannot listen on {host}:{port}: {reason}. Give another --port, or end what uses it.", err=True)
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
    click.echo(f"Stub model on http://{shown}:{port}/v1. Point callsheet at it: "
               f"CALLSHEET_ENDPOINTS__OPENAI__BASE_URL=http://{shown}:{port}/v1")
    try:
        await stop.wait()
    finally:
        await runner.cleanup()
