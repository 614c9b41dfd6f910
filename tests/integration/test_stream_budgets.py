"""Where the budget of a stream ends that shows nothing, goes on elsewhere, or is shared."""

import asyncio
import contextlib
import json
import os
import signal
from typing import Any

import pytest

from tests.support.config import KEY, chat, config, digest
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Client, once
from tests.support.upstream import Exchange, Upstream, completion, delta, usage

HAIKU = "claude-haiku-4-5"
THOUGHT = "thinking hard about it " * 20
WORDS = "word after word " * 8


async def thinks(exchange: Exchange) -> None:
    """Think, as Anthropic does, far longer than a slice reaches, and say one word."""

    async def say(event: dict[str, Any]) -> None:
        data = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
        await exchange.chunk(data.encode())

    message = {
        **dict.fromkeys(("id", "model"), "m"),
        "type": "message",
        "role": "assistant",
        "content": [],
        "usage": {"input_tokens": 30, "output_tokens": 1},
    }
    await asyncio.sleep(0.3)
    await exchange.start_stream()
    with contextlib.suppress(ConnectionError):
        await say({"type": "message_start", "message": message})
        block: dict[str, Any] = {"type": "thinking", "thinking": ""}
        await say({"type": "content_block_start", "index": 0, "content_block": block})
        for _ in range(500):
            thought = {"type": "thinking_delta", "thinking": THOUGHT}
            await say({"type": "content_block_delta", "index": 0, "delta": thought})
        block = {"type": "text", "text": "word"}
        await say({"type": "content_block_start", "index": 1, "content_block": block})
        end = {"stop_reason": "end_turn"}
        await say({"type": "message_delta", "delta": end, "usage": {"output_tokens": 40_000}})
        await say({"type": "message_stop"})
        await exchange.end_stream()


POOR = "sk-poor-key"


def shared(url: str, bill: str) -> str:
    """A gateway whose second key has a budget of a thousandth of a dollar."""
    keys: list[dict[str, Any]] = [
        {"name": "rich", "tenant": "acme", "sha256": digest(KEY)},
        {"name": "poor", "tenant": "acme", "sha256": digest(POOR)},
    ]
    keys[1]["budget"] = {"usd": 0.001, "per": "total"}
    cache = {"enabled": True, "requests": "all", "coalesce": "all", "bill": bill}
    return config(url, auth={"keys": keys}, cache=cache)


async def asked_by(upstream: Upstream) -> None:
    """Wait until the provider has been asked."""
    async with asyncio.timeout(10):
        while not upstream.received:
            await asyncio.sleep(0.01)


async def says_nothing(exchange: Exchange) -> None:
    await exchange.gone()


def spent(gateway: Gateway, key: str) -> int:
    """What has been spent of a key's budget, of which nothing is reserved any more."""
    gateway.settled()
    with contextlib.closing(gateway.store) as store:
        found = store.hgetall(f"sluice:limit:{{acme}}:key:{key}:budget:total:total")
    assert found["reserved"] == "0"
    return int(found["spent"])


@pytest.mark.parametrize("hedge", [None, {"after": 0.1}], ids=["in turn", "hedged"])
async def test_thoughts_that_nobody_is_shown_are_paid_for_where_the_budget_ends(
    hedge: dict[str, Any] | None,
) -> None:
    """Legacy completions have no place for thoughts; the other target is not asked for more."""
    second = thinks if hedge is None else says_nothing
    async with Upstream(behaviour=thinks) as one, Upstream(behaviour=second) as two:
        rows = {
            name: {"kind": "anthropic", "base_url": up.url, "api_key": "sk-up"}
            for name, up in (("p0", one), ("p1", two))
        }
        targets = [
            {"provider": name, "model": HAIKU, "priority": place}
            for place, name in enumerate(rows, 1)
        ]
        key = {"name": "k", "tenant": "acme", "sha256": digest(KEY)}
        text = config(
            providers=rows,
            models={"m": {"targets": targets, **({"hedge": hedge} if hedge else {})}},
            auth={"keys": [{**key, "budget": {"usd": 0.01, "per": "total"}}]},
            retries={"attempts": 0, "budget": 1},
        )
        with running(text, workers=1) as gateway:
            body = {"model": "m", "prompt": "x", "stream": True, "max_tokens": 9000}
            outcome = await once(gateway.port, Ask(body, path="/v1/completions"))
            (record,) = gateway.records(1)
            paid = spent(gateway, "k")
        assert len(two.received) == (0 if hedge is None else 1)
    assert (outcome.status, outcome.json["error"]["code"]) == (429, "budget_exceeded")
    assert (record["error"], record["provider"]) == ("budget_exceeded", "p0")
    assert record["usage_source"] == "partial"
    assert record["usage"]["completion_tokens"] > 500
    assert 2500 < paid == record["cost_microusd"] < 50_000  # of 200,000


