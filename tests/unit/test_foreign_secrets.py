"""Signatures and encrypted thoughts go to their maker alone, by way of any client."""

import json
from typing import Any

import pytest

from gateway.core import events
from gateway.core.messages import (
    ANTHROPIC,
    RESPONSES,
    UNSIGNED,
    Fit,
    Reply,
    Text,
    Thinking,
    ToolCall,
    mark,
)
from gateway.core.operations import Operation
from gateway.formats import DIALECTS, Meta
from gateway.formats.body import decode
from gateway.pipeline.translation import events_of
from gateway.providers.responses import ResponsesConversation
from tests.unit.test_provider_rules import CHAT, at, put

Json = dict[str, Any]
META = Meta("req_1", "m", 1)
CLAUDE = "claude-sonnet-4-5"
PARTS = (Thinking("hm", "EqQB"), Thinking(redacted="EmwK"), Text("Hello"))
REPLY = Reply(id="x", model="m", parts=PARTS, finish="stop")
ASKED = {"role": "user", "content": "?"}
THOUGHT = [
    {"type": "thinking", "thinking": "hm", "signature": "EqQB"},
    {"type": "redacted_thinking", "data": "EmwK"},
]
SAID = {"type": "text", "text": "Hello"}


def items(reply: Reply = REPLY, *, stream: bool) -> list[Json]:
    """What Claude said as a client of Responses has it."""
    dialect = DIALECTS[Operation.RESPONSES]
    if not stream:
        found: list[Json] = json.loads(dialect.encode(reply, META))["output"]
        return found
    writer = dialect.writer(META)
    told = (writer.write(events_of(reply)) + writer.finish()).decode().rstrip().splitlines()[-1]
    return list(json.loads(told.removeprefix("data: "))["response"]["output"])


def reasoning(secret: str, text: str = "") -> Json:
    summary = [{"type": "summary_text", "text": text}] if text else []
    return {"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": secret}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_clients_of_responses_have_claudes_secrets_with_its_mark(stream: bool) -> None:
    said = items(stream=stream)
    secrets = [item["encrypted_content"] for item in said if item["type"] == "reasoning"]
    assert secrets == [mark(ANTHROPIC, "EqQB"), mark(ANTHROPIC, "EmwK")]
    asked = {"input": [ASKED, *said, ASKED]}
    for kind in ("openai", "azure", "xai"):
        sent, _ = put(kind, "gpt-5", Operation.RESPONSES, asked)
        assert [item["type"] for item in sent["input"][1:-1]] == ["message"]
    for kind in ("anthropic", "vertex"):
        sent, _ = put(kind, CLAUDE, Operation.RESPONSES, asked)
        assert sent["messages"][1]["content"] == [*THOUGHT, SAID]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_signature_without_a_text_is_no_redacted_thought(stream: bool) -> None:
    """As Claude signs its thoughts where nobody asked to see them."""
    parts = (Thinking("", "EqQB"), ToolCall("call_1", "look", "{}"), Thinking(redacted="EmwK"))
    reply = Reply(id="x", model="m", parts=parts, finish="tool_calls")
    said = items(reply, stream=stream)
    sent, _ = put("anthropic", CLAUDE, Operation.RESPONSES, {"input": [ASKED, *said, ASKED]})
    signed, call, redacted = sent["messages"][1]["content"]
    assert signed == {"type": "thinking", "thinking": "", "signature": "EqQB"}
    assert call["type"] == "tool_use"
    assert redacted == {"type": "redacted_thinking", "data": "EmwK"}
    sent, _ = put("openai", "gpt-5", Operation.RESPONSES, {"input": [ASKED, *said, ASKED]})
    assert [item.get("type") for item in sent["input"][1:-1]] == ["function_call"]
    # The cache reads it again.
    body = json.dumps({"output": said}).encode()
    assert ResponsesConversation().parse(body).parts == parts
    done = [{"type": "response.output_item.done", "output_index": 0, "item": said[0]}]
    stream_of_it = b"".join([b"data: %b\n\n" % json.dumps(one).encode() for one in done])
    (event,) = ResponsesConversation().decoder().feed(stream_of_it)
    assert event == events.ThinkingSigned("EqQB")


@pytest.mark.parametrize("kind", ["anthropic", "vertex", "bedrock"])
def test_what_openai_has_encrypted_is_no_thought_of_claude(kind: str) -> None:
    said = {"type": "message", "role": "assistant", "content": "Hello"}
    secrets = [reasoning("gAAA", "hm"), reasoning("gAAA")]
    sent, _ = put(kind, CLAUDE, Operation.RESPONSES, {"input": [ASKED, *secrets, said, ASKED]})
    assert len(sent["messages"][1]["content"]) == 1
    assert "gAAA" not in json.dumps(sent)


def test_what_openai_has_encrypted_goes_back_to_it() -> None:
    secrets = [reasoning("gAAA", "hm"), reasoning("gBBB")]
    asked = {"model": "m", "input": [ASKED, *secrets, ASKED]}
    prompt = DIALECTS[Operation.RESPONSES].prompt(
        decode(Operation.RESPONSES, json.dumps(asked).encode())
    )
    sent = json.loads(ResponsesConversation().build(prompt, at("openai", "gpt-5"), Fit()))
    assert [one["encrypted_content"] for one in sent["input"][1:-1]] == ["gAAA", "gBBB"]


@pytest.mark.parametrize("secret", [mark(ANTHROPIC, "EqQB"), mark("gemini", "x"), UNSIGNED, "own"])
def test_a_response_is_read_again_as_it_was_written(secret: str) -> None:
    """As the cache does with what a client was sent."""
    body = json.dumps({"output": [reasoning(secret, "hm")]}).encode()
    (part,) = ResponsesConversation().parse(body).parts
    done = {"type": "response.output_item.done", "item": reasoning(secret)}
    stream = b"data: %b\n\n" % json.dumps(done).encode()
    (signed,) = ResponsesConversation().decoder().feed(stream)
    expected = {mark(ANTHROPIC, "EqQB"): "EqQB", "own": mark(RESPONSES, "own")}.get(secret, secret)
    assert part == Thinking("hm", expected)
    assert getattr(signed, "redacted", "") == expected


@pytest.mark.parametrize(
    ("maker", "own"),
    [
        (None, True),
        ("anthropic-claude-v1", True),
        ("openai-responses-v1", False),
        ("google-gemini-v1", False),
        ("xai-responses-v1", False),
        ("unknown", False),
    ],
)
@pytest.mark.parametrize("kind", ["anthropic", "bedrock"])
def test_whose_a_detail_is_is_believed(kind: str, maker: str | None, own: bool) -> None:
    details: list[Json] = [
        {"type": "reasoning.text", "text": "hm", "signature": "EqQB"},
        {"type": "reasoning.encrypted", "data": "EmwK"},
    ]
    if maker is not None:
        details = [{**one, "format": maker} for one in details]
    said = {"role": "assistant", "content": "Hello", "reasoning_details": details}
    sent, _ = put(kind, CLAUDE, CHAT, {"messages": [ASKED, said, ASKED]})
    assert ("EqQB" in json.dumps(sent)) is own
    if kind == "anthropic":
        assert sent["messages"][1]["content"] == [*(THOUGHT if own else ()), SAID]
