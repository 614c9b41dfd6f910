"""Chunks that repeat the last event: what passes undecoded is what would have passed decoded."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.providers.openai_stream import OpenAIStream
from tests.support.upstream import delta, usage

Event = dict[str, Any]
THOUSAND = "word " * 200


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def sse(content: Event | str, start: str = "data: ", end: str = "\n", **options: Any) -> bytes:
    text = content if isinstance(content, str) else json.dumps(content, **options)
    return f"{start}{text}{end}{end}".encode()


@dataclass
class Reader:
    """A decoder as a relay uses it; `by_frame` offers it each piece as a chunk first."""

    by_frame: bool
    keep_usage: bool = False
    text: str = ""
    repeated: int = 0
    decoder: OpenAIStream = field(init=False)

    def __post_init__(self) -> None:
        self.decoder = OpenAIStream(self.keep_usage)

    def take(self, piece: bytes) -> bytes:
        """Return what the client may have of a piece."""
        if self.by_frame and self.decoder.repeats(framed(piece)):
            self.repeated += 1
            return piece
        out = self.decoder.feed(piece)
        if self.decoder.attention and not self.decoder.done and self.decoder.failure is None:
            self.decoder.attention = False
            self.text += self.decoder.take_text()
        return out

    def learned(self) -> tuple[Any, ...]:
        """What is known of the stream; the text is taken."""
        self.text += self.decoder.take_text()
        of = self.decoder
        return of.usage, of.finished, of.done, of.failure, of.text_bytes, self.text


def same_either_way(pieces: list[bytes], keep_usage: bool = False) -> int:
    """Read in frames and without them; return how many frames passed undecoded."""
    frames, plain = Reader(True, keep_usage), Reader(False, keep_usage)
    for piece in pieces:
        assert frames.take(piece) == plain.take(piece), piece
    assert frames.learned() == plain.learned()
    return frames.repeated


def after(*pieces: bytes) -> OpenAIStream:
    """A decoder that has decoded these."""
    decoder = OpenAIStream(keep_usage=False)
    for piece in pieces:
        decoder.feed(piece)
    return decoder


# -- any stream ------------------------------------------------------------------------------------

ODD = [
    *("", " ", "Hello", "ö", "\U0001f600", "\u2028", "\x7f", '"', "\\", "\n", "\r\n", "\t", "\0"),
    *(",", ":", ": ", '":"', '","', "}", "{}", "data: [DONE]", "\n\ndata: [DONE]\n\n", "[DONE]"),
    *("content", "choices", "error", "usage", "stop", "null", "chatcmpl-1", "/", "a", "one", "two"),
]
TEXTS = st.sampled_from(ODD) | st.text(max_size=8) | st.integers(1, 900).map(lambda n: "a" * n)


def choices(*parts: Event, name: str = "delta") -> Event:
    return {"id": "c", "choices": [{"index": i, name: part} for i, part in enumerate(parts)]}


# Events with a text, and with something else that may be a text or nothing like it.
USUAL: list[Callable[[str, str], Event]] = [
    lambda text, other: delta(text),
    lambda text, other: {**delta(text), "id": other},
    lambda text, other: {"choices": [{"delta": {"content": text}}]},
    lambda text, other: {"choices": [{"text": text, "index": 0}], "model": other},
    lambda text, other: choices({"role": other, "content": text}),
]
SHAPES: list[Callable[[str, str], Event]] = [
    *USUAL,
    lambda text, other: choices({"content": text}, {"content": other}),
    lambda text, other: choices({"content": other}, {"content": text}),
    lambda text, other: choices({"content": text, "reasoning_content": other}),
    lambda text, other: choices({"content": text, "reasoning": other}),
    lambda text, other: choices({"content": text, "refusal": other}),
    lambda text, other: choices({"content": [{"text": text}]}),
    lambda text, other: choices({"content": text, "tool_calls": [{"function": {"name": other}}]}),
    lambda text, other: choices({"tool_calls": [{"function": {"arguments": text}}]}),
    lambda text, other: choices({"content": text}, name="message"),
    lambda text, other: {**choices({"content": text}), "text": other},
    lambda text, other: {**delta(text), "error": None, "usage": None, "obfuscation": other},
    lambda text, other: {**delta(text), "x_groq": {"id": "content", "error": other}},
    lambda text, other: {**delta(text), "usage": usage(7, len(other))},
    lambda text, other: {**choices({}), "choices": [], "usage": usage(7, len(text))},
    lambda text, other: delta(text, other),
    lambda text, other: delta(None, other),
    lambda text, other: {"error": {"message": text}},
    lambda text, other: {"choices": []},
]
MARKS = st.sampled_from(["[DONE]", "ping"])
STARTS = st.sampled_from(["data: "] * 20 + ["data:", "data:  ", "id: 1\ndata: ", ": ", "\ufeff"])
LINE_ENDS = st.sampled_from(["\n"] * 20 + ["\r\n", "\r", "\r\n\n"])
SEPARATORS = st.sampled_from([(",", ":"), (",", ":"), (", ", ": "), (" , ", " : "), (",", ":\r")])
SPLITS = st.sampled_from(["none"] * 12 + ["with the last", "in two"])


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Pieces of a stream: mostly one event each, mostly of one shape, as providers send."""
    options = {"separators": draw(SEPARATORS), "ensure_ascii": draw(st.booleans())}
    mostly, others = draw(st.sampled_from(USUAL + SHAPES)), draw(st.lists(TEXTS, min_size=1))
    pieces = [sse(delta(""))]
    for rare in draw(st.lists(st.integers(0, 9), min_size=3, max_size=12)):
        shape = mostly if rare < 8 else draw(st.sampled_from(SHAPES))
        event = shape(draw(TEXTS), draw(st.sampled_from(others)))
        content = event if rare < 9 else draw(st.just(event) | MARKS)
        data = sse(content, draw(STARTS), draw(LINE_ENDS), **options)
        split = draw(SPLITS)
        cut = draw(st.integers(0, len(data))) if split == "in two" else 0
        if split == "with the last":
            pieces[-1] += data
        else:
            pieces += [data[:cut], data[cut:]]
    return [piece for piece in pieces if piece]


