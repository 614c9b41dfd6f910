"""`/providers/NAME/...`: a provider's own API, with the gateway's credential. Streamed both ways.

Off the hot path: aiohttp's client carries it. What the gateway counts, `pipeline.passthrough` says.
"""

import asyncio
import contextlib
import logging
import re
import socket
import ssl
import struct
from collections.abc import Awaitable, Set
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from gateway.connecting import trusting
from gateway.core import record
from gateway.core.errors import STORE_AWAY, ApiError, Failure, StoreError, UpstreamError
from gateway.core.target import Target
from gateway.http.hot import DRAIN_SECONDS, MAX_DRAINING, secret_of
from gateway.http.mask import Mask
from gateway.http.protocol import SERVER, STALLED_SECONDS, GatewayProtocol
from gateway.http.request_head import MAX_TRACE_CHARS, printable
from gateway.http.upload import Upload
from gateway.pipeline.answer import common_headers, error_headers
from gateway.pipeline.call import Call
from gateway.pipeline.named_models import in_path
from gateway.pipeline.passthrough import Passage, begin, new_call, shutting_down
from gateway.pipeline.services import Services
from gateway.policy.retry import client_error
from gateway.upstream.dial import PROTOCOL
from gateway.upstream.exchange import MAX_BODY_BYTES

logger = logging.getLogger("sluice.http")

LEFT_SECONDS = 10.0  # for the end of a whole answer whose client has gone
CHUNK_BYTES = 64 * 1024
CAREFUL_BYTES = 16 * 1024
# Not TRACE: it shows what was sent, and with it the provider's key. aiohttp adds HEAD to GET.
METHODS = ("GET", "OPTIONS", "PUT", "PATCH", "DELETE", "POST")
# RFC 9110 section 7.6.1, and what is the gateway's own business on either side.
_HOP_BY_HOP = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te"),
        *("trailer", "transfer-encoding", "upgrade", "proxy-connection"),
    )
)
_NOT_SENT = _HOP_BY_HOP | {
    *("host", "authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie"),
    *("content-length", "accept-encoding", "expect", "forwarded", "x-real-ip"),
    # Some servers act on these instead of the request line, which is what was authorised.
    *("x-http-method-override", "x-http-method", "x-method-override"),
    *("x-original-url", "x-rewrite-url"),
    # A client's signature, where the gateway signs itself.
    *("x-amz-date", "x-amz-security-token", "x-amz-content-sha256"),
}
# The last two speak of the host that a client sees, which is ours.
_NOT_SHOWN = _HOP_BY_HOP | {
    *("set-cookie", "server", "date", "alt-svc", "strict-transport-security")
}
# Google's uploads and downloads stand before the version.
_VERSION = re.compile(r"v[0-9]\w*", re.ASCII)
_VERSIONED = re.compile(rf"(?:(?:up|down)load/)?{_VERSION.pattern}(?=[/?]|\Z)", re.ASCII)
_OURS = ("x-forwarded-", "x-sluice-")
# What a handler has of the request's id, and gives for the head of an error.
REQUEST_ID, OUR_HEADERS = "sluice.request_id", "sluice.headers"


