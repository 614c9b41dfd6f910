"""What a client of chat completions was sent, read back for the next one who asks the same."""

import json
from typing import Any

import pytest

from gateway.core.messages import Part, Reply, Text, Thinking, ToolCall, mark
from gateway.core.operations import Operation
from gateway.core.usage import Usage
from gateway.formats import DIALECTS, Meta
from gateway.formats.chat_answer import in_others
from gateway.pipeline.replay import readable
from gateway.pipeline.translation import events_of

CHAT = Operation.CHAT
META = Meta("req_1", "m", 1)
CALL = ToolCall("call_1", "look", '{"a":1}')
TEXT = Text("Hello")


def reply(*parts: Part) -> Reply:
    return Reply(id="x", model="m", parts=parts, finish="tool_calls", usage=Usage(1, 0, 0, 2))


def sent(found: Reply, *, stream: bool) -> bytes:
    dialect = DIALECTS[CHAT]
    if not stream:
        return dialect.encode(found, META)
    writer = dialect.writer(META)
    return writer.write(events_of(found)) + writer.finish()


def read(data: bytes, *, stream: bool) -> Reply:
    found = readable(CHAT, streamed=stream, data=data)
    assert found is not None
    return found


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "parts",
    [
        (Thinking("I think", "SIG=="), TEXT, CALL),
        (Thinking("", "SIG=="), CALL),
        (Thinking(redacted="RED=="), Thinking("so", "SIG=="), Thinking("on", "SIH=="), TEXT, CALL),
        (Thinking("so", mark("gemini", "S")), CALL),
        (Thinking("so"), TEXT, CALL),
        (Thinking("so"), Thinking("on", "SIG=="), TEXT),
        (Thinking("on", "SIG=="), Thinking("so"), TEXT),
        (Thinking(redacted=mark("openai-responses-v1", "gAAA")), CALL),
        (TEXT, ToolCall("call_1", "look", "{}", mark("gemini", "S"))),
    ],
)
def test_thoughts_and_signatures_are_read_as_they_were_written(
    parts: tuple[Part, ...], stream: bool
) -> None:
    assert read(sent(reply(*parts), stream=stream), stream=stream).parts == parts


DETAILS: list[dict[str, Any]] = [
    {
        "type": "reasoning.text",
        "text": "I think",
        "index": 0,
        "format": "anthropic-claude-v1",
        "signature": "SIG==",
    },
    {
        "type": "reasoning.encrypted",
        "data": "gAAA",
        "index": 1,
        "format": "openai-responses-v1",
    },
]
EXTRA = {"google": {"thought_signature": "REAL=="}}


def native(*, stream: bool) -> bytes:
    """What a provider of this dialect says itself."""
    call = {"id": "call_1", "type": "function", "extra_content": EXTRA}
    call["function"] = {"name": "look", "arguments": "{}"}
    said = {"reasoning": "I think", "reasoning_details": DETAILS, "tool_calls": [call]}
    if not stream:
        choice = {"index": 0, "message": said, "finish_reason": "tool_calls"}
        return json.dumps({"id": "x", "choices": [choice]}).encode()
    pieces: list[dict[str, Any]] = [
        {"reasoning": "I ", "reasoning_details": [{**DETAILS[0], "text": "I ", "signature": None}]},
        {"reasoning": "think", "reasoning_details": [{**DETAILS[0], "text": "think"}]},
        {"reasoning_details": [DETAILS[1]]},
        {"tool_calls": [{**call, "index": 0}]},
    ]
    choices = [{"index": 0, "delta": one} for one in pieces]
    choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
    told = [json.dumps({"id": "x", "choices": [one]}) for one in choices]
    return "".join([f"data: {one}\n\n" for one in (*told, "[DONE]")]).encode()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_a_provider_of_this_dialect_signed_is_given_as_it_came(stream: bool) -> None:
    found = read(native(stream=stream), stream=stream)
    message = json.loads(sent(found, stream=False))["choices"][0]["message"]
    plain = {name: value for name, value in DETAILS[0].items() if name != "format"}
    assert message["reasoning_details"] == [plain, DETAILS[1]]  # Anthropic's where it says nothing
    assert [call["extra_content"] for call in message["tool_calls"]] == [EXTRA]


def test_other_dialects_have_a_calls_signature_with_its_makers_mark() -> None:
    found = in_others(read(native(stream=True), stream=True))
    (call,) = [part for part in found.parts if isinstance(part, ToolCall)]
    assert call.signature == mark("openai-call", json.dumps(EXTRA, separators=(",", ":")))
    ours = reply(ToolCall("call_1", "look", "{}", mark("gemini", "S")))
    assert in_others(ours) == ours
