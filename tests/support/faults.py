"""Providers that fail as a script says, byte by byte, all in one thread.

A script is a row of steps over the raw connection; what it sends is told in the dialect of the API
that was asked. Each provider listens on a port of its own, so that no connection of one serves
another.
"""

import asyncio
import contextlib
import re
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum

import trustme

from tests.support.speech import Speech, speech
from tests.support.threaded import InThread
from tests.support.upstream import Behaviour, Exchange, Upstream

TEXT = ("one", " two")
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"
POLL_SECONDS = 0.005
START_SECONDS = 10.0
ENDLESS_SECONDS = 5.0  # of what never ends by itself, so that a gateway without a deadline shows
LINGER_NOT = struct.pack("ii", 1, 0)

Piece = bytes | Callable[[Speech], bytes]


class Door(Enum):
    """How a provider takes connections."""

    OPEN = "open"
    REFUSES = "refuses"
    FULL = "full"  # its backlog is: what comes is never answered
    PLAIN = "plain"  # where TLS is expected
    TLS = "tls"  # with a certificate that is good
    UNTRUSTED = "untrusted"
    MISNAMED = "misnamed"
    TLS_CLOSES = "tls closes"
    TLS_SILENT = "tls silent"


ENCRYPTED = frozenset(Door) - {Door.OPEN, Door.REFUSES, Door.FULL}

_NUMBER = re.compile(rb"case-(\d+)-")


def prompt(number: int) -> str:
    """The prompt of a numbered case."""
    return f"case-{number}-"


@dataclass
class Scene(Exchange):
    """One request of a case, for the steps of a script. `shown`: see `Faults`."""

    shown: set[int] = field(default_factory=set)

    @property
    def number(self) -> int:
        """Which case it belongs to."""
        found = _NUMBER.search(self.request.body)
        assert found is not None
        return int(found[1])

    @property
    def left(self) -> bool:
        """Tell whether the gateway has closed."""
        assert self.reader is not None
        return self.reader.at_eof() or self.reader.exception() is not None

    def told(self, *pieces: Piece) -> bytes:
        """What pieces are in the dialect of the API that was asked."""
        said = speech("anthropic" if self.request.path.endswith("/messages") else "openai", *TEXT)
        return b"".join(one if isinstance(one, bytes) else one(said) for one in pieces)


Step = Callable[[Scene], Awaitable[None]]


# -- steps -----------------------------------------------------------------------------------------


def raw(*pieces: Piece) -> Step:
    """Send bytes as they are."""

    async def step(scene: Scene) -> None:
        await scene.send(scene.told(*pieces))

    return step


def whole(piece: Piece, *lines: str, status: int = 200, extra: int = 0) -> Step:
    """Send a reply; its length is announced too high by `extra`."""

    async def step(scene: Scene) -> None:
        body = scene.told(piece)
        given = any(line.lower().startswith("content-type:") for line in lines)
        shown = [f"HTTP/1.1 {status} X", *lines]
        shown += [] if given else ["Content-Type: application/json"]
        shown += [f"Content-Length: {len(body) + extra}", "", ""]
        await scene.send("\r\n".join(shown).encode("latin-1") + body)

    return step


def chunk(*pieces: Piece) -> Step:
    """Send one HTTP chunk."""

    async def step(scene: Scene) -> None:
        await scene.chunk(scene.told(*pieces))

    return step


def events(*pieces: Piece) -> Step:
    """Send events, each in a chunk of its own."""

    async def step(scene: Scene) -> None:
        for one in scene.told(*pieces).split(b"\n\n")[:-1]:
            await scene.chunk(one + b"\n\n")

    return step


def drip(piece: Piece, size: int, pause: float, *, chunked: bool = False) -> Step:
    """Send a few bytes at a time."""

    async def step(scene: Scene) -> None:
        data = scene.told(piece)
        for i in range(0, len(data), size):
            part = data[i : i + size]
            await (scene.chunk(part) if chunked else scene.send(part))
            await asyncio.sleep(pause)

    return step


def over_and_over(piece: Piece, pause: float = 0.05, *, chunked: bool = False) -> Step:
    """Send a piece again and again."""

    async def step(scene: Scene) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + ENDLESS_SECONDS
        while loop.time() < until and not scene.left:
            await drip(piece, 1 << 20, pause, chunked=chunked)(scene)

    return step


