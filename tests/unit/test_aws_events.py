"""Messages of AWS's event stream: botocore's reading, any split, every damage, bounded."""

import struct
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer  # type: ignore[import-untyped]  # has no types
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.aws_events import MAX_MESSAGE_BYTES, AwsMessage, AwsReader, Damaged

LINEAR_SECONDS = 5.0  # of some ten milliseconds; a minute, were it quadratic

# Every type of a header's value, with its number and how it is written.
TRUE, FALSE = (0, b""), (1, b"")
BYTE, SHORT, INTEGER, LONG = (2, b"\x7f"), (3, b"\x01\x02"), (4, b"\0\0\0\x05"), (5, b"\xff" * 8)
BYTES, TIME, UUID = (6, b"\0\x03abc"), (8, b"\0" * 8), (9, b"\x01" * 16)

Value = tuple[int, bytes]
Headers = dict[str, Value]


def text(value: str) -> Value:
    said = value.encode()
    return 7, struct.pack(">H", len(said)) + said


def header(name: str, value: Value) -> bytes:
    return bytes([len(name.encode())]) + name.encode() + bytes([value[0]]) + value[1]


def message(headers: bytes, payload: bytes = b"{}") -> bytes:
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    return sealed(prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload)


def sealed(data: bytes) -> bytes:
    return data + struct.pack(">I", zlib.crc32(data))


def written(headers: Headers, payload: bytes = b"{}") -> bytes:
    return message(b"".join([header(name, value) for name, value in headers.items()]), payload)


