"""Replies and streams as each client dialect writes them: well-formed, and nothing lost on the way.

The readers at the top are what a strict client would be: each raises where its dialect's grammar
is broken, and puts the message together. They share no code with the gateway.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from gateway.core import events
from gateway.core.call_ids import plain
from gateway.core.errors import ApiError
from gateway.core.events import Event
from gateway.core.messages import (
    UNSIGNED,
    Part,
    Refusal,
    Reply,
    Text,
    Thinking,
    ToolCall,
    marked,
)
from gateway.core.operations import Operation
from gateway.core.usage import Usage
from gateway.formats import DIALECTS, Meta
from gateway.formats.body import decode
from gateway.formats.messages_reply import MAX_HELD_CHARS
from gateway.pipeline.translation import events_of
from gateway.providers.chat_thoughts import at_calls

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(os.environ.get("SLUICE_FIXTURES") or ROOT.parent / "shared" / "fixtures")

Json = dict[str, Any]
META = Meta("req_1", "asked", 1_700_000_000, prompt_tokens=9)
USAGE = Usage(7, 3, 1, 5, 2)


# --- Readers of streams --------------------------------------------------------------------------


def frames(stream: bytes) -> list[tuple[str, str]]:
    """Take a stream apart, allowing for no line that a writer has no need of."""
    found = []
    for one in stream.decode().removesuffix("\n\n").split("\n\n") if stream else ():
        lines = one.split("\n")
        kind = lines.pop(0).removeprefix("event: ") if one.startswith("event: ") else ""
        assert len(lines) == 1, one
        assert lines[0].startswith("data: "), one
        found.append((kind, lines[0][6:]))
    assert not stream or stream.endswith(b"\n\n")
    return found


def chat_stream(stream: bytes) -> Json:
    """Put chunks together as OpenAI's SDK does; the message is that of a whole reply."""
    found = frames(stream)
    assert all(not kind for kind, _ in found)
    assert [text for _, text in found if text == "[DONE]"] == [found[-1][1]] == ["[DONE]"]
    chunks = [json.loads(text) for _, text in found[:-1]]
    assert len({(one["id"], one["created"], one["model"], one["object"]) for one in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    told = [one for one in chunks if one["choices"]]
    spent = [one for one in chunks if not one["choices"]]
    assert chunks == told + spent
    assert all(set(one) >= {"usage"} for one in spent)
    assert len(spent) <= 1
    choices = [choice for one in told for choice in one["choices"]]
    assert len(choices) == len(told)
    assert [choice["finish_reason"] is None for choice in choices[:-1]] == [True] * len(told[:-1])
    message: Json = {}
    for choice in choices:
        assert choice["index"] == 0
        add_delta(message, choice["delta"], first=choice is choices[0])
    finish = choices[-1]["finish_reason"]
    assert finish
    return {"message": message, "finish": finish, "usage": spent[0]["usage"] if spent else None}


def add_delta(message: Json, delta: Json, *, first: bool) -> None:
    assert ("role" in delta) == first
    for name, value in delta.items():
        if name == "tool_calls":
            calls = message.setdefault("tool_calls", [])
            for call in value:
                index = call.pop("index")
                if index == len(calls):
                    assert call.keys() >= {"id", "type", "function"}
                    assert call["function"].keys() == {"name", "arguments"}
                    calls.append(call)
                else:
                    assert set(call) == {"function"}
                    calls[index]["function"]["arguments"] += call["function"]["arguments"]
        else:
            message[name] = message[name] + value if name in message else value


def completion_stream(stream: bytes) -> str:
    """Put a legacy completion's chunks together; return the text."""
    found = frames(stream)
    assert [text for _, text in found if text == "[DONE]"] == [found[-1][1]] == ["[DONE]"]
    chunks = [json.loads(text) for _, text in found[:-1]]
    assert {one["object"] for one in chunks} == {"text_completion"}
    choices = [choice for one in chunks for choice in one["choices"]]
    assert [choice["finish_reason"] is None for choice in choices] == [True] * (
        len(choices) - 1
    ) + [False]
    return "".join([choice["text"] for choice in choices])


# What may come in a block of a type.
DELTAS = {
    "text": {"text_delta": "text"},
    "thinking": {"thinking_delta": "thinking", "signature_delta": "signature"},
    "tool_use": {"input_json_delta": "partial_json"},
    "redacted_thinking": {},
}


def messages_stream(stream: bytes) -> Json:
    """Put a message together as Anthropic's SDKs do; a call's `input` stays text."""
    found = [(kind, json.loads(text)) for kind, text in frames(stream)]
    assert all(kind == one["type"] for kind, one in found)
    (_, start), *middle, (_, end), (_, stop) = found
    assert (start["type"], end["type"]) == ("message_start", "message_delta")
    assert stop == {"type": "message_stop"}
    assert start["message"]["content"] == []
    assert start["message"]["stop_reason"] is None
    blocks: list[Json] = []
    is_open = False
    for kind, one in middle:
        if kind == "content_block_start":
            assert not is_open
            assert one["index"] == len(blocks)
            assert one["content_block"]["type"] in DELTAS
            blocks.append(one["content_block"])
            is_open = True
            if blocks[-1]["type"] == "tool_use":
                assert blocks[-1]["input"] == {}
                blocks[-1]["input"] = ""
        elif kind == "content_block_stop":
            assert is_open
            assert one["index"] == len(blocks) - 1
            is_open = False
        else:
            assert kind == "content_block_delta"
            block, delta = blocks[one["index"]], one["delta"]
            assert is_open
            assert block is blocks[-1]
            name = DELTAS[block["type"]][delta["type"]]
            block["input" if name == "partial_json" else name] += delta[name]
    assert not is_open
    assert end["delta"]["stop_reason"]
    return {**start["message"], **end["delta"], "content": blocks, "usage": end["usage"]}


# What an item's part is called, and its text in the events of it.
PARTS = {
    "response.output_text": "text",
    "response.refusal": "refusal",
    "response.reasoning_summary_text": "text",
    "response.function_call_arguments": "arguments",
}


class OpenItem:
    """An item that is not done: what came of the text of its part."""

    def __init__(self, item: Json) -> None:
        self.item, self.text, self.parts, self.ended = item, "", 0, False

    def take(self, kind: str, one: Json) -> None:
        """Take an event of the item."""
        assert one["item_id"] == self.item["id"]
        name, _, step = kind.rpartition(".")
        if step == "added":
            assert self.parts == 0
            self.parts += 1
        elif step == "delta":
            assert self.parts or self.item["type"] == "function_call"
            assert not self.ended
            self.text += one["delta"]
        elif name in PARTS:
            self.ended = True
            assert one[PARTS[name]] == (self.text or ("{}" if "call" in name else ""))
        else:  # content_part.done, reasoning_summary_part.done
            assert self.ended
            self.parts -= 1
            part = one["part"]
            assert part[PARTS.get(f"response.{part['type']}", "text")] == self.text

    def done(self, item: Json) -> None:
        """Check that nothing is missing."""
        assert self.parts == 0
        assert (item["id"], item["type"]) == (self.item["id"], self.item["type"])
        assert item.get("status", "completed") == "completed"
        said = [part.get("text", part.get("refusal")) for part in item.get("content", ())]
        said += [part["text"] for part in item.get("summary", ())]
        expected = self.text or ("{}" if item["type"] == "function_call" else "")
        assert "".join(said) + item.get("arguments", "") == expected
        assert self.ended or item["type"] == "reasoning"


def responses_stream(stream: bytes) -> Json:
    """Follow the events of a response; return what the last one has of it."""
    found = [(kind, json.loads(text)) for kind, text in frames(stream)]
    assert [one["sequence_number"] for _, one in found] == list(range(len(found)))
    assert all(kind == one["type"] for kind, one in found)
    (first, created), (second, _), *middle, (ending, whole) = found
    assert (first, second) == ("response.created", "response.in_progress")
    assert created["response"]["status"] == "in_progress"
    opened: dict[int, OpenItem] = {}
    output: dict[int, Json] = {}
    for kind, one in middle:
        place = one["output_index"]
        if kind == "response.output_item.added":
            assert place == len(opened) + len(output)
            opened[place] = OpenItem(one["item"])
        elif kind == "response.output_item.done":
            opened.pop(place).done(one["item"])
            output[place] = one["item"]
        else:
            opened[place].take(kind, one)
    assert opened == {}
    response: Json = whole["response"]
    assert response["output"] == [output[place] for place in range(len(output))]
    assert ending == f"response.{response['status']}"
    assert response["id"] == created["response"]["id"]
    return response


# --- What comes back -----------------------------------------------------------------------------


class Wire(NamedTuple):
    """A dialect: what of a reply, whole or put together, a client sends back as the history."""

    operation: Operation
    whole: Callable[[Json], list[Json]]
    streamed: Callable[[bytes], list[Json]]
    asked: Callable[[list[Json]], Json]


def parsed(block: Json) -> Json:
    return block | {"input": json.loads(block["input"] or "{}")} if "input" in block else block


def assistant(content: list[Json]) -> list[Json]:
    return [{"role": "assistant", "content": content}] if content else []


QUESTION = {"role": "user", "content": "?"}
WIRES = {
    "chat": Wire(
        Operation.CHAT,
        lambda reply: [reply["choices"][0]["message"]],
        lambda stream: [chat_stream(stream)["message"]],
        lambda said: {"model": "m", "messages": [QUESTION, *said]},
    ),
    "messages": Wire(
        Operation.MESSAGES,
        lambda reply: assistant(reply["content"]),
        lambda stream: assistant([parsed(b) for b in messages_stream(stream)["content"]]),
        lambda said: {"model": "m", "max_tokens": 9, "messages": [QUESTION, *said]},
    ),
    "responses": Wire(
        Operation.RESPONSES,
        lambda reply: list(reply["output"]),
        lambda stream: list(responses_stream(stream)["output"]),
        lambda said: {"model": "m", "input": [QUESTION, *said]},
    ),
}
EVERY_WIRE = pytest.mark.parametrize("name", WIRES)


def back(wire: Wire, said: list[Json]) -> list[Part]:
    """The parts of the reply as they stand in the prompt that follows it."""
    request = decode(wire.operation, json.dumps(wire.asked(said)).encode())
    turns = DIALECTS[wire.operation].prompt(request).messages
    assert [turn.role for turn in turns] in (["user"], ["user", "assistant"])
    return [alike(part) for turn in turns[1:] for part in turn.parts]


def alike(part: Part) -> Part:
    """Arguments by their value: some dialects have them as JSON, which no client spaces alike.

    A signature that says there is none is none.
    """
    if isinstance(part, Thinking) and part.signature == UNSIGNED:
        return Thinking(part.text)
    if not isinstance(part, ToolCall):
        return part
    try:
        arguments = json.dumps(json.loads(part.arguments), sort_keys=True)
    except (ValueError, RecursionError):
        arguments = part.arguments
    return ToolCall(part.id, part.name, arguments, part.signature)


def encoded(name: str, reply: Reply) -> Json:
    found: Json = json.loads(DIALECTS[WIRES[name].operation].encode(reply, META))
    return found


def streamed(name: str, found: list[Event]) -> bytes:
    writer = DIALECTS[WIRES[name].operation].writer(META)
    return b"".join([writer.write([one]) for one in found]) + writer.finish()


def merged(parts: list[Part]) -> list[Part]:
    """Put texts that follow each other together, and leave out empty ones."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, Text | Refusal) and not part.text:
            continue
        if isinstance(part, Text) and isinstance(last, Text):
            found[-1] = Text(last.text + part.text)
        elif isinstance(part, Refusal) and isinstance(last, Refusal):
            found[-1] = Refusal(last.text + part.text)
        else:
            found.append(part)
    return [alike(part) for part in found]


def expected(name: str, parts: list[Part], *, stream: bool) -> list[Part]:
    """What a dialect has no place for: here stand all the exceptions."""
    found: list[Part] = []
    if name == "chat":
        return merged(in_chat(parts, stream=stream))
    for part in parts:
        if isinstance(part, ToolCall) and name == "messages":  # whose ids have few characters
            part = msgspec.structs.replace(part, id=plain(part.id))
        match part:
            case Refusal(text=text) if name == "messages":
                found.append(Text(text))  # it has none
            case ToolCall(signature=signature) if signature:
                # Calls have no signature: it goes before them, as thought that nobody can read.
                found += [
                    Thinking(redacted=signature),
                    ToolCall(part.id, part.name, part.arguments),
                ]
            case Thinking(text="", signature=secret) if marked(secret) and name == "responses":
                # Without a text they look alike, and to who made them they are.
                found.append(Thinking(redacted=secret))
            case _:
                found.append(part)
    return merged(found)


def in_chat(parts: list[Part], *, stream: bool) -> list[Part]:
    """Chat completions keep no order: thoughts, text, refusal, calls; texts are one."""
    parts = list(at_calls(tuple(parts)))  # what is Gemini's before a call may be on it as well
    thoughts = [part for part in parts if isinstance(part, Thinking)]
    secret = [part for part in thoughts if part.signature or part.redacted]
    plain = "".join([part.text for part in thoughts if part not in secret])
    found: list[Part] = list(thoughts if secret else [])
    if not secret or stream:
        # A stream cannot know that a signature follows: thoughts without one stand as plain text.
        found = list(secret)
        if any(part.text for part in secret):
            found = between(secret, "".join([part.text for part in thoughts]))
        elif plain:
            found.append(Thinking(plain))
    found.append(Text("".join([part.text for part in parts if isinstance(part, Text)])))
    found.append(Refusal("".join([part.text for part in parts if isinstance(part, Refusal)])))
    return found + [part for part in parts if isinstance(part, ToolCall)]


def between(signed: list[Thinking], text: str) -> list[Part]:
    """Signed thoughts with what stands between them in a text, but for blanks."""
    found: list[Part] = []
    for part in signed:
        before, _, text = text.partition(part.text) if part.text else ("", "", text)
        found += [Thinking(before), part] if before.strip() else [part]
    return [*found, Thinking(text)] if text.strip() else found


# --- Any reply -----------------------------------------------------------------------------------

ODD = ["\n\n", "data: x\n\n", "\r", "\0", "\x1b[31m", "\u2028", "\ufeff", '"}\\', "🌧️漢字", "[DONE]"]
TEXTS = st.one_of(st.text(st.characters(codec="utf-8"), max_size=12), st.sampled_from(ODD))
SOME = TEXTS.filter(bool)
SECRETS = st.one_of(st.sampled_from(("c2ln", "sluice:gemini:c2ln")), SOME)
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)
    )
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.builds(
    json.dumps,
    st.dictionaries(TEXTS, VALUES, max_size=3),
    ensure_ascii=st.booleans(),
    indent=st.sampled_from((None, 2)),
)
GARBLED = st.sampled_from(('{"a": 1', "[" * 2000, "[1]", "7", '"x"', '{"a": NaN}', "{}}", "\0"))
THOUGHTS = st.one_of(
    st.builds(Thinking, SOME, st.just("")),
    st.builds(Thinking, TEXTS, SECRETS),
    st.builds(Thinking, redacted=SECRETS),
)


def calls(arguments: st.SearchStrategy[str]) -> st.SearchStrategy[Part]:
    return st.builds(ToolCall, SOME, SOME, arguments, st.just("") | SECRETS)


def replies(arguments: st.SearchStrategy[str]) -> st.SearchStrategy[list[Part]]:
    return st.lists(
        st.one_of(st.builds(Text, TEXTS), st.builds(Refusal, TEXTS), THOUGHTS, calls(arguments)),
        max_size=6,
    )


def reply(parts: list[Part], finish: str = "stop") -> Reply:
    return Reply(id="x-1", model="m-1", parts=tuple(parts), finish=finish, usage=USAGE)


@EVERY_WIRE
@settings(max_examples=60, deadline=None)
@given(parts=replies(ARGUMENTS))
def test_a_reply_comes_back_as_it_was(name: str, parts: list[Part]) -> None:
    said = WIRES[name].whole(encoded(name, reply(parts)))
    assert merged(back(WIRES[name], said)) == expected(name, parts, stream=False)


@EVERY_WIRE
@settings(max_examples=60, deadline=None)
@given(parts=replies(ARGUMENTS), cuts=st.data())
def test_a_stream_comes_back_as_it_was(name: str, parts: list[Part], cuts: st.DataObject) -> None:
    found = [piece for one in events_of(reply(parts)) for piece in cut(one, cuts)]
    said = WIRES[name].streamed(streamed(name, found))
    assert merged(back(WIRES[name], said)) == expected(name, parts, stream=True)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_request_of_many_lines_is_said_again_in_one(ending: str) -> None:
    asked = {
        "model": "m",
        "input": "?",
        "metadata": {"a": "b\n"},
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
    }
    body = json.dumps(asked, indent=2).replace("\n", ending)
    echo = decode(Operation.RESPONSES, body.encode()).fields
    writer = DIALECTS[Operation.RESPONSES].writer(msgspec.structs.replace(META, echo=echo))
    stream = writer.write([events.TextDelta("Hello")]) + writer.finish()
    assert b"\r" not in stream
    told = responses_stream(stream)
    assert (told["metadata"], told["tools"]) == (asked["metadata"], asked["tools"])
    failed = DIALECTS[Operation.RESPONSES].writer(msgspec.structs.replace(META, echo=echo))
    for _, text in frames(failed.error(ApiError("stream_interrupted", "x"))):
        json.loads(text)


def cut(event: Event, cuts: st.DataObject) -> list[Event]:
    """A delta in pieces, some of them empty."""
    match event:
        case events.TextDelta(text=text):
            return [events.TextDelta(piece) for piece in in_pieces(text, cuts)]
        case events.RefusalDelta(text=text):
            return [events.RefusalDelta(piece) for piece in in_pieces(text, cuts)]
        case events.ThinkingDelta(text=text, block=block):
            return [events.ThinkingDelta(piece, block) for piece in in_pieces(text, cuts)]
        case events.CallDelta(index=index, arguments=text):
            return [events.CallDelta(index, piece) for piece in in_pieces(text, cuts)]
    return [event]


def in_pieces(text: str, cuts: st.DataObject) -> list[str]:
    at = cuts.draw(st.integers(0, len(text)))
    return [text[:at], text[at:]]


@pytest.mark.parametrize("name", ["chat", "responses"])
@settings(max_examples=40, deadline=None)
@given(parts=replies(GARBLED))
def test_garbled_arguments_come_back_as_they_were(name: str, parts: list[Part]) -> None:
    said = WIRES[name].whole(encoded(name, reply(parts)))
    assert merged(back(WIRES[name], said)) == expected(name, parts, stream=False)
    said = WIRES[name].streamed(streamed(name, events_of(reply(parts))))
    assert merged(back(WIRES[name], said)) == expected(name, parts, stream=True)


@settings(max_examples=40, deadline=None)
@given(parts=replies(GARBLED))
def test_garbled_arguments_stay_readable_where_they_must_be_an_object(parts: list[Part]) -> None:
    """Anthropic's clients get them wrapped; in a stream, as they are."""
    garbled = [part.arguments for part in parts if isinstance(part, ToolCall)]
    content = encoded("messages", reply(parts))["content"]
    wrapped = [block["input"] for block in content if block["type"] == "tool_use"]
    for arguments, found in zip(garbled, wrapped, strict=True):
        assert found in ({"raw": arguments}, {"value": as_json(arguments)})
    content = messages_stream(streamed("messages", events_of(reply(parts))))["content"]
    assert [block["input"] for block in content if block["type"] == "tool_use"] == garbled


def as_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


@EVERY_WIRE
def test_strings_that_break_programs_come_back(name: str) -> None:
    path = FIXTURES / "naughty-strings" / "blns.json"
    if not path.is_file():
        pytest.skip(f"no strings at {path} (set SLUICE_FIXTURES)")
    strings = [text for text in json.loads(path.read_text()) if text]
    parts: list[Part] = []
    for i, text in enumerate(strings):
        parts.append(ToolCall(f"c{i}", text, json.dumps({text: text})))
    parts.append(Text("\n".join(strings)))
    found = WIRES[name].whole(encoded(name, reply(parts)))
    assert merged(back(WIRES[name], found)) == expected(name, parts, stream=False)
    found = WIRES[name].streamed(streamed(name, events_of(reply(parts))))
    assert merged(back(WIRES[name], found)) == expected(name, parts, stream=True)


# --- Any events ----------------------------------------------------------------------------------

LOGPROBS = st.sampled_from(
    (None, Raw(b"[]"), Raw(b'[\n{"token": "a",\n"logprob": -1}]'), Raw(b"5"), Raw(b'["\xff"]'))
)
BLOCKS = st.integers(0, 2)
EVENTS = st.one_of(
    st.builds(events.TextDelta, TEXTS, LOGPROBS),
    st.builds(events.RefusalDelta, TEXTS),
    st.builds(events.ThinkingDelta, TEXTS, BLOCKS),
    st.builds(events.ThinkingSigned, SOME, st.just(""), BLOCKS),
    st.builds(events.ThinkingSigned, st.just(""), SOME, BLOCKS),
    st.builds(events.Begun, TEXTS, TEXTS),
    st.builds(events.Finished, st.sampled_from(("stop", "length", "tool_calls"))),
    st.just(events.Used(USAGE)),
)


PIECES = TEXTS | st.sampled_from(("{", "}", "{}", '{"x":', "1}", " "))


@st.composite
def disorderly(draw: st.DrawFn) -> list[Event]:
    """Events as no provider should send them: calls go on behind what follows them."""
    found: list[Event] = []
    begun = 0
    for step in draw(st.lists(st.one_of(st.just("call"), st.just("more"), EVENTS), max_size=12)):
        if step == "call":
            found.append(events.CallBegun(begun, draw(SOME), draw(SOME), draw(TEXTS)))
            begun += 1
        elif step == "more" and begun:
            found.append(events.CallDelta(draw(st.integers(0, begun - 1)), draw(PIECES)))
        elif not isinstance(step, str):
            found.append(step)
    return found


ACROSS: list[Event] = [
    events.CallBegun(0, "a", "f"),
    events.CallBegun(1, "b", "g"),
    events.CallDelta(0, '{"x":'),
    events.TextDelta("t"),
    events.CallDelta(1, "{}"),
    events.CallDelta(0, "1}"),
]


def assert_said(arguments: str, told: str) -> None:
    """What follows a whole object cannot be part of it."""
    whole = isinstance(as_json(arguments), dict) and told.startswith(arguments)
    assert arguments == told or whole


def texts(found: list[Event]) -> str:
    return "".join([one.text for one in found if isinstance(one, events.TextDelta)])


def arguments_of(found: list[Event]) -> list[str]:
    said = [""] * sum(isinstance(one, events.CallBegun) for one in found)
    for one in found:
        if isinstance(one, events.CallDelta):
            said[one.index] += one.arguments
    return said


@settings(max_examples=80, deadline=None)
@given(found=disorderly())
def test_chat_is_well_formed_whatever_happens(found: list[Event]) -> None:
    read = chat_stream(streamed("chat", found))
    assert (read["message"].get("content") or "") == texts(found)
    said = [call["function"]["arguments"] for call in read["message"].get("tool_calls", ())]
    assert said == [one or "{}" for one in arguments_of(found)]


@settings(max_examples=80, deadline=None)
@given(found=disorderly())
@example(ACROSS)
def test_responses_are_well_formed_whatever_happens(found: list[Event]) -> None:
    output = responses_stream(streamed("responses", found))["output"]
    messages = [item["content"] for item in output if item["type"] == "message"]
    assert "".join([p.get("text", "") for parts in messages for p in parts]) == texts(found)
    said = [item["arguments"] for item in output if item["type"] == "function_call"]
    for arguments, told in zip(said, arguments_of(found), strict=True):
        assert_said(arguments, told or "{}")


@settings(max_examples=80, deadline=None)
@given(found=disorderly())
@example(ACROSS)
def test_messages_are_well_formed_whatever_happens(found: list[Event]) -> None:
    content = messages_stream(streamed("messages", found))["content"]
    said = [block["input"] for block in content if block["type"] == "tool_use"]
    for arguments, told in zip(said, arguments_of(found), strict=True):
        assert_said(arguments, told)
    written = [one.text for one in found if isinstance(one, events.TextDelta | events.RefusalDelta)]
    text = "".join([block["text"] for block in content if block["type"] == "text"])
    assert text == "".join(written)


@settings(max_examples=40, deadline=None)
@given(found=disorderly())
def test_completions_are_well_formed_whatever_happens(found: list[Event]) -> None:
    writer = DIALECTS[Operation.COMPLETIONS].writer(META)
    assert completion_stream(writer.write(found) + writer.finish()) == texts(found)


@settings(max_examples=30, deadline=None)
@given(found=disorderly())
def test_a_stream_that_fails_says_so_last(found: list[Event]) -> None:
    error = ApiError("stream_interrupted", "It\nbroke.")
    for operation, dialect in DIALECTS.items():
        writer = dialect.writer(META)
        told = [(kind, json.loads(text)) for kind, text in frames(writer.write(found))]
        said = [(kind, json.loads(text)) for kind, text in frames(writer.error(error))]
        kind, last = said[-1]
        if operation is Operation.RESPONSES:
            numbers = [one["sequence_number"] for _, one in told + said]
            assert numbers == list(range(len(numbers)))
            assert last["response"]["error"]["message"] == "It\nbroke."
            assert [kind for kind, _ in said[-2:]] == ["error", "response.failed"]
            # Each who shares the stream is told alike: none of them has seen what others are told.
            again = [json.loads(text)["sequence_number"] for _, text in frames(writer.error(error))]
            assert again == numbers[-2:]
        else:
            assert kind == ("error" if operation is Operation.MESSAGES else "")
            assert last["error"]["message"] == "It\nbroke."


# --- Transcripts ---------------------------------------------------------------------------------


@EVERY_WIRE
@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("stop", ("stop", "end_turn", "completed")),
        ("length", ("length", "max_tokens", "incomplete")),
        ("tool_calls", ("tool_calls", "tool_use", "completed")),
        ("content_filter", ("content_filter", "refusal", "incomplete")),
    ],
)
def test_why_it_ended_is_said_in_the_dialects_words(
    name: str, reason: str, words: tuple[str, str, str]
) -> None:
    word = dict(zip(WIRES, words, strict=True))[name]
    whole = encoded(name, reply([Text("a")], reason))
    stream = streamed(name, events_of(reply([Text("a")], reason)))
    match name:
        case "chat":
            assert whole["choices"][0]["finish_reason"] == chat_stream(stream)["finish"] == word
        case "messages":
            assert whole["stop_reason"] == messages_stream(stream)["stop_reason"] == word
        case _:
            assert whole["status"] == responses_stream(stream)["status"] == word


