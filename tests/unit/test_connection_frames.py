"""A provider's bytes through connection, relay and writer: however they are read, the client has
the same content in valid chunks, and broken framing never looks like an end."""

import asyncio
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import Failure, UpstreamError
from gateway.providers.openai_stream import END, OpenAIStream
from tests.support.readings import LAST, Provider, Stream, cut, dechunked, framed, sse
from tests.support.upstream import delta, usage

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TEXTS = ["", "one", " two", " thr\xe9\xe9", ' "4"', "\n", " data: [DONE]", " seven", " eight"]
WORDS = [sse(delta(text)) for text in TEXTS]
EVENTS = [*WORDS, sse(delta(None, "stop"))]
SPENT = [sse({"choices": [], "usage": usage(7, 5)}), END]
SHOWN = b"".join(EVENTS) + END
CHUNKS = [framed(event) for event in EVENTS + SPENT]
WIRE = HEAD + b"".join(CHUNKS) + LAST


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Makes futures and timers, and never runs."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


def reads_well(stream: Stream, shown: bytes = SHOWN, texts: list[str] = TEXTS) -> int:
    """Return how many chunks of a whole stream were passed on as they came."""
    assert stream.content() == shown
    assert stream.text() == "".join(texts)
    assert stream.provider.idle == 1
    return stream.writer.frames


def test_a_chunk_a_read_is_passed_on_as_it_came(loop: asyncio.AbstractEventLoop) -> None:
    stream = Provider(loop).ask().read([HEAD, *CHUNKS, LAST])
    assert reads_well(stream) == 5


def test_a_stream_cut_anywhere(loop: asyncio.AbstractEventLoop) -> None:
    for at in range(len(WIRE)):
        reads_well(Provider(loop).ask().read(cut(WIRE, at)))


def test_a_chunk_that_is_cut_between_chunks_that_are_not(loop: asyncio.AbstractEventLoop) -> None:
    for i in range(3, len(CHUNKS)):
        for at in range(len(CHUNKS[i]) + 1):
            pieces = [HEAD, *CHUNKS[:i], *cut(CHUNKS[i], at), *CHUNKS[i + 1 :], LAST]
            assert reads_well(Provider(loop).ask().read(pieces)) >= 1


def test_a_stream_byte_by_byte(loop: asyncio.AbstractEventLoop) -> None:
    assert reads_well(Provider(loop).ask().read(cut(WIRE, *range(len(WIRE))))) == 0


def test_a_client_that_knows_no_chunks(loop: asyncio.AbstractEventLoop) -> None:
    stream = Provider(loop).ask(chunked=False).read([HEAD, *CHUNKS, LAST])
    stream.writer.finish(stream.relay.end())
    head, _, content = stream.peer.transport.written.partition(b"\r\n\r\n")
    assert (content, stream.text()) == (SHOWN, "".join(TEXTS))
    assert b"chunked" not in head


SIZE_LINES = ["%x"] * 12 + ["%X", "0%x", "%x;a=b", '%x;a="\\"b"']
HABITS = st.sampled_from(["a chunk", "a chunk", "anywhere", "all"])


@settings(max_examples=500, deadline=None)
@given(data=st.data(), texts=st.lists(st.sampled_from(TEXTS) | st.text(max_size=5), max_size=15))
def test_any_chunks_read_in_any_way(
    loop: asyncio.AbstractEventLoop, data: st.DataObject, texts: list[str]
) -> None:
    events = [sse(delta(text)) for text in ["", *texts]] + [sse(delta(None, "stop"))]
    chunks, held = list[bytes](), b""
    for event in [*events, *SPENT]:
        how = data.draw(st.sampled_from(["alone"] * 8 + ["with the next", "in two"]))
        at = data.draw(st.integers(1, len(event) - 1)) if how == "in two" else 0
        parts = [held + event] if at == 0 else [held + event[:at], event[at:]]
        held = parts.pop() if how == "with the next" else b""
        chunks += [framed(part, data.draw(st.sampled_from(SIZE_LINES))) for part in parts]
    chunks += [framed(held)] if held else []
    wire, habit = HEAD + b"".join([*chunks, LAST]), data.draw(HABITS)
    pieces = [HEAD, *chunks, LAST] if habit == "a chunk" else [wire]
    if habit == "anywhere":
        pieces = cut(wire, *data.draw(st.lists(st.integers(0, len(wire)), max_size=20)))
    reads_well(Provider(loop).ask().read(pieces), b"".join(events) + END, texts)


# -- where the chunks are not what they seem -------------------------------------------------------

ALIKE = CHUNKS[-3]
GOOD = [HEAD, *CHUNKS[:3], framed(sse(delta(" eight")))]
SAID = b"".join([*WORDS[:3], sse(delta(" eight"))])


