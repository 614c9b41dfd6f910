"""The listening sockets: one a worker slot, all on one port, held open by the supervisor.

The kernel spreads connections over those that listen (SO_REUSEPORT), which a worker lets its own do
once it is ready; one that dies leaves its socket and the connections queued on it to its successor.
"""

import socket
import sys

from gateway.config.address import parse_address
from gateway.core.errors import ConfigError

BACKLOG = 2048
# macOS accepts SO_REUSEPORT but gives every connection to one socket: there all workers share it.
BALANCES = hasattr(socket, "SO_REUSEPORT") and sys.platform != "darwin"


class Listeners:
    """The sockets of one address. `beside`: those that it is to replace."""

    def __init__(self, address: str, beside: "Listeners | None" = None) -> None:
        self.address = address
        self._host, self._port = parse_address(address)
        self.sockets: list[socket.socket] = []
        self._port_is_ours = beside is not None and beside.port == self._port

    @property
    def port(self) -> int:
        """Return the port, the real one as soon as there is a socket."""
        return self._port

    @property
    def url_host(self) -> str:
        """Return host and real port, as they stand in a URL."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._port}"

    def grow(self, slots: int) -> None:
        """Have at least one socket a slot, which need not listen yet. Raises ConfigError."""
        wanted = slots if BALANCES else 1
        while len(self.sockets) < wanted:
            sock = self._bind(first=not self.sockets)
            self._port = sock.getsockname()[1]  # port 0: all share the one the first was given
            self.sockets.append(sock)

    def listen(self) -> None:
        """Let connections wait for the first workers. Raises ConfigError."""
        for sock in self.sockets:
            try:
                sock.listen(BACKLOG)
            except OSError as error:
                raise self._failed(error) from None

    def of_slot(self, slot: int, slots: int, of: int | None = None) -> list[socket.socket]:
        """Return the sockets a slot serves: every one of the first `of` belongs to some slot."""
        if not BALANCES:
            return self.sockets[:1]
        return self.sockets[:of][slot::slots]

    def cut(self, count: int) -> None:
        """Close all but the first ones, as nobody would serve the rest."""
        for sock in self.sockets[count:]:
            sock.close()
        del self.sockets[count:]

    def close(self) -> None:
        """Close all. Idempotent."""
        self.cut(0)

    def _bind(self, first: bool) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # too many of them
            raise self._failed(error) from None
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if first and self._port and BALANCES and not self._port_is_ours:
                self._refuse_shared_port(family)
            if BALANCES:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(self._host != "::"))
            sock.bind((self._host, self._port))
            sock.setblocking(False)
        except (OSError, UnicodeError) as error:  # a name that none can be: no IDNA
            sock.close()
            raise self._failed(error) from None
        return sock

    def _refuse_shared_port(self, family: int) -> None:
        """Bind once without SO_REUSEPORT: two gateways must not share a port by accident."""
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((self._host, self._port))

    def _failed(self, error: OSError | UnicodeError) -> ConfigError:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        return ConfigError(f"cannot listen on {self.address}: {reason}", field="server.address")
