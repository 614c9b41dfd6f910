"""The worker's way to Redis, whatever that is: one server, a master with replicas, a cluster."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from gateway.core.errors import StoreError
from gateway.store.cluster import Cluster
from gateway.store.connection import Callback, Reply
from gateway.store.link import Link
from gateway.store.location import Location
from gateway.store.scripts import Script


class Client(Protocol):
    """Sends commands. What cannot be sent fails at once with StoreError; nothing waits."""

    clustered: bool
    on_connect: Callable[[], None]

    @property
    def connected(self) -> bool:
        """Tell whether all of Redis can be reached now."""
        ...

    def reaches(self, tenant: str) -> bool:
        """Tell whether a tenant's keys can be reached now."""
        ...

    async def start(self) -> None:
        """Connect once, raising StoreError, then stay connected in the background."""
        ...

    def start_later(self) -> None:
        """Connect in the background, as often as it takes."""
        ...

    async def aclose(self) -> None:
        """Close. Idempotent."""
        ...

    def call(self, *args: bytes | str | int) -> asyncio.Future[Reply]:
        """Send a command; the future raises StoreError where it fails."""
        ...

    async def scan(self, pattern: str, most: int) -> set[bytes]:
        """Return the keys that match a pattern; stop beyond `most`. Raises StoreError."""
        ...

    def post(self, *args: bytes | str | int) -> None:
        """Send a command whose reply does not matter."""
        ...

    def run(
        self,
        script: Script,
        keys: list[str],
        args: tuple[bytes, ...],
        done: Callback,
        command: bytes = b"",
    ) -> None:
        """Run a Lua function; `done` gets its reply or an exception, always once.

        `command` is the same in RESP, where the caller has it.
        """
        ...

    def flush(self) -> None:
        """Write what is queued at once."""
        ...


async def ran(client: Client, script: Script, keys: list[str], *args: bytes) -> Reply:
    """Run a Lua function and return its reply. Raises StoreError."""
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def done(reply: Reply | Exception) -> None:
        if future.done():
            return
        if not isinstance(reply, Exception):
            future.set_result(reply)
        elif isinstance(reply, StoreError):
            future.set_exception(reply)
        else:
            future.set_exception(StoreError(f"Redis answered: {reply}"))

    client.run(script, keys, args, done)
    return await future


def make_client(location: Location, timeout: float, name: str) -> Client:
    """Return a client of a location; `timeout` is seconds, `name` what Redis lists it under."""
    if location.seeds:
        return Cluster(location, timeout, name)
    return Link(location, timeout, name)
