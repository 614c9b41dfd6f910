"""Hot path: a client's connection. Plain requests of the hot routes skip aiohttp's parser.

Everything else is aiohttp's: other routes, chunked and compressed bodies, HTTP/1.0, pipelining, bad
HTTP. A hot request that comes that way still skips its Request and Response objects.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from time import monotonic  # the clock of every event loop, without a call into it
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import web
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from gateway.core.errors import ApiError
from gateway.core.ids import request_id
from gateway.formats import openai
from gateway.http.hot_request import HotRequest
from gateway.http.request_head import MAX_HEAD_BYTES, RequestHead, request_head
from gateway.pipeline.call import Call
from gateway.timer import FOREVER, LazyTimer
from gateway.upstream.exchange import Flow

if TYPE_CHECKING:
    from gateway.http.server import GatewayServer

POST = b"POST "
KEEP_ALIVE_SECONDS = 75
STALLED_SECONDS = 30.0  # without a byte taken of an answer that no source is held back for
# A client whose request is no HTTP may go on sending so long, so much, and read its refusal: what
# is not read when a connection is closed resets it, and the refusal is lost.
LINGER_SECONDS, LINGER_BYTES = 2.0, 4 * 1024 * 1024
QUIET_SECONDS = 0.05
SERVER = "sluice"  # no version: it would tell an attacker what to try
# What a stalled client can make us hold: above this the provider's stream is paused.
WRITE_BUFFER_BYTES = 16 * 1024
# What a client may send before it has its answer and still be read from.
MAX_LATER_BYTES = 64 * 1024


class DirectLane(Protocol):
    """Serves requests that came past aiohttp's parser."""

    max_body_bytes: int
    body_seconds: float

    def knows(self, secret: str | None) -> bool:
        """Tell whether this key's bodies are worth reading."""
        ...

    def serve(
        self, protocol: "GatewayProtocol", head: RequestHead, body: bytes
    ) -> Coroutine[Any, Any, None]:
        """Answer a whole request; the protocol is told by `answered`."""
        ...

    def goes_on(self, call: Call, task: "asyncio.Task[None]") -> bool:
        """Tell whether the request under way is to be finished without its client."""
        ...

    def refuse_slow(
        self, protocol: "GatewayProtocol", head: RequestHead
    ) -> Coroutine[Any, Any, None]:
        """Answer a request whose body did not come in time, the connection's last."""
        ...


class _LastWord(web.Response):
    """A connection's last answer: what it is followed by is read for a while."""

    linger: Callable[[], Awaitable[None]]

    async def write_eof(self, data: bytes = b"") -> None:
        """Send the rest."""
        await super().write_eof(data)
        await self.linger()


