"""Connects a command to the gateway's store for as long as it runs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.core.errors import ConfigError, StoreError
from gateway.store.client import Client
from gateway.store.location import Location, parse_url

TIMEOUT_SECONDS = 10.0

T = TypeVar("T")


def with_master(url: str) -> Location:
    """Return where the master is that a URL's sentinels name. Raises ConfigError."""
    try:
        return with_client(url, lambda client: client.master())
    except StoreError as error:
        raise ConfigError(str(error), field="redis.url") from None


def with_store(url: str, work: Callable[[Client], Awaitable[T]]) -> T:
    """Run `work` with a connected client. Raises StoreError and what `work` raises."""

    async def connected(client: Client) -> T:
        await client.start()
        try:
            return await work(client)
        finally:
            await client.aclose()

    return with_client(url, connected)


def with_client(url: str, work: Callable[[Client], Awaitable[T]]) -> T:
    """Run `work` with a client that is not connected yet."""

    async def run() -> T:
        return await work(Client(parse_url(url), TIMEOUT_SECONDS, "sluice-cli"))

    return asyncio.run(run())