def test_usage_is_what_was_used() -> None:
    found = events_of(reply([Text("a")]))
    whole = encoded("chat", reply([Text("a")]))["usage"]
    assert whole == chat_stream(streamed("chat", found))["usage"]
    assert (whole["prompt_tokens"], whole["completion_tokens"], whole["total_tokens"]) == (7, 5, 12)
    whole = encoded("messages", reply([Text("a")]))["usage"]
    assert whole == messages_stream(streamed("messages", found))["usage"]
    assert whole["input_tokens"] + whole["cache_read_input_tokens"] == 7 - 1
    whole = encoded("responses", reply([Text("a")]))["usage"]
    assert whole == responses_stream(streamed("responses", found))["usage"]
    assert (whole["input_tokens"], whole["output_tokens"]) == (7, 5)


@pytest.mark.parametrize("name", WIRES)
def test_a_stream_of_nothing_is_well_formed(name: str) -> None:
    assert back(WIRES[name], WIRES[name].streamed(streamed(name, []))) == []


def test_an_empty_text_opens_no_block() -> None:
    """Bedrock and the Responses API begin with empty deltas."""
    found: list[Event] = [events.TextDelta(""), events.TextDelta("Hi"), events.TextDelta("")]
    assert messages_stream(streamed("messages", found))["content"] == [
        {"type": "text", "text": "Hi"}
    ]