def pieces(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


def read(parts: Iterable[bytes]) -> list[AwsMessage]:
    reader = AwsReader()
    found = [one for part in parts for one in reader.feed(part)]
    assert not reader.held
    return found


EVENT = {":event-type": text("contentBlockDelta"), ":message-type": text("event")}
HELLO, EMPTY = written(EVENT, b'{"delta":{"text":"Hell\xc3\xb6"}}'), written({}, b"")
ALL_TYPES = written(
    {
        "a": TRUE,
        ":b": text("ä" * 100),
        "c": FALSE,
        "d": BYTE,
        "e": SHORT,
        "f": INTEGER,
        "g": LONG,
        "h": BYTES,
        "i": TIME,
        "j": UUID,
        "k": text(""),
    },
    bytes(range(256)),
)
STREAM = HELLO + EMPTY + ALL_TYPES + HELLO


def by_botocore(stream: bytes) -> list[AwsMessage]:
    buffer: Any = EventStreamBuffer()
    buffer.add_data(stream)
    return [
        AwsMessage({n: v for n, v in one.headers.items() if isinstance(v, str)}, one.payload)
        for one in buffer
    ]


# --- Whole ---------------------------------------------------------------------------------------


def test_messages_are_what_they_say() -> None:
    hello = AwsMessage(
        {":event-type": "contentBlockDelta", ":message-type": "event"},
        b'{"delta":{"text":"Hell\xc3\xb6"}}',
    )
    every = AwsMessage({":b": "ä" * 100, "k": ""}, bytes(range(256)))
    assert read([STREAM]) == [hello, AwsMessage({}, b""), every, hello]


def test_botocore_reads_the_same() -> None:
    known = HELLO + ALL_TYPES  # it cannot read a message without headers and payload
    assert read([known]) == by_botocore(known)


def test_any_pieces_come_to_the_same() -> None:
    whole = read([STREAM])
    for size in (1, 2, 3, 7, 61, 1021):
        assert read(pieces(STREAM, size)) == whole, size
    for at in range(len(STREAM)):
        assert read([STREAM[:at], b"", STREAM[at:]]) == whole, at


NAMES = st.text(min_size=1, max_size=8)
VALUES = st.one_of(
    st.sampled_from((TRUE, FALSE, BYTE, SHORT, INTEGER, LONG, BYTES, TIME, UUID)),
    st.text(max_size=20).map(text),
)


@settings(max_examples=100)
@given(
    said=st.lists(st.tuples(st.dictionaries(NAMES, VALUES, max_size=4), st.binary(max_size=40))),
    cuts=st.data(),
)
def test_any_messages_in_any_split_are_read(
    said: list[tuple[Headers, bytes]], cuts: st.DataObject
) -> None:
    stream = b"".join([written(headers, payload) for headers, payload in said])
    at = cuts.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    found = read([stream[a:b] for a, b in pairwise([0, *at, len(stream)])])
    assert [one.payload for one in found] == [payload for _, payload in said]
    assert [one.headers for one in found] == [
        {name: value[2:].decode() for name, (kind, value) in headers.items() if kind == 7}
        for headers, _ in said
    ]


def test_a_message_is_there_as_soon_as_it_is_whole() -> None:
    reader = AwsReader()
    parts = (HELLO[:-1], HELLO[-1:] + HELLO[:5], HELLO[5:])
    found = [(len(reader.feed(part)), bool(reader.held)) for part in parts]
    assert found == [(0, True), (1, True), (1, False)]


# --- Damaged -------------------------------------------------------------------------------------


def test_no_damage_goes_unnoticed() -> None:
    """Whatever byte is another, what comes before it is read and nothing behind it is."""
    for at in range(len(HELLO)):
        broken = bytearray(HELLO)
        broken[at] ^= 0x10
        for parts in ([HELLO + bytes(broken) + HELLO], pieces(bytes(broken) + HELLO, 5)):
            with pytest.raises(Damaged):
                read(parts)


@pytest.mark.parametrize("size", [1, 10, 65_536])
@pytest.mark.parametrize(
    "junk",
    [
        b'data: {"x":1}\n\n' * 9,
        b"\0" * 64,
        b"\xff" * 64,
        b'{"message":"The security token included in the request is expired"}',
    ],
    ids=["another framing", "zeros", "ones", "JSON"],
)
def test_what_is_no_event_stream_is_damage(junk: bytes, size: int) -> None:
    with pytest.raises(Damaged):
        read(pieces(junk, size))


@pytest.mark.parametrize(
    ("total", "headers"),
    [(0, 0), (15, 0), (16, 1), (20, 5), (MAX_MESSAGE_BYTES + 1, 0), (2**32 - 1, 2**32 - 1)],
)
def test_impossible_lengths_are_damage_before_anything_is_held(total: int, headers: int) -> None:
    prelude = struct.pack(">II", total, headers)
    reader = AwsReader()
    with pytest.raises(Damaged):
        reader.feed(prelude + struct.pack(">I", zlib.crc32(prelude)))


@pytest.mark.parametrize(
    "headers",
    [
        b"\x05abc",
        b"\x03abc",
        b"\x03abc\x0a",
        b"\x03abc\xff",
        b"\x03abc\x07",
        b"\x03abc\x07\0",
        b"\x03abc\x07\0\x05abc",
        b"\x03abc\x06\0\x05abc",
        b"\x03abc\x05abc",
        b"\x01\xff\x00",
        b"\x01a\x07\0\x01\xff",
    ],
    ids=repr,
)
def test_headers_that_cannot_be_read_are_damage(headers: bytes) -> None:
    with pytest.raises(Damaged, match="headers"):
        read([message(headers)])


def test_a_message_of_the_largest_size_passes_in_linear_time() -> None:
    largest = written(EVENT, b"a" * (MAX_MESSAGE_BYTES - len(written(EVENT, b""))))
    assert len(largest) == MAX_MESSAGE_BYTES
    parts = pieces(largest, 512)
    began = time.process_time()
    (found,) = read(parts)
    assert time.process_time() - began < LINEAR_SECONDS
    assert found.payload == b"a" * len(found.payload)


def test_many_messages_at_once_take_linear_time() -> None:
    stream = HELLO * 30_000
    began = time.process_time()
    assert len(read([stream])) == 30_000
    assert time.process_time() - began < LINEAR_SECONDS


@settings(max_examples=100)
@given(parts=st.lists(st.binary(max_size=40)))
def test_nothing_but_damage_is_raised(parts: list[bytes]) -> None:
    reader = AwsReader()
    with suppress(Damaged):
        for part in parts:
            reader.feed(part)


@settings(max_examples=200)
@given(headers=st.binary(max_size=30), payload=st.binary(max_size=10))
def test_nothing_but_damage_is_raised_by_any_headers(headers: bytes, payload: bytes) -> None:
    with suppress(Damaged):
        assert [one.payload for one in read([message(headers, payload)])] == [payload]
