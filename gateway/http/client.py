"""Hot path: writes one request's answer to its client's connection, whole or as a stream."""

import asyncio
from typing import Protocol

from gateway.http.head import date_line, reply_start, status_line
from gateway.upstream.exchange import Flow

STREAM_HEAD = (
    b"Content-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\n"
    b"X-Accel-Buffering: no\r\n"  # nginx in front would otherwise hold the stream back
)


class Peer(Protocol):
    """The connection an answer goes to."""

    transport: asyncio.Transport | None
    flow: Flow | None

    @property
    def writing_paused(self) -> bool:
        """Tell whether the client is behind."""
        ...

    @property
    def draining(self) -> bool:
        """Tell whether an answer is to be the connection's last."""
        ...

    def answered(self, keep_alive: bool) -> None:
        """Know that an answer is written to its end."""
        ...


class ClientWriter:
    """Implements `pipeline.call.Client` on an aiohttp connection's transport."""

    __slots__ = ("_chunked", "_done", "_expected", "_head", "_keep_alive", "_peer", "begun", "sent")

    def __init__(self, peer: Peer, keep_alive: bool, chunked: bool) -> None:
        self._peer, self._keep_alive, self._chunked = peer, keep_alive, chunked
        self._expected = False
        self._head = b""  # of a stream that has no content yet
        self._done: asyncio.Future[None] | None = None
        self.begun = self.sent = False

    @property
    def connected(self) -> bool:
        """Tell whether there is anybody to answer."""
        return self._peer.transport is not None

    @property
    def keep_alive(self) -> bool:
        """Tell whether the connection may serve another request."""
        return self._keep_alive

    def close_after(self) -> None:
        """Let this answer be the connection's last."""
        self._keep_alive = False

    def reply(self, status: int, content_type: str, headers: bytes, body: bytes) -> None:
        """Send a whole reply in one write."""
        self._write(
            b"%b%d\r\n%b%b%b\r\n%b"
            % (
                reply_start(status, content_type),
                len(body),
                date_line(),
                self._connection(),
                headers,
                body,
            )
        )
        self._finish()

    def start(self, headers: bytes) -> None:
        """Send the head of an event stream, once, together with its first content."""
        if self.begun:
            return
        self.begun = True
        if not self._chunked:
            self._keep_alive = False  # HTTP/1.0 knows no chunks: the close ends the stream
        self._head = b"%b%b%b%b%b%b\r\n" % (
            status_line(200),
            STREAM_HEAD,
            date_line(),
            b"Transfer-Encoding: chunked\r\n" if self._chunked else b"",
            self._connection(),
            headers,
        )

    def write(self, data: bytes) -> None:
        """Send content of the stream."""
        self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    @property
    def chunked(self) -> bool:
        """Tell whether content is framed in chunks: not for HTTP/1.0."""
        return self._chunked

    def write_frame(self, frame: bytes) -> None:
        """Send content of the stream, not its first, that is a chunk already."""
        transport = self._peer.transport
        if transport is not None:
            transport.write(frame)

    def finish(self, data: bytes) -> None:
        """Send the last content and end the stream."""
        if self._chunked:
            self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
        else:
            self._write(data)
        self._finish()

    def follow(self, flow: Flow | None) -> None:
        """Let the connection pause this source while the client is behind."""
        self._peer.flow = flow
        if flow is not None and self._peer.writing_paused:
            flow.pause()

    def expect(self) -> None:
        """Know that a reply is on its way."""
        self._expected = True

    async def delivered(self) -> None:
        """Wait until the expected reply is written."""
        if self._expected and not self.sent:
            self._done = asyncio.get_running_loop().create_future()
            await self._done

    def _connection(self) -> bytes:
        if self._peer.draining:
            self._keep_alive = False
        if not self._keep_alive:
            return b"Connection: close\r\n"
        return b"" if self._chunked else b"Connection: keep-alive\r\n"  # HTTP/1.0 must be told

    def _write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        transport = self._peer.transport
        if transport is not None:
            transport.write(data)

    def _finish(self) -> None:
        self.sent = True
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
        self._peer.answered(self._keep_alive)
