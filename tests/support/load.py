"""A fast raw client: keep-alive connections by the dozen, and of each request what became of it.

It never tries again and hides nothing: a reply that is cut, a connection that is refused or reset
is that request's failure.
"""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from tests.support.config import KEY, chat

CHAT = "/v1/chat/completions"
REPLY_SECONDS = 60.0
LEFT = "left"


@dataclass
class Ask:
    """One request to send. `leave_after`: cut the connection after so many events of a stream."""

    body: Any = field(default_factory=chat)
    path: str = CHAT
    key: str = KEY
    leave_after: int | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def wire(self) -> bytes:
        """The request's bytes."""
        data = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        more = "".join([f"{name}: {value}\r\n" for name, value in self.headers.items()])
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: sluice\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\n{more}Content-Length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data


@dataclass
class Outcome:
    """What became of a request; `failure` is empty where a whole reply came. Loop seconds."""

    ask: Ask
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    failure: str = ""
    local_port: int = 0
    started: float = 0.0
    ended: float = 0.0

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        """The payloads of a stream's events."""
        blocks = self.body.decode().split("\n\n")
        return [block.removeprefix("data: ") for block in blocks if block.startswith("data: ")]


class Client:
    """One connection at a time, kept as long as the server keeps it."""

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None, limit: int = 2**20) -> None:
        self._port, self._tls, self._limit = port, tls, limit
        self._reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter | None = None
        self.local_port = 0
        self.status, self.headers, self.arrived = 0, dict[str, str](), b""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def connect(self) -> None:
        """Connect, if not connected."""
        if self.writer is None:
            self._reader, self.writer = await asyncio.open_connection(
                "127.0.0.1", self._port, ssl=self._tls, limit=self._limit
            )
            self.local_port = self.writer.get_extra_info("sockname")[1]

    async def send(self, ask: Ask) -> None:
        """Send a request."""
        await self.connect()
        assert self.writer is not None
        self.writer.write(ask.wire)

    async def read_head(self) -> None:
        """Read a reply's status and headers."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        self.status, self.arrived = int(first.split(" ")[1]), b""
        pairs = (line.partition(":") for line in lines)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}

    async def read_chunk(self) -> bytes:
        """Read a stream's next chunk; empty at the end."""
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        data = (await self._reader.readexactly(size + 2))[:-2]
        self.arrived += data
        return data

    async def read_body(self) -> bytes:
        """Read the reply's body to its end."""
        if self.headers.get("transfer-encoding") == "chunked":
            while await self.read_chunk():
                pass
        else:
            size = int(self.headers["content-length"])
            self.arrived = await self._reader.readexactly(size)
        return self.arrived

    async def ask(self, ask: Ask | None = None) -> Outcome:
        """Send a request and read all of its reply."""
        ask = ask or Ask()
        clock = asyncio.get_running_loop().time
        outcome = Outcome(ask, started=clock())
        self.status, self.headers, self.arrived = 0, {}, b""
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                await self.send(ask)
                outcome.local_port = self.local_port
                await self.read_head()
                if ask.leave_after is not None and self.status == 200:
                    while self.arrived.count(b"\n\n") < ask.leave_after:
                        await self.read_chunk()
                    outcome.failure = LEFT
                else:
                    await self.read_body()
        except (OSError, EOFError, TimeoutError) as error:
            outcome.failure = f"{type(error).__name__}: {error}"
        outcome.ended = clock()
        outcome.status, outcome.headers, outcome.body = self.status, self.headers, self.arrived
        if outcome.failure or self.headers.get("connection", "").lower() == "close":
            self.cut()
        return outcome

    def cut(self) -> None:
        """Close the connection at once. Idempotent."""
        if self.writer is not None:
            self.writer.transport.abort()
            self.writer = None

    async def aclose(self) -> None:
        """Close and let the loop see it. Idempotent."""
        writer = self.writer
        self.cut()
        if writer is not None:
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def flood(port: int, asks: Iterable[Ask], connections: int) -> list[Outcome]:
    """Send requests as fast as so many connections can; return the outcomes as they came."""
    queue, outcomes = iter(asks), list[Outcome]()

    async def work() -> None:
        async with Client(port) as client:
            for ask in queue:
                outcomes.append(await client.ask(ask))

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(work())
    return outcomes


@contextlib.asynccontextmanager
async def steady(
    port: int, make: Callable[[], Ask], connections: int, pause: float = 0.0
) -> AsyncIterator[list[Outcome]]:
    """Keep so many connections busy for the length of a block; then let each finish its request."""
    outcomes, stop = list[Outcome](), asyncio.Event()

    async def work() -> None:
        async with Client(port) as client:
            while not stop.is_set():
                outcomes.append(await client.ask(make()))
                await asyncio.sleep(pause)

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(work())
        try:
            yield outcomes
        finally:
            stop.set()


async def once(port: int, ask: Ask | None = None, tls: ssl.SSLContext | None = None) -> Outcome:
    """Send one request on a connection of its own."""
    async with Client(port, tls=tls) as client:
        return await client.ask(ask)