INNER = framed(WORDS[-1])
ODD_SIZE = int("1" + INNER[:2].decode(), 16)
# A chunk in a chunk; the read before it ends in a comment, in an event, in the chunk's own size.
NESTED = {
    "in a comment": (b": " + INNER + INNER + b"\n\n" + INNER + b"\n\n", b": "),
    "behind an event": (WORDS[1] + INNER + b"\n\n", WORDS[1]),
    "behind two events": (WORDS[1] + WORDS[-1] + INNER + INNER + b"\n\n", WORDS[1] + WORDS[-1]),
    "behind a digit": ((INNER[4:] + b": " + b"x" * 999)[: ODD_SIZE - 2] + b"\n\n", b""),
}


@pytest.mark.parametrize(("content", "before"), NESTED.values(), ids=NESTED)
def test_a_chunk_in_a_chunk_is_content(
    loop: asyncio.AbstractEventLoop, content: bytes, before: bytes
) -> None:
    outer = framed(content)
    start = outer.index(before) + len(before) if before else 1
    assert outer[start:].startswith(INNER)
    shown = OpenAIStream(False).feed(b"".join([*EVENTS[:5], content, *EVENTS[5:]])) + END
    ends = [start, start + len(INNER), start + 2 * len(INNER)]
    for places in ([], ends[:1], ends[:2], ends, [4, *ends], [start, start + len(INNER) + 1]):
        pieces = [HEAD, *CHUNKS[:5], *cut(outer, *places), *CHUNKS[5:], LAST]
        stream = Provider(loop).ask().read(pieces)
        assert re.sub(b"\n+", b"\n", stream.content()) == re.sub(b"\n+", b"\n", shown), places


BROKEN = {
    "no size": b"hello\r\n",
    "an event without a size": WORDS[1],
    "a negative size": b"-1\r\n" + framed(WORDS[1]),
    "a size past 64 bits": b"f" * 17 + b"\r\n" + WORDS[1],
    "an empty line": b"\r\n" + framed(WORDS[1]),
    "a line end too many": framed(WORDS[1]) + b"\r\n" + framed(WORDS[1]),
    "a size too small": b"%x\r\n%b\r\n" % (len(WORDS[1]) - 1, WORDS[1]),
    "a size too large": b"%x\r\n%b\r\n" % (len(WORDS[1]) + 1, WORDS[1]) + framed(WORDS[1]),
    "no line end behind": framed(WORDS[1])[:-2] + framed(WORDS[1]),
    "another reply": HEAD + framed(WORDS[1]),
}


@pytest.mark.parametrize("bad", BROKEN.values(), ids=BROKEN)
def test_framing_that_breaks_is_never_an_end(loop: asyncio.AbstractEventLoop, bad: bytes) -> None:
    after = [framed(WORDS[1]), *CHUNKS[-3:], LAST]
    for at in range(len(bad) + 1):
        stream = Provider(loop).ask().read([*GOOD, *cut(bad, at), *after])
        assert stream.failure() is Failure.PROTOCOL, at
        content = dechunked(stream.peer.transport.written, whole=False)
        assert content.startswith(SAID), at
        rest = content.removeprefix(SAID).rstrip(b"\n")
        assert (WORDS[1] * 3).startswith(rest), at
        assert stream.provider.idle == 0


@pytest.mark.parametrize("part", [b"", b"1", b"10\r", b"10\r\n", framed(WORDS[1])[:-3]])
@pytest.mark.parametrize("error", [None, ConnectionResetError()])
def test_a_connection_that_ends_behind_good_chunks(
    loop: asyncio.AbstractEventLoop, part: bytes, error: Exception | None
) -> None:
    provider = Provider(loop)
    stream = provider.ask().read([*GOOD, part])
    provider.connection.connection_lost(error)
    failed = stream.reply.exception()
    assert isinstance(failed, UpstreamError)
    assert failed.failure is Failure.RESET
    assert dechunked(stream.peer.transport.written, whole=False) == SAID
    assert stream.text() == "".join([*TEXTS[:3], " eight"])


def test_the_next_exchange_begins_with_a_head(loop: asyncio.AbstractEventLoop) -> None:
    for pieces in ([WIRE], [HEAD, *CHUNKS, LAST], [HEAD, *CHUNKS[:3], *CHUNKS[-2:], LAST]):
        provider = Provider(loop)
        assert provider.ask().read(pieces).reply.result().streamed
        assert provider.ask().read([HEAD, *CHUNKS, LAST]).content() == SHOWN
        stream = provider.ask().read([CHUNKS[1]])
        assert stream.failure() is Failure.PROTOCOL
        assert stream.peer.transport.written == b""


def test_a_chunk_that_nobody_asked_for_closes(loop: asyncio.AbstractEventLoop) -> None:
    provider = Provider(loop)
    stream = provider.ask().read([HEAD, *CHUNKS, LAST, CHUNKS[1]])
    assert stream.content() == SHOWN
    assert provider.socket.closed
