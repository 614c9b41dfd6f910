"""What becomes of a stream whose client leaves: cut off, or read to its end for the usage."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.config import KEY, chat, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Client, once
from tests.support.upstream import Behaviour, Exchange, Upstream, delta, like_openai, usage
from tests.support.wire import chunked, connected, head_of, post

WORDS = 40


def leaving(url: str, policy: str) -> str:
    text = json.loads(config(url, limits={"global": {"concurrency": 9}}))
    text["providers"]["p0"]["on_disconnect"] = policy
    return json.dumps(text)


async def words(exchange: Exchange) -> None:
    await exchange.start_stream()
    for _ in range(WORDS):
        await exchange.event(delta(" word"))
        await asyncio.sleep(0.02)
    await exchange.event(delta(None, "stop"))
    await exchange.event({**delta(None), "choices": [], "usage": usage(7, WORDS)})
    await exchange.event("[DONE]")
    await exchange.end_stream()


async def leave_direct(port: int) -> None:
    assert (await once(port, Ask(chat(stream=True), leave_after=2))).failure == "left"


async def leave_chunked(port: int) -> None:
    """The same with a chunked request, which takes the other way through the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(chat(stream=True)).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        b"Authorization: Bearer %b\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (KEY.encode(), len(body), body)
    )
    await reader.readuntil(b" word")
    writer.transport.abort()


def only_record(gateway: Gateway) -> dict[str, Any]:
    gateway.settled()
    (record,) = gateway.records(1)
    return record


@pytest.mark.parametrize("leave", [leave_direct, leave_chunked])
async def test_a_drained_provider_says_itself_what_was_used(upstream: Upstream, leave: Any) -> None:
    upstream.behaviour = words
    with running(leaving(upstream.url, "drain")) as gateway:
        await leave(gateway.port)
        record = await asyncio.to_thread(only_record, gateway)
        with gateway.store as store:
            in_use = store.hget("sluice:limit:gateway:concurrency", "in_use")
    assert (record["outcome"], record["status"]) == ("disconnected", 499)
    assert record["usage_source"] == "provider"
    assert record["usage"]["completion_tokens"] == WORDS
    assert in_use == "0"


@pytest.mark.parametrize("leave", [leave_direct, leave_chunked])
async def test_a_cancelled_provider_is_cut_off_at_once(upstream: Upstream, leave: Any) -> None:
    upstream.behaviour = words
    with running(leaving(upstream.url, "cancel")) as gateway:
        await leave(gateway.port)
        record = await asyncio.to_thread(only_record, gateway)
        assert upstream.open_connections == 0
    assert record["outcome"] == "disconnected"
    assert record["usage_source"] == "partial"
    assert 0 < record["usage"]["completion_tokens"] < WORDS


@pytest.mark.parametrize("lane", ["direct", "aiohttp"])
async def test_a_client_that_was_behind_holds_nothing_up(upstream: Upstream, lane: str) -> None:
    async def at_length(exchange: Exchange) -> None:
        await exchange.start_stream()
        for _ in range(200):
            await exchange.event(delta("x" * 60_000))
        await exchange.event(delta(None, "stop"))
        await exchange.event({**delta(None), "choices": [], "usage": usage(7, WORDS)})
        await exchange.event("[DONE]")
        await exchange.end_stream()

    upstream.behaviour = at_length
    body = json.dumps(chat(stream=True)).encode()
    asked = {
        "direct": post(body),
        "aiohttp": head_of("Transfer-Encoding: chunked") + chunked(body),
    }
    with running(leaving(upstream.url, "drain")) as gateway:
        async with connected(gateway.port) as wire:  # it reads no further than a buffer
            await wire.send(asked[lane])
            await wire.reader.readuntil(b"xxxx")
            await asyncio.sleep(1)  # until all buffers are full
        record = await asyncio.to_thread(only_record, gateway)
    assert (record["outcome"], record["usage_source"]) == ("disconnected", "provider")
    assert record["usage"]["completion_tokens"] == WORDS


