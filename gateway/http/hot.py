"""Hot path: the routes that serve models, from a connection's protocol to the pipeline."""

import asyncio
import logging
from math import ceil
from time import monotonic

from multidict import CIMultiDictProxy

from gateway.core.errors import ApiError, StoreError
from gateway.core.hints import NAMES, Hints
from gateway.core.ids import request_id
from gateway.core.operations import ANTHROPIC, Operation
from gateway.formats import FORMATS
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
from gateway.pipeline.serve import serve
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
            _part(call)

    def goes_on(self, call: Call, task: "asyncio.Task[None]") -> bool:
        """Tell whether a request whose client left is read to its end, for the usage.

        At most so many at once, for so long, and only of providers that are configured so.
        """
        if call.route is None or call.finished or not call.sent_at:
            return False
        if not call.route.target.drains or len(self._draining) >= MAX_DRAINING:
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

    def refuse_slow(self, protocol: GatewayProtocol, operation: Operation) -> None:
        """Refuse a request of the direct lane whose body did not come in time."""
        client = ClientWriter(protocol, False, chunked=True)
        _refused(client, too_slow(self.body_seconds), operation)

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
        headers = message.headers
        secret = secret_of(headers)
        trace = printable(headers.get("traceparent", ""), MAX_TRACE_CHARS)
        try:
            costs = not request.payload.is_eof() or message.compression is not None
            if costs and not await self._asks(secret):
                client.close_after()  # no body is taken from strangers; `serve` says why
                call = Call(request_id(), request.operation, b"", secret, client, started, trace)
                await serve(self._services, call)
                await client.delivered()
                return Sent(keep_alive=False)
            if waits_to_be_asked(message) and not request.payload.is_eof():
                self._continue(request)
            most, seconds = self.max_body_bytes, self.body_seconds
            body = await read_body(message, request.payload, most, seconds, protocol.room)
        except ApiError as error:
            return _refused(client, error, request.operation)
        call = Call(
            request_id(),
            request.operation,
            body,
            secret,
            client,
            started,
            trace,
            _passed_on(request),
            _hints(request),
        )
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

    async def _serve(self, call: Call) -> None:
        try:
            await serve(self._services, call)
        finally:
            _part(call)

    async def _serve_shielded(self, protocol: GatewayProtocol, call: Call) -> None:
        """Serve in a task of its own, as aiohttp cancels its handler when the client leaves."""
        task = self._services.loop.create_task(self._serve(call))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if protocol.transport is not None or not self.goes_on(call, task):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            raise

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


def _part(call: Call) -> None:
    """Part a request from what refers to it: a circle is freed late, with all it holds."""
    if call.relay is not None:
        call.relay = call.allowance = None


def _hints(request: HotRequest) -> Hints:
    return Hints(*[_joined(request, name) for name in NAMES])


def _passed_on(request: HotRequest) -> tuple[tuple[str, str], ...]:
    if request.operation not in ANTHROPIC:
        return ()
    return tuple([(name, _joined(request, name)) for name in PASSED_ON])


def _joined(request: HotRequest, name: str) -> str:
    """Return a header's lines as one (RFC 9110 section 5.3), as it may go along."""
    return printable(", ".join(request.headers.getall(name, ())))


def _refused(client: ClientWriter, error: ApiError, operation: Operation) -> Sent:
    """Refuse a body that was not read to its end: what follows on the connection is unknown."""
    client.close_after()
    number = request_id()
    names = ("x-request-id", "request-id") if operation in ANTHROPIC else ("x-request-id",)
    headers = "".join([f"{name}: {number}\r\n" for name in names]).encode()
    if error.retry_after is not None:
        headers += b"retry-after: %d\r\n" % ceil(error.retry_after)
    body = FORMATS[operation].error_body(error, number)
    client.reply(error.status, "application/json", headers, body)
    return Sent(keep_alive=False)