async def is_cut(exchange: Exchange) -> None:
    """Outgrow a slice and fail, in one read."""
    await exchange.start_stream()
    failed = {"error": {"message": "overloaded"}}
    events = [json.dumps(one).encode() for one in (*[delta(WORDS)] * 30, failed)]
    await exchange.chunk(b"".join([b"data: %b\n\n" % one for one in events]))
    await exchange.end_stream()


async def streams(exchange: Exchange) -> None:
    """Say far more than any slice."""
    await exchange.start_stream()
    with contextlib.suppress(ConnectionError):
        for _ in range(2000):
            await exchange.event(delta(WORDS))
        await exchange.event(delta(None, "stop"))
        await exchange.event("[DONE]")
        await exchange.end_stream()


@pytest.mark.parametrize(("budget", "asked"), [(1000, 0), (1500, 1)])
async def test_what_goes_on_elsewhere_is_bounded_by_the_budget_like_its_beginning(
    budget: int, asked: int
) -> None:
    """The slice that the cut stream had outgrown is reserved before another target is asked."""
    key = {"name": "k", "tenant": "acme", "sha256": digest(KEY)}
    keys = [{**key, "budget": {"usd": budget / 1_000_000, "per": "total"}}]
    async with Upstream(behaviour=is_cut) as one, Upstream(behaviour=streams) as two:
        wanted = json.loads(config(one.url, two.url, auth={"keys": keys}))
        wanted["models"]["m"]["on_stream_failure"] = "continue"
        with running(json.dumps(wanted), workers=1) as gateway:
            outcome = await once(gateway.port, Ask(chat(stream=True)))
            (record,) = gateway.records(1)
            paid = spent(gateway, "k")
        assert len(two.received) == asked
    assert json.loads(outcome.events[-1])["error"]["code"] == "budget_exceeded"
    assert (record["error"], record["continued"]) == ("budget_exceeded", asked)
    assert 400 < paid == record["cost_microusd"] < 5000  # of 29,000


@pytest.mark.parametrize(("bill", "part"), [("each", 1), ("split", 2)])
async def test_who_shares_a_stream_has_it_as_far_as_its_budget_reaches(
    bill: str, part: int
) -> None:
    going = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await going.wait()
        await exchange.start_stream()
        for _ in range(300):
            await exchange.event(delta(WORDS))
            await asyncio.sleep(0.002)
        await exchange.event(delta(None, "stop"))
        await exchange.event({**delta(None), "choices": [], "usage": usage(14, 10_000)})
        await exchange.event("[DONE]")
        await exchange.end_stream()

    async with Upstream(behaviour=waits) as upstream:
        with running(shared(upstream.url, bill), workers=1) as gateway:
            rich = asyncio.create_task(once(gateway.port, Ask(chat(stream=True))))
            await asked_by(upstream)
            poor = asyncio.create_task(once(gateway.port, Ask(chat(stream=True), key=POOR)))
            await asyncio.sleep(0.3)  # it waits with the other
            going.set()
            whole, cut = await rich, await poor
            records = {record["key"]: record for record in gateway.records(2)}
            paid = await asyncio.to_thread(spent, gateway, "poor")
        assert len(upstream.received) == 1
    assert whole.events[-1] == "[DONE]"
    assert json.loads(cut.events[-1])["error"]["code"] == "budget_exceeded"
    given = len(cut.events) - 1
    assert 20 * part < given < 150  # a slice, and what a read or two brought
    assert (records["rich"]["outcome"], records["rich"]["cost_microusd"]) == ("ok", 6002)
    assert records["poor"]["error"] == "budget_exceeded"
    assert records["poor"]["usage_source"] == "partial"
    words = records["poor"]["usage"]["completion_tokens"] * part
    assert given * 20 < words < (given + 20) * 30
    assert 200 < paid == records["poor"]["cost_microusd"] < 2000


