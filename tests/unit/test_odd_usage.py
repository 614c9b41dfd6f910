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


def chatted(prompt: int, completion: int, total: int, **more: Any) -> Json:
    told = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
    return {**told, **more}


@pytest.mark.parametrize(
    ("told", "used"),
    [
        # Gemini at its OpenAI address: thoughts are in the total alone
        (chatted(20, 151, 553), Usage(20, 0, 0, 533, 382)),
        (chatted(20, 0, 553), Usage(20, 0, 0, 533, 533)),
        # xAI tells them beside the completion, OpenAI within it
        (
            chatted(20, 1, 311, completion_tokens_details={"reasoning_tokens": 290}),
            Usage(20, 0, 0, 291, 290),
        ),
        (
            chatted(20, 300, 320, completion_tokens_details={"reasoning_tokens": 290}),
            Usage(20, 0, 0, 300, 290),
        ),
        # what else the rest may be is not thoughts
        (
            chatted(20, 300, 999, completion_tokens_details={"reasoning_tokens": 290}),
            Usage(20, 0, 0, 300, 290),
        ),
        (
            chatted(20, 5, 1025, prompt_tokens_details={"cached_tokens": 1000}),
            Usage(20, 1000, 0, 5),
        ),
        (chatted(20, 5, 10**6), Usage(20, 0, 0, 5)),
        (chatted(20, 5, 2025, cache_read_input_tokens=2000), Usage(20, 0, 0, 5)),
        (
            chatted(20, 5, 2055, cache_read_input_tokens=2000, cache_creation_input_tokens=30),
            Usage(20, 0, 0, 5),
        ),
        (chatted(20, 5, 55, guardrails_tokens=30), Usage(20, 0, 0, 5)),
        (chatted(20, 5, 5025, prompt_tokens_details={"video_tokens": 5000}), Usage(20, 0, 0, 5)),
        # Mistral's: what its tools gave the model to read
        (chatted(188, 55, 7355, connector_tokens=7112), Usage(7300, 0, 0, 55)),
        (chatted(20, 5, 7), Usage(20, 0, 0, 5)),
        (chatted(20, 5, -7), Usage(20, 0, 0, 5)),
        # Perplexity's deep research has them beside both
        (
            chatted(108, 3256, 3364, citation_tokens=7299, reasoning_tokens=73_248),
            Usage(7407, 0, 0, 76_504, 73_248),
        ),
        (chatted(108, 3256, 3364, reasoning_tokens=3000), Usage(108, 0, 0, 3256)),
    ],
)
def test_thoughts_beside_a_completion_are_part_of_it(told: Json, used: Usage) -> None:
    assert read(Operation.CHAT, told) == [used] * 4


