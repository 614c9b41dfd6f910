"""Hot path: the routes that serve models, from a connection's protocol to the pipeline."""

import asyncio
import logging
from collections.abc import Awaitable
from time import monotonic

from multidict import CIMultiDictProxy

from gateway.core.errors import ApiError, StoreError
from gateway.core.hints import NAMES, Hints
from gateway.core.ids import request_id
from gateway.core.operations import ANTHROPIC
from gateway.http.body import declared_length, read_body, too_slow, waits_to_be_asked
from gateway.http.client import ClientWriter
from gateway.http.hot_request import HotRequest, Sent
from gateway.http.protocol import GatewayProtocol
from gateway.http.request_head import (
    MAX_TRACE_CHARS,
    PASSED_ON,
    RequestHead,
    printable,
)
from gateway.pipeline.call import Call
from gateway.pipeline.serve import part, refuse, serve, serve_apart
from gateway.pipeline.services import Services

logger = logging.getLogger("sluice.http")

# Requests that a worker reads to their end though their clients have left, and for how long.
MAX_DRAINING = 100
DRAIN_SECONDS = 120.0
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def secret_of(headers: CIMultiDictProxy[str]) -> str | None:
    """Return the key a client presents, in any of the usual places."""
    bearer = headers.get("Authorization")
    if bearer is not None:
        scheme, _, secret = bearer.partition(" ")
        if scheme.lower() == "bearer":
            return secret.strip()
    google = headers.get("x-goog-api-key")  # its SDK, under /providers/
    return headers.get("x-api-key") or headers.get("api-key", google)


class HotRoutes:
    """Handles hot requests; `server` is set once it exists and says whether it drains."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.max_body_bytes = services.config.server.max_request_size
        self.body_seconds = services.config.server.request_timeout
        self._draining: set[asyncio.Task[None]] = set()

    async def serve(self, protocol: GatewayProtocol, head: RequestHead, body: bytes) -> None:
        """Serve a request of the direct lane."""
        services = self._services
        client = ClientWriter(protocol, True, chunked=True)
        started = monotonic()
        call = Call(
            request_id(),
            head.operation,
            body,
            head.secret,
            client,
            started,
            head.trace,
            head.passed_on,
            head.hints,
        )
        protocol.call = call
        try:
            await serve(services, call)
        except Exception:
            logger.exception("request %s failed inside the gateway", call.id)
            protocol.force_close()
        finally:
            part(call)

    def goes_on(self, call: Call, task: "asyncio.Task[None]") -> bool:
        """Tell whether a request whose client left is read to its end, for the usage.

        At most so many at once, for so long, and only of providers that are configured so.
        """
        if call.finished or not call.drains or len(self._draining) >= MAX_DRAINING:
            return False
        call.left = True
        self._draining.add(task)
        timer = self._services.loop.call_later(DRAIN_SECONDS, task.cancel)
        task.add_done_callback(self._draining.discard)
        task.add_done_callback(lambda _: timer.cancel())
        return True

    @property
    def draining(self) -> int:
        """Return how many requests go on without their client."""
        return len(self._draining)

    async def aclose(self) -> None:
        """End what goes on without its client. Idempotent."""
        tasks = tuple(self._draining)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def refuse_slow(self, protocol: GatewayProtocol, head: RequestHead) -> None:
        """Refuse a request of the direct lane whose body did not come in time."""
        client = ClientWriter(protocol, False, chunked=True)
        began = monotonic() - self.body_seconds
        call = Call(request_id(), head.operation, b"", head.secret, client, began, head.trace)
        await refuse(self._services, call, too_slow(self.body_seconds))

    async def handle(self, request: HotRequest) -> Sent:
        """Read the body, run the pipeline; the reply is written by then, or on its way."""
        message, protocol = request.message, request.protocol
        await protocol.caught_up()
        started = monotonic()
        modern = message.version >= (1, 1)
        keep_alive = not message.should_close
        if not modern and "Transfer-Encoding" in message.headers:
            keep_alive = False  # or a second request could be smuggled (RFC 9112 section 6.1)
        client = ClientWriter(protocol, keep_alive, modern)
        call = Call(
            request_id(),
            request.operation,
            b"",
            secret_of(message.headers),
            client,
            started,
            printable(message.headers.get("traceparent", ""), MAX_TRACE_CHARS),
            _passed_on(request),
            _hints(request),
        )
        try:
            costs = not request.payload.is_eof() or message.compression is not None
            if costs and not await self._asks(call.secret):
                # No body is taken from strangers; `serve` says why.
                return await _unread(client, serve(self._services, call))
            if waits_to_be_asked(message) and not request.payload.is_eof():
                self._continue(request)
            most, seconds = self.max_body_bytes, self.body_seconds
            call.body = await read_body(message, request.payload, most, seconds, protocol.room)
        except ApiError as error:
            return await _unread(client, refuse(self._services, call, error))
        await self._serve_shielded(protocol, call)
        if not client.sent and (not client.keep_alive or protocol.has_next):
            await client.delivered()
        return Sent(client.keep_alive)

    def knows(self, secret: str | None) -> bool:
        """Tell whether this key's bodies are worth reading."""
        try:
            return self._services.keyring.find(secret) is not None
        except ApiError:
            return False

    async def _serve_shielded(self, protocol: GatewayProtocol, call: Call) -> None:
        """Serve in a task of its own, as aiohttp cancels its handler when the client leaves."""
        task = self._services.loop.create_task(serve_apart(self._services, call))
        protocol.serves(call, task)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not call.left:
                if not task.cancelling():  # its client's leaving has done so
                    task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            raise
        finally:
            protocol.serves(None, None)

    async def _asks(self, secret: str | None) -> bool:
        try:
            await self._services.keyring.authenticate(secret)
        except (ApiError, StoreError):
            return False
        return True

    def _continue(self, request: HotRequest) -> None:
        transport = request.protocol.transport
        if transport is not None and declared_length(request.message) <= self.max_body_bytes:
            transport.write(CONTINUE)


def _hints(request: HotRequest) -> Hints:
    return Hints(*[_joined(request, name) for name in NAMES])


def _passed_on(request: HotRequest) -> tuple[tuple[str, str], ...]:
    if request.operation not in ANTHROPIC:
        return ()
    return tuple([(name, _joined(request, name)) for name in PASSED_ON])


def _joined(request: HotRequest, name: str) -> str:
    """Return a header's lines as one (RFC 9110 section 5.3), as it may go along."""
    return printable(", ".join(request.headers.getall(name, ())))


async def _unread(client: ClientWriter, answering: Awaitable[None]) -> Sent:
    """Answer a body that was not read to its end: what follows on the connection is unknown."""
    client.close_after()
    await answering
    await client.delivered()
    return Sent(keep_alive=False)
