"""What servers of chat completions sign comes back to its place, and goes to those who know it."""

import json
from typing import Any

import pytest

from gateway.core.messages import Fit, Reply, Text, Thinking, ToolCall, mark
from gateway.core.operations import Operation
from gateway.formats import DIALECTS, Meta
from gateway.formats.body import decode
from gateway.pipeline.replay import readable
from gateway.pipeline.translation import Translation, events_of
from gateway.providers import PROVIDERS
from gateway.providers.chat import ChatCompletions
from gateway.providers.quirks import NONE
from tests.unit.test_provider_rules import CHAT, MESSAGES, RESPONSES, at, put

Json = dict[str, Any]
META = Meta("req_1", "m", 1)
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
CLIENTS = pytest.mark.parametrize("client", [CHAT, MESSAGES, RESPONSES], ids=lambda one: one.value)
DETAILED = pytest.mark.parametrize("kind", ["openrouter", "openai-compatible"])
ASKED = {"role": "user", "content": "?"}
EXTRA = {"google": {"thought_signature": "SIG"}}
DETAILS: list[Json] = [
    {"type": "reasoning.text", "text": "hm", "signature": "S", "format": "anthropic-claude-v1"},
    {"type": "reasoning.encrypted", "data": "gAAA", "format": "openai-responses-v1"},
]


