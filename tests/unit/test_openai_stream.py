"""OpenAI's stream, bytes in, bytes out: fed whole, in any two parts, and one byte at a time."""

import json
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import Failure, UpstreamError
from gateway.core.usage import Usage
from gateway.providers.openai_stream import END, MAX_EVENT_BYTES, OpenAIStream

HELLO = b'{"choices":[{"index":0,"delta":{"content":"Hell\xc3\xb6"},"finish_reason":null}]}'
STOP = b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
SPENT = (
    b'"usage":{"prompt_tokens":7,"completion_tokens":5,"prompt_tokens_details":'
    b'{"cached_tokens":3},"completion_tokens_details":{"reasoning_tokens":2}}'
)
USAGE = b'{"choices":[],' + SPENT + b"}"
COUNTED = Usage(7, 3, 0, 5, 2)
ERROR = b'{"error":{"message":"overloaded","type":"server_error"}}'
NULLS = (
    b'{"choices":[{"index":0,"delta":{"content":null,"tool_calls":null,"reasoning_content":null,'
    b'"refusal":null},"text":null,"finish_reason":null}],"usage":null,"error":null}'
)
TOOL = (
    b'{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"{"}},'
    b'{"index":1,"function":{"arguments":"}"}},{"index":2}]}}]}'
)
CHOICES = (
    b'{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"},'
    b'{"index":1,"delta":{"content":"b"},"finish_reason":null}],"usage":null}'
)
PARTS = b'{"choices":[{"delta":{"content":[{"type":"text","text":"Hi"}]},"finish_reason":null}]}'
HALF = b'{"choices":[{"index":0,"delta":{"content":"\\ud83d"},"finish_reason":null}]}'
BROKEN = b'{"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}'
QUOTED = (
    b'{"choices":[{"index":0,"delta":{"content":"\\"usage\\":{} \\"error\\": \\\\"},'
    b'"finish_reason":null}]}'
)
NOT_UTF8 = b'{"choices":[{"delta":{"content":"\xff"},"finish_reason":null}]}'
DEEP = b'{"x":' + b"[" * 3000 + b"]" * 3000 + b"}"


class Outcome(NamedTuple):
    """What a decoder made of a stream."""

    out: bytes
    usage: Usage | None
    done: bool
    finished: bool
    failure: str | None
    text: str


class Transcript(NamedTuple):
    """A stream, and what the client and the gateway must learn from it."""

    stream: bytes
    shown: list[bytes]
    keep_usage: bool = False
    usage: Usage | None = None
    done: bool = True
    finished: bool = False
    failure: bytes | None = None
    text: str = ""


def data(*payloads: bytes, end: bytes = b"\n") -> bytes:
    return b"".join(b"data: " + payload + end + end for payload in payloads)


def decode(pieces: Iterable[bytes], keep_usage: bool = False) -> Outcome:
    decoder = OpenAIStream(keep_usage)
    out = b"".join([decoder.feed(piece) for piece in pieces])
    text = decoder.take_text()
    assert decoder.take_text() == ""
    return Outcome(out, decoder.usage, decoder.done, decoder.finished, decoder.failure, text)


def same(outcome: Outcome) -> Outcome:
    """Leave out blank lines that end no event: where they go is nobody's concern."""
    return outcome._replace(out=re.sub(rb"\n{3,}", b"\n\n", outcome.out.lstrip(b"\n")))


def payloads(stream: bytes) -> list[bytes]:
    """Read an event stream as a client does (WHATWG HTML 9.2.6, here with LF alone)."""
    found, lines = [], []
    for line in stream.split(b"\n"):
        if line.startswith(b"data:"):
            lines.append(line[5:].removeprefix(b" "))
        elif not line and lines:
            found.append(b"\n".join(lines))
            lines = []
    return found


