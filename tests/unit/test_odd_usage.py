"""Usage that is half there, or no integers: read where it can be, and never in the text's way."""

import json
from typing import Any

import pytest

from gateway.core.operations import Operation
from gateway.core.usage import Usage
from gateway.formats.body import decode
from gateway.providers import PROVIDERS
from gateway.providers.adapter import Conversation, Native
from gateway.providers.decoding import Noted
from gateway.providers.openai_stream import OpenAIStream
from gateway.providers.responses import ResponsesConversation

Json = dict[str, Any]
COUNTED = Usage(prompt_tokens=7, completion_tokens=5)


def chat_reply(usage: Any) -> Json:
    return {"choices": [{"message": {"content": "Hello"}}], "usage": usage}


def chat_stream(usage: Any) -> list[Json]:
    delta = {"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}
    return [{"id": "x", "choices": [delta], "usage": usage}, {"choices": [], "usage": usage}]


def messages_reply(usage: Any) -> Json:
    return {"id": "m", "content": [{"type": "text", "text": "Hello"}], "usage": usage}


def messages_stream(usage: Any) -> list[Json]:
    delta = {"type": "text_delta", "text": "Hello"}
    return [
        {"type": "message_start", "message": {"id": "m", "content": [], "usage": usage}},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
    ]


def responses_reply(usage: Any) -> Json:
    content = [{"type": "output_text", "text": "Hello"}]
    return {"id": "r", "output": [{"type": "message", "content": content}], "usage": usage}


def responses_stream(usage: Any) -> list[Json]:
    return [
        {"type": "response.output_text.delta", "output_index": 0, "delta": "Hello"},
        {"type": "response.completed", "response": {"id": "r", "usage": usage}},
    ]


OPENAI, ANTHROPIC = PROVIDERS["openai"].adapter, PROVIDERS["anthropic"].adapter
WAYS: dict[Operation, tuple[Native, Conversation | None, Any, Any]] = {
    Operation.CHAT: (
        OPENAI.natives[Operation.CHAT],
        OPENAI.conversation,
        chat_reply,
        chat_stream,
    ),
    Operation.MESSAGES: (
        ANTHROPIC.natives[Operation.MESSAGES],
        ANTHROPIC.conversation,
        messages_reply,
        messages_stream,
    ),
    Operation.RESPONSES: (
        OPENAI.natives[Operation.RESPONSES],
        ResponsesConversation(),
        responses_reply,
        responses_stream,
    ),
}
EVERY_WAY = pytest.mark.parametrize("operation", WAYS, ids=lambda one: one.value)


def named(operation: Operation, told: Any) -> Any:
    """A usage in an operation's own words; `told` has those of chat."""
    if operation is Operation.CHAT or not isinstance(told, dict):
        return told
    names = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}
    return {names[name]: value for name, value in told.items()}


def read(operation: Operation, told: Any) -> list[Usage | None]:
    """Return what each way of reading makes of a usage, each of which must see the text."""
    native, conversation, reply, stream = WAYS[operation]
    assert conversation is not None
    usage = named(operation, told)
    body = json.dumps(reply(usage)).encode()
    assert native.parse_text(body) == "Hello"
    found = [native.parse_usage(body), conversation.parse(body).usage]
    data = b"".join([b"data: %b\n\n" % json.dumps(one).encode() for one in stream(usage)])
    asked = {"model": "m", "stream": True, "max_tokens": 5, "messages": [1], "input": "x"}
    passed = native.decoder(decode(operation, json.dumps(asked).encode()))
    shown = passed.feed(data)
    assert b"Hello" in shown
    assert passed.take_text() == "Hello"
    translated = Noted()
    translated.note(conversation.decoder().feed(data))
    assert translated.take_text() == "Hello"
    assert translated.done or operation is not Operation.RESPONSES
    return [*found, passed.usage, translated.usage]


@EVERY_WAY
@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"prompt_tokens": 7},
        {"completion_tokens": 5},
        {"prompt_tokens": None, "completion_tokens": None},
        {"prompt_tokens": 7.5, "completion_tokens": 5},
        {"prompt_tokens": True, "completion_tokens": 5},
        {"prompt_tokens": "some", "completion_tokens": 5},
        [],
        "free",
        None,
    ],
    ids=json.dumps,
)
def test_what_is_not_whole_is_none(operation: Operation, usage: Any) -> None:
    assert read(operation, usage) == [None] * 4


@EVERY_WAY
@pytest.mark.parametrize(("prompt", "completion"), [(7, 5), (7.0, 5.0), ("7", "5"), (7, "5.0")])
def test_numbers_may_be_written_in_any_way(
    operation: Operation, prompt: Any, completion: Any
) -> None:
    told = {"prompt_tokens": prompt, "completion_tokens": completion}
    assert read(operation, told) == [COUNTED] * 4


def test_the_halves_of_a_stream_of_messages_are_put_together() -> None:
    native = ANTHROPIC.natives[Operation.MESSAGES]
    asked = b'{"model":"m","stream":true,"max_tokens":5,"messages":[1]}'
    decoder = native.decoder(decode(Operation.MESSAGES, asked))
    start, text, end = messages_stream(None)
    start["message"]["usage"] = {"input_tokens": 7}
    end["usage"] = {"output_tokens": "5"}
    for one, expected in ((start, None), (text, None), (end, COUNTED)):
        decoder.feed(b"data: %b\n\n" % json.dumps(one).encode())
        assert decoder.usage == expected


def test_half_of_it_does_not_replace_what_was_told_before() -> None:
    stream = OpenAIStream(keep_usage=False)
    for usage in ({"prompt_tokens": 7, "completion_tokens": 5}, {"prompt_tokens": 7}, {}):
        event = b"data: %b\n\n" % json.dumps({"choices": [], "usage": usage}).encode()
        assert stream.feed(event) == b""
        assert stream.usage == COUNTED
