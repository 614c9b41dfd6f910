"""Hot path: the keep-alive connections to one origin, bounded, newest first."""

import asyncio
from collections import deque
from collections.abc import Coroutine
from time import monotonic
from typing import Any

from gateway.core.errors import Failure, UpstreamError
from gateway.core.target import Deadlines, Origin
from gateway.upstream.connection import Connection
from gateway.upstream.dial import Dialer
from gateway.upstream.exchange import Reply, Sender, Sink, Stale

TOO_LATE = "the request's total deadline passed"

# Requests that may wait for a connection of a full pool; the next one is told at once.
MAX_WAITING = 1000
# A server that closes an idle connection does so within a round trip of our request. A death
# later than this may be a crash while it worked on the request: sending that again would be paid
# for twice.
STALE_SECONDS = 1.0


class Pool:
    """Owns every connection to its origin."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._loop = asyncio.get_running_loop()
        self._dialer = Dialer(origin)
        self._idle: deque[Connection] = deque()
        self._all: set[Connection] = set()
        # Places without a connection: of those being opened, of who waited and may open one, and of
        # who lost a stale one and opens another.
        self._opening = 0
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()

    @property
    def size(self) -> int:
        """Return how many connections are open or being opened."""
        return len(self._all) + self._opening

    async def send(
        self,
        data: bytes,
        sink: Sink | None,
        deadlines: Deadlines,
        until: float,
        sender: Sender | None = None,
    ) -> Reply:
        """Send a request and return its reply. Raises UpstreamError.

        A reused connection that turns out dead before any byte of the reply is replaced by a
        fresh one, once. Cancelling closes the connection at once.
        """
        connection, waited = self._take(), 0.0
        if connection is None:
            began = monotonic()
            connection = await self._acquire(deadlines, until, sender)
            waited = monotonic() - began
        if sender is not None:
            sender.sent(waited)
        started = monotonic()
        exchange = connection.exchange(data, sink, deadlines, until)
        try:
            return await exchange
        except Stale:
            if monotonic() - started > STALE_SECONDS:
                self._vacate()
                message = "the connection ended before the reply"
                raise UpstreamError(Failure.RESET, message) from None
        except asyncio.CancelledError:
            connection.abandon(exchange)
            if connection.stale:
                self._vacate()
            raise
        finally:
            del exchange  # it keeps its error, whose traceback keeps this frame
        if sender is not None:
            sender.unsent()
        connection = await self._open(deadlines, until)
        if sender is not None:
            sender.sent(waited + monotonic() - started)
        exchange = connection.exchange(data, sink, deadlines, until)
        try:
            return await exchange
        except asyncio.CancelledError:
            connection.abandon(exchange)
            raise
        finally:
            del exchange

    def close(self) -> None:
        """Close every connection; exchanges under way fail. Idempotent."""
        for connection in tuple(self._all):
            connection.abort()
        while self._waiting:
            self._waiting.popleft().cancel()

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def _acquire(
        self, deadlines: Deadlines, until: float, sender: Sender | None
    ) -> Connection:
        if self.size < self._origin.max_connections:
            self._opening += 1
            return await self._open(deadlines, until)
        if len(self._waiting) >= MAX_WAITING:
            raise UpstreamError(Failure.BUSY, "too many requests wait for a connection")
        began = self._loop.time()
        patience = began + deadlines.first_byte
        try:
            async with asyncio.timeout_at(min(patience, until)):
                connection = await self._wait()
        except TimeoutError:
            if until <= patience:
                raise UpstreamError(Failure.TOTAL_TIMEOUT, TOO_LATE) from None
            message = "no connection became free in time"
            raise UpstreamError(Failure.BUSY, message) from None
        finally:
            if sender is not None:
                sender.queued(self._loop.time() - began)
        return connection or await self._open(deadlines, until)

    async def _wait(self) -> Connection | None:
        """Wait in turn for a connection, or for a place to open one in (None)."""
        join = self._waiting.append
        while True:
            future: asyncio.Future[Connection | None] = self._loop.create_future()
            join(future)
            try:
                given = await future
            except asyncio.CancelledError:
                if future in self._waiting:
                    self._waiting.remove(future)
                elif not future.cancelled():  # given in this very turn: another's now
                    self._pass_on(future.result())
                raise
            if given is None or given.usable:
                return given
            if self.size < self._origin.max_connections:  # it ended on the way, and is gone
                self._opening += 1
                return None
            join = self._waiting.appendleft

    def _pass_on(self, given: Connection | None) -> None:
        if given is None:
            self._vacate()
        elif given.usable:
            self._release(given)

    async def _open(self, deadlines: Deadlines, until: float) -> Connection:
        """Open a connection in the place that the caller has."""
        left = until - self._loop.time()
        try:
            if left <= 0:
                raise UpstreamError(Failure.TOTAL_TIMEOUT, TOO_LATE)
            connection = await self._dialer.dial(self._make, min(deadlines.connect, left))
        except UpstreamError as error:
            self._vacate()
            if error.failure is Failure.CONNECT_TIMEOUT and left < deadlines.connect:
                raise UpstreamError(Failure.TOTAL_TIMEOUT, TOO_LATE) from None
            raise
        except BaseException:
            self._vacate()
            raise
        self._opening -= 1
        self._all.add(connection)
        return connection

    def _make(self) -> Connection:
        return Connection(self._loop, self._release, self._discard)

    def _release(self, connection: Connection) -> None:
        if not self._wake_one(connection):
            self._idle.append(connection)

    def _discard(self, connection: Connection) -> None:
        if connection not in self._all:
            return  # it was given up while it was being opened
        self._all.remove(connection)
        self._opening += 1
        if connection in self._idle:
            self._idle.remove(connection)
        if not connection.stale:
            self._vacate()

    def _vacate(self) -> None:
        """Give up a place: who waits first may open a connection there."""
        if not self._wake_one(None):
            self._opening -= 1

    def _wake_one(self, connection: Connection | None) -> bool:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(connection)
                return True
        return False


class Transport:
    """The pools of a worker, one an origin; origins come from the configuration alone."""

    def __init__(self) -> None:
        self._pools: dict[Origin, Pool] = {}

    def send(
        self,
        origin: Origin,
        data: bytes,
        sink: Sink | None,
        deadlines: Deadlines,
        until: float,
        sender: Sender | None = None,
    ) -> Coroutine[Any, Any, Reply]:
        """Send a request to an origin and return its reply; see `Pool`. Raises UpstreamError."""
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = Pool(origin)
        return pool.send(data, sink, deadlines, until, sender)

    @property
    def connections(self) -> int:
        """Return how many upstream connections there are."""
        return sum(pool.size for pool in self._pools.values())

    def close(self) -> None:
        """Close every pool."""
        for pool in self._pools.values():
            pool.close()