async def hold(scene: Scene) -> None:
    """Say nothing more."""
    await scene.gone()
    scene.keep_alive = False


async def close(scene: Scene) -> None:
    """Close in order (FIN)."""
    scene.writer.close()
    scene.keep_alive = False


async def reset(scene: Scene) -> None:
    """Cut the connection (RST)."""
    sock = scene.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    scene.abort()


async def when_shown(scene: Scene) -> None:
    """Wait until the client has read all the text."""
    while scene.number not in scene.shown and not scene.left:
        await asyncio.sleep(POLL_SECONDS)


# -- the providers ---------------------------------------------------------------------------------


class Faults(InThread):
    """Runs providers from enter to exit. `asked` counts each case's requests to a provider;
    `shown` has the cases whose clients have read all the text."""

    def __init__(self) -> None:
        super().__init__("faults")
        self.asked: Counter[tuple[str, int]] = Counter()
        self.shown: set[int] = set()
        self.urls: dict[str, str] = {}
        self.ca = trustme.CA()
        self._plans: list[tuple[str, Behaviour, Door]] = []
        self._upstreams: dict[str, Upstream] = {}
        self._sockets: list[socket.socket] = []

    def add(self, name: str, behave: Step, door: Door = Door.OPEN) -> None:
        """Plan a provider, before the start."""

        async def behaviour(exchange: Exchange) -> None:
            scene = Scene(
                exchange.request, exchange.writer, reader=exchange.reader, shown=self.shown
            )
            self.asked[name, scene.number] += 1
            await behave(scene)
            exchange.keep_alive = scene.keep_alive

        self._plans.append((name, behaviour, door))

    def open(self, name: str) -> int:
        """How many connections a provider has; none where its door lets nobody in."""
        upstream = self._upstreams.get(name)
        return upstream.open_connections if upstream is not None else 0

    async def serve(self) -> None:
        """Be all the providers."""
        async with contextlib.AsyncExitStack() as stack:
            for name, behaviour, door in self._plans:
                port = await self._open(stack, name, behaviour, door)
                scheme = "https" if door in ENCRYPTED else "http"
                self.urls[name] = f"{scheme}://127.0.0.1:{port}/v1"
            self.started.set()
            await self.stop.wait()
            for sock in self._sockets:
                sock.close()

    async def _open(
        self, stack: contextlib.AsyncExitStack, name: str, behaviour: Behaviour, door: Door
    ) -> int:
        match door:
            case Door.REFUSES:
                return self._keep(_bound())
            case Door.FULL:
                return self._full()
            case Door.PLAIN | Door.TLS_CLOSES | Door.TLS_SILENT:
                handler = _Blunt(door)
                server = await asyncio.start_server(handler, "127.0.0.1", 0)
                stack.push_async_callback(handler.aclose, server)
                port: int = server.sockets[0].getsockname()[1]
                return port
        upstream = Upstream(behaviour=behaviour, tls=self._tls(door))
        self._upstreams[name] = await stack.enter_async_context(upstream)
        return upstream.port

    def _tls(self, door: Door) -> ssl.SSLContext | None:
        if door not in ENCRYPTED:
            return None
        ca = trustme.CA() if door is Door.UNTRUSTED else self.ca
        name = "elsewhere.test" if door is Door.MISNAMED else "127.0.0.1"
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        ca.issue_cert(name).configure_cert(context)
        return context

    def _full(self) -> int:
        """Listen, and let nobody in: Linux answers no SYN while a backlog is full."""
        listener = _bound()
        listener.listen(0)
        port = self._keep(listener)
        for _ in range(4):
            caller = socket.socket()
            caller.setblocking(False)
            caller.connect_ex(("127.0.0.1", port))
            self._sockets.append(caller)
        return port

    def _keep(self, sock: socket.socket) -> int:
        self._sockets.append(sock)
        port: int = sock.getsockname()[1]
        return port


class _Blunt:
    """Answers a TLS client's first words without TLS, or not at all."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await reader.read(4096)
            if self._door is Door.PLAIN:
                writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            elif self._door is Door.TLS_SILENT:
                await reader.read()
        writer.close()
        self._tasks.discard(task)

    async def aclose(self, server: asyncio.Server) -> None:
        """End it with its connections."""
        server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _bound() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock
