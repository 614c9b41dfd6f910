"""A stream that is cut goes on at another target, where the model is configured so."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from tests.support.config import PRICED_MODEL, chat, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Client, Outcome, flood, once
from tests.support.upstream import Behaviour, Exchange, Upstream, delta, usage

WORDS = [f"w{i} " for i in range(40)]
TEXT = "".join(WORDS)
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
DIALECTS = pytest.mark.parametrize("path", ["/v1/chat/completions", MESSAGES, RESPONSES])


def body_of(path: str, **more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": "count"}]
    if path == RESPONSES:
        return {"model": "m", "input": said, "stream": True, "store": False, **more}
    found = {"model": "m", "messages": said, "stream": True, **more}
    return {**found, "max_tokens": 500} if path == MESSAGES else found


def rest_of(exchange: Exchange) -> list[str]:
    """The words that a model has still to say."""
    turns = exchange.request.json["messages"]
    said = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    return WORDS[len(said[-1].split()) :] if said else WORDS


async def counts(exchange: Exchange) -> None:
    """Say all of it, or the rest."""
    await exchange.start_stream()
    for word in rest_of(exchange):
        await exchange.event(delta(word))
    await exchange.event(delta(None, "stop"))
    await exchange.event({**delta(None), "choices": [], "usage": usage(100, 50)})
    await exchange.end_stream()


def cut_after(words: int, how: str = "reset") -> Behaviour:
    """Say so much of what is left, and fail."""

    async def behave(exchange: Exchange) -> None:
        await exchange.start_stream()
        for word in rest_of(exchange)[:words]:
            await exchange.event(delta(word))
        if how == "error":
            await exchange.event({"error": {"message": "overloaded"}})
        elif how == "end":
            await exchange.send(b"0\r\n\r\n")
        elif how == "silent":
            await exchange.gone()
        elif how == "cut":
            await exchange.chunk(b'data: {"id": "x", "choices": [{"delta": {"cont')
            exchange.abort()
        else:
            exchange.abort()

    return behave


async def refuses(exchange: Exchange) -> None:
    await exchange.reply({"error": {"message": "no"}}, 500)


@contextlib.asynccontextmanager
async def continuing(
    *behaviours: Behaviour, timeouts: dict[str, Any] | None = None, **model: Any
) -> AsyncIterator[tuple[Gateway, list[Upstream]]]:
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(Upstream(behaviour=one)) for one in behaviours]
        targets = [
            {"provider": f"p{i}", "model": PRICED_MODEL, "priority": i + 1}
            for i in range(len(upstreams))
        ]
        wanted = {"targets": targets, "on_stream_failure": "continue", **model}
        server = {"timeouts": timeouts or {}}
        text = config(*[one.url for one in upstreams], models={"m": wanted}, server=server)
        yield stack.enter_context(running(text)), upstreams


def read(path: str, outcome: Outcome) -> tuple[str, bool, dict[str, int]]:
    """A stream's text, whether it has a proper end, and its usage."""
    assert outcome.failure == ""
    text, ended, used = "", False, dict[str, int]()
    for block in outcome.body.decode().split("\n\n"):
        data = next((line[6:] for line in block.split("\n") if line.startswith("data: ")), "")
        if data == "[DONE]":
            ended = True
            continue
        event = json.loads(data) if data else {}
        if path == MESSAGES:
            text += event.get("delta", {}).get("text", "")
            used = event.get("usage", used) if event.get("type") == "message_delta" else used
            ended = ended or event.get("type") == "message_stop"
        elif path == RESPONSES:
            if event.get("type") == "response.output_text.delta":
                text += event["delta"]
            if event.get("type") == "response.completed":
                ended, used = True, event["response"]["usage"]
                (item,) = event["response"]["output"]
                assert item["content"][0]["text"] == text
        else:
            for choice in event.get("choices", []):
                text += choice["delta"].get("content") or ""
            used = event.get("usage") or used
    return text, ended, used


