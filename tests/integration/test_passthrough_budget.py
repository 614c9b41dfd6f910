"""A stream of a provider's own API ends where its budget does, in its own framing."""

import asyncio
import base64
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest

from gateway.core.aws_events import AwsReader
from tests.golden.replay import event_stream_message
from tests.support.config import KEY, PRICED_MODEL, config, digest
from tests.support.gateway import Gateway, running, untroubled
from tests.support.load import Ask, once
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, Upstream, delta, usage
from tests.support.wire import ask, connected, post

JSON = "Content-Type: application/json"
HAIKU = "claude-haiku-4-5"
BEDROCK_HAIKU = "anthropic.claude-3-haiku-20240307-v1:0"
BUDGET_USD, BUDGET_MICROUSD = 0.01, 10_000
WORDS = "word after word " * 8  # in one event: 128 bytes
EVENTS = 4_000  # which would cost 77,000 micro-dollars with the cheapest of these models
KEYS = {name: f"sk-{name}-key" for name in ("chat", "responses", "claude", "invoked", "converse")}
KEYS |= {
    name: f"sk-{name}-key"
    for name in ("slices", "sized", "openai-sdk", "anthropic-sdk", "batches", "untold", "counts")
}


@pytest.fixture(scope="module")
def gateway() -> Iterator[tuple[Gateway, UpstreamThread]]:
    """A gateway whose keys have a cent each, and a provider of every API."""
    with UpstreamThread() as provider:
        host = provider.url.removesuffix("/v1")
        rows: dict[str, dict[str, Any]] = {
            "openai": {"kind": "openai", "base_url": provider.url},
            "claude": {"kind": "anthropic", "base_url": provider.url},
            "gemini": {"kind": "gemini", "base_url": f"{host}/v1beta"},
            "aws": {"kind": "bedrock", "base_url": host, "region": "us-east-1"},
        }
        for row in rows.values():
            row["api_key"] = "sk-upstream"
        budget = {"usd": BUDGET_USD, "per": "total"}
        keys = [
            {"name": name, "sha256": digest(key), "tenant": name, "budget": budget}
            for name, key in KEYS.items()
        ]
        with untroubled(config(auth={"keys": keys}, providers=rows, models={})) as running:
            yield running, provider


def chunk(word: str) -> bytes:
    return b"data: " + json.dumps(delta(word)).encode() + b"\n\n"


def block(word: str) -> bytes:
    event = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta"}}
    event["delta"]["text"] = word  # type: ignore[index]
    return b"event: content_block_delta\r\ndata: " + json.dumps(event).encode() + b"\r\n\r\n"


def item(word: str) -> bytes:
    event = {"type": "response.output_text.delta", "item_id": "m", "delta": word}
    return b"event: response.output_text.delta\ndata: " + json.dumps(event).encode() + b"\n\n"


def invoked(word: str) -> bytes:
    event = json.dumps({"type": "content_block_delta", "delta": {"text": word}}).encode()
    return event_stream_message(
        json.dumps({"chunk": {"bytes": base64.b64encode(event).decode(), "p": "abc"}})
    )


def conversed(word: str) -> bytes:
    return event_stream_message(
        json.dumps({"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": word}}})
    )


STREAMS: list[tuple[str, str, Any, Callable[[str], bytes]]] = [
    ("chat", "openai/v1/chat/completions", {"model": PRICED_MODEL}, chunk),
    ("responses", "openai/v1/responses", {"model": PRICED_MODEL}, item),
    ("claude", "claude/v1/messages", {"model": HAIKU, "max_tokens": 100}, block),
    ("invoked", f"aws/model/{BEDROCK_HAIKU}/invoke-with-response-stream", {}, invoked),
    ("converse", f"aws/model/{BEDROCK_HAIKU}/converse-stream", {"messages": []}, conversed),
]


def endless(event: Callable[[str], bytes], cut: int, sized: bool = False) -> Any:
    """Answer with more than any budget here covers, in pieces that end within events."""

    async def behave(exchange: Exchange) -> None:
        whole = event(WORDS) * EVENTS
        if sized:
            await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
            await exchange.send(b"Content-Length: %d\r\n\r\n" % len(whole))
        else:
            await exchange.start_stream()
        for at in range(0, len(whole), cut):
            part = whole[at : at + cut]
            await (exchange.send(part) if sized else exchange.chunk(part))
            await asyncio.sleep(0)

    return behave


def spent(gateway: Gateway, name: str) -> int:
    """What a key's budget has paid for, once nothing is reserved."""
    gateway.settled()
    return gateway.usage(name)["cost_microusd"]


