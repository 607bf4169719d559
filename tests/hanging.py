"""What is to be broken off."""

import asyncio


async def for_ever() -> None:
    """Wait to be broken off: by a cancellation, a time limit, a client that hangs up.

    Raises:
        AssertionError: nobody did, for a minute.
    """
    loop = asyncio.get_running_loop()
    waiting = loop.create_future()
    timer = loop.call_later(60, waiting.set_exception, AssertionError("nobody broke it off"))
    try:
        await waiting
    finally:
        timer.cancel()