@DIALECTS
@pytest.mark.parametrize("how", ["reset", "error", "end", "silent", "cut"])
async def test_another_target_goes_on(path: str, how: str) -> None:
    short = {"idle": 0.5}
    async with continuing(cut_after(7, how), counts, timeouts=short) as (gateway, upstreams):
        more = {"stream_options": {"include_usage": True}} if path.endswith("completions") else {}
        outcome = await once(gateway.port, Ask(body_of(path, **more), path=path))
        text, ended, used = read(path, outcome)
        assert (text, ended) == (TEXT, True)
        (_, rest) = (one.received for one in upstreams)
        turns = rest[0].json["messages"]
        assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
        assert turns[1]["content"] == "".join(WORDS[:7])
        (record,) = gateway.records(1)
        assert (record["outcome"], record["provider"], record["continued"]) == ("ok", "p1", 1)
        assert [one["provider"] for one in record["tries"]] == ["p0", "p1"]
        # Both are paid for: what the first was seen to write, and what the second reports.
        assert record["usage"]["completion_tokens"] > 50
        assert record["usage"]["prompt_tokens"] > 100
        assert sum(record["cost"].values()) == record["cost_microusd"]
        total = gateway.usage("acme")
        assert total["completion_tokens"] == record["usage"]["completion_tokens"]
        assert used[("completion" if more else "output") + "_tokens"] == total["completion_tokens"]


async def test_another_goes_on_where_one_takes_longer_than_it_may() -> None:
    async with Upstream(behaviour=cut_after(7, "silent")) as slow, Upstream(counts) as other:
        text = json.loads(config(slow.url, other.url))
        text["models"]["m"]["on_stream_failure"] = "continue"
        text["providers"]["p0"]["timeouts"] = {"total": 0.5}
        with running(json.dumps(text)) as gateway:
            path = "/v1/chat/completions"
            said, ended, _ = read(path, await once(gateway.port, Ask(body_of(path))))
            assert (said, ended) == (TEXT, True)


@DIALECTS
async def test_a_message_looks_like_one(path: str) -> None:
    """One beginning, one id, one block, one end."""
    async with continuing(cut_after(5), counts) as (gateway, _):
        outcome = await once(gateway.port, Ask(body_of(path), path=path))
        whole = outcome.body.decode()
        if path == MESSAGES:
            for kind in ("message_start", "content_block_start", "content_block_stop"):
                assert whole.count(f"event: {kind}\n") == 1
        elif path == RESPONSES:
            for kind in ("response.created", "response.output_item.added", "response.completed"):
                assert whole.count(f"event: {kind}\n") == 1
        else:
            events = [json.loads(event) for event in outcome.events[:-1]]
            assert len({event["id"] for event in events}) == 1
            roles = [e["choices"][0]["delta"].get("role") for e in events if e["choices"]]
            assert roles.count("assistant") == 1


async def test_targets_are_asked_until_one_goes_on_to_the_end() -> None:
    behaviours = (cut_after(4), refuses, cut_after(6), counts)
    async with continuing(*behaviours) as (gateway, _):
        path = "/v1/chat/completions"
        outcome = await once(gateway.port, Ask(body_of(path)))
        assert read(path, outcome)[:2] == (TEXT, True)
        (record,) = gateway.records(1)
        assert record["continued"] == 2, "one of three refused"
        assert [one["provider"] for one in record["tries"]] == ["p0", "p1", "p2", "p3"]
        assert all(0 <= one["first_byte_us"] <= one["duration_us"] for one in record["tries"])


