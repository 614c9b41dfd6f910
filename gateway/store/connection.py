"""Hot path: one connection to Redis that every request of a worker shares.

Commands that are issued in one turn of the event loop leave in one write. Replies come back in
order, so each waits in a queue; a cancelled wait keeps its place, and its reply is dropped. A
command older than the timeout ends the connection: no reply can then reach another command.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

import hiredis

from gateway.core.errors import StoreError
from gateway.timer import LazyTimer

# The library's own stub asks for a tuple of exactly one argument.
pack: Callable[[tuple[bytes | str | int, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]

logger = logging.getLogger("sluice.store")

Reply = Any  # what hiredis makes of a reply: bytes, int, list or None
Callback = Callable[[Reply | Exception], None]

# Commands on the way at once; past this the store is too slow to be asked more.
MAX_PENDING = 20_000


class Connection(asyncio.Protocol):
    """A connected protocol. `on_lost` is called once, when it can no longer be used."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout: float,
        on_lost: "Callable[[Connection], None]",
    ) -> None:
        self._loop, self._timeout, self._on_lost = loop, timeout, on_lost
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[float, Callback]] = deque()
        self._outgoing: list[bytes] = []
        self._flush_scheduled = False
        self._transport: asyncio.Transport | None = None
        self._timer = LazyTimer(loop, self._on_deadline)
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]  # uvloop's are not subclasses

    def data_received(self, data: bytes) -> None:
        """Hand each whole reply to the command that waits longest."""
        self._reader.feed(data)
        waiting = self._waiting
        try:
            while (reply := self._reader.gets()) is not False:
                callback = waiting.popleft()[1]
                try:
                    callback(reply)
                except Exception:  # one reply's trouble is not that of those behind it
                    logger.exception("a reply of Redis could not be used")
        except (hiredis.ProtocolError, IndexError):
            self._end(StoreError("Redis sent what is not RESP"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail every command that waits."""
        self._end(StoreError("the connection to Redis was lost"))

    def send(self, command: bytes, callback: Callback) -> None:
        """Queue an encoded command; the callback gets its reply or an exception, always once."""
        if self.closed or len(self._waiting) >= MAX_PENDING:
            callback(StoreError("Redis is not reachable" if self.closed else "Redis is too slow"))
            return
        self._outgoing.append(command)
        until = monotonic() + self._timeout
        if not self._waiting:
            self._timer.set(until)
        self._waiting.append((until, callback))
        self._schedule()

    def call(self, *args: bytes | str | int) -> asyncio.Future[Reply]:
        """Send a command and return the future of its reply; errors raise StoreError."""
        future: asyncio.Future[Reply] = self._loop.create_future()

        def done(reply: Reply | Exception) -> None:
            if future.done():
                return
            if isinstance(reply, Exception):
                future.set_exception(_translated(reply))
            else:
                future.set_result(reply)

        self.send(pack(args), done)
        return future

    def flush(self) -> None:
        """Write what is queued."""
        self._flush_scheduled = False
        if self._outgoing and not self.closed:
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            # uvloop sends at once what it can. So a settlement has left before the reply that
            # waits for it: a worker killed in between loses no usage of a completed request.
            assert self._transport is not None
            self._transport.write(data)

    def close(self) -> None:
        """Close; waiting commands fail."""
        self._end(StoreError("the connection to Redis was closed"))

    def _schedule(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self.flush)

    def _on_deadline(self) -> None:
        if not self._waiting:
            return
        until = self._waiting[0][0]
        if monotonic() < until:
            self._timer.set(until)
        else:
            self._end(StoreError(f"Redis did not answer within {self._timeout:g} s"))

    def _end(self, error: StoreError) -> None:
        if self.closed:
            return
        self.closed = True
        self._timer.clear()
        if self._transport is not None:
            self._transport.abort()
        self._outgoing.clear()
        while self._waiting:
            self._waiting.popleft()[1](error)
        self._on_lost(self)


def _translated(error: Exception) -> StoreError:
    return error if isinstance(error, StoreError) else StoreError(f"Redis answered: {error}")