@pytest.mark.parametrize(
    ("told", "more"),
    [
        ({"image_gen": {"input_tokens": 50, "output_tokens": 4160}}, (50, 4160)),
        ({"image_gen": None, "web_search": {}}, (0, 0)),
        ({"image_gen": "much"}, (0, 0)),
        ("none", (0, 0)),
        (None, (0, 0)),
    ],
)
def test_pictures_of_a_tool_are_counted_beside_a_response(
    told: Any, more: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reply, stream = responses_reply(None), responses_stream(None)
    for one in (reply, stream[-1]["response"]):
        one["usage"] = {"input_tokens": 7, "output_tokens": 5}
        one["tool_usage"] = told
    native, conversation, *_ = WAYS[Operation.RESPONSES]
    monkeypatch.setitem(
        WAYS, Operation.RESPONSES, (native, conversation, lambda _: reply, lambda _: stream)
    )
    used = Usage(7 + more[0], completion_tokens=5 + more[1])
    assert read(Operation.RESPONSES, {}) == [used] * 4


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


def read_translated(kind: str, usage: Any) -> list[Usage | None]:
    """Return what a whole reply and a stream make of a usage, each of which must see the text.

    What a stream has told before its text is nothing that tells of it.
    """
    whole, stream, _ = TRANSLATED[kind]
    conversation = PROVIDERS[kind].adapter.conversation
    assert conversation is not None
    reply = conversation.parse(json.dumps(whole(usage)).encode())
    noted = Noted()
    noted.note(conversation.decoder().feed(stream(usage)))
    assert (reply.parts, noted.take_text()) == ((Text("Hello"),), "Hello")
    return [reply.usage, noted.usage if noted.told_bytes else None]


@pytest.mark.parametrize(
    ("kind", "usage"),
    [
        ("gemini", {}),
        ("gemini", {"promptTokenCount": 7}),
        ("gemini", {"promptTokenCount": 7, "thoughtsTokenCount": 5}),
        ("gemini", {"candidatesTokenCount": 5}),
        ("bedrock", {}),
        ("bedrock", {"inputTokens": 7}),
        ("bedrock", {"outputTokens": 5}),
        ("cohere", {}),
        ("cohere", {"tokens": {}}),
        ("cohere", {"tokens": {"input_tokens": 7}, "billed_units": {"output_tokens": 5}}),
    ],
    ids=json.dumps,
)
def test_what_is_not_whole_is_none_where_all_is_translated(kind: str, usage: Any) -> None:
    assert read_translated(kind, usage) == [None, None]


@pytest.mark.parametrize(
    ("parts", "usage", "expected"),
    [
        ([], {"promptTokenCount": 7}, Usage(7)),
        ([{"text": "hm", "thought": True}], {"promptTokenCount": 7}, None),
        (
            [{"text": "hm", "thought": True}],
            {"promptTokenCount": 7, "thoughtsTokenCount": 5},
            Usage(7, completion_tokens=5, reasoning_tokens=5),
        ),
        ([{"functionCall": {"name": "f"}}], {"promptTokenCount": 7}, None),
    ],
)
def test_google_leaves_out_a_count_of_nothing(
    parts: Any, usage: Any, expected: Usage | None
) -> None:
    told = {"candidates": [{"content": {"parts": parts}}], "usageMetadata": usage}
    body = json.dumps(told).encode()
    conversation = PROVIDERS["gemini"].adapter.conversation
    assert conversation is not None
    assert conversation.parse(body).usage == expected
    noted = Noted()
    noted.note(conversation.decoder().feed(b"data: %b\n\n" % body))
    assert (noted.usage if noted.told_bytes == noted.text_bytes else None) == expected


def test_figures_of_a_prompt_alone_are_not_those_of_what_is_written() -> None:
    conversation = PROVIDERS["gemini"].adapter.conversation
    assert conversation is not None
    reply = conversation.parse(json.dumps(gemini_reply({"promptTokenCount": 7})).encode())
    assert (reply.usage, reply.half) == (None, Usage(7))
    decoder, noted = conversation.decoder(), Noted()
    noted.note(decoder.feed(gemini_stream({"promptTokenCount": 7})))
    assert (noted.usage, noted.told_bytes, noted.text_bytes) == (Usage(7), 0, 5)
    empty = {"candidates": [{"finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 9}}
    noted.note(decoder.feed(b"data: %b\n\n" % json.dumps(empty).encode()))
    assert (noted.usage, noted.told_bytes) == (Usage(7), 0)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"billed_units": {"input_tokens": 7, "output_tokens": 5}}, COUNTED),
        (
            {
                "billed_units": {"input_tokens": 7.0, "output_tokens": 5.0},
                "tokens": {"input_tokens": 507, "output_tokens": 10},
                "cached_tokens": 448,
            },
            COUNTED,
        ),
        (
            {
                "billed_units": {"search_units": 1},
                "tokens": {"input_tokens": 507, "output_tokens": 10},
                "cached_tokens": 448,
            },
            Usage(507, 448, 0, 10),
        ),
    ],
)
def test_of_coheres_figures_what_is_paid_for_counts(usage: Any, expected: Usage) -> None:
    assert read_translated("cohere", usage) == [expected, expected]


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


@pytest.mark.parametrize(
    ("tokens", "expected"), [(7.0, Usage(7)), ("7", Usage(7)), ("inf", None), (None, None)]
)
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