@settings(max_examples=2000, deadline=None)
@given(pieces=streams(), keep_usage=st.booleans())
def test_frames_of_any_stream_come_to_the_same(pieces: list[bytes], keep_usage: bool) -> None:
    same_either_way(pieces, keep_usage)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("other", ["one", "two", "", "stop", '"'])
def test_frames_of_any_shape_come_to_the_same(
    shape: Callable[[str, str], Event], other: str
) -> None:
    same_either_way([sse(delta("")), *(sse(shape(text, other)) for text in ODD)])
    same_either_way([sse(delta("")), sse(shape("one", "one")), sse(shape("two", other))])
    same_either_way([sse(delta("")), sse(shape(other, "one")), sse(shape(other, "two"))])


def test_a_usual_stream_passes_undecoded() -> None:
    texts = ("one", " two", " three", " 4", " f\u00fcnf")
    words = [sse(delta(text), ensure_ascii=False) for text in texts]
    end = [sse(delta(None, "stop")), sse({"choices": [], "usage": usage(7, 5)}), sse("[DONE]")]
    assert same_either_way([sse(delta("")), *words, *end]) == 4


def test_a_long_stream_is_counted_as_a_whole() -> None:
    words = [sse(delta(THOUSAND)) for _ in range(100)]
    assert same_either_way([sse(delta("")), *words]) > 50


def test_a_text_that_is_not_taken_does_not_grow_for_ever() -> None:
    decoder, passed = after(sse(delta("")), sse(delta("one"))), 0
    frame = framed(sse(delta(THOUSAND)))
    while decoder.repeats(frame):
        passed += 1
        assert passed < 100
    decoder.feed(sse(delta("two")))
    assert decoder.attention
    assert decoder.take_text() == "one" + THOUSAND * passed + "two"
    assert decoder.repeats(frame)


# -- what is told apart by decoding alone ----------------------------------------------------------

LEARNT = sse(delta("one"))
ESCAPED = b'data: {"x":{"message":"m"},"choices":[{"delta":{"content":"\\u0078"}}]}\n\n'
TILDE = ESCAPED.replace(b"x", b"~").replace(b"0078", b"007e")
COLON = b'data: {"choices":[{"delta":{"content":":"}}]}\n\n'
IN_MODEL = b'data: {"model":"/","choices":[{"delta":{"content":"\\/"}}]}\n\n'


@pytest.mark.parametrize(
    ("learnt", "frame"),
    [
        pytest.param(ESCAPED, ESCAPED.replace(b'"x"', b'"error"'), id="a name becomes error"),
        pytest.param(ESCAPED, ESCAPED.replace(b'"x"', b'"y"'), id="a name"),
        pytest.param(
            *(TILDE, TILDE.replace(b'"~"', b'"error"')),
            id="a name that is what is probed with",
        ),
        pytest.param(IN_MODEL, IN_MODEL.replace(b'"/"', b'"a"'), id="another field"),
        pytest.param(COLON, COLON.replace(b't":"', b't" : "'), id="between two strings"),
    ],
)
def test_a_text_that_stands_elsewhere_too_is_not_mistaken(learnt: bytes, frame: bytes) -> None:
    same_either_way([sse(delta("")), learnt, frame])


@pytest.mark.parametrize("text", [b"a\tb", b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x7f"])
def test_a_text_that_is_no_json_is_counted_as_if_it_was_decoded(text: bytes) -> None:
    same_either_way([sse(delta("")), LEARNT, LEARNT.replace(b"one", text)])