class PassthroughRoutes:
    """The handler; `aclose` ends its connections."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._leaving = set[asyncio.Task[Any]]()  # read on without their clients

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the routes."""
        path = "/providers/{name}/{path:.*}"
        return [web.route(one, path, self.handle, expect_handler=_not_yet) for one in METHODS]

    async def aclose(self) -> None:
        """Close the connections, and end what is read on. Idempotent."""
        leaving = tuple(self._leaving)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Pass a request on, and the answer back."""
        protocol = request.protocol
        assert isinstance(protocol, GatewayProtocol)
        protocol.serves(None, asyncio.current_task())  # a stop ends it while it can still answer
        try:
            return await self._serve(request)
        finally:
            protocol.serves(None, None)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        name, path, headers = request.match_info["name"], _rest(request), request.headers
        upload = Upload(request, self._services.config.server)
        trace = printable(headers.get("traceparent", ""), MAX_TRACE_CHARS)
        call = new_call(request[REQUEST_ID], secret_of(headers), trace)

        def waits() -> bool:
            return request.transport is not None and not request.transport.is_closing()

        try:
            passage = await begin(
                self._services, call, name, path, upload.hold, request.method, waits
            )
        except ApiError as error:
            request[OUR_HEADERS] = _lines(error_headers(call, error))
            raise
        except StoreError:
            if call.principal is None:  # it is the one that keys are in
                raise
            told = ApiError("store_unavailable", STORE_AWAY, retry_after=1)
            request[OUR_HEADERS] = _lines(error_headers(call, told))
            raise told from None
        try:
            return await self._pass(request, passage, upload, path)
        except asyncio.CancelledError:
            if not waits():
                passage.end(0, record.DISCONNECTED, failure=record.CANCELLED)
            else:  # not the client left: the gateway's time to drain is over
                passage.end(503, record.ERROR, "overloaded", record.CANCELLED)
                if not call.reply_at:
                    raise shutting_down() from None
                if call.outcome != record.OK:  # it had not come to its end
                    _reset(request.transport)
            raise
        except (ApiError, UpstreamError, aiohttp.ClientError, OSError) as error:
            told = upload.refused or _told(name, error)
            failure = record.CANCELLED if upload.refused else self._failure(passage, error)
            passage.end(told.status, record.ERROR, told.code, failure)
            await passage.settled()
            raise told from None
        except Exception:
            passage.end(500, record.ERROR, "internal_error", record.CANCELLED)
            raise

    async def _pass(
        self, request: web.Request, passage: Passage, upload: Upload, path: str
    ) -> web.StreamResponse:
        target = passage.target
        origin, times = target.origin, target.deadlines
        async with self._session(target).request(
            request.method,
            _url(target, path),
            headers=await self._headers(request, passage, upload, path),
            data=upload.data,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(
                total=times.total, sock_connect=times.connect, sock_read=times.first_byte
            ),
            proxy=origin.proxy,
            ssl=True if origin.ca_file is None else trusting(origin.ca_file, PROTOCOL),
            trace_request_ctx=passage.call,
        ) as reply:
            if reply.status < 200:
                raise ApiError("upstream_failed", f"{target.provider}: an upgrade, unasked")
            passage.call.reply_at = self._services.loop.time()
            passage.answered(reply.status, _as_bytes(reply.headers))
            if reply.connection is not None and reply.connection.protocol is not None:
                reply.connection.protocol.read_timeout = None  # from here on it is `_relay`'s
                reply.connection.protocol.start_timeout()
            answer = _answer(reply, passage)
            try:
                await answer.prepare(request)
                await _relay(reply, answer, passage, times.idle)
            except ConnectionResetError:  # aiohttp's word for a client that is gone
                await self._read_on(reply, passage)
                passage.end(0, record.DISCONNECTED, failure=record.CANCELLED)
                _reset(request.transport)
            except asyncio.CancelledError:
                if request.transport is None or request.transport.is_closing():
                    await self._read_on(reply, passage)
                raise
            except (UpstreamError, aiohttp.ClientError, OSError) as error:
                # The head is out: only a connection that breaks off says that this is not all.
                failure = self._failure(passage, error)
                logger.warning("%s: an answer broke off: %s", target.provider, failure)
                passage.end(reply.status, record.ERROR, "stream_interrupted", failure)
                _reset(request.transport)
            return answer

    async def _read_on(self, reply: aiohttp.ClientResponse, passage: Passage) -> None:
        """Read what is left of an answer whose client has gone, where its end tells the figures.

        That it has gone is told more than once, and cancels whoever serves it each time.
        """
        if not passage.told_at_end or len(self._leaving) >= MAX_DRAINING:
            return
        seconds = DRAIN_SECONDS if passage.target.drains else LEFT_SECONDS
        reading = asyncio.create_task(_read_rest(reply, passage, seconds))
        self._leaving.add(reading)
        reading.add_done_callback(self._leaving.discard)
        while not reading.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(reading)

    def _failure(self, passage: Passage, error: Exception) -> str:
        """Return how an attempt has failed: a total may be its provider's own."""
        found = _failure(error)
        own = passage.target.deadlines.total < self._services.config.server.timeouts.total
        if found is Failure.TOTAL_TIMEOUT and own:
            found = Failure.ATTEMPT_TIMEOUT
        return found.value

    async def _headers(
        self, request: web.Request, passage: Passage, upload: Upload, path: str
    ) -> CIMultiDict[str]:
        target, signer = passage.target, passage.signer
        if signer is not None and signer.signs_body:
            await upload.gather()
        found = CIMultiDict(_end_to_end(request.headers, _NOT_SENT))
        operators = {name.lower() for name, _ in target.headers}
        for name, value in passage.authorization:
            if name not in found or name.lower() in operators:
                found[name] = value
        found["Accept-Encoding"] = "identity"
        if upload.unpacked:
            found.popall("Content-Encoding", None)
        if upload.length is not None:
            found["Content-Length"] = upload.length
        if signer is not None:
            full, body = _full_path(target, path), upload.held or b""
            lines = await signer.headers(request.method, target.origin.authority, full, body)
            found.update(_lines(lines))
        return found

    def _session(self, target: Target) -> aiohttp.ClientSession:
        """Return a provider's connections."""
        session = self._sessions.get(target.provider)
        if session is None:
            origin = target.origin
            connector: aiohttp.BaseConnector
            if origin.unix_path is None:
                connector = aiohttp.TCPConnector(limit=origin.max_connections)
            else:
                connector = aiohttp.UnixConnector(origin.unix_path, limit=origin.max_connections)
            session = self._sessions[target.provider] = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                read_bufsize=CHUNK_BYTES,
                cookie_jar=aiohttp.DummyCookieJar(),  # one client's are not another's
                skip_auto_headers=("Accept", "Content-Type", "User-Agent"),
                trace_configs=[_watching()],
            )
        return session