async def test_a_target_that_cannot_do_it_was_not_tried() -> None:
    asked = 0

    async def cuts_once(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        await (cut_after(4) if asked == 1 else counts)(exchange)

    async with Upstream(behaviour=cuts_once) as one, Upstream(behaviour=counts) as two:
        targets = [{"provider": f"p{i}", "priority": i + 1} for i in range(2)]
        models = {"m": {"targets": targets, "on_stream_failure": "continue"}}
        content = json.loads(config(one.url, two.url, models=models))
        content["providers"]["p1"]["kind"] = "anthropic"  # which has no seeds
        with running(json.dumps(content)) as gateway:
            path = "/v1/chat/completions"
            outcome = await once(gateway.port, Ask(body_of(path, seed=3)))
            assert read(path, outcome)[:2] == (TEXT, True)
            (record,) = gateway.records(1)
        assert two.received == []
        assert [one["provider"] for one in record["tries"]] == ["p0", "p0"]
        assert record["attempts"] == 2


@DIALECTS
async def test_where_nobody_can_go_on_the_client_is_told(path: str) -> None:
    async with continuing(cut_after(4), refuses) as (gateway, upstreams):
        outcome = await once(gateway.port, Ask(body_of(path), path=path))
        text, ended, _ = read(path, outcome)
        # The first was asked to go on, too: it was cut once more.
        assert (text, ended) == ("".join(WORDS[:8]), False)
        assert b"error" in outcome.body
        assert [len(one.received) for one in upstreams] == [2, 1]
        (record,) = gateway.records(1)
        assert (record["outcome"], record["error"]) == ("error", "stream_interrupted")


async def test_a_tool_call_is_not_gone_on_with() -> None:
    async def calls(exchange: Exchange) -> None:
        function = {"name": "f", "arguments": '{"a'}
        call = {"index": 0, "id": "c1", "type": "function", "function": function}
        event = delta(None)
        event["choices"][0]["delta"] = {"tool_calls": [call]}
        await exchange.start_stream()
        await exchange.event(delta("Let me "))
        await exchange.event(event)
        exchange.abort()

    async with continuing(calls, counts) as (gateway, upstreams):
        outcome = await once(gateway.port, Ask(body_of("/v1/chat/completions")))
        assert "[DONE]" not in outcome.events
        assert json.loads(outcome.events[-1])["error"]["code"] == "stream_interrupted"
        assert upstreams[1].received == []


async def test_without_that_setting_a_cut_is_an_error() -> None:
    async with continuing(cut_after(4), counts, on_stream_failure="error") as (gateway, upstreams):
        outcome = await once(gateway.port, Ask(body_of("/v1/chat/completions")))
        assert "[DONE]" not in outcome.events
        assert upstreams[1].received == []
        (record,) = gateway.records(1)
        assert record["continued"] == 0


async def test_the_rest_may_be_no_longer_than_what_is_left_of_the_maximum() -> None:
    async with continuing(cut_after(10), counts) as (gateway, upstreams):
        await once(gateway.port, Ask(body_of(MESSAGES), path=MESSAGES))
        asked = upstreams[1].received[0].json
        limit = asked.get("max_completion_tokens") or asked["max_tokens"]
        assert 450 <= limit < 500


async def test_a_client_that_leaves_ends_what_goes_on() -> None:
    gone = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.event(delta("more "))
        await exchange.gone()
        gone.set()

    async with continuing(cut_after(4), waits) as (gateway, upstreams):
        async with Client(gateway.port) as client:
            await client.send(Ask(body_of("/v1/chat/completions")))
            await client.read_head()
            while b"more" not in await client.read_chunk():
                pass
        async with asyncio.timeout(5):
            await gone.wait()
        gateway.settled()
        (record,) = gateway.records(1)
        assert (record["outcome"], record["continued"]) == ("disconnected", 1)
        assert len(upstreams[1].received) == 1


async def test_streams_cut_anywhere_have_every_word_once() -> None:
    chance = Random(7)

    async def anywhere(exchange: Exchange) -> None:
        await exchange.start_stream()
        words = rest_of(exchange)
        for i in range(chance.randrange(0, len(words) + 1)):
            await exchange.event(delta(words[i]))
        exchange.abort()

    async with continuing(anywhere, counts) as (gateway, _):
        asks = [
            Ask(body_of(path), path=path)
            for path in ("/v1/chat/completions", MESSAGES, RESPONSES) * 40
        ]
        for outcome in await flood(gateway.port, asks, connections=8):
            text, ended, _ = read(outcome.ask.path, outcome)
            assert (text, ended) == (TEXT, True)
        assert gateway.usage("acme")["requests"] == 120
        assert gateway.usage("acme").get("errors", 0) == 0


async def test_a_whole_reply_is_untouched() -> None:
    said = b'{"choices": [],   "odd": 1, "model": "the-one"}'

    async def whole(exchange: Exchange) -> None:
        await exchange.reply(said)

    async with continuing(whole) as (gateway, _):
        outcome = await once(gateway.port, Ask(chat()))
        assert outcome.body == said
