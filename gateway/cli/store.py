"""Connects a command to the gateway's store for as long as it runs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.core.errors import ConfigError, StoreError
from gateway.store.client import Client, make_client
from gateway.store.link import Link
from gateway.store.location import Location, parse_url

TIMEOUT_SECONDS = 10.0
_ANSWERED = "Redis answered"  # of `gateway.store`: it is there, and refuses

T = TypeVar("T")


def explained(error: StoreError) -> str:
    """Return what to tell of a store that could not be used."""
    said = str(error).rstrip(".")
    return f"{said}." if said.startswith(_ANSWERED) else f"{said}. Is the gateway running?"


def with_master(url: str) -> Location:
    """Return where the master is that a URL's sentinels name. Raises ConfigError."""

    async def ask() -> Location:
        link = Link(parse_url(url), TIMEOUT_SECONDS, "sluice-cli")
        try:
            return await link.master()
        finally:
            await link.aclose()

    try:
        return asyncio.run(ask())
    except StoreError as error:
        raise ConfigError(str(error), field="redis.url") from None


def with_store(url: str, work: Callable[[Client], Awaitable[T]]) -> T:
    """Run `work` with a connected client. Raises StoreError and what `work` raises."""

    async def run() -> T:
        client = make_client(parse_url(url), TIMEOUT_SECONDS, "sluice-cli")
        await client.start()
        try:
            return await work(client)
        finally:
            await client.aclose()

    return asyncio.run(run())
