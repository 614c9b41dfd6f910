"""A provider's connection and a client's writer without sockets: a test says what is read when."""

import asyncio
import json
import re
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from typing import Any, cast

from gateway.core.errors import Failure, UpstreamError
from gateway.core.operations import Operation
from gateway.core.target import Deadlines
from gateway.formats.opening import only_opens
from gateway.http.client import ClientWriter
from gateway.providers.openai_stream import OpenAIStream
from gateway.upstream.connection import Connection
from gateway.upstream.exchange import Flow, Reply
from gateway.upstream.relay import Relay

LAST = b"0\r\n\r\n"
PATIENT = Deadlines(60, 60, 60, 60)


class Socket:
    """Stands for a transport."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False
        self.unsent = 0

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.written += data

    def abort(self) -> None:
        """Be closed."""
        self.closed = True

    def get_write_buffer_size(self) -> int:
        """Return what is not sent yet."""
        return self.unsent

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """How much is read at once is no matter here."""

    def is_closing(self) -> bool:
        """Tell whether it is."""
        return self.closed


class Peer:
    """Stands for a client's connection."""

    flow: Flow | None = None
    writing_paused = draining = False

    def __init__(self) -> None:
        self.transport = cast(Any, Socket())

    def answered(self, keep_alive: bool) -> None:
        """Do nothing."""


class Writer(ClientWriter):
    """Counts the chunks that are passed on as they came."""

    frames = 0

    def write_frame(self, frame: bytes) -> None:
        """Count and send."""
        self.frames += 1
        super().write_frame(frame)


class Provider:
    """A provider's connection, of which a test is the other side."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.socket, self.idle = Socket(), 0
        self.connection = Connection(loop, self._on_idle, lambda _: None)
        self.connection.connection_made(cast(Any, self.socket))

    def _on_idle(self, _: Connection) -> None:
        self.idle += 1

    def ask(self, chunked: bool = True) -> "Stream":
        """Begin an exchange, for a client that knows chunks or not."""
        return Stream(self, chunked)


class Stream:
    """One exchange."""

    def __init__(self, provider: Provider, chunked: bool) -> None:
        self.provider, self.peer, self.texts = provider, Peer(), list[str]()
        self.writer = Writer(self.peer, True, chunked)
        self.relay = Relay(
            OpenAIStream(False),
            self.writer,
            lambda: b"",
            self._count,
            lambda: 1.0,
            partial(only_opens, Operation.CHAT),
        )
        send = provider.connection.exchange
        self.reply: asyncio.Future[Reply] = send(b"", self.relay, PATIENT, float("inf"))

    def _count(self, text: str) -> int:
        self.texts.append(text)
        return len(text)

    def read(self, pieces: Iterable[bytes]) -> "Stream":
        """Let the provider send; nothing more is read once the connection is closed."""
        for piece in pieces:
            if piece and not self.provider.socket.closed:
                self.provider.connection.data_received(piece)
        return self

    def content(self) -> bytes:
        """End a stream that is whole; return the content the client has had."""
        assert self.reply.done(), "the end was not seen"
        assert self.reply.result().streamed
        self.writer.finish(self.relay.end())
        return dechunked(self.peer.transport.written)

    def failure(self) -> Failure:
        """Return what went wrong."""
        error = self.reply.exception()
        assert isinstance(error, UpstreamError), error
        assert self.provider.socket.closed
        return error.failure

    def text(self) -> str:
        """What was generated, as it is counted."""
        self.relay.delivered_tokens()
        return "".join(self.texts)


def dechunked(data: bytes, whole: bool = True) -> bytes:
    """A chunked reply's content; its framing must be right to the last byte."""
    _, _, rest = data.partition(b"\r\n\r\n")
    content = b""
    while (line := re.match(rb"([1-9a-f][0-9a-f]*)\r\n", rest)) is not None:
        size, start = int(line[1], 16), line.end()
        content += rest[start : start + size]
        assert rest[start + size : start + size + 2] == b"\r\n"
        rest = rest[start + size + 2 :]
    assert rest == (LAST if whole else b"")
    return content


def sse(content: Any) -> bytes:
    """An event as most servers write it: JSON as it is, or the text given."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def framed(data: bytes, line: str = "%x") -> bytes:
    """An HTTP chunk."""
    return (line % len(data)).encode() + b"\r\n" + data + b"\r\n"


def cut(data: bytes, *places: int) -> list[bytes]:
    """The parts between these places."""
    return [data[a:b] for a, b in pairwise([0, *sorted(places), len(data)])]