@pytest.mark.parametrize(("name", "path", "content", "event"), STREAMS)
async def test_a_stream_ends_where_its_budget_does(
    gateway: tuple[Gateway, UpstreamThread],
    name: str,
    path: str,
    content: Any,
    event: Callable[[str], bytes],
) -> None:
    running, provider = gateway
    provider.reset(endless(event, 1009))
    body = {**content, "stream": True}
    reply = await ask(running.port, post(body, JSON, path=f"/providers/{path}", key=KEYS[name]))
    assert reply.status == 200
    if event in (invoked, conversed):
        reader = AwsReader()
        messages = reader.feed(reply.body)
        assert not reader.held
        assert messages[-1].headers[":message-type"] == "exception"
        assert "budget" in json.loads(messages[-1].payload)["message"]
        shown = len(messages) - 1
    else:
        *events, last, rest = reply.body.replace(b"\r\n", b"\n").split(b"\n\n")
        assert rest == b""
        kind, _, data = last.partition(b"\n")
        assert kind == b"event: error"
        assert json.loads(data.removeprefix(b"data: "))["error"]["code"] == "budget_exceeded"
        shown = len([one for one in events if one])
        for one in events[:5] + events[-3:]:
            if one:
                json.loads(one.partition(b"data: ")[2])  # no half of an event
    assert 0 < shown < EVENTS
    used = spent(running, name)
    slice_microusd = 6_000  # 1,024 tokens of the dearest of these models, and a read
    assert BUDGET_MICROUSD * 0.3 < used <= BUDGET_MICROUSD + slice_microusd
    record = await logged(running, name)
    assert (record["outcome"], record["error"]) == ("error", "budget_exceeded")
    assert record["usage_source"] == "partial"


async def logged(gateway: Gateway, name: str) -> dict[str, Any]:
    """The one record of a key."""
    for _ in range(250):
        found = [one for one in gateway.records() if one["tenant"] == name]
        if found:
            (record,) = found
            return record
        await asyncio.sleep(0.02)
    raise AssertionError(f"no record of {name}")


async def test_a_stream_within_its_budget_takes_slices_and_gives_back(
    gateway: tuple[Gateway, UpstreamThread],
) -> None:
    """Of 6,400 tokens; the first reservation covers 1,024."""
    running, provider = gateway

    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        for _ in range(200):
            await exchange.chunk(chunk(WORDS))
        last = {**delta(None), "choices": [], "usage": usage(10, 6400)}
        await exchange.chunk(b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n")
        await exchange.end_stream()

    provider.reset(behave)
    body = {"model": PRICED_MODEL, "stream": True}
    path = "/providers/openai/v1/chat/completions"
    reply = await ask(running.port, post(body, JSON, path=path, key=KEYS["slices"]))
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert spent(running, "slices") == 3842  # 10 at 0.15 and 6,400 at 0.60 dollars a million
    store = running.store
    (key,) = store.scan_iter("sluice:limit:{slices}:*budget*")
    assert 3842 in [int(value) for value in store.hgetall(key).values()], store.hgetall(key)
    store.close()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("gemini/v1beta/models/gemini-2.0-flash:batchGenerateContent", {"batch": {}}),
        ("gemini/v1beta/models/gemini-2.0-flash:predictLongRunning", {}),
        ("gemini/v1beta/models/gemini-2.0-flash:generateContent?callback=f", {"contents": []}),
        ("openai/v1/batches", {"model": PRICED_MODEL}),
        ("openai/v1/fine_tuning/jobs", {"model": PRICED_MODEL}),
        ("openai/v1/responses", {"model": PRICED_MODEL, "background": True}),
    ],
)
async def test_what_would_tell_no_figures_is_refused_under_a_budget(
    gateway: tuple[Gateway, UpstreamThread], path: str, content: Any
) -> None:
    running, provider = gateway
    provider.reset(endless(chunk, 1009))
    reply = await ask(
        running.port, post(content, JSON, path=f"/providers/{path}", key=KEYS["batches"])
    )
    assert (reply.status, reply.error["code"]) == (400, "unsupported_parameter"), reply.body
    assert provider.received == []


@pytest.mark.parametrize("most", [1000, 0])  # a maximum of nothing may be none to a provider
async def test_each_prompt_of_several_is_reserved_for(
    gateway: tuple[Gateway, UpstreamThread], most: int
) -> None:
    running, provider = gateway
    path = "/providers/openai/v1/completions"
    body = {"model": PRICED_MODEL, "prompt": ["x"] * 50, "max_tokens": most}  # three cents
    reply = await ask(running.port, post(body, JSON, path=path, key=KEYS["batches"]))
    assert (reply.status, reply.error["code"]) == (429, "budget_exceeded")
    body = {"model": PRICED_MODEL, "prompt": [1] * 50, "max_tokens": most}  # one of 50 tokens
    provider.reset(endless(chunk, 10**9))
    assert (await ask(running.port, post(body, JSON, path=path, key=KEYS["batches"]))).status == 200


