"""The listener for TLS: a connection counts from when it is accepted, also amid its handshake."""

import asyncio
import logging
import socket
import ssl

from gateway.http.protocol import GatewayProtocol
from gateway.http.server import GatewayServer

HANDSHAKE_SECONDS = 10.0
MAX_ACCEPTED = 100  # in one turn of the loop
REST_SECONDS = 1.0  # where there are no descriptors, as asyncio's own servers have it

logger = logging.getLogger("sluice.http")


class TlsListener:
    """Accepts connections; `close` ends that, and leaves those that are there."""

    def __init__(self, server: GatewayServer, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._server, self._sock, self._context = server, sock, context
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._rest: asyncio.TimerHandle | None = None

    def start(self, backlog: int) -> None:
        """Listen."""
        self._sock.setblocking(False)
        self._sock.listen(backlog)
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def close(self) -> None:
        """Take no more connections. Idempotent."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        self._sock.close()

    def _accept(self) -> None:
        for _ in range(MAX_ACCEPTED):
            try:
                connection, peer = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                logger.warning("no connection can be accepted: %s", error)
                self._loop.remove_reader(self._sock.fileno())
                self._rest = self._loop.call_later(REST_SECONDS, self._accept_again)
                return
            self._admit(connection, str(peer[0]) if isinstance(peer, tuple) else "")

    def _accept_again(self) -> None:
        self._rest = None
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def _admit(self, connection: socket.socket, address: str) -> None:
        """Begin a handshake; one connection too many is closed at once."""
        connection.setblocking(False)
        protocol = self._server.claim(address)
        if protocol is None:
            connection.close()
            return
        task = self._loop.create_task(self._shake_hands(connection, protocol))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, connection: socket.socket, protocol: GatewayProtocol) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
            )
        except OSError:
            pass  # no TLS, none in time, or a client that has left
        finally:
            self._server.release(protocol)