async def test_a_gateway_that_stops_waits_for_what_it_drains(upstream: Upstream) -> None:
    upstream.behaviour = words
    with running(leaving(upstream.url, "drain")) as gateway:
        await leave_direct(gateway.port)
        assert await asyncio.to_thread(gateway.stop) == 0
        (record,) = gateway.records(1)
    assert record["usage"]["completion_tokens"] == WORDS


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cache", [False, True], ids=["alone", "in a flight"])
async def test_a_race_that_is_not_decided_is_drained_as_well(
    upstream: Upstream, *, cache: bool, stream: bool
) -> None:
    left = asyncio.Event()

    async def answers(exchange: Exchange) -> None:
        await left.wait()
        await (words if stream else like_openai)(exchange)

    upstream.behaviour = answers
    text = json.loads(config(upstream.url, upstream.url, cache={"enabled": cache}))
    text["providers"]["p0"]["on_disconnect"] = "drain"
    text["models"]["m"]["hedge"] = {"after": 30}
    with running(json.dumps(text)) as gateway:
        record = await ask_and_leave(gateway, upstream, left, stream=stream)
    assert (record["outcome"], record["usage_source"]) == ("disconnected", "provider")
    assert [one["failure"] for one in record["tries"]] == [""]


TOO_LONG = {"message": "too long", "code": "context_length_exceeded"}


def refusing(left: asyncio.Event, status: int = 500) -> Behaviour:
    """Refuse once the client has left."""

    async def behave(exchange: Exchange) -> None:
        await left.wait()
        await exchange.reply({"error": TOO_LONG if status == 400 else {"message": "no"}}, status)

    return behave


async def at_once(exchange: Exchange) -> None:
    await exchange.reply({"error": {"message": "no"}}, 500)


@contextlib.asynccontextmanager
async def drained(*behaviours: Behaviour, **sections: Any) -> AsyncIterator[tuple[Any, ...]]:
    """A gateway that drains each of its providers, and these."""
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(Upstream(behaviour=one)) for one in behaviours]
        text = json.loads(config(*[one.url for one in upstreams]))
        for provider in text["providers"].values():
            provider["on_disconnect"] = "drain"
        for name, more in sections.items():
            text[name] = {**text.get(name, {}), **more}
        yield stack.enter_context(running(json.dumps(text), workers=1)), *upstreams


async def ask_and_leave(
    gateway: Gateway, waiting: Upstream, left: asyncio.Event, *, stream: bool = False
) -> dict[str, Any]:
    """Leave as soon as this provider has been asked; return the record."""
    async with Client(gateway.port) as client:
        await client.send(Ask(chat(temperature=0, stream=stream)))
        while not waiting.received:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)  # for the gateway to see it
    left.set()
    return await asyncio.to_thread(only_record, gateway)


@pytest.mark.parametrize("cache", [False, True], ids=["alone", "in a flight"])
async def test_where_a_drained_provider_fails_no_other_is_asked(*, cache: bool) -> None:
    left = asyncio.Event()
    behaviours = refusing(left), like_openai
    async with drained(*behaviours, cache={"enabled": cache}) as (gateway, first, second):
        record = await ask_and_leave(gateway, first, left)
    assert (record["outcome"], record["cost_microusd"]) == ("disconnected", 0)
    assert [len(one.received) for one in (first, second)] == [1, 0]


async def test_nor_is_it_asked_again() -> None:
    left = asyncio.Event()
    retries = {"attempts": 3, "backoff": 0.01, "budget": 1}
    async with drained(refusing(left), retries=retries) as (gateway, first):
        record = await ask_and_leave(gateway, first, left)
    assert (record["outcome"], len(first.received)) == ("disconnected", 1)


async def test_nor_is_another_model() -> None:
    left = asyncio.Event()
    fallbacks = {"context_window": ["other"]}
    models = {
        "m": {"targets": [{"provider": "p0"}], "fallbacks": fallbacks},
        "other": {"targets": [{"provider": "p1"}]},
    }
    async with drained(refusing(left, 400), like_openai, models=models) as (gateway, first, other):
        record = await ask_and_leave(gateway, first, left)
    assert (record["outcome"], len(other.received)) == ("disconnected", 0)


async def test_nor_is_one_hedged() -> None:
    left = asyncio.Event()
    targets = [{"provider": f"p{i}", "priority": i + 1} for i in range(3)]
    models = {"m": {"targets": targets, "hedge": {"after": 2}}}
    retries = {"attempts": 0, "budget": 1}
    behaviours = at_once, refusing(asyncio.Event()), like_openai
    sections = {"models": models, "retries": retries, "server": {"timeouts": {"total": 4}}}
    async with drained(*behaviours, **sections) as (gateway, _, slow, last):
        record = await ask_and_leave(gateway, slow, left)
    assert (record["outcome"], len(last.received)) == ("disconnected", 0)