async def _relay(
    reply: aiohttp.ClientResponse, answer: web.StreamResponse, passage: Passage, idle: float
) -> None:
    """Pass an answer back, to its end. What it came to is settled before the client sees that."""
    left, mask, content = answer.content_length, Mask(passage.secrets), reply.content
    careful = passage.careful  # what one read brings is what can be overspent
    while True:
        little = careful or passage.framed
        if little:  # events are looked at one by one, and reading does not wait for what is here
            await asyncio.sleep(0)
        try:  # aiohttp's own timeout does not see a body that lost its framing
            async with asyncio.timeout(idle) as silence:
                part = await (content.read(CAREFUL_BYTES) if little else content.readany())
        except TimeoutError:
            if silence.expired():
                raise UpstreamError(Failure.IDLE_TIMEOUT, f"silent for {idle:g} s") from None
            raise
        shown = mask.feed(part) if part else mask.rest()
        passage.see(shown)
        refusal = await passage.pay_on()
        if refusal is not None:
            await _end_early(answer, passage, reply.status, shown, refusal)
            return
        if left is not None:
            left -= len(shown)
            if left == 0:
                await _finish(passage, reply.status)
        if shown:
            await _taken(answer.write(shown))
        if not part:
            break
    await _finish(passage, reply.status)
    await _taken(answer.write_eof())


async def _read_rest(reply: aiohttp.ClientResponse, passage: Passage, seconds: float) -> None:
    """Look at the rest of an answer that nobody is sent; as far as there is time."""
    left = MAX_BODY_BYTES
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(seconds):
            while left > 0 and (part := await reply.content.readany()):
                passage.see(part)
                left -= len(part)
                await asyncio.sleep(0)


async def _end_early(
    answer: web.StreamResponse, passage: Passage, status: int, shown: bytes, refusal: ApiError
) -> None:
    """End a stream that its budget does not cover any longer, in so many words if there is a way.

    Raises ConnectionResetError.
    """
    passage.end(status, record.ERROR, refusal.code, Failure.SPENT.value)
    await passage.settled()
    last = passage.cut_off(shown, refusal)
    if not last or answer.content_length is not None:
        raise ConnectionResetError(refusal.code)
    await _taken(answer.write(last))
    await _taken(answer.write_eof())


def _watching() -> aiohttp.TraceConfig:
    """Return what tells a request's call that it has left this process."""

    async def sent(
        session: aiohttp.ClientSession,
        context: SimpleNamespace,
        params: aiohttp.TraceRequestHeadersSentParams,
    ) -> None:
        call: Call = context.trace_request_ctx
        call.sent(asyncio.get_running_loop().time() - call.sent_at)

    found = aiohttp.TraceConfig()
    found.on_request_headers_sent.append(sent)
    return found


async def _taken(writing: Awaitable[None]) -> None:
    """Wait until a client takes what it is sent. Raises ConnectionResetError where it does not."""
    try:
        async with asyncio.timeout(STALLED_SECONDS):
            await writing
    except TimeoutError:
        raise ConnectionResetError("the client reads nothing") from None


