"""Connecting as a client: sockets to names whose addresses may not all answer, and TLS contexts."""

import os
import socket
import ssl
from asyncio import AbstractEventLoop
from functools import lru_cache
from typing import Any

import aiohappyeyeballs

HAPPY_EYEBALLS_SECONDS = 0.25  # RFC 8305 section 5
MAX_CONTEXTS = 256

AddressInfo = list[Any]  # what getaddrinfo returns


async def connect(loop: AbstractEventLoop, addresses: AddressInfo) -> socket.socket:
    """Return a connected socket of the address that answers first. Raises OSError."""
    sock = await aiohappyeyeballs.start_connection(
        addresses, happy_eyeballs_delay=HAPPY_EYEBALLS_SECONDS, interleave=1, loop=loop
    )
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def trusting(ca_file: str | None, *protocols: str) -> ssl.SSLContext:
    """Return the context that trusts a PEM bundle's authorities, the system's without one.

    `protocols` are offered by ALPN. All who ask share it: reading the system's authorities holds
    the event loop up for 20 to 50 ms. A bundle that has changed is read again. Raises OSError.
    """
    changed = 0 if ca_file is None else os.stat(ca_file).st_mtime_ns
    return _context(ca_file, changed, protocols)


@lru_cache(MAX_CONTEXTS)
def _context(ca_file: str | None, _changed: int, protocols: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context
