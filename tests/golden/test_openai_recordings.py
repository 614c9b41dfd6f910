"""Recorded replies of many providers that speak OpenAI's dialect, against an independent reading.

What counts as such is decided by content: an object of chat or text completions, or its chunks.
"""

import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gateway.core.operations import Operation
from gateway.core.usage import Usage
from gateway.providers.openai import ADAPTER
from gateway.providers.openai_stream import OpenAIStream

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(os.environ.get("SLUICE_FIXTURES") or ROOT.parent / "shared" / "fixtures")
RECORDINGS = FIXTURES / "provider-recordings"
OBJECTS = {"chat.completion", "chat.completion.chunk", "text_completion"}
NATIVE = ADAPTER.natives[Operation.CHAT]
END = b"data: [DONE]\n\n"
ODD_SIZES = (2, 3, 7, 61, 1021, 65_536)

pytestmark = pytest.mark.skipif(
    not RECORDINGS.is_dir(), reason=f"no recordings at {RECORDINGS} (set SLUICE_FIXTURES)"
)


# --- Finding them --------------------------------------------------------------------------------


def speaks_openai(content: Any) -> bool:
    return isinstance(content, dict) and content.get("object") in OBJECTS


@cache
def lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def is_stream(path: Path) -> bool:
    # Some providers leave `object` out: what has choices with a delta is the same dialect.
    try:
        chunks = [json.loads(line) for line in lines(path)]
    except ValueError:
        return False  # framed otherwise: another dialect
    return any(speaks_openai(c) or any("delta" in x for x in c.get("choices", [])) for c in chunks)


def is_reply(path: Path) -> bool:
    return speaks_openai(json.loads(path.read_bytes()))


def name(path: Path) -> str:
    return str(path.relative_to(RECORDINGS))


STREAMS = [path for path in sorted(RECORDINGS.rglob("*.chunks.txt")) if is_stream(path)]
REPLIES = [path for path in sorted(RECORDINGS.rglob("*.json")) if is_reply(path)]
EVERY_STREAM = pytest.mark.parametrize("path", STREAMS, ids=name)
EVERY_REPLY = pytest.mark.parametrize("path", REPLIES, ids=name)


# --- A straightforward reading -------------------------------------------------------------------


def parts_text(content: Any) -> str:
    """Text that is a string, or a list of parts as Mistral's reasoning models send it."""
    if isinstance(content, list):
        return "".join(parts_text(p.get("text") or p.get("thinking")) for p in content)
    return content or ""


def written(message: dict[str, Any]) -> str:
    """All that a model wrote in a message or delta: it is what the provider bills as output."""
    text = parts_text(message.get("content"))
    text += message.get("reasoning_content") or message.get("reasoning") or ""
    text += message.get("refusal") or ""
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        text += (function.get("name") or "") + (function.get("arguments") or "")
    return text


def generated(content: dict[str, Any]) -> str:
    choices = content.get("choices") or ()
    return "".join(
        written(c.get("delta") or c.get("message") or {"content": c.get("text")}) for c in choices
    )


def counted(usage: dict[str, Any] | None) -> Usage | None:
    """A usage in the gateway's terms: cached is part of the prompt, reasoning of the completion."""
    if usage is None:
        return None
    prompt, output = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    cached = cached or usage.get("prompt_cache_hit_tokens") or usage.get("cached_tokens") or 0
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    if usage.get("total_tokens") == prompt + output + reasoning:
        output += reasoning  # xAI reports reasoning beside the completion and bills both
    searched = usage.get("num_search_queries") or 0  # Perplexity's
    return Usage(prompt, cached, 0, output, reasoning, web_searches=searched)


class Reading(NamedTuple):
    """What is in a stream."""

    generated: str
    finish_reasons: list[str]
    usage: Usage | None


def read(chunks: Iterable[dict[str, Any]]) -> Reading:
    text, reasons, usage = "", [], None
    for chunk in chunks:
        text += generated(chunk)
        found = [choice.get("finish_reason") for choice in chunk.get("choices") or ()]
        reasons += [reason for reason in found if reason]
        usage = counted(chunk.get("usage")) or usage
    return Reading(text, reasons, usage)


# --- Streams -------------------------------------------------------------------------------------


def framed(path: Path) -> bytes:
    return b"".join(b"data: " + line.encode() + b"\n\n" for line in lines(path)) + END


