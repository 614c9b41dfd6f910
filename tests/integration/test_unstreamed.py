"""A provider that answers a stream with a whole reply: its client has a stream all the same."""

import asyncio
import json
from typing import Any

import pytest

from tests.integration.test_cache import cached, exact
from tests.support.config import config
from tests.support.gateway import running
from tests.support.load import Ask, Outcome, flood, once
from tests.support.upstream import Exchange, Upstream, completion, usage

TEXT = "one two three"
FIGURES = {"input_tokens": 7, "output_tokens": 5}
SAID = [{"role": "user", "content": "hello"}]
WITH_USAGE = {"stream_options": {"include_usage": True}}
SPOKEN = {"type": "output_text", "text": TEXT, "annotations": []}
# By dialect: kind of the provider, its path, what is asked, what is answered, the last event.
DIALECTS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], str]] = {
    "chat": (
        "openai",
        "/v1/chat/completions",
        {"messages": SAID, **WITH_USAGE},
        completion(TEXT, usage(7, 5)),
        "[DONE]",
    ),
    "completions": (
        "openai",
        "/v1/completions",
        {"prompt": "hello", **WITH_USAGE},
        {
            "id": "cmpl-1",
            "object": "text_completion",
            "choices": [{"index": 0, "text": TEXT, "finish_reason": "stop"}],
            "usage": usage(7, 5),
        },
        "[DONE]",
    ),
    "messages": (
        "anthropic",
        "/v1/messages",
        {"messages": SAID, "max_tokens": 50},
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": [{"type": "text", "text": TEXT}],
            "stop_reason": "end_turn",
            "usage": FIGURES,
        },
        '"message_stop"',
    ),
    "responses": (
        "openai",
        "/v1/responses",
        {"input": "hello"},
        {
            "id": "resp_1",
            "object": "response",
            "status": "completed",
            "output": [{"type": "message", "id": "msg_1", "content": [SPOKEN]}],
            "usage": FIGURES | {"total_tokens": 12},
        },
        '"response.completed"',
    ),
}
EACH = pytest.mark.parametrize("dialect", DIALECTS)


def serving(url: str, dialect: str, ping: float) -> str:
    text = json.loads(config(url, server={"stream_ping": ping}))
    text["providers"]["p0"]["kind"] = DIALECTS[dialect][0]
    return json.dumps(text)


def events(outcome: Outcome) -> list[str]:
    """What a stream's events hold, named or not."""
    lines = outcome.body.decode().split("\n")
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def read(outcome: Outcome) -> str:
    """A stream's text, in whichever dialect."""
    assert (outcome.status, outcome.failure) == (200, ""), outcome
    assert outcome.headers["content-type"].startswith("text/event-stream")
    said = ""
    for event in events(outcome):
        found = json.loads(event) if event != "[DONE]" else {}
        for choice in found.get("choices", []):
            said += choice.get("text") or choice.get("delta", {}).get("content") or ""
        if found.get("type") == "response.output_text.delta":
            said += found["delta"]
        elif found.get("type") == "content_block_delta":
            said += found["delta"]["text"]
    return said


@EACH
@pytest.mark.parametrize("pinged", [False, True], ids=["at once", "behind a ping"])
async def test_a_whole_reply_is_told_as_a_stream(
    upstream: Upstream, dialect: str, *, pinged: bool
) -> None:
    _, path, body, reply, last = DIALECTS[dialect]

    async def whole(exchange: Exchange) -> None:
        if pinged:
            await asyncio.sleep(1)
        await exchange.reply(json.dumps(reply, indent=2).encode())

    upstream.behaviour = whole
    with running(serving(upstream.url, dialect, 0.1 if pinged else 15)) as gateway:
        outcome = await once(gateway.port, Ask({"model": "m", "stream": True, **body}, path=path))
        assert read(outcome) == TEXT
        assert last in events(outcome)[-1]
        assert (b": still here" in outcome.body) is pinged
        assert b"HTTP/1.1" not in outcome.body
        (record,) = gateway.records(1)
    assert (record["outcome"], record["usage_source"]) == ("ok", "provider")
    assert (record["usage"]["prompt_tokens"], record["usage"]["completion_tokens"]) == (7, 5)


