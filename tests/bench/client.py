"""The bundled load client: N kept-alive connections on a raw protocol, every answer checked.

One request at a time a connection. A request open at the end of the run is waited for, not cut.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import httptools
import uvloop

from .processes import HOST

_GRACE_S = 10.0
_RECONNECT_PAUSE_S = 0.05
_OK = 200
_MAX_ERROR_KINDS = 20

Fault = Callable[[bytes], str | None]


@dataclass(frozen=True)
class Quantiles:
    """Seconds."""

    p50: float
    p99: float

    @classmethod
    def of(cls, values: list[float]) -> "Quantiles":
        ordered = sorted(values) or [0.0]
        last = len(ordered) - 1
        return cls(p50=ordered[round(last * 0.50)], p99=ordered[round(last * 0.99)])


@dataclass(frozen=True)
class Load:
    """One run: answers that were whole, and the time to their end and to their body's first byte.

    reads is how many reads one answer took: about one a chunk from a proxy that merges nothing.
    """

    requests: int
    seconds: float
    whole: Quantiles
    first: Quantiles | None
    reads: float | None
    errors: dict[str, int]

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


class Run:
    """What the connections of one run share: the request, the end, the results."""

    def __init__(self, request: bytes, fault: Fault) -> None:
        self.request = request
        self.fault = fault
        self.open = True
        self.whole: list[float] = []
        self.first: list[float] = []
        self.reads = 0
        self.errors: Counter[str] = Counter()
        self.ended = 0.0

    def note(self, error: str) -> None:
        known = error in self.errors or len(self.errors) < _MAX_ERROR_KINDS
        self.errors[error if known else "other errors"] += 1


class Connection(asyncio.Protocol):
    """Sends, checks the answer, sends again until the run is over or the server closes."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._parser = httptools.HttpResponseParser(self)
        self._waiting = False
        self._body: list[bytes] = []
        self._sent = self._first = 0.0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports implement asyncio.Transport without inheriting from it.
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._run.reads += 1
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting:
            self._waiting = False
            self._run.note("connection lost before the answer was whole")
        self.closed.set_result(None)

    def on_body(self, body: bytes) -> None:
        if not self._body:
            self._first = time.perf_counter()
        self._body.append(body)

    def on_message_complete(self) -> None:
        run, now = self._run, time.perf_counter()
        body = b"".join(self._body)
        status = self._parser.get_status_code()
        fault = f"status {status}: {body[:200]!r}" if status != _OK else run.fault(body)
        if fault is not None:
            self._fail(fault)
            return
        self._waiting = False
        run.whole.append(now - self._sent)
        run.first.append(self._first - self._sent)
        run.ended = now
        if run.open and self._parser.should_keep_alive():
            self._send()
        else:
            self._transport.close()

    def _send(self) -> None:
        self._waiting = True
        self._body = []
        self._sent = time.perf_counter()
        self._transport.write(self._run.request)

    def _fail(self, fault: str) -> None:
        if self._waiting:
            self._waiting = False
            self._run.note(fault)
        self._transport.abort()


def load(port: int, request: bytes, fault: Fault, *, connections: int, seconds: float) -> Load:
    """Drive the server from this process for seconds, plus at most a grace for open answers."""
    return uvloop.run(_load(port, Run(request, fault), connections, seconds))


def once(port: int, request: bytes, fault: Fault) -> str | None:
    """One request: what is wrong with its answer."""
    result = load(port, request, fault, connections=1, seconds=0.0)
    return next(iter(result.errors), None if result.requests else "no answer")


async def _load(port: int, run: Run, connections: int, seconds: float) -> Load:
    began = time.perf_counter()
    tasks = [asyncio.create_task(_connect(port, run)) for _ in range(connections)]
    await asyncio.sleep(seconds)
    run.open = False
    _, late = await asyncio.wait(tasks, timeout=_GRACE_S)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return Load(
        requests=len(run.whole),
        seconds=max(run.ended - began, seconds, 1e-9),
        whole=Quantiles.of(run.whole),
        first=Quantiles.of(run.first),
        reads=run.reads / max(len(run.whole), 1),
        errors=dict(run.errors),
    )


async def _connect(port: int, run: Run) -> None:
    """Keep one connection open: one in any case, then a new one whenever the server closed it."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            transport, connection = await loop.create_connection(
                lambda: Connection(run), HOST, port
            )
        except OSError as error:
            run.note(f"connect: {error}")
            await asyncio.sleep(_RECONNECT_PAUSE_S)
        else:
            await _until_closed(transport, connection)
        if not run.open:
            return


async def _until_closed(transport: asyncio.BaseTransport, connection: Connection) -> None:
    try:
        await connection.closed
    finally:
        # Only a run that is over its grace gets here with the connection still open.
        transport.close()