WHOLE = Transcript(
    data(HELLO, STOP, USAGE, b"[DONE]"),
    [HELLO, STOP],
    usage=COUNTED,
    finished=True,
    text="Hellö",
)
TRANSCRIPTS = {
    "usual": WHOLE,
    "crlf": WHOLE._replace(stream=data(HELLO, STOP, USAGE, b"[DONE]", end=b"\r\n")),
    "cr": WHOLE._replace(stream=data(HELLO, STOP, USAGE, b"[DONE]", end=b"\r")),
    "line ends mixed": WHOLE._replace(
        stream=data(HELLO, end=b"\r") + data(STOP, end=b"\r\n") + data(USAGE, b"[DONE]")
    ),
    "bom": WHOLE._replace(stream=b"\xef\xbb\xbf" + WHOLE.stream),
    "comments": WHOLE._replace(stream=b": hi\n\n" + WHOLE.stream.replace(b"\n\n", b"\n\n:\n\n")),
    "a comment that looks like a chunk": Transcript(
        data(HELLO) + b": ping" + STOP + b"\n\n" + data(b"[DONE]"), [HELLO], text="Hellö"
    ),
    "comment inside an event": WHOLE._replace(stream=b": hi\n" + WHOLE.stream),
    "no space after the colon": WHOLE._replace(stream=WHOLE.stream.replace(b"data: ", b"data:")),
    "other fields": WHOLE._replace(
        stream=WHOLE.stream.replace(b"data:", b"event: x\nid: 1\ndata:")
    ),
    "fields after the data": WHOLE._replace(stream=WHOLE.stream.replace(b"\n\n", b"\nid: 1\n\n")),
    "data over several lines": Transcript(
        data(USAGE.replace(b",", b",\ndata: "), b"[DONE]"), [], usage=COUNTED
    ),
    "blank lines between events": WHOLE._replace(
        stream=b"\n\n" + WHOLE.stream.replace(b"\n\n", b"\n\n\n\n\n")
    ),
    "usage kept": WHOLE._replace(shown=[HELLO, STOP, USAGE], keep_usage=True),
    "usage beside content": Transcript(
        data(STOP[:-1] + b"," + SPENT + b"}", b"[DONE]"),
        [STOP[:-1] + b"," + SPENT + b"}"],
        usage=COUNTED,
        finished=True,
    ),
    "usage in every chunk": Transcript(
        data(HELLO[:-1] + b',"usage":{"prompt_tokens":7,"completion_tokens":1}}', USAGE, b"[DONE]"),
        [HELLO[:-1] + b',"usage":{"prompt_tokens":7,"completion_tokens":1}}'],
        usage=COUNTED,
        text="Hellö",
    ),
    "no choices and no usage": Transcript(
        data(b'{"choices":[],"usage":null}', b"[DONE]"), [b'{"choices":[],"usage":null}']
    ),
    "nulls": Transcript(data(NULLS, b"[DONE]"), [NULLS]),
    "tool calls": Transcript(data(TOOL, b"[DONE]"), [TOOL], text="f{}"),
    "no end marker": Transcript(
        data(HELLO, STOP), [HELLO, STOP], done=False, finished=True, text="Hellö"
    ),
    "cut inside an event": Transcript(data(HELLO) + STOP[:20], [HELLO], done=False, text="Hellö"),
    "end marker twice": WHOLE._replace(stream=WHOLE.stream + data(b"[DONE]")),
    "content after the end": WHOLE._replace(stream=WHOLE.stream + data(HELLO)),
    "end marker with spaces": WHOLE._replace(stream=WHOLE.stream.replace(b"[DONE]", b" [DONE] ")),
    "error first": Transcript(data(ERROR, b"[DONE]"), [], done=False, failure=ERROR),
    "error later": Transcript(
        data(HELLO) + b"event: error\n" + data(ERROR, HELLO, b"[DONE]"),
        [HELLO],
        done=False,
        failure=ERROR,
        text="Hellö",
    ),
    "not JSON": Transcript(data(b"hello", b"[DONE]"), [b"hello"]),
    "not UTF-8": Transcript(data(NOT_UTF8, b"[DONE]"), [NOT_UTF8]),
    "not UTF-8, after content": Transcript(
        data(HELLO, NOT_UTF8, HELLO, b"[DONE]"), [HELLO, NOT_UTF8, HELLO], text="HellöHellö"
    ),
    "broken JSON": Transcript(data(HELLO, BROKEN, b"[DONE]"), [HELLO, BROKEN], text="Hellö"),
    "half of a character": Transcript(data(HELLO, HALF, b"[DONE]"), [HELLO, HALF], text="Hellö"),
    "content in parts": Transcript(data(HELLO, PARTS, b"[DONE]"), [HELLO, PARTS], text="HellöHi"),
    "one of two choices finished": Transcript(
        data(HELLO, CHOICES), [HELLO, CHOICES], done=False, finished=True, text="Hellöab"
    ),
    "content that quotes JSON": Transcript(
        data(HELLO, QUOTED, b"[DONE]"), [HELLO, QUOTED], text='Hellö"usage":{} "error": \\'
    ),
    "nested without end": Transcript(data(DEEP, b"[DONE]"), [DEEP]),
}


def check(transcript: Transcript, pieces: Iterable[bytes]) -> None:
    outcome = decode(pieces, transcript.keep_usage)
    assert payloads(outcome.out) == transcript.shown
    assert outcome.usage == transcript.usage
    assert (outcome.done, outcome.finished) == (transcript.done, transcript.finished)
    failure = None if transcript.failure is None else transcript.failure.decode()
    assert outcome.failure == failure
    assert outcome.text == transcript.text


