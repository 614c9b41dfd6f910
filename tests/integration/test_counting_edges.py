"""Who pays for what nobody got, for counting, and for a call that was shared."""

import asyncio
import json

import pytest

from tests.support.config import KEY, chat, config
from tests.support.gateway import running
from tests.support.load import Ask, once
from tests.support.upstream import Exchange, Upstream, completion, delta, usage
from tests.support.wire import connected, post

COUNT = "/v1/messages/count_tokens"


async def test_a_client_that_leaves_between_attempts_pays_nothing(upstream: Upstream) -> None:
    async def fails(exchange: Exchange) -> None:
        await exchange.reply({"error": {"message": "later"}}, status=503)

    upstream.behaviour = fails
    text = json.loads(config(upstream.url, retries={"attempts": 5, "backoff": 8, "longest": 8}))
    text["models"]["m"]["price"] = {"input": 1000, "output": 1000}
    with running(json.dumps(text)) as gateway:
        async with connected(gateway.port) as wire:
            await wire.send(post(chat()))
            while not upstream.received:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)  # the answer has been read, and the next attempt waits
        (record,) = await asyncio.to_thread(gateway.records, 1)
        gateway.settled()
        assert record["outcome"] == "disconnected"
        assert (record["usage"]["prompt_tokens"], record["cost_microusd"]) == (0, 0)
        assert gateway.usage("acme")["requests"] == 1


async def test_parts_of_a_usage_are_within_what_they_are_parts_of(upstream: Upstream) -> None:
    told = usage(10, 5, cached=1000, reasoning=1000)

    async def exaggerates(exchange: Exchange) -> None:
        await exchange.reply(completion("yes", told))

    upstream.behaviour = exaggerates
    with running(config(upstream.url)) as gateway:
        await once(gateway.port, Ask(chat()))
        gateway.settled()
        used = gateway.usage("acme")
    assert (used["prompt_tokens"], used["cached_tokens"]) == (10, 10)
    assert (used["completion_tokens"], used["reasoning_tokens"]) == (5, 5)


async def test_counting_is_free_where_a_budget_is_spent(upstream: Upstream) -> None:
    async def serves(exchange: Exchange) -> None:
        await exchange.reply(completion("yes", usage(10, 5)))

    upstream.behaviour = serves
    text = json.loads(config(upstream.url))
    text["models"]["m"]["price"] = {"input": 0, "output": 0, "per_request": 1}
    text["auth"]["keys"][0]["budget"] = {"usd": 1, "per": "total"}
    count = Ask(chat(), path=COUNT, key=KEY)
    with running(json.dumps(text)) as gateway:
        assert [(await once(gateway.port, Ask(chat()))).status for _ in range(2)] == [200, 429]
        counted = await once(gateway.port, count)
        assert counted.status == 200, counted.body
        gateway.settled()
        assert gateway.usage("acme")["cost_microusd"] == 1_000_000


@pytest.mark.parametrize("bill", ["split", "each"])
async def test_metrics_have_what_sharers_of_a_stream_pay(upstream: Upstream, bill: str) -> None:
    begun = asyncio.Event()

    async def streams(exchange: Exchange) -> None:
        await begun.wait()
        await exchange.start_stream()
        await exchange.event(delta("word " * 20))
        await exchange.event(delta(None, "stop"))
        await exchange.event({**delta(None), "choices": [], "usage": usage(100, 50)})
        await exchange.event("[DONE]")
        await exchange.end_stream()

    upstream.behaviour = streams
    cache = {"enabled": True, "requests": "all", "coalesce": "all", "bill": bill}
    text = json.loads(config(upstream.url, cache=cache))
    text["models"]["m"]["price"] = {"input": 1000, "output": 1000}
    with running(json.dumps(text), workers=1) as gateway:
        asks = [asyncio.create_task(once(gateway.port, Ask(chat(stream=True)))) for _ in range(4)]
        while not upstream.received:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        begun.set()
        assert [(await one).status for one in asks] == [200] * 4
        gateway.settled()
        assert len(upstream.received) == 1
        cost = gateway.usage("acme")["cost_microusd"]
        metrics = gateway.get("/metrics")[1].decode()
    assert cost == (150_000 if bill == "split" else 600_000)
    lines = [one for one in metrics.splitlines() if one.startswith("sluice_cost_microusd_total{")]
    assert sum(float(one.rpartition(" ")[2]) for one in lines) == cost
