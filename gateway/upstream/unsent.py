"""Hot path: whether a request has left for its provider, which may answer before it has read it."""

import asyncio
import fcntl
import socket
import struct
import termios

# What is smaller fits into what the system sends from: it is gone once it is written.
SMALL_BYTES = 16 * 1024


def is_unsent(transport: asyncio.Transport, size: int) -> bool:
    """Tell whether some of the last request, which had so many bytes, is still to be sent.

    Behind TLS there is a second transport, which does not show what it holds: as long as it holds
    anything, so does the system.
    """
    if transport.get_write_buffer_size():
        return True
    return size > SMALL_BYTES and _queued(transport.get_extra_info("socket")) > 0


def _queued(sock: socket.socket | None) -> int:
    """Return how many bytes a socket holds that the other side has not taken; 0 if unknown."""
    if sock is None:
        return 0
    try:
        count: int
        (count,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    except OSError:  # this system does not say
        return 0
    return count