EVERY = pytest.mark.parametrize("transcript", TRANSCRIPTS.values(), ids=TRANSCRIPTS)


@EVERY
def test_a_stream_fed_whole(transcript: Transcript) -> None:
    check(transcript, [transcript.stream])


@EVERY
def test_a_stream_fed_an_event_at_a_time_as_providers_send(transcript: Transcript) -> None:
    check(transcript, re.findall(rb"(?s).+?(?:\n\n|\r\n\r\n|\r\r(?!\n)|\Z)", transcript.stream))


@EVERY
def test_a_stream_fed_one_byte_at_a_time(transcript: Transcript) -> None:
    check(transcript, [bytes([byte]) for byte in transcript.stream])


@EVERY
def test_a_stream_fed_in_any_two_parts(transcript: Transcript) -> None:
    stream = transcript.stream
    whole = same(decode([stream], transcript.keep_usage))
    for at in range(0, len(stream), 1 + len(stream) // 2000):
        parts = [stream[:at], stream[at:]]
        assert same(decode(parts, transcript.keep_usage)) == whole, at


PAYLOADS = st.sampled_from([HELLO, STOP, USAGE, NULLS, TOOL, ERROR, b"[DONE]", b"", b"hello"])
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
FIELDS = st.sampled_from([b"data: ", b"data:", b": ping", b"event: ", b"id: 1"])
EVENTS = st.lists(st.tuples(st.lists(st.tuples(FIELDS, PAYLOADS, ENDS), max_size=3), ENDS))


@settings(max_examples=500)
@given(
    bom=st.sampled_from([b"", b"\xef\xbb\xbf"]), events=EVENTS, keep=st.booleans(), cuts=st.data()
)
def test_any_split_of_any_stream_comes_to_the_same(
    bom: bytes,
    events: list[tuple[list[tuple[bytes, bytes, bytes]], bytes]],
    keep: bool,
    cuts: st.DataObject,
) -> None:
    stream = bom + b"".join(b"".join(map(b"".join, lines)) + end for lines, end in events)
    at = cuts.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    pieces = [stream[a:b] for a, b in pairwise([0, *at, len(stream)])]
    assert same(decode(pieces, keep)) == same(decode([stream], keep))


def ending(*numbers: int | None) -> bytes:
    choice: dict[str, object] = {"delta": {}, "finish_reason": "stop"}
    choices = [{"index": number, **choice} for number in numbers]
    return data(json.dumps({"choices": choices}).encode())


@pytest.mark.parametrize(
    ("events", "finished"),
    [
        ([ending(0)], False),
        ([ending(0), ending(0)], False),
        ([ending(1), ending(0)], True),
        ([ending(None), ending(1)], True),
        ([ending(0, 1)], True),
    ],
)
def test_a_stream_of_several_texts_is_finished_with_the_last_of_them(
    events: list[bytes], finished: bool
) -> None:
    decoder = OpenAIStream(False, 2)
    for event in events:
        decoder.feed(event)
    assert (decoder.finished, decoder.done) == (finished, False)
    decoder.feed(data(b"[DONE]"))
    assert decoder.done


def test_what_is_passed_on_is_what_came() -> None:
    events = [b"event: a\ndata: " + HELLO + b"\nretry: 5\n\n", b": ping\n\n", data(STOP)]
    assert decode(events).out == b"".join(events)


def test_each_event_leaves_as_soon_as_it_is_whole() -> None:
    decoder = OpenAIStream(keep_usage=False)
    assert decoder.feed(data(HELLO)[:-1]) == b""
    assert decoder.feed(b"\n" + data(STOP)[:9]) == data(HELLO)
    assert decoder.feed(data(STOP)[9:]) == data(STOP)
    assert decoder.finish() == END == b"data: [DONE]\n\n"


@pytest.mark.parametrize("first", [b"", data(HELLO), b"\r\n"])
@pytest.mark.parametrize("size", [64 * 1024, 2 * MAX_EVENT_BYTES])
def test_an_event_past_the_cap_is_refused(first: bytes, size: int) -> None:
    stream = first + data(b'{"x":"' + b"a" * (MAX_EVENT_BYTES + 64 * 1024) + b'"}')
    with pytest.raises(UpstreamError, match="too large") as caught:
        decode(stream[at : at + size] for at in range(0, len(stream), size))
    assert caught.value.failure is Failure.TOO_LARGE


def test_a_large_event_within_the_cap_passes() -> None:
    payload = b'{"x":"' + b"a" * (MAX_EVENT_BYTES - 100) + b'"}'
    stream = data(payload, b"[DONE]")
    outcome = decode(stream[at : at + 65_536] for at in range(0, len(stream), 65_536))
    assert outcome == Outcome(data(payload), None, True, False, None, "")
