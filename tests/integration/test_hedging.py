"""A second target where the first is slow to begin: who has the client, who pays; and shadows."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.config import PRICED_MODEL, chat, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Client, flood, once
from tests.support.upstream import Behaviour, Exchange, Upstream, completion, delta, usage

SLOW, AFTER = 3.0, 0.15
PLENTY = {"attempts": 0, "budget": 1}


def says(text: str, seconds: float = 0.0, status: int = 200, gap: float = 0.0) -> Behaviour:
    """Answer so after so long; a stream pauses between its two halves."""

    async def behave(exchange: Exchange) -> None:
        await asyncio.sleep(seconds)
        if status != 200:
            await exchange.reply({"error": {"message": text}}, status)
        elif exchange.request.json.get("stream"):
            await exchange.start_stream()
            await exchange.event(delta(text))
            await asyncio.sleep(gap)
            await exchange.event(delta("!"))
            await exchange.event({**delta(None, "stop"), "usage": usage(1000, 500)})
            await exchange.end_stream()
        else:
            await exchange.reply(completion(text + "!", usage(1000, 500)))

    return behave


def left_by(gone: list[str], name: str) -> Behaviour:
    """Answer nothing, and note when the gateway has hung up."""

    async def behave(exchange: Exchange) -> None:
        await exchange.gone()
        gone.append(name)

    return behave


async def all_gone(gone: list[str], count: int) -> None:
    """Wait until so many have been hung up on."""
    async with asyncio.timeout(3):
        while len(gone) < count:
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def hedging(
    first: Behaviour, second: Behaviour, *, after: Any = AFTER, **sections: Any
) -> AsyncIterator[tuple[Gateway, Upstream, Upstream]]:
    """A gateway that hedges the model `m`."""
    async with Upstream(behaviour=first) as one, Upstream(behaviour=second) as two:
        targets = [
            {"provider": f"p{i}", "model": PRICED_MODEL, "priority": i + 1} for i in range(2)
        ]
        models = {"m": {"targets": targets, "hedge": {"after": after}}}
        text = config(one.url, two.url, models=models, **{"retries": PLENTY, **sections})
        with running(text) as gateway:
            yield gateway, one, two


def said(stream: bool, body: bytes) -> str:
    """The text of an answer, which must be whole."""
    if not stream:
        return str(json.loads(body)["choices"][0]["message"]["content"])
    events = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    assert events[-1] == "[DONE]"
    parts = [json.loads(event)["choices"] for event in events[:-1]]
    return "".join([part[0]["delta"].get("content") or "" for part in parts if part])


BOTH = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])


@BOTH
async def test_a_second_target_answers_where_the_first_is_slow(*, stream: bool) -> None:
    gone: list[str] = []
    async with hedging(left_by(gone, "slow"), says("fast")) as (gateway, _, _):
        outcome = await once(gateway.port, Ask(chat(stream=stream)))
        assert (outcome.status, said(stream, outcome.body)) == (200, "fast!")
        assert outcome.headers["x-sluice-provider"] == "p1"
        (record,) = gateway.records(1)
        assert (record["provider"], record["attempts"], record["outcome"]) == ("p1", 2, "ok")
        lost, won = record["tries"]
        assert (lost["provider"], lost["failure"], won["failure"]) == ("p0", "hedged", "")
        assert lost["cost_microusd"] > 0
        assert won["cost_microusd"] == 0
        # The tenant pays for the winner: a thousand tokens in, five hundred out.
        assert record["cost_microusd"] == 450
        assert gateway.usage("acme")["cost_microusd"] == 450
        assert gateway.usage("acme")["requests"] == 1
        await all_gone(gone, 1)  # the slower one is cancelled at once


@BOTH
async def test_the_first_one_wins_where_it_begins_first_after_all(*, stream: bool) -> None:
    async with hedging(says("first", 0.4), says("second", SLOW)) as (gateway, _, two):
        outcome = await once(gateway.port, Ask(chat(stream=stream)))
        assert said(stream, outcome.body) == "first!"
        (record,) = gateway.records(1)
        assert [one["failure"] for one in record["tries"]] == ["", "hedged"]
        assert record["provider"] == "p0"
        assert len(two.received) == 1


async def test_a_stream_that_has_begun_is_not_overtaken() -> None:
    async with hedging(says("first", gap=0.6), says("second")) as (gateway, _, two):
        outcome = await once(gateway.port, Ask(chat(stream=True)))
        assert said(True, outcome.body) == "first!"
        assert two.received == []
        assert outcome.headers["x-sluice-attempts"] == "1"


@BOTH
async def test_a_target_that_is_fast_is_not_hedged(*, stream: bool) -> None:
    async with hedging(says("first"), says("second")) as (gateway, _, two):
        asks = [Ask(chat(stream=stream)) for _ in range(20)]
        outcomes = await flood(gateway.port, asks, connections=4)
        assert {said(stream, outcome.body) for outcome in outcomes} == {"first!"}
        assert two.received == []


@BOTH
async def test_where_one_fails_the_other_has_the_client(*, stream: bool) -> None:
    for first, second in (
        (says("no", 0.3, 500), says("fine", 0.4)),  # the first fails while the second runs
        (says("fine", 0.5), says("no", 0, 500)),  # the second fails, the first goes on
        (says("no", 0, 500), says("fine")),  # the first fails before anything is hedged
    ):
        async with hedging(first, second) as (gateway, _, _):
            outcome = await once(gateway.port, Ask(chat(stream=stream)))
            assert (outcome.status, said(stream, outcome.body)) == (200, "fine!")
            (record,) = gateway.records(1)
            assert sorted(one["failure"] for one in record["tries"]) == ["", "status"]


@BOTH
async def test_where_both_fail_the_client_is_told(*, stream: bool) -> None:
    async with hedging(says("no", 0.3, 500), says("nor", 0.3, 503)) as (gateway, one, two):
        outcome = await once(gateway.port, Ask(chat(stream=stream)))
        assert (outcome.status, outcome.json["error"]["code"]) == (502, "upstream_failed")
        assert [len(one.received), len(two.received)] == [1, 1]
        (record,) = gateway.records(1)
        assert [tried["status"] for tried in record["tries"]] == [500, 503]


LANES = pytest.mark.parametrize(
    "lines", [{}, {"Connection": "close"}], ids=["direct lane", "aiohttp's lane"]
)


@LANES
@BOTH
async def test_a_client_that_leaves_ends_both(lines: dict[str, str], *, stream: bool) -> None:
    gone: list[str] = []
    long = [{"role": "user", "content": "word " * 5000}]
    async with hedging(left_by(gone, "a"), left_by(gone, "b")) as (gateway, _, two):
        async with Client(gateway.port) as client:
            await client.send(Ask(chat(messages=long, stream=stream), headers=lines))
            while not two.received:
                await asyncio.sleep(0.01)
        await all_gone(gone, 2)
        gateway.settled()
        (record,) = gateway.records(1)
        assert (record["outcome"], record["attempts"]) == ("disconnected", 2)
        assert [tried["failure"] for tried in record["tries"]] == ["cancelled", "cancelled"]
        assert record["usage"]["prompt_tokens"] >= 5000
        assert gateway.usage("acme")["cost_microusd"] == record["cost_microusd"] > 0


def goes_on_and_on(seconds: float) -> Behaviour:
    """Begin so late, and then stream without an end."""

    async def behave(exchange: Exchange) -> None:
        await asyncio.sleep(seconds)
        await exchange.start_stream()
        with contextlib.suppress(ConnectionError):
            while True:
                await exchange.event(delta("word after word "))
                await asyncio.sleep(0.005)

    return behave


@pytest.mark.parametrize("second", [says("no", 0, 500), says("late", 30)], ids=["failed", "lost"])
async def test_who_leaves_a_stream_has_what_came_counted_whatever_the_second_did(
    second: Behaviour,
) -> None:
    async with hedging(goes_on_and_on(AFTER * 3), second) as (gateway, _, _):
        outcome = await once(gateway.port, Ask(chat(stream=True), leave_after=50))
        assert len(outcome.events) >= 50
        await asyncio.to_thread(gateway.settled)
        (record,) = gateway.records(1)
        assert (record["outcome"], record["provider"]) == ("disconnected", "p0")
        assert record["usage"]["completion_tokens"] >= 150
        assert gateway.usage("acme")["cost_microusd"] == record["cost_microusd"] > 0


async def test_who_leaves_while_the_first_is_at_work_is_counted_though_the_second_failed() -> None:
    gone: list[str] = []
    long = [{"role": "user", "content": "word " * 5000}]
    async with hedging(left_by(gone, "a"), says("no", 0, 500)) as (gateway, _, two):
        async with Client(gateway.port) as client:
            await client.send(Ask(chat(messages=long)))
            while not two.received:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)  # it has failed
        await all_gone(gone, 1)
        gateway.settled()
        (record,) = gateway.records(1)
        assert [tried["failure"] for tried in record["tries"]] == ["cancelled", "status"]
        assert (record["outcome"], record["provider"]) == ("disconnected", "p0")
        assert record["usage"]["prompt_tokens"] >= 5000
        assert record["cost_microusd"] > 0


async def test_a_whole_reply_to_a_stream_wins_a_race_as_well() -> None:
    async def whole(exchange: Exchange) -> None:
        await asyncio.sleep(AFTER * 1.2)
        await exchange.reply(completion("whole", usage(1, 1)))

    for first, second in ((whole, says("late", SLOW)), (says("late", SLOW), whole)):
        async with hedging(first, second) as (gateway, _, _):
            body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
            outcome = await once(gateway.port, Ask({**body, "stream": True}, path="/v1/messages"))
            assert b'"whole"' in outcome.body
            assert outcome.body.count(b"message_stop") == 2  # its event, and its type
            (record,) = gateway.records(1)
            assert outcome.headers["x-sluice-provider"] == record["provider"]


async def test_a_hedge_to_a_target_that_cannot_do_it_was_none() -> None:
    """It costs nothing, no retry either, and says nothing of how the request fails."""
    failing = False

    async def first(exchange: Exchange) -> None:
        await says("first", 0.4, 500 if failing else 200)(exchange)

    async with Upstream(behaviour=first) as one, Upstream() as two:
        text = json.loads(config(one.url, two.url, retries={"attempts": 0, "budget": 0.01}))
        text["providers"]["p1"]["kind"] = "anthropic"
        text["models"]["m"]["hedge"] = {"after": AFTER}
        with running(json.dumps(text)) as gateway:
            asks = [Ask(chat(logit_bias={"1": 5})) for _ in range(15)]
            outcomes = await flood(gateway.port, asks, connections=15)
            assert {said(False, outcome.body) for outcome in outcomes} == {"first!"}
            failing = True
            assert (await once(gateway.port, asks[0])).status == 502
            for record in gateway.records(16):
                assert record["attempts"] == 1
                assert [tried["provider"] for tried in record["tries"]] == ["p0"]
            assert two.received == []
            await once(gateway.port, Ask())
            assert len(two.received) == 1


async def test_hedges_are_bounded_by_the_retry_budget() -> None:
    sections = {"retries": {"attempts": 0, "budget": 0.1}}
    async with hedging(says("slow", 0.5), says("fast"), **sections) as (gateway, _, two):
        outcomes = await flood(gateway.port, [Ask() for _ in range(60)], connections=60)
        assert {outcome.status for outcome in outcomes} == {200}
        assert len(two.received) <= 10 + 6  # what a budget begins with, and a tenth of the requests


async def test_the_95th_percentile_says_when() -> None:
    slow = False

    async def mostly(exchange: Exchange) -> None:
        await says("first", SLOW if slow else 0.02)(exchange)

    async def later(exchange: Exchange) -> None:  # than any hiccup of the machine
        await says("second", 0.0 if slow else SLOW)(exchange)

    async with hedging(mostly, later, after="p95") as (gateway, _, two):
        for _ in range(25):
            assert said(False, (await once(gateway.port, Ask())).body) == "first!"
        hedged = len(two.received)
        assert hedged <= 8  # one in twenty, and the machine's own hiccups
        slow = True
        assert said(False, (await once(gateway.port, Ask())).body) == "second!"


async def test_an_anthropic_client_is_hedged_as_well() -> None:
    async with hedging(says("slow", SLOW), says("fast")) as (gateway, _, _):
        body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
        outcome = await once(gateway.port, Ask({**body, "stream": True}, path="/v1/messages"))
        assert b'"fast"' in outcome.body
        assert b"message_stop" in outcome.body
        assert b"slow" not in outcome.body


# -- shadows ---------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def shadowed(
    behaviour: Behaviour, **shadow: Any
) -> AsyncIterator[tuple[Gateway, Upstream, Upstream]]:
    """A gateway that copies requests for `m` to a second provider."""
    async with Upstream(behaviour=says("real")) as one, Upstream(behaviour=behaviour) as two:
        targets = [{"provider": "p0", "model": PRICED_MODEL}]
        wanted = {"provider": "p1", "model": PRICED_MODEL, **shadow}
        models = {"m": {"targets": targets, "shadow": wanted}}
        with running(config(one.url, two.url, models=models)) as gateway:
            yield gateway, one, two


async def counted(gateway: Gateway, requests: int) -> dict[str, int]:
    """What the shadow has come to, once it is so many requests."""
    async with asyncio.timeout(10):
        while (found := gateway.usage("~shadow")).get("requests", 0) < requests:
            await asyncio.sleep(0.02)
    return found


@BOTH
async def test_a_copy_goes_to_the_shadow_and_is_paid_for_there(*, stream: bool) -> None:
    async with shadowed(says("copy")) as (gateway, one, two):
        outcome = await once(gateway.port, Ask(chat(stream=stream, user="me")))
        assert said(stream, outcome.body) == "real!"
        assert outcome.headers["x-sluice-provider"] == "p0"
        found = await counted(gateway, 1)
        assert (found["cost_microusd"], found["completion_tokens"]) == (450, 500)
        assert gateway.usage("acme")["requests"] == 1
        assert gateway.usage("acme")["cost_microusd"] == 450
        assert one.received[0].json == two.received[0].json
        records = {record["tenant"]: record for record in gateway.records(2)}
        assert records["~shadow"]["provider"] == "p1"
        assert records["~shadow"]["id"] != records["acme"]["id"]


async def test_a_shadow_is_never_waited_for_and_its_failures_are_nobodys() -> None:
    for behaviour in (says("slow", 30), says("no", 0, 500), says("no", 0, 400)):
        async with shadowed(behaviour, concurrency=2) as (gateway, _, two):
            asks = [Ask(chat(stream=bool(i % 2))) for i in range(30)]
            outcomes = await flood(gateway.port, asks, connections=4)
            assert {outcome.status for outcome in outcomes} == {200}
            assert max(outcome.ended - outcome.started for outcome in outcomes) < 20
            assert len(two.received) >= 1
            if behaviour is not None and len(two.received) < 30:
                assert two.most_open <= 2


async def test_a_shadow_gets_its_percentage() -> None:
    async with shadowed(says("copy"), percent=25, concurrency=100) as (gateway, _, two):
        await flood(gateway.port, [Ask() for _ in range(200)], connections=4)
        await counted(gateway, 10)
        assert 20 <= len(two.received) <= 85


async def test_a_shadow_stops_where_its_budget_does() -> None:
    budget = {"usd": 0.002, "per": "day"}  # four of these requests
    async with shadowed(says("copy"), budget=budget) as (gateway, _, two):
        for _ in range(20):
            outcome = await once(gateway.port, Ask(chat(max_tokens=500)))
            assert outcome.status == 200
            await asyncio.sleep(0.02)
        assert 2 <= len(two.received) <= 5
        assert gateway.usage("acme")["requests"] == 20


async def test_a_copy_under_way_does_not_hold_up_a_stop() -> None:
    async with shadowed(says("slow", 30)) as (gateway, _, two):
        await once(gateway.port, Ask())
        while not two.received:
            await asyncio.sleep(0.01)
        assert gateway.stop() == 0
        assert "Traceback" not in gateway.log_file.read_text() + gateway.errors
