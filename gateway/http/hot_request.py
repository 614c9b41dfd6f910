"""Hot path: a hot route's request that aiohttp has parsed, without its Request and Response."""

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from gateway.core.operations import PATHS, Operation

if TYPE_CHECKING:
    from gateway.http.protocol import GatewayProtocol


def hot_operation(message: RawRequestMessage) -> Operation | None:
    """Return what a hot route's request asks for; None for any other request."""
    if message.method != "POST":
        return None
    path = message.path
    if path in PATHS:
        return PATHS[path]
    if not path.startswith("/"):
        path = message.url.path  # the absolute form, RFC 9112 section 3.2.2
    return PATHS.get(path.partition("?")[0])


class HotRequest:
    """A parsed request of a hot route, with just what aiohttp's connection loop asks of it."""

    __slots__ = ("_task", "message", "operation", "payload", "protocol", "writer")

    def __init__(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: "GatewayProtocol",
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
        operation: Operation,
    ) -> None:
        self.operation = operation
        self.message, self.payload, self.protocol = message, payload, protocol
        self.writer, self._task = writer, task

    @property
    def method(self) -> str:
        """Return the method; aiohttp asks when something fails."""
        return self.message.method

    @property
    def headers(self) -> Any:
        """Return the request's headers."""
        return self.message.headers

    @property
    def remote(self) -> str | None:
        """Return the client's address."""
        peer = self.protocol.peername
        return str(peer[0]) if isinstance(peer, tuple) else None

    def _cancel(self, exc: BaseException) -> None:
        self.payload.set_exception(exc)

    def _finish(self) -> None:
        pass


class Sent:
    """Stands where aiohttp expects a response: the answer is written, or about to be."""

    __slots__ = ("keep_alive",)

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, request: object) -> None:
        """Do nothing."""

    async def write_eof(self) -> None:
        """Do nothing."""
