"""`/providers/NAME/...`: a provider's own API, with the gateway's credential. Streamed both ways.

Off the hot path: aiohttp's client carries it. What the gateway counts, `pipeline.passthrough` says.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from functools import cache
from urllib.parse import unquote

import aiohttp
from aiohttp import web
from yarl import URL

from gateway.config.schema import Config
from gateway.core import record
from gateway.core.errors import ApiError
from gateway.core.target import Target
from gateway.http.hot import secret_of
from gateway.http.request_head import MAX_TRACE_CHARS
from gateway.pipeline.answer import common_headers
from gateway.pipeline.passthrough import Passage, begin
from gateway.pipeline.services import Services

logger = logging.getLogger("sluice.http")

CHUNK_BYTES = 64 * 1024
MAX_CONNECTIONS = 1000
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
}
_NOT_SHOWN = _HOP_BY_HOP | {"set-cookie", "content-encoding", "content-length", "server", "date"}


class PassthroughRoutes:
    """The handler; `aclose` ends its connections."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._config: Config = services.config
        self._sessions: dict[str | None, aiohttp.ClientSession] = {}

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the routes."""
        return [web.route("*", "/providers/{name}/{path:.*}", self.handle)]

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Pass a request on, and the answer back."""
        name, path = request.match_info["name"], _rest(request)
        body = await self._json(request)
        trace = request.headers.get("traceparent", "")[:MAX_TRACE_CHARS]
        secret = secret_of(request.headers)
        passage = await begin(self._services, secret, name, path, body, trace, request.method)
        answered = web.StreamResponse()
        try:
            answered = await self._pass(request, passage, name, path, body)
        except asyncio.CancelledError:
            passage.end(answered.status, record.DISCONNECTED)
            raise
        except ApiError as error:
            passage.end(error.status, record.ERROR, error.code)
            raise
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            told = _told(name, error)
            passage.end(told.status, record.ERROR, told.code)
            raise told from None
        except Exception:
            passage.end(500, record.ERROR, "internal_error")
            raise
        passage.end(
            answered.status,
            record.ERROR if answered.status >= 500 else record.OK,
            f"upstream_{answered.status}" if answered.status >= 400 else "",
        )
        return answered

    async def _json(self, request: web.Request) -> bytes | None:
        """Return a JSON body, to read the model's name from; others are not held."""
        if request.content_type != "application/json" or not request.can_read_body:
            return None
        most = self._config.server.max_request_size
        if (request.content_length or 0) > most:
            raise ApiError("request_too_large", f"A JSON body is larger than {most} bytes.")
        data = bytearray()
        async with asyncio.timeout(self._config.server.request_timeout):
            async for part in request.content.iter_chunked(CHUNK_BYTES):
                data += part
                if len(data) > most:
                    raise ApiError("request_too_large", f"A JSON body is larger than {most} bytes.")
        return bytes(data)

    async def _pass(
        self, request: web.Request, passage: Passage, name: str, path: str, body: bytes | None
    ) -> web.StreamResponse:
        target = passage.target
        headers = await self._headers(request, passage, name, path, body)
        data: bytes | AsyncIterator[bytes] | None = body
        if body is None and request.can_read_body:
            data = self._upload(request)
        async with self._client(target.origin.unix_path).request(
            request.method,
            _url(target, path),
            headers=headers,
            data=data,
            allow_redirects=False,
            timeout=_timeout(target),
            proxy=target.origin.proxy,
            ssl=True if target.origin.ca_file is None else _trusting(target.origin.ca_file),
        ) as reply:
            answer = web.StreamResponse(status=reply.status, reason=reply.reason)
            for header, value in reply.headers.items():
                if header.lower() not in _NOT_SHOWN:
                    answer.headers.add(header, value)
            answer.headers["x-sluice-provider"] = name
            for line in common_headers(passage.call).decode().splitlines():
                header, _, value = line.partition(": ")
                answer.headers[header] = value
            await answer.prepare(request)
            try:
                async for part in reply.content.iter_any():
                    passage.see(part)
                    await answer.write(part)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                # The head is out: only a connection that breaks off says that this is not all.
                logger.warning("%s: an answer broke off: %s", name, type(error).__name__)
                passage.break_off()
                if request.transport is not None:
                    request.transport.abort()
                return answer
            await answer.write_eof()
            return answer

    async def _headers(
        self, request: web.Request, passage: Passage, name: str, path: str, body: bytes | None
    ) -> dict[str, str]:
        named = {name.strip().lower() for name in request.headers.get("connection", "").split(",")}
        found = {
            header: value
            for header, value in request.headers.items()
            if header.lower() not in _NOT_SENT | named
            and not header.lower().startswith("x-forwarded-")
        }
        given = {header.lower() for header in found}
        found |= {
            header: value
            for header, value in self._services.catalogue.authorization(name)
            if header.lower() not in given
        }
        found["Accept-Encoding"] = "identity"
        if body is None and request.content_length is not None and request.can_read_body:
            found["Content-Length"] = str(request.content_length)  # not all take chunks
        route = passage.call.route
        if route is not None and route.signer is not None:
            full = _full_path(route.target, path)
            lines = await route.signer.headers(route.target.origin.authority, full, body or b"")
            for line in lines.decode("latin-1").splitlines():
                header, _, value = line.partition(": ")
                found[header] = value
        return found

    async def _upload(self, request: web.Request) -> AsyncIterator[bytes]:
        """Pass a body on as it comes."""
        size, most = 0, self._config.server.max_upload_size
        idle = self._config.server.request_timeout
        while True:
            try:
                async with asyncio.timeout(idle):
                    part = await request.content.readany()
            except TimeoutError:
                raise ApiError("request_timeout", "The body did not arrive in time.") from None
            if not part:
                return
            size += len(part)
            if size > most:
                raise ApiError("request_too_large", f"The body is larger than {most} bytes.")
            yield part

    def _client(self, socket: str | None) -> aiohttp.ClientSession:
        """Return the session for a Unix socket, or for everywhere else."""
        session = self._sessions.get(socket)
        if session is None:
            connector: aiohttp.BaseConnector
            if socket is None:
                connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS)
            else:
                connector = aiohttp.UnixConnector(socket, limit=MAX_CONNECTIONS)
            session = self._sessions[socket] = aiohttp.ClientSession(
                connector=connector, auto_decompress=False, read_bufsize=CHUNK_BYTES
            )
        return session


