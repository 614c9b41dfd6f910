"""The aiohttp server: makes connections, and sends each request the way it belongs."""

import asyncio
import weakref
from collections import Counter
from collections.abc import Awaitable, Iterator
from typing import Any, Protocol

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from gateway.http.body import Room
from gateway.http.hot_request import HotRequest, Sent, hot_operation
from gateway.http.protocol import (
    KEEP_ALIVE_SECONDS,
    DirectLane,
    GatewayProtocol,
)
from gateway.http.request_head import MAX_HEADERS

# Bounds of a request's head; aiohttp refuses more with an HttpProcessingError.
MAX_LINE_BYTES = 8190
MAX_FIELD_BYTES = 8190


class HotHandler(DirectLane, Protocol):
    """Serves the hot routes, on both ways."""

    def handle(self, request: HotRequest) -> Awaitable[Sent]:
        """Answer a request that aiohttp has parsed."""
        ...


class Bounds(Protocol):
    """How many connections a worker keeps."""

    @property
    def connections(self) -> int:
        """Return how many in all."""
        ...

    @property
    def connections_per_address(self) -> int | None:
        """Return how many of one client; None: any."""
        ...


class GatewayServer(web.Server):
    """Makes connections; sends hot requests one way and everything else through the application.

    `draining` asks every connection to close after its next reply.
    """

    def __init__(
        self, plain: web.Server, hot: HotHandler, head_seconds: float, bounds: Bounds
    ) -> None:
        self._lane, self._head_seconds, self._bounds = hot, head_seconds, bounds
        self.room = Room(hot.max_body_bytes)
        self._by_address: Counter[str] = Counter()
        # Of all that count, also amid a TLS handshake; its transport forgets it at its end.
        self._addresses: dict[RequestHandler, str] = {}
        # Accepted, and not yet a connection: a loop's turn, or a TLS handshake, is to come.
        self._accepted = weakref.WeakSet[GatewayProtocol]()
        plain_handler, plain_factory = plain.request_handler, plain.request_factory

        def make_request(
            message: RawRequestMessage,
            payload: StreamReader,
            protocol: RequestHandler,
            writer: AbstractStreamWriter,
            task: "asyncio.Task[None]",
        ) -> Any:
            operation = hot_operation(message)
            if operation is not None:
                assert isinstance(protocol, GatewayProtocol)
                return HotRequest(message, payload, protocol, writer, task, operation)
            return plain_factory(message, payload, protocol, writer, task)

        async def handle(request: Any) -> Any:
            if type(request) is HotRequest:
                return await hot.handle(request)
            try:
                response = await plain_handler(request)
            except web.HTTPExpectationFailed as error:  # raised before any middleware
                response = request.protocol.handle_error(request, 417, error)
            if self.draining:
                response.force_close()
            return response

        super().__init__(
            handle,
            request_factory=make_request,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,  # or a stranger's body is unpacked, too
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_HEADERS,
        )
        self.draining = False
        self.refused_connections = 0

    def __call__(self) -> GatewayProtocol:
        protocol = GatewayProtocol(
            self, self._lane, self._head_seconds, loop=self._loop, **self._kwargs
        )
        self._accepted.add(protocol)
        return protocol

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection; one too many is closed at once, whoever it is of."""
        super().connection_made(handler, transport)
        assert isinstance(handler, GatewayProtocol)
        self._accepted.discard(handler)
        if handler not in self._addresses and not self._count(handler, _address(transport)):
            transport.abort()

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Count it no more."""
        self._forget(handler)
        super().connection_lost(handler, exc)

    def claim(self, address: str) -> GatewayProtocol | None:
        """Count a connection before it is made, until `release`; None: there are too many."""
        protocol = self()
        if self._count(protocol, address):
            return protocol
        self._forget(protocol)
        return None

    def release(self, protocol: GatewayProtocol) -> None:
        """End a claim: the connection has been made, and counts by itself, or never will be."""
        if protocol not in self._connections:
            self._forget(protocol)

    def _count(self, handler: RequestHandler, address: str) -> bool:
        """Count a connection; tell whether there is room for it."""
        self._addresses[handler] = address
        self._by_address[address] += 1
        most = self._bounds.connections_per_address
        if len(self._addresses) > self._bounds.connections or (
            most is not None and address and self._by_address[address] > most
        ):
            self.refused_connections += 1
            return False
        return True

    def _forget(self, handler: RequestHandler) -> None:
        address = self._addresses.pop(handler, None)
        if address is not None:
            self._by_address[address] -= 1
            if self._by_address[address] <= 0:
                del self._by_address[address]

    @property
    def open(self) -> int:
        """Return how many connections there are, with those that are only being made."""
        return len(self._connections) + len(self._accepted)

    @property
    def busy(self) -> int:
        """Return how many connections are in the middle of a request."""
        return sum(1 for connection in self._mine() if connection.in_request)

    @property
    def unread(self) -> bool:
        """Tell whether a client has yet to take a part of what it was sent."""
        return any(connection.has_unread for connection in self._mine())

    def _mine(self) -> Iterator[GatewayProtocol]:
        return (c for c in self._connections if isinstance(c, GatewayProtocol))


def _address(transport: asyncio.Transport) -> str:
    """Return a client's address; empty where it has none (a Unix socket)."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else ""
