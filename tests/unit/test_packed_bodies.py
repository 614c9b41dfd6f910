"""Bodies that clients send packed: unpacked in small parts, within a bound, and only when read."""

import asyncio
import gzip
import zlib
from types import SimpleNamespace
from typing import cast

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from gateway.core.errors import ApiError
from gateway.http.body import MAX_MEMBERS, PIECE_BYTES, Body, Room, read_body

TEXT = bytes(range(256)) * 300
MOST = 1_000_000


def raw(data: bytes) -> bytes:
    """Deflate without zlib's header, as some send it."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKED = {
    "gzip": ("gzip", gzip.compress(TEXT)),
    "two members": ("gzip", gzip.compress(TEXT[:1000]) + gzip.compress(TEXT[1000:])),
    "zlib": ("deflate", zlib.compress(TEXT)),
    "raw": ("deflate", raw(TEXT)),
    "poor": ("gzip", gzip.compress(TEXT, compresslevel=0)),
}


def message(coding: str | None) -> RawRequestMessage:
    """As much of a head as a body asks."""
    return cast(RawRequestMessage, SimpleNamespace(compression=coding, headers={}))


def payload(*parts: bytes) -> StreamReader:
    """A body that has come in parts."""
    loop = asyncio.get_running_loop()
    found = StreamReader(BaseProtocol(loop), 2**30, loop=loop)
    for part in parts:
        found.feed_data(part)
    found.feed_eof()
    return found


class Parts:
    """A body that comes in parts, one at a time."""

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = iter(parts)

    async def readany(self) -> bytes:
        return next(self._parts, b"")


async def read(coding: str, *parts: bytes) -> bytes:
    return await read_body(message(coding), payload(*parts), MOST, 10, Room(MOST))


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("step", [1, 7, 1000, 10**6])
async def test_a_packed_body_is_what_was_packed(name: str, step: int) -> None:
    coding, packed = PACKED[name]
    parts = [packed[i : i + step] for i in range(0, len(packed), step)]
    body, found, source = b"", 0, Body(message(coding), cast(StreamReader, Parts(parts)))
    while part := await source.read():
        body += part
        found = max(found, len(part))
    assert body == TEXT
    assert found <= PIECE_BYTES
    assert await source.read() == b""


async def test_nothing_that_is_packed_is_nothing() -> None:
    assert await read("gzip") == b""


MALFORMED: dict[str, tuple[str, bytes]] = {
    "cut": ("gzip", gzip.compress(TEXT)[:-20]),
    "cut in its end": ("gzip", gzip.compress(TEXT)[:-1]),
    "cut zlib": ("deflate", zlib.compress(TEXT)[:-1]),
    "none": ("gzip", b"hello"),
    "more": ("gzip", gzip.compress(TEXT) + b"hello"),
    "unknown": ("br", b"hello"),
    "many members": ("gzip", gzip.compress(b"") * (MAX_MEMBERS + 1)),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_does_not_unpack_is_malformed(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        await read(*MALFORMED[name])
    assert (caught.value.status, caught.value.code) == (400, "invalid_http")


async def test_others_have_their_turn_while_a_bomb_is_unpacked_and_it_ends_at_the_bound() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    bomb = zlib.compress(bytes(100 * MOST))
    counting = asyncio.create_task(count())
    with pytest.raises(ApiError) as caught:
        await read("deflate", bomb)
    counting.cancel()
    await asyncio.gather(counting, return_exceptions=True)
    assert caught.value.code == "request_too_large"
    assert MOST / PIECE_BYTES <= turns < 3 * MOST / PIECE_BYTES


@pytest.mark.parametrize("whole", [True, False])
async def test_a_body_that_is_not_packed_is_read_as_it_is(whole: bool) -> None:
    parts = [TEXT] if whole else [TEXT[:10], TEXT[10:]]
    assert await read_body(message(None), payload(*parts), MOST, 10, Room(MOST)) == TEXT
