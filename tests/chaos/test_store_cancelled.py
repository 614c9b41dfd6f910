"""Calls of the shared connection to Redis that are given up at any moment."""

import asyncio
import contextlib
import random
import tempfile
from pathlib import Path

from tests.support.store import connected, store_server

CALLS = 100_000
AT_ONCE = 500


async def test_no_reply_ever_reaches_another_call() -> None:
    dice = random.Random(11)
    answered = 0

    with (
        tempfile.TemporaryDirectory(prefix="sluice-") as directory,
        store_server(Path(directory)) as server,
    ):
        async with connected(server) as (_, client):

            async def ask(number: int) -> bool:
                reply = await client.call("ECHO", f"call-{number}")
                assert reply == b"call-%d" % number
                return True

            async def give_up(task: asyncio.Task[bool]) -> None:
                for _ in range(dice.randint(0, 4)):  # before, while and after it is sent
                    await asyncio.sleep(0)
                task.cancel()

            for first in range(0, CALLS, AT_ONCE):
                tasks = [asyncio.create_task(ask(first + n)) for n in range(AT_ONCE)]
                await asyncio.gather(*(give_up(t) for t in tasks if dice.random() < 0.7))
                for task in tasks:
                    with contextlib.suppress(asyncio.CancelledError):
                        answered += await task
            assert await client.call("ECHO", "the last") == b"the last"
    assert CALLS * 0.25 < answered < CALLS