def test_a_call_without_arguments_has_none() -> None:
    begun: list[Event] = [events.CallBegun(0, "c", "f"), events.CallBegun(1, "d", "g")]
    for name, wire in WIRES.items():
        found = back(wire, wire.streamed(streamed(name, begun)))
        assert found == [ToolCall("c", "f", "{}"), ToolCall("d", "g", "{}")], name


def test_calls_that_are_whole_are_done_before_the_next_begins() -> None:
    writer = DIALECTS[Operation.RESPONSES].writer(META)
    writer.write([events.CallBegun(0, "a", "f"), events.CallDelta(0, '{"x":1}')])
    kinds = [kind for kind, _ in frames(writer.write([events.CallBegun(1, "b", "g")]))]
    assert kinds == [
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.output_item.added",
    ]


def test_parallel_calls_of_messages_are_blocks_one_after_the_other() -> None:
    """As some servers tell them: both begin, and their arguments come by turns."""
    writer = DIALECTS[Operation.MESSAGES].writer(META)
    told: list[Event] = [
        events.CallBegun(0, "a", "f"),
        events.CallDelta(0, '{"x":'),
        events.CallBegun(1, "b", "g"),
        events.CallDelta(1, '{"y":'),
        events.CallBegun(2, "c", "h"),
    ]
    assert b'"id":"b"' not in writer.write(told)
    shown = writer.write([events.CallDelta(0, "1}")])
    kinds = [kind.removeprefix("content_block_") for kind, _ in frames(shown)]
    assert kinds == ["delta", "stop", "start", "delta"]
    shown += writer.write([events.CallDelta(2, "{}"), events.TextDelta("t")])
    assert b'"id":"c"' not in shown
    kinds = [kind.removeprefix("content_block_") for kind, _ in frames(writer.finish())]
    assert kinds[:3] == ["stop", "start", "delta"]
    writer = DIALECTS[Operation.MESSAGES].writer(META)
    more: list[Event] = [
        events.CallDelta(0, "1}"),
        events.CallDelta(1, "2}"),
        events.CallDelta(2, "{}"),
        events.TextDelta("t"),
    ]
    content = messages_stream(writer.write([*told, *more]) + writer.finish())["content"]
    assert [block.get("input") for block in content] == ['{"x":1}', '{"y":2}', "{}", None]
    assert content[-1]["text"] == "t"