@pytest.mark.parametrize("figures", [{}, {"usageMetadata": {"promptTokenCount": 7}}])
@pytest.mark.parametrize("query", ["", "?fields=candidates"])
async def test_an_answer_without_figures_has_its_text_counted(
    gateway: tuple[Gateway, UpstreamThread], query: str, figures: dict[str, Any]
) -> None:
    running, provider = gateway

    async def answers(exchange: Exchange) -> None:
        text = "one two three four five six seven eight nine ten " * 10
        await exchange.reply({"candidates": [{"content": {"parts": [{"text": text}]}}], **figures})

    provider.reset(answers)
    path = f"/providers/gemini/v1beta/models/gemini-2.0-flash:generateContent{query}"
    before = running.usage("untold").get("completion_tokens", 0)
    await ask(running.port, post({"contents": []}, JSON, path=path, key=KEYS["untold"]))
    running.settled()
    used = running.usage("untold")
    assert 100 <= used["completion_tokens"] - before <= 110
    assert used["cost_microusd"] >= 40


async def test_a_stream_of_a_told_length_breaks_off(
    gateway: tuple[Gateway, UpstreamThread],
) -> None:
    running, provider = gateway
    provider.reset(endless(chunk, 1009, sized=True))
    body = {"model": PRICED_MODEL, "stream": True}
    path, key = "/providers/openai/v1/chat/completions", KEYS["sized"]
    async with connected(running.port) as wire:
        await wire.send(post(body, JSON, path=path, key=key))
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(wire.reader.read(), 10)
    assert spent(running, "sized") <= BUDGET_MICROUSD + 6_000


async def test_the_official_clients_raise_it(gateway: tuple[Gateway, UpstreamThread]) -> None:
    running, provider = gateway
    base = f"http://127.0.0.1:{running.port}/providers"
    provider.reset(endless(chunk, 700))
    async with openai.AsyncOpenAI(base_url=f"{base}/openai/v1", api_key=KEYS["openai-sdk"]) as one:
        stream = await one.chat.completions.create(model=PRICED_MODEL, messages=[], stream=True)
        with pytest.raises(openai.APIError, match="budget"):
            async for _ in stream:
                pass
    provider.reset(endless(block, 700))
    key = KEYS["anthropic-sdk"]
    async with anthropic.AsyncAnthropic(base_url=f"{base}/claude", api_key=key) as other:
        events = await other.messages.create(model=HAIKU, messages=[], max_tokens=100, stream=True)
        with pytest.raises(anthropic.APIError, match="budget"):
            async for _ in events:
                pass


async def test_what_is_to_be_kept_for_an_hour_is_reserved_at_that_price() -> None:
    tokens = 100_000  # $0.125 kept for five minutes, $0.20 for an hour
    text = {"type": "text", "text": "x" * tokens * 4}
    asked = []
    for ttl in ("5m", "1h"):
        content = [{**text, "cache_control": {"type": "ephemeral", "ttl": ttl}}]
        messages = [{"role": "user", "content": content}]
        asked.append({"model": "claude-haiku-4-5", "max_tokens": 1, "messages": messages})
    hidden = json.dumps(asked[-1]).replace('"1h"', '"1\\u0068"').encode()

    async def answer(exchange: Exchange) -> None:
        usage = {"input_tokens": 10, "output_tokens": 1, "cache_creation_input_tokens": 0}
        await exchange.reply({"type": "message", "content": [], "usage": usage})

    async with Upstream(behaviour=answer) as upstream:
        claude = {"kind": "anthropic", "base_url": upstream.url, "api_key": "sk-upstream"}
        budget = {"usd": 0.15, "per": "total"}
        keys = [{"name": "k", "tenant": "acme", "sha256": digest(KEY), "budget": budget}]
        text_of_it = config(providers={"claude": claude}, models={}, auth={"keys": keys})
        with running(text_of_it) as gateway:
            path = "/providers/claude/v1/messages"
            asks = [Ask(one, path=path) for one in (*asked, hidden)]
            statuses = [(await once(gateway.port, ask)).status for ask in asks]
    assert statuses == [200, 429, 429]


