"""Messages of AWS's event stream (application/vnd.amazon.eventstream) out of any split of bytes.

https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html: total length, length
of the headers, their CRC; headers; payload; CRC of it all. Numbers are big-endian.
"""

import struct
import zlib

import msgspec

MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # AWS's own bound
_PRELUDE_BYTES, _CRC_BYTES = 12, 4
# The length of a header's value by its type; text and bytes carry theirs.
_VALUE_BYTES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
_BYTES_TYPE, _TEXT_TYPE = 6, 7


class Damaged(ValueError):
    """The bytes are no such messages."""


class AwsMessage(msgspec.Struct, frozen=True, gc=False):
    """One message; of the headers those that are text."""

    headers: dict[str, str]
    payload: bytes


class AwsReader:
    """Cuts a stream into messages. Raises Damaged; what is held is bounded."""

    def __init__(self) -> None:
        self._held = bytearray()

    @property
    def held(self) -> int:
        """Return how many bytes there are of a message whose end is missing."""
        return len(self._held)

    def feed(self, data: bytes) -> list[AwsMessage]:
        """Take any split of the stream; return the messages that are whole."""
        self._held += data
        found, at = [], 0
        while len(self._held) - at >= _PRELUDE_BYTES:
            total, headers, crc = struct.unpack_from(">III", self._held, at)
            if total > MAX_MESSAGE_BYTES or total < headers + _PRELUDE_BYTES + _CRC_BYTES:
                raise Damaged("a message's length is impossible")
            if zlib.crc32(self._held[at : at + 8]) != crc:
                raise Damaged("the beginning of a message is damaged")
            if len(self._held) - at < total:
                break
            found.append(_message(bytes(self._held[at : at + total]), headers))
            at += total
        del self._held[:at]
        return found


def framed(headers: dict[str, str], payload: bytes) -> bytes:
    """Write one message; the headers are text."""
    lines = b"".join(
        bytes([len(name)]) + name.encode() + struct.pack(">BH", _TEXT_TYPE, len(value)) + value
        for name, value in [(name, value.encode()) for name, value in headers.items()]
    )
    total = _PRELUDE_BYTES + len(lines) + len(payload) + _CRC_BYTES
    prelude = struct.pack(">II", total, len(lines))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + lines + payload
    return message + struct.pack(">I", zlib.crc32(message))


def _message(data: bytes, headers_length: int) -> AwsMessage:
    (crc,) = struct.unpack_from(">I", data, len(data) - _CRC_BYTES)
    if zlib.crc32(data[:-_CRC_BYTES]) != crc:
        raise Damaged("a message is damaged")
    end = _PRELUDE_BYTES + headers_length
    try:
        headers = _headers(data[_PRELUDE_BYTES:end])
    except (IndexError, KeyError, struct.error, UnicodeDecodeError):
        raise Damaged("a message's headers are damaged") from None
    return AwsMessage(headers, data[end:-_CRC_BYTES])


def _headers(data: bytes) -> dict[str, str]:
    found, at = {}, 0
    while at < len(data):
        end = at + 1 + data[at]
        name, kind = data[at + 1 : end].decode(), data[end]
        at = end + 1
        if kind in (_BYTES_TYPE, _TEXT_TYPE):
            (length,) = struct.unpack_from(">H", data, at)
            at += 2
            if kind == _TEXT_TYPE:
                found[name] = data[at : at + length].decode()
            at += length
        else:
            at += _VALUE_BYTES[kind]
    if at != len(data):
        raise IndexError("the last header is cut")
    return found
