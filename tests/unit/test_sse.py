"""Events of a text/event-stream: what a browser would make of the bytes, however they are split."""

import json
import time
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import ApiError
from gateway.core.sse import BOM, MAX_EVENT_BYTES, SseEvent, SseReader, TooLarge, frame
from gateway.core.usage import Usage
from gateway.providers.responses import NativeResponsesStream

SIZES = (1, 2, 3, 7, 61)
# Reading a stream of the largest size takes some ten milliseconds; a minute, were it quadratic.
LINEAR_SECONDS = 5.0

Plain = list[tuple[bytes, bytes]]


def pieces(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


def events(parts: Iterable[bytes]) -> list[SseEvent]:
    reader = SseReader()
    found = [event for part in parts for event in reader.feed(part)]
    return found + reader.rest()


def read(parts: Iterable[bytes]) -> Plain:
    """Types and data; events of comments alone say nothing."""
    return [(one.type, one.data) for one in events(parts) if b"data:" in one.raw]


def by_the_book(stream: bytes) -> Plain:
    """Read line by line as WHATWG HTML 9.2.6 says, but for fields without a colon.

    What the end of the stream cuts off is taken for an event.
    """
    found: Plain = []
    kind, data = b"", list[bytes]()
    text = stream.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for line in [*text.split(b"\n"), b""]:
        if not line:
            if data:
                found.append((kind, b"\n".join(data)))
            kind, data = b"", []
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data" and b":" in line:
            data.append(value)
        elif name == b"event" and b":" in line:
            kind = value.strip()
    return found


TRANSCRIPTS: dict[str, tuple[bytes, Plain]] = {
    "usual": (b"data: a\n\ndata: b\n\n", [(b"", b"a"), (b"", b"b")]),
    "with a type": (b"event: x\ndata: a\n\n", [(b"x", b"a")]),
    "the type behind the data": (b"data: a\nevent: x\n\n", [(b"x", b"a")]),
    "the type twice": (b"event: x\nevent: y\ndata: a\n\n", [(b"y", b"a")]),
    "a type is for one event": (b"event: x\ndata: a\n\ndata: b\n\n", [(b"x", b"a"), (b"", b"b")]),
    "CRLF": (b"event: x\r\ndata: a\r\n\r\ndata: b\r\n\r\n", [(b"x", b"a"), (b"", b"b")]),
    "CR": (b"event: x\rdata: a\r\rdata: b\r\r", [(b"x", b"a"), (b"", b"b")]),
    "line ends mixed": (
        b"data: a\r\n\ndata: b\r\r\ndata: c\n\r\ndata: d\r\n\rdata: e\n\r",
        [(b"", one) for one in (b"a", b"b", b"c", b"d", b"e")],
    ),
    "BOM": (BOM + b"data: a\n\n", [(b"", b"a")]),
    "BOM later is data": (b"data: a\n\ndata: " + BOM + b"\n\n", [(b"", b"a"), (b"", BOM)]),
    "half a BOM": (BOM[:2], []),
    "no space": (b"data:a\nevent:x\n\n", [(b"x", b"a")]),
    "two spaces": (b"data:  a\n\n", [(b"", b" a")]),
    "several lines": (b"data: a\ndata:\ndata: b\n\n", [(b"", b"a\n\nb")]),
    "comments": (b": x\n\n:\ndata: a\n: data: b\n\n: y\n\n", [(b"", b"a")]),
    "other fields": (b"id: 1\nretry: 5\ndata: a\nx\nDATA: b\n data: c\n\n", [(b"", b"a")]),
    "blank lines": (b"\n\n\n\ndata: a\n\n\n\n\n\ndata: b\n\n\n", [(b"", b"a"), (b"", b"b")]),
    "empty data": (b"data:\n\ndata: \n\n", [(b"", b""), (b"", b"")]),
    "no last line": (b"data: a\n\ndata: b", [(b"", b"a"), (b"", b"b")]),
    "no last empty line": (b"data: a\n\ndata: b\n", [(b"", b"a"), (b"", b"b")]),
    "no UTF-8": (b"event: \xff\ndata: \xff\x00\xfe\n\n", [(b"\xff", b"\xff\x00\xfe")]),
    "Unicode's line ends are none": (
        "data: a\u2028b\u0085c\x0bd\n\n".encode(),
        [(b"", "a\u2028b\u0085c\x0bd".encode())],
    ),
    "nothing": (b"", []),
}
EVERY = pytest.mark.parametrize(("stream", "expected"), TRANSCRIPTS.values(), ids=TRANSCRIPTS)


@EVERY
def test_a_stream_is_read_by_the_book(stream: bytes, expected: Plain) -> None:
    assert read([stream]) == expected == by_the_book(stream)


@EVERY
def test_a_stream_in_pieces_is_the_same(stream: bytes, expected: Plain) -> None:
    for size in SIZES:
        assert read(pieces(stream, size)) == expected, size


@EVERY
def test_a_stream_in_any_three_parts_is_the_same(stream: bytes, expected: Plain) -> None:
    for at in range(len(stream) + 1):
        for end in range(at, len(stream) + 1):
            assert read([stream[:at], stream[at:end], stream[end:]]) == expected, (at, end)


LINES = st.sampled_from(
    (b"data: a", b"data:", b"data", b"event: x", b":", b"id: 1", b"data: \xff", b"", b" ", BOM)
)
STREAMS = st.lists(st.tuples(LINES, st.sampled_from((b"\n", b"\r\n", b"\r")))).map(
    lambda lines: b"".join([line + end for line, end in lines])
)


@settings(max_examples=300)
@given(stream=STREAMS, bom=st.sampled_from((b"", BOM)), cuts=st.data())
def test_any_stream_in_any_split_is_read_by_the_book(
    stream: bytes, bom: bytes, cuts: st.DataObject
) -> None:
    stream = bom + stream
    at = cuts.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    parts = [stream[a:b] for a, b in pairwise([0, *at, len(stream)])]
    assert read(parts) == by_the_book(stream)


def test_bytes_are_kept_as_they_came_but_for_line_ends() -> None:
    stream = b": x\n\nevent: a\ndata: b\nid: 5\n\ndata: c\n\n"
    assert b"".join([one.raw for one in events([stream])]) == stream
    for size in SIZES:
        assert b"".join([one.raw for one in events(pieces(stream, size))]) == stream
    crlf = stream.replace(b"\n", b"\r\n")
    assert b"".join([one.raw for one in events([crlf])]) == stream


def test_an_event_is_there_as_soon_as_it_is_whole() -> None:
    reader = SseReader()
    parts = (b"data: a\n", b"\ndata: b", b"\r\r", b"\n")
    found = [([one.data for one in reader.feed(part)], reader.holds) for part in parts]
    assert found == [([], True), ([b"a"], True), ([b"b"], False), ([], False)]
    assert reader.rest() == []


def test_nothing_fed_changes_nothing() -> None:
    reader = SseReader()
    assert reader.feed(b"data: a\r") == reader.feed(b"") == []
    assert [one.data for one in reader.feed(b"\ndata: b\r\n\r\n")] == [b"a\nb"]


def test_what_is_left_is_taken_once() -> None:
    reader = SseReader()
    assert reader.feed(b"\n\ndata: a\n") == []
    assert [one.raw for one in reader.rest()] == [b"data: a\n\n"]
    assert reader.rest() == []
    assert [one.data for one in reader.feed(b"data: b\n\n")] == [b"b"]


def test_a_written_event_is_read_again() -> None:
    assert read([frame("x", b'{"a": 1}') + frame("y", b"")]) == [(b"x", b'{"a": 1}'), (b"y", b"")]


def test_an_error_in_responses_has_the_next_number() -> None:
    error = ApiError("stream_interrupted", "cut")
    stream = NativeResponsesStream()
    numbers = [json.loads(stream.fail(error).split(b"data: ")[1])["sequence_number"]]
    kinds = ["response.created", "response.output_text.delta", "response.failed"]
    for number, kind in enumerate(kinds):
        event = {"type": kind, "sequence_number": number, "delta": "a", "response": {}}
        stream.feed(frame(kind, json.dumps(event).encode()))
        numbers.append(json.loads(stream.fail(error).split(b"data: ")[1])["sequence_number"])
    assert numbers == [0, 1, 2, 2]  # what a provider says of its failure is not shown


# --- Bounds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64 * 1024, MAX_EVENT_BYTES // 2, 2 * MAX_EVENT_BYTES])
@pytest.mark.parametrize("first", [b"", b"data: a\n\n", b"\r\n", b"data: a\ndata: "])
@pytest.mark.parametrize("end", [b"", b"\n\n"])
def test_an_event_past_the_cap_is_refused(first: bytes, size: int, end: bytes) -> None:
    stream = first + b"data: " + b"a" * MAX_EVENT_BYTES + end
    with pytest.raises(TooLarge):
        read(pieces(stream, size))


def test_an_event_at_the_cap_passes() -> None:
    content = b"a" * (MAX_EVENT_BYTES - len(b"data: \n\n"))
    stream = b"data: " + content + b"\n\n"
    assert len(stream) == MAX_EVENT_BYTES
    for size in (1021, 65_536, len(stream)):
        assert read(pieces(stream * 2, size)) == [(b"", content)] * 2


@pytest.mark.parametrize("size", [65_536, 8 * MAX_EVENT_BYTES])
def test_a_picture_passes_in_responses(size: int) -> None:
    """What the image tool has made stands in two events, in the last one beside all else."""
    item = {"type": "image_generation_call", "id": "ig_1", "result": "A" * (MAX_EVENT_BYTES + 9)}
    response = {"id": "resp_1", "output": [item], "usage": {"input_tokens": 1, "output_tokens": 2}}
    told: list[dict[str, object]] = [
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": response},
    ]
    stream = b"".join([frame(str(one["type"]), json.dumps(one).encode()) for one in told])
    decoder = NativeResponsesStream()
    shown = b"".join([decoder.feed(piece) for piece in pieces(stream, size)])
    assert shown + decoder.finish() == stream
    assert decoder.usage == Usage(1, 0, 0, 2)


@pytest.mark.parametrize(
    "stream",
    [
        b"data: " + b"a" * (MAX_EVENT_BYTES - 8) + b"\n\n",
        b"data: a\n" * (MAX_EVENT_BYTES // 8 - 1) + b"\n",
        b"data: a\n\n" * (MAX_EVENT_BYTES // 9),
        b"\r" * MAX_EVENT_BYTES,
        b": \r\n" * (MAX_EVENT_BYTES // 4 - 1) + b"\n\n",
    ],
    ids=["one line", "lines", "events", "line ends", "comments"],
)
def test_time_grows_with_the_length_alone(stream: bytes) -> None:
    parts = pieces(stream, 64)
    began = time.process_time()
    events(parts)
    assert time.process_time() - began < LINEAR_SECONDS