class GatewayProtocol(RequestHandler):
    """One client connection; passes the client's pace on to the source it follows.

    Two lanes. Plain requests of hot routes are taken from the bytes directly, one at a time. The
    first one that is anything else goes to aiohttp, and so does all that follows.
    """

    __slots__ = (
        "__weakref__",
        "_awaited",
        "_direct",
        "_head_awaited",
        "_head_count",
        "_head_seconds",
        "_lane",
        "_later",
        "_later_paused",
        "_later_size",
        "_needed",
        "_parts",
        "_refused_bytes",
        "_server",
        "_serving",
        "_size",
        "_taken",
        "_task",
        "_timer",
        "_watch",
        "call",
        "flow",
        "room",
    )

    def __init__(
        self, manager: "GatewayServer", lane: DirectLane, head_seconds: float, **kwargs: Any
    ) -> None:
        super().__init__(manager, **kwargs)
        self._server, self._lane, self._head_seconds = manager, lane, head_seconds
        self._timer = LazyTimer(self._loop, self._on_deadline)
        self._head_awaited, self._head_count = False, 0
        self._direct, self._serving = True, False
        self._refused_bytes: int | None = None  # of what follows a request that is no HTTP
        self._parts: list[bytes] = []  # of a request that is not here as a whole
        self._size = self._needed = self._taken = 0
        self.room = manager.room  # of bodies on their way
        self._awaited: RequestHead | None = None
        self._later: list[bytes] = []  # what a client sent before it had its answer
        self._later_size, self._later_paused = 0, False
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self.flow: Flow | None = None
        self.call: Call | None = None  # the request under way of a hot route

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what is buffered for a client that does not read."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)  # type: ignore[attr-defined]
        if self._keepalive_handle is not None:  # aiohttp's own would end requests of this lane
            self._keepalive_handle.cancel()
            self._keepalive_handle = None
        self._timer.set(monotonic() + self._head_seconds)

    def data_received(self, data: bytes) -> None:
        """Serve or gather a plain request, or let aiohttp parse."""
        if self._direct:
            self._take(data)
        else:
            self._parse(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of the source; the request under way is cancelled."""
        flow, self.flow = self.flow, None
        task, self._task = self._task, None  # refers to this connection, as its request does
        call, self.call = self.call, None
        self._timer.clear()
        self._keep([], 0, 0)
        if task is not None and not task.done():
            if call is not None and self._lane.goes_on(call, task):
                if flow is not None and self._paused:
                    flow.resume()
            else:
                task.cancel()
        super().connection_lost(exc)
        self._paused = False  # what goes on, at another target too, waits for nobody

    def close(self) -> None:
        """Take no more requests; one under way in the direct lane is left to `shutdown`."""
        if not self._serving:
            super().close()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """Cancel what is under way, which still answers, and close."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=timeout)
        await super().shutdown(timeout)

    def pause_writing(self) -> None:
        """Pause the source: the client is behind. One that has none is given its time to read."""
        super().pause_writing()
        if self.flow is not None:
            self.flow.pause()
        elif self.transport is not None:
            self._watch_delivery(self.transport, 0)

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        if self.flow is not None:
            self.flow.resume()
        elif self._direct and not self._serving:
            self._take_later()

    def serves(self, call: Call | None, task: "asyncio.Task[Any] | None") -> None:
        """Know the task under way in aiohttp's lane; one with a call may outlast its client."""
        self.call, self._task = call, task

    def answered(self, keep_alive: bool) -> None:
        """Know that an answer is written; in the direct lane the next request may come."""
        transport, self.flow = self.transport, None
        if transport is not None and (self._paused or not keep_alive):
            self._watch_delivery(transport, 0)
        if not self._serving:
            return
        self._serving, self.call = False, None
        if transport is None:
            return
        if not keep_alive:
            transport.close()
            return
        self._timer.set(monotonic() + KEEP_ALIVE_SECONDS)
        if self._later and not self._paused:
            self._take_later()

    def force_close(self) -> None:
        """Close; a client that does not take what is left is cut off."""
        transport = self.transport
        super().force_close()
        if transport is not None:
            self._watch_delivery(transport, 0)

    def _watch_delivery(self, transport: asyncio.Transport, before: int) -> None:
        """Cut a client off that has taken nothing since the last look: a close would wait for it.

        `before` is what was left to send then.
        """
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        left = transport.get_write_buffer_size()
        if left and left == before:
            transport.abort()
        elif left:
            self._watch = self._loop.call_later(
                STALLED_SECONDS, self._watch_delivery, transport, left
            )

    async def caught_up(self) -> None:
        """Wait until the client has read what it was sent. Raises ConnectionResetError."""
        if not self._paused:
            return
        try:
            async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                await self._drain_helper()
        except TimeoutError:
            self.force_close()
            raise ConnectionResetError("the client reads nothing") from None

    def _take_later(self) -> None:
        """Serve what came meanwhile: not before a client has read what it has been sent."""
        transport = self.transport
        if self._later and transport is not None:
            data = b"".join(self._later)
            self._later.clear()
            self._later_size = 0
            if self._later_paused:
                self._later_paused = False
                transport.resume_reading()
            self._take(data)

    @property
    def draining(self) -> bool:
        """Tell whether answers are to be their connections' last."""
        return self._server.draining

    @property
    def has_next(self) -> bool:
        """Tell whether the client has already sent another request."""
        return bool(self._messages)

    @property
    def in_request(self) -> bool:
        """Tell whether a request is being served."""
        return self._serving or self._needed > 0 or self._request_in_progress

    @property
    def has_unread(self) -> bool:
        """Tell whether the client has yet to take a part of what it was sent."""
        transport = self.transport
        return transport is not None and transport.get_write_buffer_size() > 0

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
        elif status == 417:
            error = ApiError("expectation_failed", "Only 100-continue can be expected here.")
        elif type(exc).__name__ == "LineTooLong" or "Too many headers" in str(message):
            error = ApiError("headers_too_large", "The request's head is too large.")
        else:
            error = ApiError("invalid_http", "The request is not valid HTTP/1.1.")
        if status == 400:
            self._refused_bytes = 0
        response = _LastWord(
            body=openai.error_body(error), status=error.status, content_type="application/json"
        )
        response.linger = self._linger
        response.headers["x-request-id"] = request_id()
        response.headers["Server"] = SERVER
        response.force_close()
        return response

    async def _linger(self) -> None:
        """Read on for a while, until the client is quiet."""
        until, before = monotonic() + LINGER_SECONDS, -1
        while self.transport is not None and monotonic() < until:
            seen = self._refused_bytes
            if seen is None or seen == before:
                return
            before = seen
            await asyncio.sleep(QUIET_SECONDS)

    # -- the direct lane ---------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        """Serve a whole request, keep a part of one, leave anything else to aiohttp."""
        if self._serving or self._paused or self._later:
            self._keep_for_later(data)
            return
        if self._parts:
            self._parts.append(data)
            self._keep(self._parts, self._size + len(data), self._needed)
            if self._size < self._needed and not self.room.is_full:
                return
            data = b"".join(self._parts)
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) + 4
        if end < 4:
            if len(data) < MAX_HEAD_BYTES and data.startswith(POST[: len(data)]):
                self._wait_for_more(data, 0)
            else:
                self._leave_lane(data)
            return
        head = request_head(data[:end]) if data.startswith(POST) else None
        if head is None:
            self._leave_lane(data)
            return
        needed = end + head.length
        if len(data) == needed and head.length <= self._lane.max_body_bytes:
            if self._parts:
                self._keep([], 0, 0)
            self._serving = True  # until then no deadline counts
            self._task = self._loop.create_task(self._lane.serve(self, head, data[end:]))
        elif (
            len(data) < needed
            and head.length <= self._lane.max_body_bytes
            and not self.room.is_full
            and self._lane.knows(head.secret)
        ):
            self._awaited = head
            self._wait_for_more(data, needed)
        else:  # a body there is no room for, from a stranger, or followed by another request
            self._leave_lane(data)

    def _wait_for_more(self, data: bytes, needed: int) -> None:
        if not self._parts or (needed and not self._needed):
            seconds = self._lane.body_seconds if needed else self._head_seconds
            self._timer.set(monotonic() + seconds)
        self._keep([data], len(data), needed)

    def _keep(self, parts: list[bytes], size: int, needed: int) -> None:
        """Keep these parts, and the room for them once it is known whose they are."""
        taken = size if needed else 0
        self.room.taken += taken - self._taken
        self._parts, self._size, self._needed, self._taken = parts, size, needed, taken

    def _keep_for_later(self, data: bytes) -> None:
        """Keep what comes early; read on while it is little, to notice a client that leaves."""
        assert self.transport is not None
        self._later.append(data)
        self._later_size += len(data)
        if self._later_size > MAX_LATER_BYTES and not self._later_paused:
            self._later_paused = True
            self.transport.pause_reading()

    def _leave_lane(self, data: bytes) -> None:
        self._keep([], 0, 0)
        self._direct, self._head_awaited = False, False
        self._timer.set(FOREVER)
        self._parse(data)

    def _on_deadline(self) -> None:
        if self._serving:
            return  # the deadline was that of waiting for it
        if not self._direct:
            self._check_head()
        elif self._needed:
            self._serving = True
            assert self._awaited is not None
            self._task = self._loop.create_task(self._lane.refuse_slow(self, self._awaited))
        else:
            self.force_close()  # idle for too long, or a head that drips (slow loris)

    # -- aiohttp's lane ----------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        """Parse; watch a head that came in part only.

        A part that came together with the request before it is bounded by the keep-alive time.
        """
        if self._refused_bytes is not None:
            self._refused_bytes += len(data)
            if self._refused_bytes > LINGER_BYTES:
                self.force_close()
            return
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            self._tell_reader()
        elif not self._request_in_progress:
            self._expect_head()

    def _tell_reader(self, again: bool = True) -> None:
        """Tell who reads a body that it is damaged: aiohttp takes that for the next request."""
        messages, request = self._messages, self._current_request
        if not messages or not isinstance(messages[-1][0], _ErrInfo):
            return
        if len(messages) > 1:
            payload = messages[-2][1]
        elif request is not None:
            payload = request.payload if isinstance(request, HotRequest) else request.content
        else:
            if again:  # one that is about to begin will have begun by then
                self._loop.call_soon(self._tell_reader, False)
            return
        if not payload.is_eof():
            messages.pop()
            payload.set_exception(RequestPayloadError("the body's framing is damaged"))
            self._refused_bytes, self._lingering_time = 0, 0.0  # there is no rest to wait for

    def _expect_head(self) -> None:
        if self._head_awaited and self._head_count == self._request_count:
            return  # the same head, still on its way
        self._head_awaited, self._head_count = True, self._request_count
        self._timer.set(monotonic() + self._head_seconds)

    def _check_head(self) -> None:
        """Close a connection that has sent no whole request head in its time (slow loris)."""
        self._head_awaited = False
        if self._request_count == self._head_count and not self._request_in_progress:
            self.force_close()
