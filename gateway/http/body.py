"""Hot path: reads a request's body within a size and a time.

A packed body is unpacked as it is read, and not before: who sends it is known by then.
"""

import asyncio
import zlib

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestPayloadError

from gateway.core.errors import ApiError

MAX_LENGTH_DIGITS = 18  # int() takes offence at thousands
MALFORMED = (RequestPayloadError, HttpProcessingError, zlib.error)
# Of what is packed and of what it becomes: each takes less than a millisecond.
PIECE_BYTES = 64 * 1024
MAX_MEMBERS = 1024  # of one body; a usual one has one
# Keys and limits are asked when a body is here, so they do not bound those that are on their way.
LEAST_ROOM_BYTES, LEAST_BODIES = 256 * 1024 * 1024, 4
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


class Room:
    """What a worker holds of all bodies that are not here as a whole, and may hold; in bytes."""

    __slots__ = ("most", "taken")

    def __init__(self, max_body_bytes: int) -> None:
        self.most = max(LEAST_ROOM_BYTES, LEAST_BODIES * max_body_bytes)
        self.taken = 0

    @property
    def is_full(self) -> bool:
        """Tell whether no more is to be taken in."""
        return self.taken >= self.most


class Body:
    """A body that is read in parts, each as it was before it was packed."""

    def __init__(self, message: RawRequestMessage, payload: StreamReader) -> None:
        self._coding, self._payload = message.compression, payload
        self._packed = b""
        self._machine: zlib._Decompress | None = None
        self._members = 0

    async def read(self) -> bytes:
        """Return the next part, empty at the end. Raises one of MALFORMED."""
        if self._coding is None:
            return await self._payload.readany()
        while True:
            machine = self._machine
            if not self._packed and not (machine is not None and machine.unconsumed_tail):
                self._packed = await self._payload.readany()
                if not self._packed:
                    return self._rest()
            part = self._unpack()
            await asyncio.sleep(0)  # others have their turn
            if part:
                return part

    def _unpack(self) -> bytes:
        """Return what some of the packed bytes become."""
        machine = self._machine
        if machine is None or machine.eof:
            machine = self._machine = self._begin()
        data = machine.unconsumed_tail
        if not data:
            data, self._packed = self._packed[:PIECE_BYTES], self._packed[PIECE_BYTES:]
        part = machine.decompress(data, PIECE_BYTES)
        self._packed = machine.unused_data + self._packed
        return part

    def _begin(self) -> "zlib._Decompress":
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise zlib.error("too many members")
        if self._coding == "gzip":
            return zlib.decompressobj(_GZIP)
        if self._coding != "deflate":
            raise zlib.error(f"{self._coding} is not known")
        # Some send it without zlib's header (RFC 9110 section 8.4.1.2).
        return zlib.decompressobj(_ZLIB if self._packed[0] & 15 == zlib.DEFLATED else _RAW)

    def _rest(self) -> bytes:
        machine = self._machine
        if machine is None or machine.eof:
            return b""
        rest = machine.flush()  # what did not fit into the last part, some bytes
        if not rest and not machine.eof:
            raise zlib.error("the body is cut off")
        return rest


def declared_length(message: RawRequestMessage) -> float:
    """Return the Content-Length, 0 where there is none."""
    digits = message.headers.get("Content-Length", "0").lstrip("0")
    return float("inf") if len(digits) > MAX_LENGTH_DIGITS else int(digits or "0")


def waits_to_be_asked(message: RawRequestMessage) -> bool:
    """Tell whether a client holds its body back until it is asked. Raises ApiError."""
    expected = message.headers.get("Expect")
    if expected is None or message.version < (1, 1):  # RFC 9110 section 10.1.1
        return False
    if expected.lower() != "100-continue":
        raise ApiError("expectation_failed", "Only 100-continue can be expected here.")
    return True


async def read_body(
    message: RawRequestMessage, payload: StreamReader, most: int, seconds: float, room: Room
) -> bytes:
    """Return the whole body. Raises ApiError: it is too large, malformed, too slow, or no room."""
    size = 0
    if declared_length(message) > most:
        raise too_large(most)
    try:
        if payload.is_eof() and message.compression is None:
            whole = payload.read_nowait(-1)
            if len(whole) > most:
                raise too_large(most)
            return whole
        body, parts = Body(message, payload), []
        async with asyncio.timeout(seconds):
            while part := await body.read():
                if room.is_full:
                    raise _no_room()
                size += len(part)
                room.taken += len(part)
                if size > most:
                    raise too_large(most)
                parts.append(part)
    except TimeoutError:
        raise too_slow(seconds) from None
    except MALFORMED:
        raise malformed() from None
    finally:
        room.taken -= size
    return b"".join(parts)


def too_slow(seconds: float) -> ApiError:
    """Return the error of a body that did not come in time."""
    return ApiError("request_timeout", f"The request's body did not arrive within {seconds:g} s.")


def too_large(most: int) -> ApiError:
    """Return the error of a body above a bound."""
    return ApiError("request_too_large", f"The request's body is larger than {most} bytes.")


def _no_room() -> ApiError:
    message = "The gateway has as many requests on their way in as it can hold. Try again."
    return ApiError("overloaded", message, retry_after=1)


def malformed() -> ApiError:
    """Return the error of a body that is not framed, or not packed, as it says."""
    return ApiError("invalid_http", "The request's body is malformed.")
