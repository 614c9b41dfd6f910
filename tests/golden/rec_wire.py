"""Takes apart what is on the wire, to check it: AWS's event stream encoding, chunked coding."""

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any


def unpacked(frame: bytes) -> tuple[str, Any]:
    """A message of the event stream encoding, checked: its type and its payload."""
    length, size, checksum = struct.unpack_from("!III", frame)
    assert length == len(frame)
    assert checksum == zlib.crc32(frame[:8])
    assert struct.unpack("!I", frame[-4:])[0] == zlib.crc32(frame[:-4])
    headers = dict(headers_of(frame[12 : 12 + size]))
    kind = headers.pop(":event-type")
    assert headers == {":content-type": "application/json", ":message-type": "event"}
    return kind, json.loads(frame[12 + size : -4])


def headers_of(block: bytes) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(block):
        name_end = at + 1 + block[at]
        kind, size = struct.unpack_from("!BH", block, name_end)
        assert kind == 7, "not a string"
        value_end = name_end + 3 + size
        yield block[at + 1 : name_end].decode(), block[name_end + 3 : value_end].decode()
        at = value_end


def chunks(body: bytes) -> list[bytes]:
    """The chunks of a body in chunked coding, with the empty last one."""
    found, at = [], 0
    while at < len(body):
        start = body.index(b"\r\n", at) + 2
        end = start + int(body[at : start - 2], 16)
        assert body[end : end + 2] == b"\r\n"
        found.append(body[start:end])
        at = end + 2
    return found