async def _finish(passage: Passage, status: int) -> None:
    outcome = record.ERROR if status >= 500 else record.OK
    error, failure = (f"upstream_{status}", Failure.STATUS.value) if status >= 400 else ("", "")
    passage.end(status, outcome, error, failure)
    await passage.settled()


def _answer(reply: aiohttp.ClientResponse, passage: Passage) -> web.StreamResponse:
    """Return the answer's head."""
    answer = web.StreamResponse(status=reply.status)  # in HTTP's own words, not the provider's
    mask = Mask(passage.secrets)
    passed = _end_to_end(reply.headers, _NOT_SHOWN)
    answer.headers.extend([(name, mask.text(value)) for name, value in passed])
    answer.headers["Server"] = SERVER
    answer.headers["x-sluice-provider"] = passage.target.provider
    answer.headers.update(_lines(common_headers(passage.call)))
    return answer


def _end_to_end(headers: CIMultiDictProxy[str], left_out: Set[str]) -> list[tuple[str, str]]:
    """Return the fields that concern more than one connection (RFC 9110 section 7.6.1)."""
    listed = ",".join(headers.getall("Connection", ())).lower()
    hidden = left_out | {name.strip() for name in listed.split(",")}
    return [
        (name, value)
        for name, value in headers.items()
        if name.lower() not in hidden and not name.lower().startswith(_OURS)
    ]


def _as_bytes(headers: CIMultiDictProxy[str]) -> dict[bytes, bytes]:
    return {k.lower().encode(): v.encode(errors="surrogateescape") for k, v in headers.items()}


def _lines(block: bytes) -> dict[str, str]:
    """Read header lines of our own."""
    pairs = [line.partition(": ") for line in block.decode("latin-1").splitlines()]
    return {name: value for name, _, value in pairs}


def _told(name: str, error: Exception) -> ApiError:
    """Return what a client is told of an error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UpstreamError):
        return client_error(error, name)
    code = "deadline_exceeded" if isinstance(error, TimeoutError) else "upstream_failed"
    return ApiError(code, f"{name}: {type(error).__name__}")


def _failure(error: Exception) -> Failure:
    """Return how an attempt has failed, in the words of our own transport."""
    match error:
        case UpstreamError(failure=found):
            pass
        case ApiError():
            found = Failure.PROTOCOL
        case aiohttp.ConnectionTimeoutError():
            found = Failure.CONNECT_TIMEOUT
        case aiohttp.SocketTimeoutError():
            found = Failure.FIRST_BYTE_TIMEOUT
        case TimeoutError():
            found = Failure.TOTAL_TIMEOUT
        case aiohttp.ClientSSLError() | ssl.SSLError():
            found = Failure.TLS
        case aiohttp.ClientConnectorError():
            found = Failure.CONNECT
        case aiohttp.ClientResponseError():
            found = Failure.PROTOCOL
        case _:
            found = Failure.RESET
    return found


def _reset(transport: asyncio.Transport | None) -> None:
    """Break a connection off: a close alone would be the end of a body in HTTP/1.0."""
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def _not_yet(request: web.Request) -> None:
    """Let a client that waits to be asked for its body wait until it is known: see `hold`."""


def _rest(request: web.Request) -> str:
    """Return what stands behind the provider's name as the client wrote it, with its query."""
    target = request.raw_path.partition("#")[0]
    if not target.startswith("/"):  # the absolute form, RFC 9112 section 3.2.2
        target = "/" + target.partition("://")[2].partition("/")[2]
    return target.split("/", 3)[3]


def _full_path(target: Target, path: str) -> str:
    """Join the provider's base path and the rest, whose version stands for the base's own.

    What authorises reads the rest alone: no name of a model may come about where both meet.
    """
    base = target.base_path
    root, _, last = base.rpartition("/")
    if _VERSION.fullmatch(last) and _VERSIONED.match(path) and not in_path(base.split("/")[-2:]):
        return f"{root}/{path}"
    if last:  # what stands in both counts once
        path = path.removeprefix(f"{last}/")
    return f"{base}/{path}"


def _url(target: Target, path: str) -> URL:
    origin = target.origin
    text = f"{origin.scheme}://{origin.authority}{_full_path(target, path)}"
    return URL(text, encoded=True)  # as the client wrote it
