"""Usage that is half there, or no integers: read where it can be, and never in the text's way."""

import json
from typing import Any

import pytest

from gateway.core.events import TextDelta
from gateway.core.messages import Text
from gateway.core.operations import Operation
from gateway.core.usage import Usage
from gateway.formats.body import decode
from gateway.providers import PROVIDERS
from gateway.providers.adapter import Conversation, Native
from gateway.providers.decoding import Noted
from gateway.providers.openai_stream import OpenAIStream
from gateway.providers.responses import ResponsesConversation
from tests.golden.replay import event_stream_message

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


def gemini_reply(usage: Any) -> Json:
    candidate = {"content": {"parts": [{"text": "Hello"}]}, "finishReason": "STOP"}
    return {"candidates": [candidate], "usageMetadata": usage}


def bedrock_reply(usage: Any) -> Json:
    message = {"role": "assistant", "content": [{"text": "Hello"}]}
    return {"output": {"message": message}, "stopReason": "end_turn", "usage": usage}


def cohere_reply(usage: Any) -> Json:
    message = {"content": [{"type": "text", "text": "Hello"}]}
    return {"id": "x", "message": message, "finish_reason": "COMPLETE", "usage": usage}


def gemini_stream(usage: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(gemini_reply(usage)).encode()


def bedrock_stream(usage: Any) -> bytes:
    said = {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": "Hello"}}}
    told = (said, {"metadata": {"usage": usage}})
    return b"".join([event_stream_message(json.dumps(one)) for one in told])


def cohere_stream(usage: Any) -> bytes:
    delta = {"finish_reason": "COMPLETE", "usage": usage}
    content = {"message": {"content": {"text": "Hello"}}}
    told = [{"type": "content-delta", "delta": content}, {"type": "message-end", "delta": delta}]
    return b"".join([b"data: %b\n\n" % json.dumps(one).encode() for one in told])


TRANSLATED: dict[str, tuple[Any, Any, Any]] = {
    "gemini": (
        gemini_reply,
        gemini_stream,
        lambda p, c: {"promptTokenCount": p, "candidatesTokenCount": c},
    ),
    "bedrock": (bedrock_reply, bedrock_stream, lambda p, c: {"inputTokens": p, "outputTokens": c}),
    "cohere": (
        cohere_reply,
        cohere_stream,
        lambda p, c: {"tokens": {"input_tokens": p, "output_tokens": c}},
    ),
}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (7, COUNTED),
        (7.0, COUNTED),
        ("7", COUNTED),
        ("7.0", COUNTED),
        ("some", None),
        ("inf", None),
        ([], None),
        (1e300, None),
    ],
)
@pytest.mark.parametrize("kind", TRANSLATED)
def test_odd_figures_cost_no_text_where_all_is_translated(
    kind: str, prompt: Any, expected: Usage | None
) -> None:
    whole, stream, names = TRANSLATED[kind]
    conversation = PROVIDERS[kind].adapter.conversation
    assert conversation is not None
    usage = names(prompt, 5)
    reply = conversation.parse(json.dumps(whole(usage)).encode())
    assert (reply.parts, reply.usage) == ((Text("Hello"),), expected)
    noted = Noted()
    noted.note(conversation.decoder().feed(stream(usage)))
    assert (noted.take_text(), noted.usage) == ("Hello", expected)


def test_odd_figures_of_probabilities_cost_no_text() -> None:
    """Google writes what is impossible as a text; the least that OpenAI writes is -9999."""
    likely = [{"token": "Hello", "logProbability": -0.5}]
    odd = {"candidates": [*likely, {"token": "x", "logProbability": "-Infinity"}]}
    for result, tops in (
        ({"chosenCandidates": likely, "topCandidates": [odd]}, [-0.5, -9999.0]),
        ({"chosenCandidates": "none"}, None),
    ):
        told = gemini_reply(None)
        told["candidates"][0]["logprobsResult"] = result
        conversation = PROVIDERS["gemini"].adapter.conversation
        assert conversation is not None
        (part,) = conversation.parse(json.dumps(told).encode()).parts
        stream = b"data: %b\n\n" % json.dumps(told).encode()
        (delta,) = [e for e in conversation.decoder().feed(stream) if isinstance(e, TextDelta)]
        assert isinstance(part, Text)
        assert part.text == delta.text == "Hello"
        assert part.logprobs == delta.logprobs
        shown = json.loads(bytes(part.logprobs))[0]["top_logprobs"] if part.logprobs else None
        assert (shown and [one["logprob"] for one in shown]) == tops


EMBEDDED: dict[str, Any] = {
    "gemini": lambda n: {
        "embeddings": [{"values": [1.0]}],
        "usageMetadata": {"promptTokenCount": n},
    },
    "vertex": lambda n: {
        "predictions": [{"embeddings": {"values": [1.0], "statistics": {"token_count": n}}}]
    },
    "cohere": lambda n: {
        "embeddings": {"float": [[1.0]]},
        "meta": {"billed_units": {"input_tokens": n}},
    },
}


@pytest.mark.parametrize(("tokens", "expected"), [(7.0, Usage(7)), ("7", Usage(7)), ("inf", None)])
@pytest.mark.parametrize("kind", EMBEDDED)
def test_odd_figures_cost_no_vectors(kind: str, tokens: Any, expected: Usage | None) -> None:
    embedding = PROVIDERS[kind].adapter.embedding
    assert embedding is not None
    asked = decode(Operation.EMBEDDINGS, b'{"model":"m","input":"x"}')
    body, usage = embedding.parse(json.dumps(EMBEDDED[kind](tokens)).encode(), asked)
    assert json.loads(body)["data"][0]["embedding"] == [1.0]
    assert usage == expected


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