@pytest.mark.parametrize("workers", [1, 4])
async def test_who_pays_for_an_answer_that_is_there_must_have_the_money_for_it(
    workers: int,
) -> None:
    going = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await going.wait()
        await exchange.reply(completion("word " * 100, usage(14, 10_000)))

    async with Upstream(behaviour=waits) as upstream:
        with running(shared(upstream.url, "each"), workers=workers) as gateway:
            rich = asyncio.create_task(once(gateway.port, Ask(chat())))
            await asked_by(upstream)
            asks = [
                asyncio.create_task(once(gateway.port, Ask(chat(stream=bool(n % 2)), key=POOR)))
                for n in range(8)
            ]
            await asyncio.sleep(0.5)
            going.set()
            assert (await rich).status == 200
            outcomes = [await one for one in asks]
            paid = await asyncio.to_thread(spent, gateway, "poor")
        assert len(upstream.received) == 1
    assert [(one.status, one.json["error"]["code"]) for one in outcomes] == [
        (429, "budget_exceeded")
    ] * 8
    assert paid == 0


async def test_who_shares_a_stream_and_leaves_has_paid_for_what_it_was_given() -> None:
    going, left = asyncio.Event(), asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await going.wait()
        await exchange.start_stream()
        for _ in range(20):
            await exchange.event(delta(WORDS))
        await left.wait()
        await exchange.event(delta(None, "stop"))
        await exchange.event("[DONE]")
        await exchange.end_stream()

    async with Upstream(behaviour=waits) as upstream:
        with running(shared(upstream.url, "each"), workers=1) as gateway:
            rich = asyncio.create_task(once(gateway.port, Ask(chat(stream=True))))
            await asked_by(upstream)
            async with Client(gateway.port) as poor:
                await poor.send(Ask(chat(stream=True), key=POOR))
                await asyncio.sleep(0.3)  # it waits with the other
                going.set()
                await poor.read_head()
                while poor.arrived.count(b"data: ") < 20:
                    await poor.read_chunk()
            await asyncio.to_thread(gateway.records, 1)
            left.set()
            assert (await rich).events[-1] == "[DONE]"
            records = {record["key"]: record for record in gateway.records(2)}
        assert len(upstream.received) == 1
    assert (records["poor"]["outcome"], records["poor"]["usage_source"]) == (
        "disconnected",
        "partial",
    )
    assert 450 < records["poor"]["usage"]["completion_tokens"] < 600


async def test_the_head_of_a_stream_that_is_paid_for_says_nothing_wrong_of_its_price() -> None:
    going = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await going.wait()
        await exchange.reply(completion("word " * 10, usage(14, 20)))

    text = json.loads(shared("http://127.0.0.1:1", "each"))
    async with Upstream(behaviour=waits) as upstream:
        text["providers"]["p0"]["base_url"] = upstream.url
        del text["auth"]["keys"][1]["budget"]
        with running(json.dumps(text), workers=1) as gateway:
            first = asyncio.create_task(once(gateway.port, Ask(chat())))
            await asked_by(upstream)
            second = asyncio.create_task(once(gateway.port, Ask(chat(stream=True), key=POOR)))
            await asyncio.sleep(0.3)
            going.set()
            await first
            shares = await second
            records = {record["key"]: record for record in gateway.records(2)}
    assert shares.headers["x-sluice-cache"] == "coalesced"
    paid = records["poor"]["cost_microusd"]
    assert paid > 0
    assert shares.headers.get("x-sluice-cost-usd", f"{paid / 1e6:.6f}") == f"{paid / 1e6:.6f}"


async def test_who_leaves_as_an_answer_comes_has_left_and_its_provider_has_not_failed() -> None:
    going = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await going.wait()
        await exchange.reply(completion("hello there", usage(100, 1000)))

    async with Upstream(behaviour=waits) as upstream:
        provider = {"kind": "openai", "base_url": upstream.url, "api_key": "sk-upstream"}
        text = config(providers={"pa": provider}, models={})
        with running(text) as gateway:
            client = Client(gateway.port)
            body = chat("gpt-4o-mini", max_tokens=2000)
            await client.send(Ask(body, path="/providers/pa/v1/chat/completions"))
            await asked_by(upstream)
            (pid,) = gateway.worker_pids
            os.kill(pid, signal.SIGSTOP)  # so that both come in one turn of its loop
            going.set()
            await asyncio.sleep(0.1)
            client.cut()
            await asyncio.sleep(0.05)
            os.kill(pid, signal.SIGCONT)
            (record,) = await asyncio.to_thread(gateway.records, 1)
    # Whichever the loop reads first.
    assert (record["outcome"], record["status"]) in (("disconnected", 499), ("ok", 200))
    assert record["cost_microusd"] > 0