@pytest.mark.parametrize("path", ["openai/v1/responses/input_tokens", "openai/v1/tokenize"])
async def test_counting_tokens_costs_nothing(
    gateway: tuple[Gateway, UpstreamThread], path: str
) -> None:
    async def behave(exchange: Exchange) -> None:
        await exchange.reply(b'{"object": "response.input_tokens", "input_tokens": 9000}')

    running, provider = gateway
    provider.reset(behave)
    body = {"model": PRICED_MODEL, "input": WORDS * 20}
    sent = post(body, JSON, path=f"/providers/{path}", key=KEYS["counts"])
    assert (await ask(running.port, sent)).status == 200
    running.settled()
    used = running.usage("counts")
    assert used["requests"] >= 1
    assert "cost_microusd" not in used


async def test_what_is_billed_in_units_that_nobody_counts_is_refused(
    gateway: tuple[Gateway, UpstreamThread],
) -> None:
    body = {"model": "tts-1", "input": WORDS, "voice": "alloy"}
    sent = post(body, JSON, path="/providers/openai/v1/audio/speech", key=KEYS["counts"])
    reply = await ask(gateway[0].port, sent)
    assert (reply.status, reply.error["code"]) == (403, "price_unknown")


# -- what stands at the end of an answer, and what nothing tells -----------------------------------

PICTURE = "A" * 4_000_000
FIGURES = {"input_tokens": 20, "output_tokens": 62_400, "total_tokens": 62_420}


async def test_who_leaves_before_the_end_of_a_whole_answer_pays_for_it(upstream: Upstream) -> None:
    async def draws(exchange: Exchange) -> None:
        with contextlib.suppress(ConnectionError):
            await exchange.reply({"data": [{"b64_json": PICTURE}] * 10, "usage": FIGURES})

    upstream.behaviour = draws
    asked = {"model": "gpt-image-1", "prompt": "a lock", "n": 10}
    with untroubled(config(upstream.url, models={})) as gateway:
        async with connected(gateway.port) as wire:
            await wire.send(post(asked, path="/providers/p0/v1/images/generations"))
            await wire.reader.readexactly(5 * len(PICTURE))
        (found,) = await asyncio.to_thread(gateway.records, 1)
    assert found["outcome"] == "disconnected"
    assert found["usage"]["completion_tokens"] == 62_400


async def test_sound_that_says_nothing_costs_what_was_reserved(upstream: Upstream) -> None:
    async def speaks(exchange: Exchange) -> None:
        await exchange.reply(b"\xff\xfb" + bytes(3000), headers={"Content-Type": "audio/mpeg"})

    upstream.behaviour = speaks
    asked = {"model": "gpt-4o-mini-tts", "input": "hello " * 200, "voice": "alloy"}
    with untroubled(config(upstream.url, models={})) as gateway:
        path = "/providers/p0/v1/audio/speech"
        assert (await once(gateway.port, Ask(asked, path=path))).status == 200
        (found,) = await asyncio.to_thread(gateway.records, 1)
    assert found["usage_source"] == "estimated"
    assert 1500 < found["usage"]["audio_completion_tokens"] < 2000
    assert found["cost_microusd"] > 15_000  # at 12 dollars a million


async def test_lines_of_json_end_with_their_budget(upstream: Upstream) -> None:
    async def chats(exchange: Exchange) -> None:
        await exchange.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(ConnectionError):
            for _ in range(EVENTS):
                said = {"message": {"role": "assistant", "content": WORDS}, "done": False}
                await exchange.chunk(json.dumps(said).encode() + b"\n")
            await exchange.end_stream()

    upstream.behaviour = chats
    keys = [
        {
            "name": "k",
            "sha256": digest(KEY),
            "tenant": "t",
            "budget": {"usd": BUDGET_USD, "per": "total"},
        }
    ]
    providers = {"own": {"kind": "ollama", "base_url": upstream.url.removesuffix("/v1")}}
    text = config(
        auth={"keys": keys},
        providers=providers,
        models={},
        pricing={"default": {"input": 1, "output": 5}},
    )
    with untroubled(text) as gateway:
        asked = {"model": "qwen", "messages": [{"role": "user", "content": "hi"}]}
        outcome = await once(gateway.port, Ask(asked, path="/providers/own/api/chat"))
        (found,) = await asyncio.to_thread(gateway.records, 1)
    *said, last = outcome.body.splitlines()
    assert "budget" in json.loads(last)["error"]
    assert all(json.loads(line)["message"]["content"] == WORDS for line in said if line)
    assert found["error"] == "budget_exceeded"
    assert found["cost_microusd"] < 2 * BUDGET_MICROUSD + 10 * 1024
