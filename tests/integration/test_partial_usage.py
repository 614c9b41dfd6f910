"""Streams that end too early are charged for what was delivered, whatever figures came before."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.config import KEY, PRICED_MODEL, config, digest
from tests.support.gateway import Gateway, untroubled
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Behaviour, Exchange, delta, usage
from tests.support.wire import ask, connected, post

POOR = "sk-poor-key"
HAIKU = "claude/claude-haiku-4-5"
TEXT = "one two three four five six seven eight nine ten " * 100
WORDS = 1000
FIRST = {"input_tokens": 30, "output_tokens": 1}
CLAUDE: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {
            **dict.fromkeys(("id", "model"), "m"),
            "type": "message",
            "role": "assistant",
            "content": [],
            "usage": FIRST,
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}},
]
GEMINI: list[dict[str, Any]] = [
    {
        "candidates": [{"content": {"parts": [{"text": TEXT}]}}],
        "usageMetadata": {"promptTokenCount": 30},
    }
]
CHAT = [{**delta(TEXT), "usage": usage(30, 2)}]
STREAMS = [
    ("messages", "/v1/messages", HAIKU, CLAUDE),
    ("chat of Anthropic", "/v1/chat/completions", HAIKU, CLAUDE),
    ("responses of Anthropic", "/v1/responses", HAIKU, CLAUDE),
    ("chat of Gemini", "/v1/chat/completions", "gemini/gemini-2.0-flash", GEMINI),
    ("chat", "/v1/chat/completions", f"openai/{PRICED_MODEL}", CHAT),
    ("messages of OpenAI", "/v1/messages", f"openai/{PRICED_MODEL}", CHAT),
    ("passed through", "/providers/claude/v1/messages", "claude-haiku-4-5", CLAUDE),
]


@pytest.fixture(scope="module")
def gateway() -> Iterator[tuple[Gateway, UpstreamThread]]:
    with UpstreamThread() as provider:
        host = provider.url.removesuffix("/v1")
        rows = {
            "openai": {"kind": "openai", "base_url": provider.url},
            "claude": {"kind": "anthropic", "base_url": provider.url},
            "gemini": {"kind": "gemini", "base_url": f"{host}/v1beta"},
        }
        budget = {"usd": 0.03, "per": "total"}
        keys = [
            {"name": "k", "tenant": "acme", "sha256": digest(KEY)},
            {"name": "poor", "tenant": "poor", "sha256": digest(POOR), "budget": budget},
        ]
        providers = {name: {**row, "api_key": "sk-up"} for name, row in rows.items()}
        with untroubled(config(auth={"keys": keys}, providers=providers, models={})) as running:
            yield running, provider


def sent(events: list[dict[str, Any]]) -> bytes:
    return b"".join(
        (f"event: {one['type']}\n" if "type" in one else "").encode()
        + f"data: {json.dumps(one)}\n\n".encode()
        for one in events
    )


def ends(events: list[dict[str, Any]], how: str) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.chunk(sent(events))
        if how == "error":
            failed = {"type": "error", "error": {"type": "overloaded_error", "message": "x"}}
            await exchange.chunk(sent([failed]))
            await exchange.end_stream()
        elif how == "cut":
            exchange.abort()
        else:
            await exchange.gone()

    return behave


def asked(path: str, model: str, key: str = KEY) -> bytes:
    said = [{"role": "user", "content": "x"}]
    body: dict[str, Any] = {"model": model, "stream": True}
    body |= {"input": "x"} if path == "/v1/responses" else {"messages": said, "max_tokens": 4000}
    return post(body, "Content-Type: application/json", path=path, key=key)


@pytest.mark.parametrize("how", ["left", "error", "cut"])
@pytest.mark.parametrize(("path", "model", "events"), [one[1:] for one in STREAMS])
async def test_a_stream_that_ends_early_is_charged_for_what_came(
    gateway: tuple[Gateway, UpstreamThread],
    path: str,
    model: str,
    events: list[dict[str, Any]],
    how: str,
) -> None:
    running, provider = gateway
    provider.reset(ends(events, how))
    before = len(running.records())
    async with connected(running.port) as wire:
        await wire.send(asked(path, model))
        await asyncio.wait_for(wire.reader.readuntil(b"nine ten"), 10)
        if how == "left":
            await wire.aclose()
        (record,) = await logged(running, before)
    outcome = "ok" if path.startswith("/providers/") and how == "error" else "error"
    assert record["outcome"] == ("disconnected" if how == "left" else outcome), record
    used = record["usage"]
    assert WORDS <= used["completion_tokens"] <= WORDS * 1.1
    assert used["prompt_tokens"] == 30
    assert record["usage_source"] == "partial"
    assert record["cost_microusd"] > WORDS * 0.39


ENDINGS: dict[str, list[dict[str, Any]]] = {
    "claude": [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "message_stop"},
    ],
    "gemini": [{"candidates": [{"content": {"parts": [{"text": "!"}]}, "finishReason": "STOP"}]}],
    "openai": [delta("!"), delta(None, "stop")],
}


@pytest.mark.parametrize(("path", "model", "events"), [one[1:] for one in STREAMS[:-1]])
async def test_a_whole_stream_is_not_charged_by_figures_of_its_beginning(
    gateway: tuple[Gateway, UpstreamThread], path: str, model: str, events: list[dict[str, Any]]
) -> None:
    running, provider = gateway

    async def whole(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.chunk(sent([*events, *ENDINGS[model.partition("/")[0]]]))
        await exchange.end_stream()

    provider.reset(whole)
    before = len(running.records())
    async with connected(running.port) as wire:
        await wire.send(asked(path, model))
        (record,) = await logged(running, before)
    assert (record["outcome"], record["usage_source"]) == ("ok", "partial")
    used = record["usage"]
    assert WORDS <= used["completion_tokens"] <= WORDS * 1.1
    assert used["prompt_tokens"] == 30


GENERATE = "/providers/gemini/v1beta/models/gemini-2.0-flash:generateContent"


@pytest.mark.parametrize("path", ["/v1/chat/completions", GENERATE])
async def test_a_whole_reply_is_not_charged_by_figures_of_its_prompt(
    gateway: tuple[Gateway, UpstreamThread], path: str
) -> None:
    running, provider = gateway

    async def replies(exchange: Exchange) -> None:
        await exchange.reply(GEMINI[0])

    provider.reset(replies)
    before = len(running.records())
    content = {"model": "gemini/gemini-2.0-flash", "messages": [{"role": "user", "content": "x"}]}
    body = {"contents": []} if path == GENERATE else content
    reply = await ask(running.port, post(body, "Content-Type: application/json", path=path))
    assert reply.status == 200
    (record,) = await logged(running, before)
    used = record["usage"]
    assert WORDS <= used["completion_tokens"] <= WORDS * 1.1
    assert (used["prompt_tokens"], record["usage_source"]) == (30, "partial")


async def logged(gateway: Gateway, known: int) -> list[dict[str, Any]]:
    """The records after so many."""
    return await asyncio.to_thread(lambda: gateway.records(known + 1)[known:])


async def test_a_budget_is_not_made_anew_by_streams_that_end_early(
    gateway: tuple[Gateway, UpstreamThread],
) -> None:
    running, provider = gateway
    given = 0
    for _ in range(10):
        provider.reset(ends(CLAUDE, "error"))
        reply = await ask(running.port, asked("/v1/messages", HAIKU, POOR))
        if reply.status == 429:
            break
        given += 1
    running.settled()
    assert 2 <= given <= 6  # at five micro-dollars a token 5,030 each, and a slice
    assert running.usage("poor")["cost_microusd"] == given * 5035
