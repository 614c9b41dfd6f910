"""Connects a command to the gateway's store for as long as it runs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.store.client import Client
from gateway.store.location import parse_url

TIMEOUT_SECONDS = 10.0

T = TypeVar("T")


def with_store(url: str, work: Callable[[Client], Awaitable[T]]) -> T:
    """Run `work` with a connected client. Raises StoreError and what `work` raises."""

    async def run() -> T:
        client = Client(parse_url(url), TIMEOUT_SECONDS, "sluice-cli")
        await client.start()
        try:
            return await work(client)
        finally:
            await client.aclose()

    return asyncio.run(run())