@EACH
async def test_what_is_no_reply_of_its_api_ends_a_stream_that_has_begun(
    upstream: Upstream, dialect: str
) -> None:
    _, path, body, _, last = DIALECTS[dialect]

    async def other(exchange: Exchange) -> None:
        await asyncio.sleep(1)
        await exchange.reply({"data": []})

    upstream.behaviour = other
    with running(serving(upstream.url, dialect, 0.1)) as gateway:
        outcome = await once(gateway.port, Ask({"model": "m", "stream": True, **body}, path=path))
    assert (outcome.status, outcome.failure) == (200, "")
    assert b"HTTP/1.1" not in outcome.body
    assert b"error" in outcome.body
    assert last not in events(outcome)[-1]


async def test_a_chunk_has_all_that_the_reply_had(upstream: Upstream) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    first = {"role": "assistant", "content": "é", "reasoning": "hm", "tool_calls": [call]}
    second = {"role": "assistant", "content": "two", "tool_calls": None}
    reply = {
        **completion("", usage(7, 5)),
        "citations": ["x"],
        "choices": [
            {"index": 0, "message": first, "finish_reason": "tool_calls"},
            {"index": 1, "message": second, "finish_reason": "odd"},
        ],
    }

    async def whole(exchange: Exchange) -> None:
        await exchange.reply(reply)

    upstream.behaviour = whole
    with running(config(upstream.url)) as gateway:
        body = {"model": "m", "messages": SAID, "n": 2, "stream": True}
        outcome = await once(gateway.port, Ask(body))
    one, two, end = outcome.events
    assert end == "[DONE]"
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "citations": ["x"]}
    for event, message, finish in ((one, first, "tool_calls"), (two, second, "odd")):
        chunk = json.loads(event)
        assert "usage" not in chunk  # nobody asked for it
        assert {name: chunk[name] for name in head} == head
        (choice,) = chunk["choices"]
        assert choice["finish_reason"] == finish
        assert choice["delta"]["content"] == message["content"]
    assert json.loads(one)["choices"][0]["delta"]["reasoning"] == "hm"
    assert json.loads(one)["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **call}]
    assert "tool_calls" not in json.loads(two)["choices"][0]["delta"]


async def test_what_is_kept_of_it_is_a_stream(upstream: Upstream) -> None:
    async def whole(exchange: Exchange) -> None:
        await asyncio.sleep(0.3)
        await exchange.reply(completion(TEXT, usage(7, 5)))

    upstream.behaviour = whole
    with running(cached(upstream.url)) as gateway:
        asks = [Ask(exact(stream=True)) for _ in range(3)]
        found = [*await flood(gateway.port, asks, 3), await once(gateway.port, asks[0])]
        assert [read(one) for one in found] == [TEXT] * 4
        assert {one.events[-1] for one in found} == {"[DONE]"}
        assert found[-1].headers["x-sluice-cache"] == "hit"
        other = await once(gateway.port, Ask(exact()))
        assert other.json["choices"][0]["message"]["content"] == TEXT
        assert other.headers["x-sluice-cache"] == "hit"
    assert len(upstream.received) == 1


@pytest.mark.parametrize("field", [{"logit_bias": {"1": 5}}, {}], ids=["as it came", "read"])
async def test_a_ping_before_it_does_not_hinder_that(
    upstream: Upstream, field: dict[str, Any]
) -> None:
    async def whole(exchange: Exchange) -> None:
        await asyncio.sleep(1)
        await exchange.reply(completion(TEXT, usage(7, 5)))

    upstream.behaviour = whole
    with running(cached(upstream.url, server={"stream_ping": 0.1})) as gateway:
        asks = [Ask(exact(stream=True, **field)) for _ in range(2)]
        found = [*await flood(gateway.port, asks, 2), await once(gateway.port, asks[0])]
        assert [read(one) for one in found] == [TEXT] * 3
        assert found[-1].headers["x-sluice-cache"] == "hit"
    assert len(upstream.received) == 1
