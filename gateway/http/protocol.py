"""Hot path: aiohttp's server protocol with a light request for the hot routes.

aiohttp parses, bounds and frames what comes in and keeps connections; a hot request then skips its
Request and Response objects.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from gateway.core.errors import ApiError
from gateway.core.ids import request_id
from gateway.core.operations import PATHS, Operation
from gateway.formats import openai
from gateway.upstream.connection import Flow

# Bounds of a request's head; aiohttp refuses more with an HttpProcessingError.
MAX_LINE_BYTES = 8190
MAX_FIELD_BYTES = 8190
MAX_HEADERS = 100
KEEP_ALIVE_SECONDS = 75
SERVER = "sluice"  # no version: it would tell an attacker what to try
# What a stalled client can make us hold: above this the provider's stream is paused.
WRITE_BUFFER_BYTES = 32 * 1024


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


class GatewayProtocol(RequestHandler):
    """One client connection; passes the client's pace on to the source it follows."""

    __slots__ = ("_head_count", "_head_seconds", "_head_timer", "flow")

    def __init__(self, manager: "GatewayServer", head_seconds: float, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._head_seconds = head_seconds
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_count = 0
        self.flow: Flow | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what is buffered for a client that does not read."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)  # type: ignore[attr-defined]
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Parse; watch a head that came in part only.

        A part that came together with the request before it is bounded by the keep-alive time.
        """
        before = self._request_count
        super().data_received(data)
        if self._request_count == before and not self._request_in_progress:
            self._expect_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of the source; the handler is cancelled by aiohttp."""
        self.flow = None
        if self._head_timer is not None:
            self._head_timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Pause the source: the client is behind."""
        super().pause_writing()
        if self.flow is not None:
            self.flow.pause()

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        if self.flow is not None:
            self.flow.resume()

    @property
    def has_next(self) -> bool:
        """Tell whether the client has already sent another request."""
        return bool(self._messages)

    @property
    def in_request(self) -> bool:
        """Tell whether a request is being served."""
        return self._request_in_progress

    def handle_error(
        self,
        request: Any,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp could not parse or a handler did not catch, as API errors look."""
        self.keep_alive(False)
        if status >= 500:
            self.logger.error("unhandled error in a route", exc_info=exc)
            error = ApiError("internal_error", "The gateway failed. See its log.")
        elif type(exc).__name__ == "LineTooLong" or "Too many headers" in str(message):
            error = ApiError("headers_too_large", "The request's head is too large.")
        else:
            error = ApiError("invalid_http", "The request is not valid HTTP/1.1.")
        response = web.Response(
            body=openai.error_body(error), status=error.status, content_type="application/json"
        )
        response.headers["x-request-id"] = request_id()
        response.headers["Server"] = SERVER
        response.force_close()
        return response

    def _expect_head(self) -> None:
        if self._head_timer is not None:
            if self._head_count == self._request_count:
                return  # the same head, still on its way
            self._head_timer.cancel()
        self._head_count = self._request_count
        self._head_timer = self._loop.call_later(self._head_seconds, self._check_head)

    def _check_head(self) -> None:
        """Close a connection that has sent no whole request head in its time (slow loris)."""
        self._head_timer = None
        if self._request_count == self._head_count and not self._request_in_progress:
            self.force_close()


HotHandler = Callable[[HotRequest], Awaitable[Sent]]


class GatewayServer(web.Server):
    """Makes connections; sends hot requests one way and everything else through the application.

    `draining` asks every connection to close after its next reply.
    """

    def __init__(self, plain: web.Server, hot: HotHandler, head_seconds: float) -> None:
        self._head_seconds = head_seconds
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
                return await hot(request)
            response = await plain_handler(request)
            if self.draining:
                response.force_close()
            return response

        super().__init__(
            handle,
            request_factory=make_request,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_HEADERS,
        )
        self.draining = False

    def __call__(self) -> GatewayProtocol:
        return GatewayProtocol(self, self._head_seconds, loop=self._loop, **self._kwargs)

    @property
    def busy(self) -> int:
        """Return how many connections are in the middle of a request."""
        mine = (c for c in self._connections if isinstance(c, GatewayProtocol))
        return sum(1 for connection in mine if connection.in_request)
