"""Every recorded stream, cut, bent and broken: decoders tell the same, or as much as can be told.

Nothing that a provider sends raises anything but UpstreamError, nor takes time that grows with
its square; what a client is shown stays well-formed in its dialect.
"""

import copy
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import call_ids, events
from gateway.core.aws_events import MAX_MESSAGE_BYTES
from gateway.core.errors import Failure, UpstreamError
from gateway.core.events import Event
from gateway.core.operations import Operation
from gateway.core.sse import MAX_EVENT_BYTES, MAX_WHOLE_BYTES
from gateway.formats import DIALECTS, Meta
from gateway.pipeline.translation import Translation
from gateway.providers.adapter import EventDecoder
from gateway.providers.anthropic_wire import MessagesDecoder
from gateway.providers.chat_stream import ChatDecoder
from gateway.providers.cohere_wire import CohereDecoder
from gateway.providers.converse_wire import ConverseDecoder
from gateway.providers.decoding import NativeStream, Noted
from gateway.providers.gemini_stream import GeminiDecoder
from gateway.providers.responses_wire import ResponsesDecoder
from tests.golden.recordings import NEEDS_RECORDINGS, RECORDINGS, Expected, Recording, read
from tests.golden.replay import FRAME, LAST, data, event_stream_message, frames, named
from tests.unit.test_aws_events import EVENT, text, written
from tests.unit.test_writers import (
    chat_stream,
    completion_stream,
    messages_stream,
    responses_stream,
)

pytestmark = NEEDS_RECORDINGS

Json = dict[str, Any]
META = Meta("req_1", "asked", 1_700_000_000)
LINEAR_SECONDS = 10.0  # of some tenths; it would be minutes, were it quadratic
DECODERS: dict[str, Callable[[], EventDecoder]] = {
    "chat": ChatDecoder,
    "completions": ChatDecoder,
    "responses": ResponsesDecoder,
    "messages": MessagesDecoder,
    "gemini": GeminiDecoder,
    "converse": ConverseDecoder,
    "cohere": CohereDecoder,
}
NATIVE: dict[str, Callable[[], NativeStream]] = {
    "messages": lambda: NativeStream(MessagesDecoder(), b"event: an ending\n\n"),
    "responses": lambda: NativeStream(ResponsesDecoder(), b""),
}
STREAMS = [recording for recording in RECORDINGS if recording.stream]
SIZES = {recording.name: sum(map(len, frames(recording))) for recording in STREAMS}
SAYS: list[Callable[[Expected], object]] = [
    lambda found: found.text,
    lambda found: found.tool_calls,
    lambda found: found.reasoning and found.text,
    lambda found: found.signatures and found.tool_calls,
]


def shortest(api: str) -> list[Recording]:
    """Of each kind of answer the shortest, for what takes long."""
    own = sorted([one for one in STREAMS if one.api == api], key=lambda one: SIZES[one.name])
    if not own:
        return []  # there are no recordings here at all
    found = [next((one for one in own if says(read(one))), own[-1]) for says in SAYS]
    return list({one.name: one for one in found if not read(one).failed}.values())


SHORT = [recording for api in DECODERS for recording in shortest(api)]
EVERY_STREAM = pytest.mark.parametrize("recording", STREAMS, ids=lambda one: one.name)
EVERY_SHORT = pytest.mark.parametrize("recording", SHORT, ids=lambda one: one.name)
EVERY_SSE = pytest.mark.parametrize(
    "recording", [one for one in SHORT if one.api != "converse"], ids=lambda one: one.name
)
EVERY_API = pytest.mark.parametrize("api", DECODERS)
EVERY_DIALECT = pytest.mark.parametrize("operation", DIALECTS, ids=lambda one: one.value)


