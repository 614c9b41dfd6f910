"""How many connections a pool has at once, whatever becomes of them and of who asks for them."""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import Failure, UpstreamError
from gateway.core.target import Deadlines, Origin
from gateway.upstream.connection import Connection
from gateway.upstream.pool import Pool

MOST = 3
CLIENTS, REQUESTS = 10, 4
KEPT = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CLOSED = KEPT.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n")


class Line:
    """Stands for a connection's transport, and for the provider behind it."""

    def __init__(self, provider: "Provider", connection: Connection) -> None:
        self._provider, self._connection, self._closed = provider, connection, False
        connection.connection_made(cast(Any, self))

    def write(self, _: bytes) -> None:
        """Answer after a while, or not."""
        answer = self._provider.chance.choice([KEPT, KEPT, CLOSED, b"", b"late"])
        turns = 20 if answer == b"late" else self._provider.chance.randrange(1, 5)
        self._provider.after(turns, lambda: self._answer(answer))

    def _answer(self, answer: bytes) -> None:
        if self._closed:
            return
        if answer not in (KEPT, CLOSED):
            self.abort()
            return
        self._connection.data_received(answer)
        if self._provider.chance.random() < 0.3:  # it keeps no idle connection for long
            self._provider.after(self._provider.chance.randrange(4), self.abort)

    def abort(self) -> None:
        """Be closed, of which the connection hears in the next turn."""
        if not self._closed:
            self._closed = True
            self._provider.open -= 1
            self._provider.after(1, lambda: self._connection.connection_lost(None))

    def is_closing(self) -> bool:
        """Tell whether it is."""
        return self._closed

    def get_write_buffer_size(self) -> int:
        """Return what is not sent yet."""
        return 0

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """How much is read at once is no matter here."""


class Provider:
    """Stands for a dialer. `most`: how many connections there were at once."""

    def __init__(self, chance: Random) -> None:
        self.chance, self.open, self.most = chance, 0, 0
        self._loop = asyncio.get_running_loop()

    def after(self, turns: int, what: Callable[[], None]) -> None:
        """Do something some turns of the loop later."""
        if turns:
            self._loop.call_soon(self.after, turns - 1, what)
        else:
            what()

    async def dial(self, make: Callable[[], Connection], seconds: float) -> Connection:
        """Open a connection, after a while; or fail, also when it is there already."""
        self.open += 1
        self.most = max(self.most, self.open)
        line: Line | None = None
        try:
            for _ in range(self.chance.randrange(3)):
                await asyncio.sleep(0)
            if self.chance.random() < 0.2:
                raise UpstreamError(Failure.CONNECT, "cannot connect")
            connection = make()
            line = Line(self, connection)
            if self.chance.random() < 0.5:
                await asyncio.sleep(0)
        except BaseException:
            if line is not None:
                line.abort()
            else:
                self.open -= 1
            raise
        return connection


async def client(pool: Pool, chance: Random) -> None:
    """Ask a few times; leave now and then, or have no patience."""
    loop = asyncio.get_running_loop()
    for _ in range(REQUESTS):
        patience = Deadlines(60, chance.choice([0, 60, 60, 60]), 60, 60)
        request = loop.create_task(pool.send(b"GET", None, patience, loop.time() + 60))
        if chance.random() < 0.3:
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
            request.cancel()
        for found in await asyncio.gather(request, return_exceptions=True):
            if isinstance(found, BaseException):
                assert isinstance(found, UpstreamError | asyncio.CancelledError), repr(found)


async def crowd(seed: int) -> None:
    chance = Random(seed)
    provider = Provider(chance)
    pool = Pool(Origin("http", "provider", 80, max_connections=MOST))
    pool._dialer = cast(Any, provider)
    async with asyncio.timeout(20):  # nobody is forgotten
        await asyncio.gather(*(client(pool, chance) for _ in range(CLIENTS)))
    for _ in range(40):  # until what was left is gone
        await asyncio.sleep(0)
    assert provider.most <= MOST
    assert pool.size == len(pool._idle) == provider.open
    assert not pool._waiting
    pool.close()
    await asyncio.sleep(0)
    assert pool.size == 0


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_there_are_never_too_many_and_everybody_has_a_turn(seed: int) -> None:
    asyncio.run(crowd(seed))
