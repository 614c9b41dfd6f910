"""Opening a connection to an origin: names, happy eyeballs, a proxy's tunnel, verified TLS."""

import asyncio
import base64
import socket
import ssl
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

from gateway.connecting import AddressInfo, connect, trusting
from gateway.core.errors import Failure, UpstreamError
from gateway.core.target import Origin
from gateway.upstream.connection import Connection

NAMES_SECONDS = 30.0
NAME_SERVER_SECONDS = 1.0  # how long it is waited for, and left alone, where addresses are known
MAX_PROXY_HEAD_BYTES = 16 * 1024
PROTOCOL = "http/1.1"  # as ALPN names it


class Dialer:
    """Opens connections to one origin; remembers its addresses and its TLS context."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._loop = asyncio.get_running_loop()
        self._names: tuple[float, AddressInfo] = (0.0, [])
        self._tls = trusting(origin.ca_file, PROTOCOL) if origin.scheme == "https" else None

    async def dial(self, make: Callable[[], Connection], seconds: float) -> Connection:
        """Return a connected protocol. Raises UpstreamError saying how it failed."""
        try:
            async with asyncio.timeout(seconds):
                return await self._dial(make)
        except TimeoutError:
            raise UpstreamError(
                Failure.CONNECT_TIMEOUT, f"no connection within {seconds:g} s"
            ) from None
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or error.reason or error
            raise UpstreamError(Failure.TLS, f"TLS failed: {reason}") from None
        except (OSError, UnicodeError) as error:
            raise UpstreamError(Failure.CONNECT, f"cannot connect: {_reason(error)}") from None

    async def _dial(self, make: Callable[[], Connection]) -> Connection:
        origin, loop = self._origin, self._loop
        if origin.unix_path is not None:
            _, connection = await loop.create_unix_connection(make, origin.unix_path)
            return connection
        sock = await self._socket()
        try:
            if origin.proxy is not None and self._tls is not None:
                await _tunnel(loop, sock, origin)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            name = origin.host if self._tls is not None else None
            _, connection = await loop.create_connection(
                make, sock=sock, ssl=self._tls, server_hostname=name
            )
        except BaseException:
            sock.close()
            raise
        return connection

    async def _socket(self) -> socket.socket:
        host, port = self._origin.host, self._origin.port
        if self._origin.proxy is not None:
            proxy = urlsplit(self._origin.proxy)
            host, port = proxy.hostname or "", proxy.port or 3128
        addresses = await self._addresses(host, port)
        try:
            return await connect(self._loop, addresses)
        except OSError:
            self._names = (0.0, addresses)  # the name may point elsewhere by now
            raise

    async def _addresses(self, host: str, port: int) -> AddressInfo:
        """Return the addresses of a name; what was found last where no name server says."""
        loop = self._loop
        fresh_until, known = self._names
        if loop.time() < fresh_until:
            return known
        try:
            async with asyncio.timeout(NAME_SERVER_SECONDS if known else None):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            self._names = (loop.time() + NAMES_SECONDS, found)
        except (socket.gaierror, TimeoutError):
            if not known:
                raise
            self._names = (loop.time() + NAME_SERVER_SECONDS, known)
            return known
        return found


def proxy_headers(url: str) -> tuple[tuple[str, str], ...]:
    """Return the header that presents a proxy URL's credentials, where it has any."""
    proxy = urlsplit(url)
    if not proxy.username:
        return ()
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return (("Proxy-Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}"),)


async def _tunnel(loop: asyncio.AbstractEventLoop, sock: socket.socket, origin: Origin) -> None:
    """Ask a forward proxy for a tunnel (RFC 9110 section 9.3.6)."""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    place = f"{host}:{origin.port}"
    head = f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in proxy_headers(origin.proxy or ""))
    await loop.sock_sendall(sock, f"{head}\r\n".encode())
    answer = b""
    # Byte by byte at the end: what follows the head belongs to TLS.
    while not answer.endswith(b"\r\n\r\n"):
        piece = await loop.sock_recv(sock, 1)
        if not piece or len(answer) > MAX_PROXY_HEAD_BYTES:
            raise OSError("the proxy closed the connection")
        answer += piece
    status = answer.split(b" ", 2)[1:2]
    if status != [b"200"]:
        shown = answer.split(b"\r\n", 1)[0].decode(errors="replace")
        raise OSError(f"the proxy answered {shown}")


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "the name does not resolve"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