async def test_a_budget_in_shadow_reports_a_stream_that_it_would_have_ended() -> None:
    async def long(exchange: Exchange) -> None:
        await exchange.start_stream()
        for _ in range(60):
            await exchange.event(delta(WORDS))
        await exchange.event(delta(None, "stop"))
        await exchange.event("[DONE]")
        await exchange.end_stream()

    async with Upstream(behaviour=long) as upstream:
        text = json.loads(shared(upstream.url, "each"))
        text["auth"]["keys"][1]["budget"]["shadow"] = True
        with running(json.dumps(text), workers=1) as gateway:
            outcome = await once(gateway.port, Ask(chat(stream=True), key=POOR))
            (record,) = gateway.records(1)
    assert outcome.events[-1] == "[DONE]"
    assert record["shadow"] == ["key:usd:total"]


@pytest.mark.parametrize("away", [False, True], ids=["with Redis", "without"])
async def test_a_budget_ends_streams_also_while_redis_is_away(away: bool) -> None:
    async def long(exchange: Exchange) -> None:
        await exchange.start_stream()
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                await exchange.event(delta("word " * 200))
                await asyncio.sleep(0.005)
            await exchange.event(delta(None, "stop"))
            await exchange.event("[DONE]")
            await exchange.end_stream()

    budget = {"usd": 0.05, "per": "total"}
    keys = [{"name": "k", "tenant": "acme", "sha256": digest(KEY), "budget": budget}]
    async with Upstream(behaviour=long) as upstream:
        wanted = json.loads(config(upstream.url, auth={"keys": keys}, redis={"timeout": 1}))
        wanted["models"]["m"]["price"] = {"input": 0, "output": 10}
        with running(json.dumps(wanted), workers=1) as gateway:
            store = gateway.store_pid
            if away:
                os.kill(store, signal.SIGSTOP)
            asks = [Ask(chat(stream=True)) for _ in range(4)]
            outcomes = await asyncio.gather(*(once(gateway.port, ask) for ask in asks))
            os.kill(store, signal.SIGCONT)
            async with asyncio.timeout(20):  # all that Redis has missed is told
                while b"sluice_unsettled 0" not in gateway.get("/metrics")[1]:
                    await asyncio.sleep(0.1)
            paid = await asyncio.to_thread(spent, gateway, "k")
    assert all(b"budget_exceeded" in outcome.body for outcome in outcomes)
    assert 0 < paid <= 50_000


async def test_every_prompt_of_a_stream_that_goes_on_is_reserved() -> None:
    async def ends(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.event(delta("the end"))
        await exchange.event(delta(None, "stop"))
        await exchange.event({**delta(None), "choices": [], "usage": usage(20_000, 5)})
        await exchange.event("[DONE]")
        await exchange.end_stream()

    async def cut(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.event(delta("some words "))
        exchange.abort()

    budget = {"usd": 0.07, "per": "total"}
    keys = [{"name": "k", "tenant": "acme", "sha256": digest(KEY), "budget": budget}]
    prompt = [{"role": "user", "content": "hello world " * 10_000}]
    async with contextlib.AsyncExitStack() as stack:
        several = [
            await stack.enter_async_context(Upstream(behaviour=one))
            for one in (cut, cut, cut, cut, ends)
        ]
        wanted = json.loads(config(*[one.url for one in several], auth={"keys": keys}))
        price = {"input": 1, "output": 1}
        wanted["models"]["m"] |= {"on_stream_failure": "continue", "price": price}
        with running(json.dumps(wanted), workers=1) as gateway:
            ask = Ask(chat(stream=True, max_tokens=100, messages=prompt))
            outcome = await once(gateway.port, ask)
            paid = spent(gateway, "k")
        assert [len(one.received) for one in several][-2:] == [0, 0]
        assert several[1].received
    assert b"budget_exceeded" in outcome.body
    assert 40_000 <= paid <= 70_000