def _told(name: str, error: Exception) -> ApiError:
    """Return what the client is told; aiohttp wraps what went wrong with the body being sent."""
    if isinstance(error.__cause__, ApiError):
        return error.__cause__
    code = "deadline_exceeded" if isinstance(error, TimeoutError) else "upstream_failed"
    return ApiError(code, f"{name}: {type(error).__name__}")


def _rest(request: web.Request) -> str:
    """Return the path behind the provider's name as the client wrote it, with its query."""
    raw = request.raw_path.partition("#")[0]
    path = raw[raw.index("/providers/") + len("/providers/") :].partition("/")[2]
    plain = unquote(path.partition("?")[0]).replace("\\", "/")
    if any(part in ("..", ".") for part in plain.split("/")):
        raise ApiError("not_found", "A path does not go upwards.")
    return path


def _full_path(target: Target, path: str) -> str:
    """Join the provider's base path and the rest; a version that stands in both counts once."""
    base = target.base_path
    version = base.rpartition("/")[2]
    if version and path.startswith(f"{version}/"):
        path = path.removeprefix(f"{version}/")
    return f"{base}/{path}"


def _url(target: Target, path: str) -> URL:
    origin = target.origin
    text = f"{origin.scheme}://{origin.authority}{_full_path(target, path)}"
    return URL(text, encoded=True)  # as the client wrote it


def _timeout(target: Target) -> aiohttp.ClientTimeout:
    times = target.deadlines
    return aiohttp.ClientTimeout(
        total=times.total, sock_connect=times.connect, sock_read=max(times.first_byte, times.idle)
    )


@cache
def _trusting(ca_file: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)