class Decoded(NamedTuple):
    """What the decoder passed on, and what it learned."""

    shown: bytes
    generated: str
    usage: Usage | None
    done: bool
    finished: bool
    failure: str | None


def decode(pieces: Iterable[bytes], keep_usage: bool = True) -> Decoded:
    decoder = OpenAIStream(keep_usage)
    shown = b"".join([decoder.feed(piece) for piece in pieces])
    text = decoder.take_text()
    return Decoded(shown, text, decoder.usage, decoder.done, decoder.finished, decoder.failure)


def pieces(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


def test_the_recordings_cover_what_they_should() -> None:
    providers = {path.relative_to(RECORDINGS).parts[0] for path in STREAMS}
    assert providers >= {"openai", "azure", "deepseek", "groq", "mistral", "perplexity", "xai"}
    assert (len(STREAMS), len(REPLIES)) >= (20, 20)


@EVERY_STREAM
def test_a_stream_is_passed_on_as_it_came(path: Path) -> None:
    assert decode([framed(path)]).shown == framed(path).removesuffix(END)


@EVERY_STREAM
def test_a_streams_text_and_tool_calls_are_gathered(path: Path) -> None:
    expected = read(json.loads(line) for line in lines(path))
    assert decode([framed(path)]).generated == expected.generated


@EVERY_STREAM
def test_a_streams_usage_is_read(path: Path) -> None:
    expected = read(json.loads(line) for line in lines(path))
    assert decode([framed(path)]).usage == expected.usage
    decoder = OpenAIStream(True)
    decoder.feed(framed(path))
    assert decoder.usage is None or decoder.told_bytes == decoder.text_bytes


@EVERY_STREAM
def test_a_streams_end_is_seen(path: Path) -> None:
    expected = read(json.loads(line) for line in lines(path))
    whole = decode([framed(path)])
    assert (whole.done, whole.finished) == (True, bool(expected.finish_reasons))
    assert whole.failure is None
    unmarked = decode([framed(path).removesuffix(END)])
    assert unmarked == whole._replace(done=False)


@EVERY_STREAM
def test_a_streams_usage_event_is_withheld_unless_asked_for(path: Path) -> None:
    kept = [
        line
        for line in lines(path)
        if json.loads(line).get("choices") or not json.loads(line).get("usage")
    ]
    expected = b"".join(b"data: " + line.encode() + b"\n\n" for line in kept)
    assert decode([framed(path)], keep_usage=False).shown == expected


@EVERY_STREAM
def test_a_stream_an_event_at_a_time_is_the_same(path: Path) -> None:
    events = [event + b"\n\n" for event in framed(path).split(b"\n\n")[:-1]]
    assert decode(events) == decode([framed(path)])


@EVERY_STREAM
def test_a_stream_in_odd_pieces_is_the_same(path: Path) -> None:
    stream = framed(path)
    whole = decode([stream])
    for size in ODD_SIZES:
        assert decode(pieces(stream, size)) == whole, size


@EVERY_STREAM
def test_a_stream_one_byte_at_a_time_is_the_same(path: Path) -> None:
    stream = framed(path)
    assert decode(pieces(stream, 1)) == decode([stream])


@EVERY_STREAM
def test_a_stream_split_at_every_byte_is_the_same(path: Path) -> None:
    # A split matters only to the event it falls in: each event is split everywhere, between its
    # neighbours, which costs what the length does and not its square.
    events = [event + b"\n\n" for event in framed(path).split(b"\n\n")[:-1]]
    whole = [decode([b"".join(events[i : i + 3])]) for i in range(len(events))]
    step = 1 + len(framed(path)) // 20_000
    for i in range(len(events)):
        three = b"".join(events[i : i + 3])
        for at in range(0, len(events[i]), step):
            assert decode([three[:at], three[at:]]) == whole[i], (i, at)


# --- Whole replies -------------------------------------------------------------------------------


@EVERY_REPLY
def test_a_replys_usage_is_read(path: Path) -> None:
    reply = json.loads(path.read_bytes())
    assert NATIVE.parse_usage(path.read_bytes()) == counted(reply.get("usage"))


@EVERY_REPLY
def test_a_replys_text_is_read(path: Path) -> None:
    assert NATIVE.parse_text(path.read_bytes()) == generated(json.loads(path.read_bytes()))
