"""One Redis server: keeps a multiplexed connection up to it, with the Lua functions loaded."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from math import inf
from time import monotonic

import hiredis

from gateway.connecting import connect, trusting
from gateway.core.errors import StoreError
from gateway.store import scripts
from gateway.store.connection import Callback, Connection, Reply, pack
from gateway.store.location import Location
from gateway.store.scripts import Script
from gateway.store.sentinels import Sentinels

logger = logging.getLogger("sluice.store")

SCAN_COUNT = 1000
FIRST_BACKOFF_SECONDS = 0.05
LAST_BACKOFF_SECONDS = 0.5
WATCH_SECONDS = 0.25  # how often sentinels are asked whether the master is one still


class Link:
    """Sends commands on whatever connection is up; while none is, each fails at once.

    Implements `client.Client` for a single server, or for the master that sentinels name.
    """

    clustered = False

    def __init__(self, location: Location, timeout: float, name: str) -> None:
        self._location, self._timeout, self._name = location, timeout, name
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._sentinels = Sentinels(location, self._open) if location.sentinels else None
        self._master = location  # where the connection leads
        self._lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self.on_connect: Callable[[], None] = lambda: None
        self.on_lost: Callable[[], None] = lambda: None

    @property
    def host(self) -> str:
        """Return where the server is."""
        return self._location.host

    @property
    def connected(self) -> bool:
        """Tell whether commands can be sent now."""
        return self._connection is not None

    def reaches(self, tenant: str) -> bool:
        """Tell whether a tenant's keys can be reached now."""
        return self._connection is not None

    async def start(self) -> None:
        """Connect once, raising StoreError, then stay connected in the background."""
        self._connection = await self._connect()
        self._keeper = self._loop.create_task(self._keep_connected(), name="redis")

    def start_later(self) -> None:
        """Connect in the background, as soon as that works."""
        self._lost.set()
        self._keeper = self._loop.create_task(self._keep_connected(), name="redis")

    async def aclose(self) -> None:
        """Close the connection; idempotent."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._sentinels is not None:
            self._sentinels.close()

    def call(self, *args: bytes | str | int) -> asyncio.Future[Reply]:
        """Send a command; the future raises StoreError where it fails."""
        if self._connection is None:
            future: asyncio.Future[Reply] = self._loop.create_future()
            future.set_exception(StoreError("Redis is not reachable"))
            return future
        return self._connection.call(*args)

    async def scan(self, pattern: str, most: int) -> set[bytes]:
        """Return the keys that match a pattern; stop beyond `most`. Raises StoreError."""
        found: set[bytes] = set()
        cursor = b"0"
        while True:
            cursor, keys = await self.call("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
            found.update(keys)
            if cursor == b"0" or len(found) > most:
                return found

    def send(self, args: tuple[bytes | str | int, ...], done: Callback) -> None:
        """Send a command; `done` gets its reply or an exception, always once."""
        if self._connection is None:
            done(StoreError("Redis is not reachable"))
        else:
            self._connection.send(pack(args), done)

    def post(self, *args: bytes | str | int) -> None:
        """Send a command whose reply does not matter."""
        if self._connection is not None:
            self._connection.send(pack(args), lambda _: None)

    def run(
        self,
        script: Script,
        keys: list[str],
        args: tuple[bytes, ...],
        done: Callback,
        command: bytes = b"",
    ) -> None:
        """Run a Lua function; `done` gets its reply or an exception, always once."""
        connection = self._connection
        if connection is None:
            done(StoreError("Redis is not reachable"))
            return

        def answered(reply: Reply | Exception) -> None:
            if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
                # Somebody flushed the scripts: EVAL runs it all the same and loads it again.
                again = pack(("EVAL", script.source, len(keys), *keys, *args))
                connection.send(again, done)
                return
            if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("READONLY"):
                connection.close()  # it was the master: there is another one now
            done(reply)

        command = command or pack(("EVALSHA", script.sha, len(keys), *keys, *args))
        connection.send(command, answered)

    def flush(self) -> None:
        """Write what is queued at once."""
        if self._connection is not None:
            self._connection.flush()

    def _on_lost(self, connection: Connection) -> None:
        if connection is self._connection:
            self._connection = None
            self._lost.set()
            self.on_lost()

    async def _keep_connected(self) -> None:
        backoff, connected_at = FIRST_BACKOFF_SECONDS, -inf
        while True:
            await self._end()
            self._lost.clear()
            # One that is lost at once, as it is no master any more, is as good as none.
            if monotonic() - connected_at < LAST_BACKOFF_SECONDS:
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, LAST_BACKOFF_SECONDS)
            else:
                backoff = FIRST_BACKOFF_SECONDS
            while self._connection is None:
                try:
                    self._connection = await self._connect()
                except StoreError:
                    await asyncio.sleep(backoff)
                    backoff = min(backoff * 2, LAST_BACKOFF_SECONDS)
            connected_at = monotonic()
            self.on_connect()

    async def _end(self) -> None:
        """Wait until the connection is lost; leave a server that sentinels call master no more.

        It may take writes for seconds after another one was promoted, all of which will be lost.
        """
        sentinels = self._sentinels
        if sentinels is None:
            await self._lost.wait()
            return
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_SECONDS):
                    await self._lost.wait()
                    return
            with contextlib.suppress(StoreError):
                master = await sentinels.agreed()
                if master not in (None, self._master) and self._connection is not None:
                    logger.warning("the sentinels name another master: leaving this one")
                    self._connection.close()

    async def _connect(self) -> Connection:
        if self._sentinels is None:
            return await self._greeted(self._location)
        trouble = StoreError("no sentinel answers")
        for master in await self._sentinels.masters():  # those cut off name one that is none
            try:
                connection = await self._greeted(master)
            except StoreError as error:
                trouble = error
            else:
                self._master = master
                return connection
        raise trouble

    async def _greeted(self, place: Location) -> Connection:
        connection = await self._open(place)
        try:
            await self._greet(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _open(self, place: Location) -> Connection:
        def make() -> Connection:
            return Connection(self._loop, self._timeout, self._on_lost)

        try:
            async with asyncio.timeout(self._timeout):
                if place.unix_path is not None:
                    _, connection = await self._loop.create_unix_connection(make, place.unix_path)
                else:
                    connection = await self._dial(make, place)
        except (OSError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise StoreError(f"cannot connect to Redis at {place}: {reason}") from None
        return connection

    async def _dial(self, make: Callable[[], Connection], place: Location) -> Connection:
        loop = self._loop
        addresses = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        sock = await connect(loop, addresses)
        try:
            context = trusting(place.ca_file) if place.tls else None
            name = place.host if place.tls else None
            _, connection = await loop.create_connection(
                make, sock=sock, ssl=context, server_hostname=name
            )
        except BaseException:
            sock.close()
            raise
        return connection

    async def master(self) -> Location:
        """Ask the sentinels where the master is now. Raises StoreError."""
        assert self._sentinels is not None
        return (await self._sentinels.masters())[0]

    async def _greet(self, connection: Connection) -> None:
        place = self._location
        calls = []
        if place.password is not None:
            user = (place.username,) if place.username else ()
            calls.append(connection.call("AUTH", *user, place.password))
        if place.database:
            calls.append(connection.call("SELECT", place.database))
        if self._sentinels is not None:
            calls.append(connection.call("ROLE"))
        calls.append(connection.call("CLIENT", "SETNAME", self._name))
        calls.extend(connection.call("SCRIPT", "LOAD", s.source) for s in scripts.ALL)
        try:
            answers = await asyncio.gather(*calls)
        except StoreError:
            await asyncio.gather(*calls, return_exceptions=True)
            raise
        roles = [answer[0] for answer in answers if isinstance(answer, list)]
        if roles and roles[0] != b"master":
            raise StoreError("the sentinels name a server that is no master yet")
