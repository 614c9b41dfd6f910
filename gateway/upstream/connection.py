"""Hot path: one keep-alive HTTP/1.1 connection to a provider, one exchange at a time.

A streamed body goes chunk by chunk to a sink, from the very call that read it off the socket; any
other body is gathered up to a cap.
"""

import asyncio
from collections.abc import Callable
from time import monotonic  # the clock of every event loop, without a call into it

import httptools

from gateway.core.errors import Failure, UpstreamError
from gateway.core.target import Deadlines
from gateway.timer import LazyTimer
from gateway.upstream.exchange import MAX_BODY_BYTES, Reply, Sink, Stale
from gateway.upstream.small_reads import SMALL_BYTES, SmallReads
from gateway.upstream.unsent import is_unsent

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200
MAX_PIECES = 256
MAX_INFORMATIONAL = 16
IDLE_SECONDS = 30.0  # below the 60 s at which common load balancers drop an idle connection
LINE_FEED = 10
TAIL_SECONDS = 1.0  # for the end of a message whose content is complete


class Connection(asyncio.Protocol):
    """The protocol of one connection; `on_idle` and `on_lost` tell the pool."""

    __slots__ = (
        "_between",
        "_body",
        "_body_size",
        "_chunked_or_sized",
        "_deadlines",
        "_ended",
        "_failure",
        "_first_byte_at",
        "_future",
        "_gathered",
        "_head_bytes",
        "_headers",
        "_headers_done",
        "_heard_at",
        "_held",
        "_informational",
        "_kept",
        "_loop",
        "_on_idle",
        "_on_lost",
        "_parser",
        "_paused",
        "_phase",
        "_request_bytes",
        "_sink",
        "_slow",
        "_small_reads",
        "_started_at",
        "_status",
        "_streaming",
        "_surplus",
        "_tail",
        "_timer",
        "_transport",
        "_until",
        "_wary",
        "exchanges",
        "stale",
    )

    _headers: dict[bytes, bytes]
    _headers_done: bool
    _slow: bool
    _held: bool
    _between: bool
    _streaming: bool
    _chunked_or_sized: bool
    _tail: bool
    _ended: bool
    _kept: bool
    _surplus: bool
    _body: list[bytes]
    _gathered: bytes | bytearray  # of a body in many pieces, each of which takes memory
    _body_size: int
    _head_bytes: int
    _heard_at: float
    _status: int
    _informational: int
    _first_byte_at: float
    _failure: UpstreamError | None
    _deadlines: Deadlines
    _until: float
    _started_at: float
    _request_bytes: int

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_idle: "Callable[[Connection], None]",
        on_lost: "Callable[[Connection], None]",
    ) -> None:
        self._loop, self._on_idle, self._on_lost = loop, on_idle, on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._future: asyncio.Future[Reply] | None = None
        self._sink: Sink | None = None
        self._timer = LazyTimer(loop, self._on_deadline)
        self._phase = Failure.FIRST_BYTE_TIMEOUT
        self._paused = self._wary = False
        self.stale = False  # its last exchange ended so, and may be sent again in its place
        self._small_reads = SmallReads(self)
        self.exchanges = 0
        self._reset()

    # -- one exchange ------------------------------------------------------------------------

    def exchange(
        self, data: bytes, sink: Sink | None, deadlines: Deadlines, until: float
    ) -> asyncio.Future[Reply]:
        """Send a whole request; the future gives its reply, or raises UpstreamError or Stale."""
        assert self._future is None
        assert self._transport is not None
        self._reset()
        self.exchanges += 1
        self._future = self._loop.create_future()
        self._sink, self._deadlines, self._until = sink, deadlines, until
        self._request_bytes = len(data)
        self._started_at = monotonic()
        self._phase = Failure.FIRST_BYTE_TIMEOUT
        self._timer.set(min(self._started_at + deadlines.first_byte, until))
        if self._wary is (sink is None):
            self._be_wary(sink is not None)
        self._transport.write(data)
        return self._future

    @property
    def usable(self) -> bool:
        """Tell whether a request can be sent now."""
        transport = self._transport
        return (
            transport is not None
            and not transport.is_closing()
            and self._future is None
            and not self._tail
            and not self._paused
        )

    def abandon(self, exchange: asyncio.Future[Reply]) -> None:
        """Close at once if the exchange is still under way.

        A reply may have come between the cancellation and now: then the connection is free, or
        serves another request already, and stays.
        """
        if self._future is exchange:
            self._future = None
            self._close()

    def abort(self) -> None:
        """Close at once; a waiting exchange is abandoned."""
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.cancel()
        self._close()

    def pause(self) -> None:
        """Stop reading: whoever takes the body cannot keep up. Only `until` counts meanwhile."""
        if self._future is not None:  # else this body is complete, and the connection another's
            self._slow = True
            self._stop_reading()

    def resume(self) -> None:
        """Read again, unless the stream is held."""
        self._slow = False
        self._read_again()

    def hold(self) -> None:
        """Stop reading until it is decided whether the stream may go on."""
        if self._future is not None:
            self._held = True
            self._stop_reading()

    def release(self) -> None:
        """Read again, unless whoever takes the body cannot keep up."""
        self._held = False
        self._read_again()

    def fail(self, error: UpstreamError) -> None:
        """End the exchange under way with an error."""
        self._fail(error)

    # -- the socket's events -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's are not subclasses

    def data_received(self, data: bytes) -> None:
        """Parse; the callbacks below do the rest."""
        if len(data) >= SMALL_BYTES:
            self._let_others_on()
        if self._between and self._sink is not None:
            try:
                taken = self._sink.feed_frame(data)
            except UpstreamError as error:
                self._fail(error)
                return
            if taken:
                self._heard_at = monotonic()  # the parser stays where it was, between two chunks
                if self._wary and not self._sink.careful:
                    self._be_wary(False)  # it comes chunk by chunk
                return
        if self._future is None and not self._tail:
            self._close()  # a reply nobody asked for: the connection is out of step
            return
        if self._first_byte_at == 0.0:
            self._first_byte_at = monotonic()
        self._head_bytes += len(data)
        broken = None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            broken = UpstreamError(Failure.PROTOCOL, f"not HTTP/1.1: {error}")
        if self._body and self._streaming:
            self._feed_sink()  # what came before the break, too
        if broken is not None and self._failure is None:
            self._failure = broken
        if self._between and data[-1] != LINE_FEED:
            self._between = False  # a part of the next chunk's size has been parsed
        if self._ended:
            self._give_back()
        elif self._failure is not None:
            self._fail(self._failure)
        elif self._head_bytes > MAX_HEAD_BYTES:
            what = "trailers are" if self._headers_done else "head is"
            self._fail(UpstreamError(Failure.PROTOCOL, f"the reply's {what} too large"))
        elif self._heard_at and self._phase is Failure.FIRST_BYTE_TIMEOUT and not self._tail:
            self._watch_idle()  # the body has begun, and is not here as a whole

    def eof_received(self) -> None:
        """End of the upstream's data: the transport closes and `connection_lost` follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Decide what the end means for the exchange under way."""
        self._transport = None
        self._timer.clear()
        future = self._future
        if future is not None:
            if self._headers_done and not self._chunked_or_sized and exc is None:
                self.on_message_complete()  # framed by the close (RFC 9112 section 6.3)
                if self._failure is not None:
                    self._fail(self._failure)
            elif self._first_byte_at == 0.0 and self.exchanges > 1:
                self._future = None
                if not future.done():
                    self.stale = True
                    future.set_exception(Stale())
            else:
                self._fail(UpstreamError(Failure.RESET, "the connection ended before the reply"))
        self._on_lost(self)

    # -- httptools' callbacks ----------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Notice a message behind the end of the reply: nobody asked for it."""
        self._surplus = self._ended

    def on_header(self, name: bytes, value: bytes) -> None:
        """Gather the head."""
        headers = self._headers
        if self._headers_done:
            return  # a trailer
        if len(headers) >= MAX_HEADERS:
            self._failure = UpstreamError(Failure.PROTOCOL, "the reply has too many headers")
            return
        headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Decide where the body goes."""
        self._status = status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._informational += 1
            if status == 101 or self._informational > MAX_INFORMATIONAL:
                self._failure = UpstreamError(Failure.PROTOCOL, f"unexpected status {status}")
            return
        headers = self._headers
        self._headers_done = True
        self._chunked_or_sized = (
            b"content-length" in headers
            or b"chunked" in headers.get(b"transfer-encoding", b"").lower()
            or status in (204, 304)
        )
        if self._sink is not None and self._failure is None:
            try:
                self._streaming = self._sink.begin(status, headers, self)
            except UpstreamError as error:
                self._failure = error

    def on_body(self, data: bytes) -> None:
        """Pass a piece on, or keep it."""
        self._head_bytes = 0  # from here on: what comes that is no content
        if self._failure is not None or self._tail or self._future is None:
            return
        if self._streaming:
            self._body.append(data)
            return
        self._body_size += len(data)
        if self._body_size > MAX_BODY_BYTES:
            self._failure = UpstreamError(Failure.PROTOCOL, "the reply's body is too large")
            return
        self._body.append(data)
        if len(self._body) > MAX_PIECES:
            if not self._gathered:
                self._gathered = bytearray()
            self._gathered += b"".join(self._body)
            self._body.clear()
        self._heard_at = monotonic()

    def on_chunk_header(self) -> None:
        """Be inside a chunk."""
        self._between = False

    def on_chunk_complete(self) -> None:
        """Be between two chunks."""
        self._between = self._streaming

    def on_message_complete(self) -> None:
        """Give the reply to whoever waits, and the connection back to the pool."""
        if self._body and self._streaming:
            self._feed_sink()
        if self._failure is not None:
            return
        if not self._headers_done:  # a 1xx: the real reply follows
            self._headers = {}
            return
        if self._tail:
            self._tail = False
        elif self._future is None:
            return
        else:
            self._answer()
        self._ended, self._kept = True, self._parser.should_keep_alive()

    def _let_others_on(self) -> None:
        """Read no more in this turn of the loop: it would go on for up to 32 reads.

        Of a stream that comes as fast as this, less is read at once from here on.
        """
        if self._transport is not None:
            if self._sink is not None and not self._wary:
                self._be_wary(True)
            self._transport.pause_reading()
            self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        if self._transport is not None and not self._paused:
            self._transport.resume_reading()

    def _stop_reading(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
            self._be_wary(True)
            self._phase = Failure.STALLED
            self._timer.set(self._until)

    def _be_wary(self, wary: bool) -> None:
        """Read in small pieces, or as much as there is."""
        self._wary = wary
        if self._transport is not None:
            self._transport.set_protocol(self._small_reads if wary else self)

    def _read_again(self) -> None:
        ready = not (self._slow or self._held)
        if self._paused and ready and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
            self._watch_idle()

    # -- inside ------------------------------------------------------------------------------

    def _reset(self) -> None:
        self._headers = {}
        self._headers_done = self._streaming = self._chunked_or_sized = self._tail = False
        self._ended = self._surplus = self._kept = self._between = False
        self._body = []
        self._gathered = b""
        self._body_size = self._head_bytes = self._status = self._informational = 0
        self._slow = self._held = False
        self._first_byte_at = self._heard_at = 0.0
        self._failure = None

    def _give_back(self) -> None:
        """Let the pool have the connection, if it is in step and both sides keep it open."""
        self._ended = False
        if (
            self._transport is not None
            and self._chunked_or_sized
            and not self._surplus
            and self._failure is None
            and self._kept
            and not self._paused
            and not is_unsent(self._transport, self._request_bytes)
        ):
            self._timer.set(monotonic() + IDLE_SECONDS)
            self._on_idle(self)
        else:
            self._close()

    def _feed_sink(self) -> None:
        """Pass on what one read brought, however many chunks it was: one write, not one each."""
        body = self._body
        data = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        if self._sink is None or self._failure is not None:
            return
        try:
            ended = self._sink.feed(data)
        except UpstreamError as error:
            self._failure = error
            return
        self._heard_at = monotonic()
        if ended:
            self._finish_early()

    def _answer(self) -> None:
        future, self._future = self._future, None
        assert future is not None
        if not future.done():
            body = b"" if self._streaming else b"".join(self._body)
            if self._gathered:
                body, self._gathered = bytes(self._gathered + body), b""
            reply = Reply(self._status, self._headers, body, self._streaming, self._first_byte_at)
            future.set_result(reply)
        self._body = []
        self._sink = None

    def _finish_early(self) -> None:
        """Answer now; the message's own end, due at once, only decides about reuse."""
        self._answer()
        self._tail = True
        self._timer.set(monotonic() + TAIL_SECONDS)

    def _watch_idle(self) -> None:
        """From now on the deadline follows the last byte of the body, `_heard_at`."""
        self._phase = Failure.IDLE_TIMEOUT
        self._heard_at = monotonic()
        self._timer.set(min(self._heard_at + self._deadlines.idle, self._until))

    def _on_deadline(self) -> None:
        if self._future is None:
            self._close()  # idle for too long
            return
        if self._phase is Failure.IDLE_TIMEOUT:
            # No timer is set for each piece of a body; here is where its arrival counts.
            deadline = min(self._heard_at + self._deadlines.idle, self._until)
            if monotonic() < deadline:
                self._timer.set(deadline)
                return
        self._fail(self._timed_out())

    def _timed_out(self) -> UpstreamError:
        if self._phase is Failure.STALLED:
            return UpstreamError(self._phase, "the stream was not taken in time")
        if monotonic() >= self._until:
            return UpstreamError(Failure.TOTAL_TIMEOUT, "the request's total deadline passed")
        if self._phase is Failure.FIRST_BYTE_TIMEOUT:
            seconds = self._deadlines.first_byte
            return UpstreamError(self._phase, f"no first byte within {seconds:g} s")
        return UpstreamError(self._phase, f"silent for {self._deadlines.idle:g} s")

    def _fail(self, error: UpstreamError) -> None:
        future, self._future = self._future, None
        self._failure = None  # it is of whoever waits: its traceback will hold the request
        if future is not None and not future.done():
            future.set_exception(error)
        self._close()

    def _close(self) -> None:
        self._sink = None
        self._timer.clear()
        if self._transport is not None:
            self._transport.abort()
