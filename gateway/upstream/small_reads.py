"""Hot path: reading a stream in small pieces, as long as nobody knows how it flows."""

import asyncio
from typing import Protocol

SMALL_BYTES = 16 * 1024
# Taken out before the next read of anybody, so one does for all connections.
_BUFFER = memoryview(bytearray(SMALL_BYTES))


class Reader(Protocol):
    """Whose data it is."""

    def data_received(self, data: bytes) -> None:
        """Take what was read."""
        ...

    def connection_lost(self, exc: Exception | None) -> None:
        """Know that no more will come."""
        ...


class SmallReads(asyncio.BufferedProtocol):
    """Stands in for a connection's protocol, which would be read for up to 256 KiB at once.

    A client that stalls costs what was read last. The price is a read that takes a third longer.
    """

    __slots__ = ("_reader",)

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read to."""
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """Pass on what was read."""
        self._reader.data_received(bytes(_BUFFER[:nbytes]))

    def eof_received(self) -> None:
        """End of the data: the transport closes and `connection_lost` follows."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on."""
        self._reader.connection_lost(exc)