def pieces(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


def decoded(api: str, parts: Iterable[bytes]) -> list[Event]:
    decoder = DECODERS[api]()
    found = [event for part in parts for event in decoder.feed(part)]
    return found + decoder.end()


def noted(found: list[Event]) -> Noted:
    told = Noted()
    told.note(found)
    return told


# --- Any split -----------------------------------------------------------------------------------


def test_every_api_has_streams() -> None:
    assert {recording.api for recording in STREAMS} == set(DECODERS) == {x.api for x in SHORT}


@EVERY_STREAM
def test_events_say_what_was_recorded(recording: Recording) -> None:
    expected = read(recording)
    found = decoded(recording.api, frames(recording))
    told = noted(found)
    assert (told.failure is not None) == expected.failed
    if expected.failed:
        return
    assert told.done or told.finished
    assert said(found, events.TextDelta) == expected.text
    assert said(found, events.ThinkingDelta) == expected.reasoning
    assert [(name, json.loads(text or "{}")) for name, text in called(found)] == expected.tool_calls
    assert told.usage == expected.usage
    assert told.usage is None or told.told_bytes == told.text_bytes  # figures are of all of it


def said(found: list[Event], kind: type) -> str:
    return "".join([getattr(one, "text", "") for one in found if isinstance(one, kind)])


def called(found: list[Event]) -> list[tuple[str, str]]:
    names = {one.index: one.name for one in found if isinstance(one, events.CallBegun)}
    texts = dict.fromkeys(names, "")
    for one in found:
        if isinstance(one, events.CallDelta):
            texts[one.index] += one.arguments
    return [(names[index], texts[index]) for index in sorted(names)]


@EVERY_STREAM
def test_any_pieces_come_to_the_same(recording: Recording) -> None:
    stream = b"".join(frames(recording))
    whole = decoded(recording.api, [stream])
    assert whole == decoded(recording.api, frames(recording))
    for size in (1 + len(stream) // 20_000, 7, 61, 1021, 65_536):
        assert decoded(recording.api, pieces(stream, size)) == whole, size


@EVERY_STREAM
def test_any_two_parts_come_to_the_same(recording: Recording) -> None:
    """Each event is split, on its way from those before it to the one behind it."""
    decoder, told = DECODERS[recording.api](), frames(recording)
    step = 1 + SIZES[recording.name] // 300
    offset = 0
    for one, following in zip(told, [*told[1:], b""], strict=True):
        both = one + following
        expected = copy.deepcopy(decoder).feed(both)
        for at in range(offset, len(one), step):
            twin = copy.deepcopy(decoder)
            assert twin.feed(both[:at]) + twin.feed(both[at:]) == expected, (one, at)
        offset = (offset - len(one)) % step
        decoder.feed(one)


@pytest.mark.parametrize(
    "recording", [one for one in STREAMS if one.api in NATIVE], ids=lambda one: one.name
)
def test_a_native_stream_shows_every_byte_once(recording: Recording) -> None:
    stream = b"".join(frames(recording))
    for parts in ([stream], frames(recording), pieces(stream, 61), pieces(stream, 65_536)):
        native = NATIVE[recording.api]()
        shown = b"".join([native.feed(part) for part in parts]) + native.close()
        if read(recording).failed:
            assert native.failure is not None
            assert stream.startswith(shown)
        else:
            assert native.done
            assert shown + native.finish() == stream
        assert native.feed(stream) == native.close() == b""


@pytest.mark.parametrize("api", NATIVE)
def test_a_native_stream_that_ends_without_its_end_is_given_one(api: str) -> None:
    recording = next(one for one in SHORT if one.api == api)
    *told, last = frames(recording)
    native = NATIVE[api]()
    assert b"".join([native.feed(one) for one in told]) == b"".join(told)
    assert native.close() == b""
    assert (native.done, native.finish()) == (False, NATIVE[api]().finish())
    # One whose empty line never came is whole all the same.
    assert native.feed(last.rstrip(b"\n")) == native.close() == b""
    assert (native.done, native.finish()) == (True, last)


# --- Through every client's writer ---------------------------------------------------------------


def check(operation: Operation, stream: bytes) -> str:
    """Read what was written, strictly; return its text."""
    match operation:
        case Operation.CHAT:
            return str(chat_stream(stream)["message"].get("content") or "")
        case Operation.COMPLETIONS:
            return completion_stream(stream)
        case Operation.MESSAGES:
            content = messages_stream(stream)["content"]
            return "".join([block["text"] for block in content if block["type"] == "text"])
    parts = [p for item in responses_stream(stream)["output"] for p in item.get("content", ())]
    return "".join([part.get("text", "") for part in parts])


def translated(api: str, operation: Operation, parts: Iterable[bytes]) -> tuple[Translation, bytes]:
    translation = Translation(DECODERS[api](), DIALECTS[operation].writer(META))
    shown = b"".join([translation.feed(part) for part in parts]) + translation.close()
    return translation, shown


@EVERY_DIALECT
@EVERY_STREAM
def test_what_a_client_is_shown_is_well_formed(recording: Recording, operation: Operation) -> None:
    stream = b"".join(frames(recording))
    translation, shown = translated(recording.api, operation, frames(recording))
    for size in (61, 65_536):
        assert translated(recording.api, operation, pieces(stream, size))[1] == shown
    if not read(recording).failed:
        assert check(operation, shown + translation.finish()).startswith(read(recording).text)
    if translation.over:  # of some providers only the connection's end is one
        assert translation.feed(stream) == translation.close() == b""


# --- Framing -------------------------------------------------------------------------------------

COMMENT = b": keep-alive\n\n"
UNKNOWN = named('{"type": "news", "choices": [], "candidates": []}')
REFRAMED: dict[str, Callable[[list[bytes]], bytes]] = {
    "CRLF": lambda told: plain(told).replace(b"\n", b"\r\n"),
    "CR": lambda told: plain(told).replace(b"\n", b"\r"),
    "line ends mixed": lambda told: b"".join(
        [plain([one]).replace(b"\n", (b"\n", b"\r\n", b"\r")[i % 3]) for i, one in enumerate(told)]
    ),
    "BOM": lambda told: b"\xef\xbb\xbf" + b"".join(told),
    "no space": lambda told: b"".join(told).replace(b"data: ", b"data:"),
    "comments": lambda told: COMMENT + b"".join([one + COMMENT for one in told]),
    "comments inside": lambda told: b"".join([b": x\n" + one for one in told]),
    "the type behind": lambda told: b"".join([turned(one) for one in told]),
    "no type": lambda told: b"".join([data(payload(one).decode()) for one in told]),
    "other fields": lambda told: b"".join([b"id: 1\nretry: 9\nx\n" + one for one in told]),
    "blank lines": lambda told: b"\n\n\n" + b"".join([one + b"\n\n" for one in told]),
    "blank events": lambda told: b"".join([b"data:\n\ndata: \n\n" + one for one in told]),
    "unknown events": lambda told: b"".join([told[0], *[UNKNOWN + one for one in told[1:]]]),
    "several lines": lambda told: b"".join([in_lines(one) for one in told]),
    "no last line end": lambda told: b"".join(told).rstrip(b"\r\n"),
    "the end marker twice": lambda told: b"".join(told) + data("[DONE]") * 2,
}


def plain(told: list[bytes]) -> bytes:
    return b"".join(told).replace(b"\r\n", b"\n")


def payload(frame: bytes) -> bytes:
    return frame.partition(b"data: ")[2].rstrip(b"\r\n")


def turned(frame: bytes) -> bytes:
    first = frame.partition(b"\n")[0]
    behind = first if first.startswith(b"event") else b"id: 1"
    return b"data: %b\n%b\n\n" % (payload(frame), behind)


def in_lines(frame: bytes) -> bytes:
    if payload(frame) == b"[DONE]":
        return frame
    lines = json.dumps(json.loads(payload(frame)), indent=1, ensure_ascii=False).split("\n")
    return b"".join([b"data: " + line.encode() + b"\n" for line in lines]) + b"\n"


@pytest.mark.parametrize("how", REFRAMED)
@EVERY_SSE
def test_framing_makes_no_difference(recording: Recording, how: str) -> None:
    stream = REFRAMED[how](frames(recording))
    expected = told_of(decoded(recording.api, frames(recording)))
    for size in (len(stream), 5):
        assert told_of(decoded(recording.api, pieces(stream, size))) == expected


def told_of(found: list[Event]) -> list[Event]:
    """All but the end marker, which need not stand twice; JSON within by its value."""
    return [
        events.CallDelta(one.index, "".join(one.arguments.split()))
        if isinstance(one, events.CallDelta)
        else events.TextDelta(one.text)
        if isinstance(one, events.TextDelta)
        else one
        for one in found
        if not isinstance(one, events.Ended)
    ]


@EVERY_SHORT
def test_unknown_fields_make_no_difference(recording: Recording) -> None:
    """Wherever an object may have more fields, it has them."""
    if recording.api == "converse":
        pytest.skip("its events are told by their one key")
    frame = FRAME[recording.api]
    more = [frame(json.dumps(with_more(one))) for one in recording.objects]
    found = decoded(recording.api, more + LAST.get(recording.api, []))
    whole = decoded(recording.api, frames(recording))
    assert [shape(one) for one in found] == [shape(one) for one in whole]


def shape(event: Event) -> object:
    """An event without what came as JSON that nobody reads."""
    match event:
        case events.CallDelta(index=index) | events.CallBegun(index=index):
            return type(event), index
        case events.TextDelta(text=text):
            return text
        case events.ThinkingSigned(block=block):
            return block
    return event


def with_more(found: Any) -> Any:
    if isinstance(found, dict):
        more = {"x-new": {"a": [None, 1.5, "x"]}, "y_new": "\u2028"}
        return {name: with_more(value) for name, value in found.items()} | more
    return [with_more(one) for one in found] if isinstance(found, list) else found


STARTS = {"content_block_start", "message_start", "response.created", "response.output_item.added"}
STARTS |= {"message-start", "content-start"}


@EVERY_SHORT
def test_what_begins_twice_begins_once(recording: Recording) -> None:
    frame, told = FRAME[recording.api], []
    for line in recording.lines:
        one = json.loads(line)
        twice = one.get("type") in STARTS or "contentBlockStart" in one or "messageStart" in one
        told += [frame(line)] * (2 if twice else 1)
    found = decoded(recording.api, told + LAST.get(recording.api, []))
    expected = decoded(recording.api, frames(recording))
    begun = [one for one in found if isinstance(one, events.Begun)]
    assert begun == [one for one in expected if isinstance(one, events.Begun)] * len(begun)
    assert called(found) == called(expected)
    assert said(found, events.TextDelta) == said(expected, events.TextDelta)


# --- What no recording has -----------------------------------------------------------------------


def chunk(finish: str | None = None, **delta: Any) -> Json:
    return {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def call(function: Json, **fields: Any) -> Json:
    return chunk(tool_calls=[{"function": function, **fields}])


def block(kind: str, index: int, **fields: Any) -> Json:
    name = "delta" if kind == "content_block_delta" else "content_block"
    return {"type": kind, "index": index, name: fields}


def responses_done(index: int, **item: Any) -> Json:
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def gemini_call(pieces: list[Json], *, name: str = "", more: bool = True) -> Json:
    call: Json = {"partialArgs": pieces, "willContinue": more} | ({"name": name} if name else {})
    return {"candidates": [{"content": {"parts": [{"functionCall": call}]}}]}


def cohere_call(index: int, id: str, *pieces: str) -> list[Json]:
    called: list[Json] = [{"id": id, "function": {"name": "f", "arguments": ""}}]
    called += [{"function": {"arguments": piece}} for piece in pieces]
    kinds = ["tool-call-start", *["tool-call-delta"] * len(pieces)]
    return [
        {"type": kind, "index": index, "delta": {"message": {"tool_calls": one}}}
        for kind, one in zip(kinds, called, strict=True)
    ]


BEGUN: list[Event] = [events.Begun("x")]
TWO_CALLS: list[Event] = [
    *BEGUN,
    events.CallBegun(0, "a", "f"),
    events.CallDelta(0, "{}"),
    events.CallBegun(1, "b", "g"),
    events.CallDelta(1, '{"x":1}'),
]
ITEM = {"type": "function_call", "call_id": "a", "name": "f"}
TRANSCRIPTS: dict[str, tuple[str, list[Json], list[Event]]] = {
    "calls that are all number 0, as at Google": (
        "chat",
        [
            call({"name": "f", "arguments": "{}"}, index=0, id="a"),
            call({"name": "g", "arguments": '{"x":1}'}, index=0, id="b"),
        ],
        TWO_CALLS,
    ),
    "a call whose id changes with every delta, as at vLLM": (
        "chat",
        [
            call({"name": "f", "arguments": ""}, index=0, id="a"),
            call({"arguments": '{"x"'}, index=0, id="b"),
            call({"arguments": ":1}"}, index=0, id="c"),
        ],
        [
            *BEGUN,
            events.CallBegun(0, "a", "f"),
            events.CallDelta(0, '{"x"'),
            events.CallDelta(0, ":1}"),
        ],
    ),
    "calls without numbers": (
        "chat",
        [
            call({"name": "f"}, id="a"),
            call({"arguments": "{}"}),
            call({"name": "g", "arguments": {"x": 1}}, id="b"),
        ],
        TWO_CALLS,
    ),
    "calls without numbers and ids": (
        "chat",
        [call({"name": "f", "arguments": "{}"}), call({"name": "f", "arguments": "{}"})],
        [
            *BEGUN,
            events.CallBegun(0, "call_x_0", "f"),
            events.CallDelta(0, "{}"),
            events.CallBegun(1, "call_x_1", "f"),
            events.CallDelta(1, "{}"),
        ],
    ),
    "an empty reason with every chunk": (
        "chat",
        [chunk("", content="a"), chunk("", content="b")],
        [*BEGUN, events.TextDelta("a"), events.TextDelta("b")],
    ),
    "a thought that is whole and signed as it begins": (
        "messages",
        [block("content_block_start", 0, type="thinking", thinking="Hm.", signature="s")],
        [events.ThinkingDelta("Hm."), events.ThinkingSigned("s")],
    ),
    "an empty signature": (
        "messages",
        [block("content_block_delta", 0, type="signature_delta", signature="")],
        [],
    ),
    "a call that is only told when it is done": (
        "responses",
        [{"type": "response.output_item.done", "item": {**ITEM, "arguments": "{}"}}],
        [events.CallBegun(0, "a", "f"), events.CallDelta(0, "{}")],
    ),
    "arguments that are an object": (
        "responses",
        [
            {"type": "response.output_item.added", "item": ITEM},
            {"type": "response.output_item.done", "item": {**ITEM, "arguments": {"x": True}}},
        ],
        [events.CallBegun(0, "a", "f"), events.CallDelta(0, '{"x": true}')],
    ),
    "thoughts and a refusal that are only told when they are done": (
        "responses",
        [
            responses_done(0, type="reasoning", summary=[{"text": "hm"}, {"text": "so"}]),
            responses_done(1, type="reasoning", summary=[{"text": "on"}], encrypted_content="s"),
            responses_done(2, type="reasoning", summary=[], encrypted_content="t"),
            responses_done(3, type="message", content=[{"text": "a"}, {"refusal": "b"}]),
        ],
        [
            events.ThinkingDelta("hm\n\nso"),
            events.ThinkingDelta("on", 1),
            events.ThinkingSigned("sluice:responses:s", block=1),
            events.ThinkingSigned(redacted="sluice:responses:t", block=2),
            events.TextDelta("a"),
            events.RefusalDelta("b"),
        ],
    ),
    "an end that has more than anybody knows": (
        "responses",
        [{"type": "response.completed", "response": {"id": None, "output": [{"content": "x"}]}}],
        [events.Finished("stop"), events.Ended()],
    ),
    "null among the pieces of arguments, and in their place": (
        "cohere",
        [
            *cohere_call(0, "a", '{"x":', ' "', "null", " pointer", '"}'),
            *cohere_call(1, "b", "", "null"),
            *cohere_call(2, "c", "nu", "ll"),
            *cohere_call(3, "d", "n", "ull", "s"),
        ],
        [
            events.CallBegun(0, "a", "f"),
            *[events.CallDelta(0, one) for one in ('{"x":', ' "', "null", " pointer", '"}')],
            events.CallBegun(1, "b", "f"),
            events.CallBegun(2, "c", "f"),
            events.CallBegun(3, "d", "f"),
            events.CallDelta(3, "nulls"),
        ],
    ),
    "what follows the end": (
        "cohere",
        [
            {"type": "message-end", "delta": {"finish_reason": "COMPLETE"}},
            {"type": "content-delta", "delta": {"message": {"content": {"text": "x"}}}},
        ],
        [events.Finished("stop"), events.Ended()],
    ),
    "what follows a failure": (
        "messages",
        [{"type": "error"}, block("content_block_delta", 0, type="text_delta", text="x")],
        [events.Failed('{"type": "error"}')],
    ),
    "nulls that are left out of a list": (
        "gemini",
        [
            gemini_call([{"jsonPath": "$.a[2]", "numberValue": 1}], name="f", more=False)
            | {"responseId": "x"}
        ],
        [
            *BEGUN,
            events.CallBegun(0, "call_x_0", "f"),
            events.CallDelta(0, '{"a":[null,null,1]}'),
        ],
    ),
}


@pytest.mark.parametrize(("api", "told", "expected"), TRANSCRIPTS.values(), ids=TRANSCRIPTS)
def test_a_stream_says(api: str, told: list[Json], expected: list[Event]) -> None:
    stream = b"".join([framed(api, one) for one in told])
    assert decoded(api, [stream]) == decoded(api, pieces(stream, 7)) == expected


# --- An abrupt end -------------------------------------------------------------------------------


def ends(one: Json) -> bool:
    """Whether an event says that the model has ended, in its provider's words."""
    inner = [*(one.get("choices") or one.get("candidates") or ()), one.get("delta")]
    inner.append(one.get("message"))
    reasons = ("finish_reason", "finishReason", "stop_reason")
    return (
        any(isinstance(x, dict) and x.get(reason) for x in inner for reason in reasons)
        or one.get("type") in ("response.completed", "response.incomplete")
        or "messageStop" in one
    )


@EVERY_SHORT
def test_a_cut_is_seen_wherever_it_is(recording: Recording) -> None:
    """A stream is finished from the event on that says so, be its empty line there or not."""
    told = frames(recording)
    number = next(i for i, one in enumerate(recording.objects) if ends(one))
    through = b"".join(told[: number + 1])
    end = len(through) if recording.api == "converse" else len(through.rstrip(b"\r\n"))
    stream = through + b"".join(told[number + 1 :])
    step = 1 + len(stream) // 400
    for at in [*range(0, end - 1, step), end - 1, end, *range(end, len(stream), step)]:
        found = noted(decoded(recording.api, [stream[:at]]))
        assert (found.done or found.finished) == (at >= end), (at, stream[:at][-80:])
        assert found.failure is None
        if recording.api in NATIVE:
            native = NATIVE[recording.api]()
            shown = native.feed(stream[:at]) + native.close()
            assert (native.done or native.finished) == (at >= end)
            assert stream[: at + 2].startswith(shown)


# --- Broken events -------------------------------------------------------------------------------


def every_kind(api: str) -> Iterator[tuple[EventDecoder, Json]]:
    """Of events that are alike but for their values the first, with a decoder as it finds it."""
    known: set[str] = set()
    for recording in STREAMS:
        if recording.api == api:
            decoder = DECODERS[api]()
            for line in recording.lines:
                one = json.loads(line)
                if (key := repr(kind(one))) not in known:
                    known.add(key)
                    yield decoder, one
                decoder.feed(FRAME[recording.api](line))


def kind(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: value if name == "type" else kind(value) for name, value in found.items()}
    if isinstance(found, list):
        return sorted({repr(kind(one)) for one in found})
    return type(found).__name__


def leaves(found: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(found, dict):
        inner = found.items()
    elif isinstance(found, list):
        inner = list(enumerate(found))[:3]
    else:
        yield path
    for name, value in inner:
        yield from leaves(value, (*path, name))


def put(found: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value somewhere."""
    if not path:
        return value
    twin = copy.copy(found)
    twin[path[0]] = put(found[path[0]], path[1:], value)
    return twin


# Fields that say something: without them an event says something else.
WORDS = {"content", "text", "thinking", "reasoning", "reasoning_content", "delta", "refusal"}
WORDS |= {"partial_json", "arguments", "input", "stringValue", "jsonPath", "tool_plan", "thought"}
WORDS |= {"index", "output_index", "contentBlockIndex", "type", "name", "willContinue"}
WORDS |= {"finish_reason", "stop_reason", "finishReason", "stopReason", "numberValue", "boolValue"}


@EVERY_API
def test_a_null_anywhere_costs_no_more_than_itself(api: str) -> None:
    for decoder, one in every_kind(api):
        expected = words(copy.deepcopy(decoder).feed(framed(api, one)))
        for path in leaves(one):
            found = copy.deepcopy(decoder).feed(framed(api, put(one, path, None)))
            if not WORDS & set(path):
                assert words(found) == expected, path


def words(found: list[Event]) -> list[Event]:
    """What an event says, without who says it, when, and what it cost."""
    kinds = (events.TextDelta, events.ThinkingDelta, events.CallDelta, events.RefusalDelta)
    return [one for one in found if isinstance(one, (*kinds, events.Finished))]


def framed(api: str, one: Any) -> bytes:
    """An event on the wire; those of AWS have a type and a payload, or cannot be said."""
    if api == "converse":
        name, value = next(iter(one.items())) if isinstance(one, dict) and one else ("x", one)
        return event_stream_message(json.dumps({name: value}))
    text = json.dumps(one, ensure_ascii=False)
    return data(text)


WRONG: list[Any] = [[], {}, "", "12", 12, -1.5, True, 10**30, [None], {"a": None}]


@EVERY_API
def test_another_type_anywhere_raises_nothing(api: str) -> None:
    for number, (decoder, one) in enumerate(every_kind(api)):
        places = [path[:length] for path in leaves(one) for length in range(len(path) + 1)]
        for i, path in enumerate(dict.fromkeys(places)):
            twin = copy.deepcopy(decoder)
            twin.feed(framed(api, put(one, path, WRONG[(number + i) % len(WRONG)])))
            twin.feed(framed(api, one))
            twin.end()


@EVERY_API
def test_bytes_that_are_no_text_raise_nothing_foreign(api: str) -> None:
    for decoder, one in every_kind(api):
        sound = framed(api, one)
        for at in range(8, len(sound), 1 + len(sound) // 60):
            twin = copy.deepcopy(decoder)
            with suppress(UpstreamError):
                twin.feed(sound[:at] + b"\xff" + sound[at + 1 :])
                twin.feed(sound)
                twin.end()


@EVERY_API
def test_an_event_that_is_no_json_is_no_part_of_an_answer(api: str) -> None:
    """What it said would be lost, and the rest would look whole."""
    decoder, _ = next(iter(every_kind(api)))
    for damaged in (b'{"cut": ', b"<html>", b"\xff\xfe"):
        aws = written(EVENT | {":event-type": text("contentBlockDelta")}, damaged)
        frame = aws if api == "converse" else b"data: " + damaged + b"\n\n"
        with pytest.raises(UpstreamError, match="cannot be read"):
            copy.deepcopy(decoder).feed(frame)
    if api == "converse":
        blank = written(EVENT | {":event-type": text("initial-response")}, b"")
        assert decoder.feed(blank) in ([], [events.Begun()])
        return
    for empty in (b": comment\n\n", b"data:\n\n", b"event: ping\n\n"):
        assert copy.deepcopy(decoder).feed(empty) == []


DEEP = "[" * 100_000
CLOSED = '{"a":' * 1500 + "1" + "}" * 1500


@EVERY_API
def test_deep_nesting_is_contained(api: str) -> None:
    seen: set[Any] = set()
    for decoder, one in every_kind(api):
        for path in leaves(one):
            name = (one.get("type"), *[step for step in path if isinstance(step, str)])
            if name in seen:
                continue
            seen.add(name)
            text = json.dumps(put(one, path, "DEEP"), ensure_ascii=False)
            for nested in (DEEP, CLOSED):
                broken = text.replace('"DEEP"', nested)
                twin = copy.deepcopy(decoder)
                frame = data(broken) if api != "converse" else in_aws(one, broken)
                with suppress(UpstreamError):
                    twin.feed(frame)
                twin.feed(framed(api, one))


def in_aws(one: Json, broken: str) -> bytes:
    """A message whose payload need not be JSON."""
    inner = broken.partition(":")[2].strip().removesuffix("}")
    return written(EVENT | {":event-type": text(next(iter(one)))}, inner.encode())


@EVERY_API
@pytest.mark.parametrize("size", [65_536, 2**25])
@pytest.mark.parametrize("end", [b"", b"\n\n"])
def test_an_event_past_the_cap_is_refused(api: str, size: int, end: bytes) -> None:
    most = {"converse": MAX_MESSAGE_BYTES, "responses": MAX_WHOLE_BYTES}.get(api, MAX_EVENT_BYTES)
    content = json.dumps({"type": "text", "x": "a" * most}).encode()
    stream = written(EVENT, content) if api == "converse" else b"data: " + content + end
    with pytest.raises(UpstreamError) as caught:
        decoded(api, pieces(stream, size))
    damaged = Failure.PROTOCOL if api == "converse" else Failure.TOO_LARGE
    assert caught.value.failure is damaged


@pytest.mark.parametrize("missing", range(4))
@EVERY_API
def test_an_end_at_the_cap_raises_nothing_else(api: str, missing: int) -> None:
    stream = b"data: " + b"a" * (MAX_EVENT_BYTES - 6 - missing)
    with suppress(UpstreamError):
        assert noted(decoded(api, [stream])).text_bytes == 0


# --- Any mutation --------------------------------------------------------------------------------

JUNK = st.one_of(
    st.sampled_from(
        (
            b"\n\n",
            b": x\n\n",
            b"data:\n\n",
            b"data: {}\n\n",
            b"data: null\n\n",
            b"event: error\ndata: {}\n\n",
            b"data: [DONE]\n\n",
            b'data: {"type":"error","error":{"message":"x"}}\n\n',
            b'data: {"error":{"message":"x"}}\n\n',
            b"\xff\xfe\n\n",
            b"\r",
        )
    ),
    st.binary(max_size=20),
)
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4), st.floats()),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(("type", "text", "index", "id")), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def mutated(draw: st.DrawFn, recording: Recording) -> list[bytes]:
    """A recorded stream to which several things have happened."""
    api, objects = recording.api, list(recording.objects)
    told = frames(recording)
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(objects) - 1))
        match draw(st.sampled_from(("change", "change", "drop", "twice", "swap", "junk", "cut"))):
            case "change":
                path = draw(st.sampled_from(list(leaves(objects[at]))))
                path = path[: draw(st.integers(0, len(path)))]
                try:
                    told[at] = framed(api, put(objects[at], path, draw(ANYTHING)))
                except ValueError:
                    told[at] = b""  # what cannot be framed
            case "drop":
                told[at] = b""
            case "twice":
                told[at] += told[at]
            case "swap":
                other = draw(st.integers(0, len(objects) - 1))
                told[at], told[other] = told[other], told[at]
            case "junk":
                told[at] += draw(JUNK)
            case "cut":
                told[at] = told[at][: draw(st.integers(0, len(told[at])))]
    return told


@pytest.fixture(scope="module", autouse=True)
def alike_names() -> Iterator[None]:
    """What has no id is given one by chance: here always the same, so that answers compare."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(call_ids, "request_id", lambda: "req_" + 24 * "0")
        yield


@EVERY_API
@settings(max_examples=40, deadline=None)
@given(draw=st.data())
def test_no_mutation_breaks_what_a_client_is_shown(api: str, draw: st.DataObject) -> None:
    recording = draw.draw(st.sampled_from([one for one in SHORT if one.api == api]))
    told = draw.draw(mutated(recording))
    stream = b"".join(told)
    for operation in DIALECTS:
        with suppress(UpstreamError):
            translation, shown = translated(api, operation, told)
            assert translated(api, operation, [stream])[1] == shown
            if translation.failure is None:
                check(operation, shown + translation.finish())


# --- Time ----------------------------------------------------------------------------------------

DELTAS: dict[str, Callable[[str], Json]] = {
    "chat": lambda text: {"choices": [{"index": 0, "delta": {"content": text}}]},
    "completions": lambda text: {"choices": [{"index": 0, "text": text}]},
    "responses": lambda text: {"type": "response.output_text.delta", "delta": text},
    "messages": lambda text: {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": text},
    },
    "gemini": lambda text: {"candidates": [{"content": {"parts": [{"text": text}]}}]},
    "converse": lambda text: {"contentBlockDelta": {"delta": {"text": text}}},
    "cohere": lambda text: {
        "type": "content-delta",
        "delta": {"message": {"content": {"text": text}}},
    },
}


@EVERY_API
def test_time_grows_with_the_length_alone(api: str) -> None:
    one = framed(api, DELTAS[api]("a" * 3_000_000))
    many = framed(api, DELTAS[api]("a")) * 20_000
    began = time.process_time()
    assert noted(decoded(api, pieces(one, 64))).text_bytes == 3_000_000
    assert noted(decoded(api, pieces(many, 50))).text_bytes == 20_000
    assert time.process_time() - began < LINEAR_SECONDS


@EVERY_DIALECT
def test_writing_takes_time_that_grows_with_the_length_alone(operation: Operation) -> None:
    writer = DIALECTS[operation].writer(META)
    garbled: list[Event] = [events.CallBegun(0, "a", "f"), events.CallDelta(0, "{" * 100_000)]
    mixed: list[Event] = [events.ThinkingDelta("b"), events.TextDelta("a")]
    began = time.process_time()
    shown = writer.write(garbled + mixed * 3_000) + writer.finish()
    assert time.process_time() - began < LINEAR_SECONDS
    assert check(operation, shown) == "a" * 3_000


def test_arguments_in_pieces_take_linear_time_and_bounded_space() -> None:
    piece = {"jsonPath": "$.a[0].b", "stringValue": "x" * 50}
    stream = [gemini_call([piece] * 50, name="f"), *[gemini_call([piece] * 50)] * 800]
    began = time.process_time()
    found = decoded("gemini", [framed("gemini", one) for one in stream])
    assert time.process_time() - began < LINEAR_SECONDS
    ((name, arguments),) = called(found)
    assert name == "f"
    assert json.loads(arguments) == {"a": [{"b": "x" * 2_002_500}]}


@pytest.mark.parametrize(
    "path",
    [
        "$" + ".a" * 200_000,
        "$.a" + "[0]" * 200_000,
        "$.a" + "[9999]" * 50,
        "$.a[" + "9" * 5000 + "]",
        "$.a[999999999]",
        "$['" * 200_000,
        "$['" + "\\" * 200_000,
        '$["' + "\\'" * 200_000,
        "$" + "." * 200_000,
        "[[[[]]]]",
        "",
        "a",
    ],
    ids=lambda path: path[:12],
)
def test_no_path_into_arguments_is_too_much(path: str) -> None:
    said = {"jsonPath": path, "stringValue": "x"}
    began = time.process_time()
    found = decoded("gemini", [framed("gemini", gemini_call([said] * 2, name="f", more=False))])
    assert time.process_time() - began < LINEAR_SECONDS
    assert len(called(found)[0][1]) < 10_000


def test_blocks_of_thought_in_pieces_take_linear_time() -> None:
    """OpenRouter's way; what is put together goes back as it came."""
    detail = {"type": "reasoning.text", "index": 0, "text": "x" * 40, "signature": None}
    chunk = {"choices": [{"delta": {"reasoning_details": [detail] * 50}}]}
    signing = {**detail, "text": None, "signature": "s"}
    last = {"choices": [{"delta": {"content": "Hi", "reasoning_details": [signing]}}]}
    began = time.process_time()
    found = decoded("chat", [framed("chat", one) for one in [*[chunk] * 800, last]])
    assert time.process_time() - began < LINEAR_SECONDS
    (signed,) = [one for one in found if isinstance(one, events.ThinkingSigned)]
    assert json.loads(signed.signature.removeprefix("sluice:openai:")) == {
        **detail,
        "text": "x" * 40 * 50 * 800,
        "signature": "s",
    }