def test_what_waits_for_a_call_is_bounded() -> None:
    writer = DIALECTS[Operation.MESSAGES].writer(META)
    told: list[Event] = [events.CallBegun(0, "a", "f"), events.CallDelta(0, "{")]
    shown = writer.write([*told, *[events.TextDelta("x" * 1000)] * 1200])
    assert len(shown) > MAX_HELD_CHARS
    shown += writer.write([events.CallDelta(0, "}"), events.TextDelta("y")]) + writer.finish()
    call, text = messages_stream(shown)["content"]
    assert call["input"] == "{"
    assert text["text"] == "x" * 1_200_000 + "y"


def work(calls: int) -> int:
    """How many functions are called to end a stream of so many calls without arguments."""
    writer = DIALECTS[Operation.MESSAGES].writer(META)
    for number in range(calls):
        writer.write([events.CallBegun(number, f"call_{number}", "f")])
    called = 0

    def count(frame: FrameType, what: str, more: Any) -> None:
        nonlocal called
        called += what == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        end = writer.finish()
    finally:
        sys.setprofile(before)
    assert end.count(b"event: content_block_start") == calls - 1
    return called


def test_calls_that_wait_for_each_other_take_their_turn_once() -> None:
    assert work(400) < 2.5 * work(200)


def test_nothing_looks_finished_before_the_end() -> None:
    """A client reads no further than the reason; some providers send one with every event."""
    found: list[Event] = [events.TextDelta("a"), events.Finished("stop"), events.TextDelta("b")]
    for operation in (Operation.CHAT, Operation.COMPLETIONS):
        writer = DIALECTS[operation].writer(META)
        told = [json.loads(text) for _, text in frames(writer.write(found))]
        assert [one["choices"][0]["finish_reason"] for one in told] == [None, None]


def test_a_call_that_nobody_began_is_no_ones() -> None:
    for dialect in DIALECTS.values():
        writer = dialect.writer(META)
        shown = writer.write([events.CallDelta(3, "{}")])
        assert shown == b"" or dialect is DIALECTS[Operation.CHAT]


def test_log_probabilities_are_read_only_where_they_can_be() -> None:
    good = Raw(b'[{"token":"a",\n"logprob":-0.5}]')
    for raw, listed in ((good, [{"token": "a", "logprob": -0.5}]), (Raw(b'["\xff"]'), [])):
        parts: list[Part] = [Text("a", logprobs=raw)]
        found = chat_chunks(streamed("chat", events_of(reply(parts))))
        assert found[0]["choices"][0]["logprobs"]["content"] == listed
        output = responses_stream(streamed("responses", events_of(reply(parts))))["output"]
        assert output[0]["content"][0]["logprobs"] == listed
        whole = encoded("chat", reply(parts))["choices"][0]["logprobs"]
        assert whole == ({"content": listed, "refusal": None} if listed else None)


def chat_chunks(stream: bytes) -> list[Json]:
    return [json.loads(text) for _, text in frames(stream) if text != "[DONE]"]
