"""Kept answers as bytes, by aiocache's interface of serializers.

Imported where a cache is configured: aiocache is slow to import.
"""

import zlib
from typing import Any

import msgspec
from aiocache.serializers import BaseSerializer

from gateway.store.answers import Answer

PLAIN, DEFLATED = b"\x00", b"\x01"
FASTEST = 1  # of zlib's levels: the others gain little on JSON
MAX_BYTES = 256 * 1024 * 1024


class Packing(BaseSerializer):  # type: ignore[misc]
    """Answers as msgpack, compressed above so many bytes."""

    DEFAULT_ENCODING = None

    def __init__(self, compress_above: int) -> None:
        super().__init__()
        self._compress_above = compress_above
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Answer).decode

    def dumps(self, value: Any) -> bytes:
        """Return an answer's bytes."""
        packed = self._encode(value)
        if len(packed) < self._compress_above:
            return PLAIN + packed
        return DEFLATED + zlib.compress(packed, FASTEST)

    def loads(self, value: Any) -> Answer:
        """Return the answer. Raises ValueError where it is none."""
        data = value[1:]
        try:
            if value[:1] == DEFLATED:
                machine = zlib.decompressobj()
                data = machine.decompress(data, MAX_BYTES)
                if not machine.eof:
                    raise ValueError("cut")
            return self._decode(data)
        except (zlib.error, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(str(error)) from None
