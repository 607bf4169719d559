"""What is to be broken off."""

import asyncio


async def for_ever() -> None:
    """Wait to be broken off: by a cancellation, a time limit, a client that hangs up.

    Raises:
        AssertionError: nobody did, for a minute.
    """
    await asyncio.sleep(60)
    raise AssertionError("nobody broke it off")
