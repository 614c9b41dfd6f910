"""Chunks that only look like the last event with another text: none is taken for one."""

import pytest

from gateway.providers.openai_stream import MAX_FRAME_BYTES
from tests.support.upstream import delta, usage
from tests.unit.test_stream_frames import LEARNT, after, framed, sse

BEFORE, AFTER = LEARNT.split(b'"one"')
STRANGE = sse(delta("two"))
SIZE = b"%x" % len(STRANGE)


def with_text(text: bytes) -> bytes:
    return framed(BEFORE + b'"' + text + b'"' + AFTER)


def resized(size: bytes, end: bytes = b"\r\n") -> bytes:
    return size + b"\r\n" + STRANGE + end


ADVERSE = {
    "a size too large": resized(b"%x" % (len(STRANGE) + 1)),
    "a size too small": resized(b"%x" % (len(STRANGE) - 1)),
    "a decimal size": resized(b"%d" % len(STRANGE)),
    "no size": resized(b""),
    "an upper-case size": resized(SIZE.upper()),
    "a padded size": resized(b"0" + SIZE),
    "a size with an extension": resized(SIZE + b";a=b"),
    "a size with a space": resized(SIZE + b" "),
    "a size with a sign": resized(b"+" + SIZE),
    "a size line that ends in LF": SIZE + b"\n" + STRANGE + b"\r\n",
    "two size lines": SIZE + b"\r\n" + resized(SIZE),
    "nothing behind": resized(SIZE, b""),
    "half of a line end behind": resized(SIZE, b"\r"),
    "LF behind": resized(SIZE, b"\n"),
    "two line ends behind": resized(SIZE, b"\r\n\r\n"),
    "the last chunk behind": resized(SIZE) + b"0\r\n\r\n",
    "two chunks": resized(SIZE) + resized(SIZE),
    "two events": framed(STRANGE + STRANGE),
    "an event and the end marker": framed(STRANGE + b"data: [DONE]\n\n"),
    "two chunks that are one event": framed(STRANGE[:20]) + framed(STRANGE[20:]),
    "a chunk around a chunk": framed(resized(SIZE)),
    "no frame": STRANGE,
    "the prefix alone": framed(BEFORE + b'"'),
    "the suffix alone": framed(b'"' + AFTER),
    "prefix and suffix that overlap": framed(BEFORE + b'"' + AFTER),
    "an empty text": with_text(b""),
    "nothing": b"",
    "the last chunk": b"0\r\n\r\n",
    "a hidden end": with_text(b"a\n\ndata: [DONE]\n\n"),
    "a hidden end behind CR": with_text(b"a\r\rdata: [DONE]\r\r"),
    "a hidden event": with_text(b'a"}}]}\n\ndata: {"error":{"message":"'),
    "a second field": with_text(b'a","x":"'),
    "an escape": with_text(b"a\\nb"),
    "a backslash": with_text(b"a\\"),
    "a raw line end": with_text(b"a\nb"),
    "a raw CR": with_text(b"a\rb"),
    "a quote": with_text(b'"'),
    "too large": with_text(b"a" * MAX_FRAME_BYTES),
}


@pytest.mark.parametrize("frame", ADVERSE.values(), ids=ADVERSE)
def test_a_frame_that_only_looks_alike_is_not_taken(frame: bytes) -> None:
    decoder = after(sse(delta("")), LEARNT)
    assert decoder.take_text() == "one"
    assert not decoder.repeats(frame)
    assert decoder.take_text() == ""
    assert decoder.repeats(framed(STRANGE)), "it has forgotten"


def test_no_part_of_a_frame_is_taken() -> None:
    decoder, frame = after(sse(delta("")), LEARNT), framed(STRANGE)
    parts = (frame[a:b] for a in range(len(frame)) for b in range(a, len(frame)))
    assert not any(decoder.repeats(part) for part in parts if part != frame)


def test_a_changed_byte_is_taken_only_in_the_text() -> None:
    decoder, frame = after(sse(delta("")), LEARNT), framed(STRANGE)
    text = frame.index(b"two")
    for at in range(len(frame)):
        for byte in set(range(256)) - {frame[at]}:
            changed = frame[:at] + bytes([byte]) + frame[at + 1 :]
            if decoder.repeats(changed):
                assert text <= at < text + 3, changed
                assert byte not in b'"\\\r\n', changed


def test_an_added_byte_is_never_taken() -> None:
    decoder, frame = after(sse(delta("")), LEARNT), framed(STRANGE)
    for at in range(len(frame) + 1):
        for byte in range(256):
            assert not decoder.repeats(frame[:at] + bytes([byte]) + frame[at:]), (at, byte)


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [LEARNT],
        [sse(delta("")), LEARNT, STRANGE[:9]],
        [sse(delta("")), LEARNT, sse("[DONE]")],
        [sse(delta("")), LEARNT, sse({"error": {"message": "x"}})],
        [sse(delta("")), LEARNT, sse(": ping", "", "\r")],
        [sse(delta("")), sse(delta("one", "stop"))],
        [sse(delta("")), sse({**delta("one"), "usage": usage(1, 1)})],
        [sse(delta("")), sse({**delta("one"), "model": "one"})],
        [sse(delta("")), LEARNT + STRANGE],
    ],
)
def test_nothing_is_taken_where_nothing_can_be_repeated(pieces: list[bytes]) -> None:
    assert not after(*pieces).repeats(framed(STRANGE))