def call(id: str, **more: Any) -> Json:
    return {"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}, **more}


def told(message: Json, *, stream: bool) -> bytes:
    """A server's answer."""
    choice = {"index": 0, "finish_reason": "tool_calls"}
    if not stream:
        return json.dumps({"id": "x", "choices": [{**choice, "message": message}]}).encode()
    calls = [{**one, "index": i} for i, one in enumerate(message.get("tool_calls", ()))]
    delta = message | ({"tool_calls": calls} if calls else {})
    event = json.dumps({"id": "x", "choices": [{**choice, "delta": delta}]})
    return f"data: {event}\n\ndata: [DONE]\n\n".encode()


def shown(client: Operation, answer: bytes, *, stream: bool) -> bytes:
    """What a client has of it, in its dialect."""
    conversation = ChatCompletions(NONE)
    if not stream:
        return DIALECTS[client].encode(conversation.parse(answer), META)
    translation = Translation(conversation.decoder(), DIALECTS[client].writer(META))
    return translation.feed(answer) + translation.close() + translation.finish()


def sent_back(client: Operation, reply: Reply) -> Json:
    """A request of a client who puts an answer before two results."""
    whole = json.loads(DIALECTS[client].encode(reply, META))
    if client is CHAT:
        results = [{"role": "tool", "tool_call_id": id, "content": "r"} for id in ("c1", "c2")]
        return {"messages": [ASKED, whole["choices"][0]["message"], *results]}
    if client is RESPONSES:
        outputs = [
            {"type": "function_call_output", "call_id": id, "output": "r"} for id in ("c1", "c2")
        ]
        return {"input": [ASKED, *whole["output"], *outputs]}
    blocks = [{"type": "tool_result", "tool_use_id": id, "content": "r"} for id in ("c1", "c2")]
    said = [{"role": "assistant", "content": whole["content"]}, {"role": "user", "content": blocks}]
    return {"max_tokens": 9, "messages": [ASKED, *said]}


def translated(kind: str, client: Operation, body: Json) -> Json:
    """What the hub sends as the second message."""
    conversation = PROVIDERS[kind].adapter.conversation
    assert conversation is not None
    prompt = DIALECTS[client].prompt(decode(client, json.dumps({"model": "m", **body}).encode()))
    found: Json = json.loads(conversation.build(prompt, at(kind, "m"), Fit()))["messages"][1]
    return found


SIGNED_CALL = {"content": "hi", "tool_calls": [call("c1"), call("c2", extra_content=EXTRA)]}


@STREAMED
@CLIENTS
@DETAILED
def test_what_stands_beside_a_call_comes_back_to_it(
    kind: str, client: Operation, stream: bool
) -> None:
    had = shown(client, told(SIGNED_CALL, stream=stream), stream=stream)
    kept = readable(client, streamed=stream, data=had)
    assert kept is not None
    message = translated(kind, client, sent_back(client, kept))
    assert message["tool_calls"] == SIGNED_CALL["tool_calls"]
    assert "reasoning_details" not in message


@STREAMED
@pytest.mark.parametrize("client", [MESSAGES, RESPONSES], ids=lambda one: one.value)
@pytest.mark.parametrize("secret", [mark("openai-call", json.dumps(EXTRA)), mark("gemini", "x")])
def test_an_answer_kept_from_another_dialect_has_signatures_at_their_calls(
    client: Operation, stream: bool, secret: str
) -> None:
    parts = (Text("hi"), ToolCall("c1", "f", "{}"), ToolCall("c2", "f", "{}", secret))
    reply = Reply(id="x", model="m", parts=parts, finish="tool_calls")
    kept = readable(client, streamed=False, data=DIALECTS[client].encode(reply, META))
    assert kept is not None
    if stream:
        writer = DIALECTS[CHAT].writer(META)
        again = readable(CHAT, streamed=True, data=writer.write(events_of(kept)) + writer.finish())
    else:
        again = readable(CHAT, streamed=False, data=DIALECTS[CHAT].encode(kept, META))
    assert again is not None
    assert again.parts == parts


ANSWER = {"content": "hi", "reasoning": "hm", "reasoning_details": DETAILS}
UNDETAILED = [
    name
    for name, kind in PROVIDERS.items()
    if isinstance(kind.adapter.conversation, ChatCompletions)
    and name not in ("openrouter", "openai-compatible")
]


@CLIENTS
@pytest.mark.parametrize("kind", UNDETAILED)
def test_who_knows_no_secrets_is_sent_none(kind: str, client: Operation) -> None:
    answer = told({**ANSWER, **SIGNED_CALL}, stream=False)
    message = translated(kind, client, sent_back(client, ChatCompletions(NONE).parse(answer)))
    assert "reasoning_details" not in message
    assert [one.keys() & {"extra_content"} for one in message["tool_calls"]] == [set()] * 2
    native = {"messages": [ASKED, {"role": "assistant", **ANSWER, **SIGNED_CALL}]}
    message = translated(kind, CHAT, native)
    assert "reasoning_details" not in message
    assert "extra_content" not in json.dumps(message)


@DETAILED
def test_what_came_by_the_hub_goes_back_as_it_was(kind: str) -> None:
    """As where the answer was streamed, and might have gone on elsewhere."""
    answer = {**ANSWER, **SIGNED_CALL}
    body = sent_back(CHAT, ChatCompletions(NONE).parse(told(answer, stream=False)))
    sent, _ = put(kind, "m", CHAT, body)
    assert sent["messages"][1]["reasoning_details"] == DETAILS
    assert sent["messages"][1]["tool_calls"] == answer["tool_calls"]
    forged = [{"type": "reasoning.text", "signature": mark("openai", one)} for one in ("[", "1,{")]
    calls = [call("c1", extra_content={"google": {"thought_signature": mark("openai-call", "[")}})]
    turn = {"role": "assistant", "reasoning_details": forged, "tool_calls": calls}
    sent, _ = put(kind, "m", CHAT, {"messages": [ASKED, turn]})
    assert sent["messages"][1] == {"role": "assistant", "tool_calls": [call("c1")]}


def test_what_passed_as_it_came_goes_back_by_the_hub() -> None:
    turn = {"role": "assistant", **ANSWER, **SIGNED_CALL}
    message = translated("openrouter", CHAT, {"messages": [ASKED, turn]})
    own = {name: value for name, value in DETAILS[0].items() if name != "format"}
    assert message["reasoning_details"] == [{**own, "index": 0}, {**DETAILS[1], "index": 1}]
    assert message["tool_calls"] == turn["tool_calls"]
    message = translated("openai-compatible", CHAT, {"messages": [ASKED, turn]})
    assert message["reasoning_details"] == [{**DETAILS[1], "index": 1}]


def test_thoughts_that_nobody_signed_stay_between_those_that_somebody_did() -> None:
    """A stream has blocks of the signed ones alone."""
    parts = (Thinking("so"), Thinking("on", mark("bedrock", "x")), Thinking("and"), Text("hi"))
    writer = DIALECTS[CHAT].writer(META)
    stream = writer.write(events_of(Reply(id="x", model="m", parts=parts, finish="stop")))
    deltas = [
        json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
        for line in stream.decode().splitlines()
        if line
    ]
    turn: Json = {
        "role": "assistant",
        "content": "hi",
        "reasoning_content": "",
        "reasoning_details": [],
    }
    for delta in deltas:
        turn["reasoning_content"] += delta.get("reasoning_content", "")
        turn["reasoning_details"] += delta.get("reasoning_details", [])
    prompt = DIALECTS[CHAT].prompt(
        decode(CHAT, json.dumps({"model": "m", "messages": [turn]}).encode())
    )
    assert prompt.messages[0].parts == parts


def test_blocks_that_are_signed_apart_have_numbers_of_their_own() -> None:
    """Clients join what has one number: OpenAI's own do so with its texts."""
    first, second = [{**one, "index": 0} for one in DETAILS]
    deltas: list[Json] = [
        {"reasoning": "hm", "reasoning_details": [first]},
        {"content": "hi"},
        {"reasoning": "so", "reasoning_details": [second], "tool_calls": [call("c1", index=0)]},
    ]
    chunks = [{"id": "x", "choices": [{"index": 0, "delta": one}]} for one in deltas]
    told = b"".join([b"data: %b\n\n" % json.dumps(one).encode() for one in chunks])
    found = ChatCompletions(NONE).decoder().feed(told)
    blocks = [getattr(one, "block", None) for one in found]
    assert [block for block in blocks if block is not None] == [0, 0, 1, 1]
