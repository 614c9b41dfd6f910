"""Targets that fail: asked again, left alone, taken back; and what clients see of it."""

import asyncio
import signal
from collections import Counter
from typing import Any

import pytest

from tests.support.config import chat, config
from tests.support.gateway import running
from tests.support.load import Ask, Client, flood, once
from tests.support.upstream import Behaviour, Exchange, Upstream, completion, usage

PATIENT = {"attempts": 1, "backoff": 0.01, "longest": 1, "budget": 0.2}


async def answer(exchange: Exchange) -> None:
    await exchange.reply(completion("fine", usage(3, 1)))


def failing(status: int, times: int = 10**9, **headers: str) -> Behaviour:
    """Fail so often, then answer."""
    left = times

    async def behave(exchange: Exchange) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            await exchange.reply({"error": {"message": "busy"}}, status, named)
        else:
            await answer(exchange)

    return behave


def model(strategy: str, count: int, **sections: Any) -> dict[str, Any]:
    """The section `models`, with so many equal targets."""
    targets = [{"provider": f"p{i}", "model": "gpt-4o-mini"} for i in range(count)]
    return {"models": {"m": {"strategy": strategy, "targets": targets}}, **sections}


async def test_a_passing_failure_is_tried_again(upstream: Upstream) -> None:
    upstream.behaviour = failing(503, times=1)
    with running(config(upstream.url, retries=PATIENT)) as gateway:
        outcome = await once(gateway.port, Ask(chat()))
        assert outcome.status == 200
        assert outcome.headers["x-sluice-attempts"] == "2"
        (record,) = gateway.records(1)
        assert [tried["status"] for tried in record["tries"]] == [503, 200]
        assert gateway.usage("acme")["requests"] == 1


async def test_a_limited_target_is_asked_when_it_says(upstream: Upstream) -> None:
    upstream.behaviour = failing(429, times=1, retry_after_ms="300")
    with running(config(upstream.url, retries=PATIENT)) as gateway:
        outcome = await once(gateway.port, Ask(chat()))
        assert outcome.status == 200
        assert outcome.ended - outcome.started > 0.25


async def test_a_long_wait_is_the_clients_to_make(upstream: Upstream) -> None:
    upstream.behaviour = failing(429, retry_after="60")
    with running(config(upstream.url, retries=PATIENT)) as gateway:
        outcome = await once(gateway.port, Ask(chat()))
        assert (outcome.status, outcome.headers["retry-after"]) == (429, "60")
        assert len(upstream.received) == 1


async def test_an_answer_asked_for_before_does_not_end_a_wait(upstream: Upstream) -> None:
    release = asyncio.Event()

    async def limits(exchange: Exchange) -> None:
        if len(upstream.received) == 1:
            await release.wait()
            await answer(exchange)
        else:
            await failing(429, retry_after="60")(exchange)

    upstream.behaviour = limits
    async with Upstream(behaviour=answer) as other:
        urls = (upstream.url, other.url)
        with running(config(*urls, breaker={})) as gateway:  # the model's default: in their order
            first = asyncio.create_task(once(gateway.port, Ask(chat())))
            async with asyncio.timeout(10):
                while not upstream.received:
                    await asyncio.sleep(0.01)
            assert (await once(gateway.port, Ask(chat()))).headers["x-sluice-provider"] == "p1"
            release.set()
            assert (await first).headers["x-sluice-provider"] == "p0"
            for _ in range(3):
                assert (await once(gateway.port, Ask(chat()))).headers["x-sluice-provider"] == "p1"
            assert len(upstream.received) == 2


async def test_what_the_client_did_wrong_is_not_tried_again(upstream: Upstream) -> None:
    upstream.behaviour = failing(400)
    with running(config(upstream.url, retries=PATIENT)) as gateway:
        assert (await once(gateway.port, Ask(chat()))).status == 400
        assert len(upstream.received) == 1


async def test_while_all_fail_the_load_grows_by_a_fifth_at_the_most() -> None:
    async with (
        Upstream(behaviour=failing(500)) as first,
        Upstream(behaviour=failing(500)) as second,
    ):
        sections = model("weighted", 2, retries=PATIENT, breaker={})
        text = config(first.url, second.url, **sections)
        with running(text) as gateway:
            outcomes = await flood(gateway.port, [Ask(chat()) for _ in range(500)], connections=8)
        assert {outcome.status for outcome in outcomes} == {502}
        asked = len(first.received) + len(second.received)
        # Before the breakers open each failure is handed over; then the budget alone counts.
        assert asked <= 1.2 * 500 + 30


async def test_a_failing_target_is_left_alone_and_taken_back() -> None:
    async with Upstream() as a, Upstream() as b, Upstream() as c, Upstream() as d:
        servers = (a, b, c, d)
        for server in servers:
            server.behaviour = answer
        broken = {"ok": False}

        async def sometimes(exchange: Exchange) -> None:
            await (answer(exchange) if broken["ok"] else failing(500)(exchange))

        b.behaviour = sometimes
        rules = {"failures": 3, "ejection": 1, "longest": 2}
        text = config(
            *[server.url for server in servers],
            **model("least-busy", 4, breaker=rules, retries=PATIENT),
        )
        with running(text) as gateway:
            asks = [Ask(chat()) for _ in range(400)]
            outcomes = await flood(gateway.port, asks, connections=8)
            assert {outcome.status for outcome in outcomes} == {200}
            seen = len(b.received)
            assert seen <= 40  # a handful before it was ejected, and its probes
            broken["ok"] = True
            await asyncio.sleep(2.6)
            before = len(b.received)
            await flood(gateway.port, asks, connections=8)
            assert len(b.received) - before > 50  # a share like the others'
            tried = Counter(
                t["provider"] for record in gateway.records(800) for t in record["tries"]
            )
            assert tried["p1"] == len(b.received)


async def test_workers_tell_one_another_what_is_left_alone() -> None:
    async with Upstream(behaviour=failing(500)) as bad, Upstream(behaviour=answer) as good:
        rules = {"failures": 3, "ejection": 20}
        sections = model("priority", 2, breaker=rules, retries=PATIENT)
        with running(config(bad.url, good.url, **sections), workers=4) as gateway:
            with gateway.store as store:
                while not store.hgetall("sluice:targets"):
                    assert (await once(gateway.port, Ask(chat()))).status == 200
                assert list(store.hgetall("sluice:targets")) == ["p0/gpt-4o-mini"]
                assert 0 < store.ttl("sluice:targets") <= 3600
            await asyncio.sleep(1.5)
            asked = len(bad.received)
            outcomes = await flood(gateway.port, [Ask(chat()) for _ in range(200)], connections=16)
            assert {outcome.status for outcome in outcomes} == {200}
            assert len(bad.received) == asked


async def test_a_provider_with_another_address_is_asked_after_a_reload() -> None:
    async with (
        Upstream(behaviour=failing(500)) as bad,
        Upstream(behaviour=answer) as mended,
        Upstream(behaviour=answer) as second,
    ):
        sections = model("priority", 2, breaker={"failures": 3, "ejection": 60}, retries=PATIENT)
        with running(config(bad.url, second.url, **sections), workers=2) as gateway:
            with gateway.store as store:
                while not store.hgetall("sluice:targets"):
                    assert (await once(gateway.port, Ask(chat()))).status == 200
                before = set(gateway.worker_pids)
                gateway.config_file.write_text(config(mended.url, second.url, **sections))
                gateway.signal(signal.SIGHUP)
                async with asyncio.timeout(30):
                    while before & set(gateway.worker_pids):
                        await asyncio.sleep(0.1)
                await asyncio.sleep(1.5)  # until they have looked
                assert store.hgetall("sluice:targets")
            asked = len(second.received)
            await flood(gateway.port, [Ask(chat()) for _ in range(40)], connections=8)
            assert len(second.received) == asked


async def test_a_target_that_has_answered_again_is_not_told_of_any_more() -> None:
    """As two of three are left alone, none is treated so, and it is asked before its time."""
    ok = {"first": False, "second": True}

    def switched(name: str) -> Behaviour:
        async def behaviour(exchange: Exchange) -> None:
            await (answer if ok[name] else failing(500))(exchange)

        return behaviour

    async with (
        Upstream(behaviour=switched("first")) as first,
        Upstream(behaviour=switched("second")) as second,
        Upstream(behaviour=answer) as third,
    ):
        sections = model("priority", 3, breaker={"failures": 3, "ejection": 60}, retries=PATIENT)
        text = config(first.url, second.url, third.url, **sections)
        with running(text, workers=1) as gateway, gateway.store as store:

            async def until_told(name: str) -> None:
                async with asyncio.timeout(20):
                    while name not in store.hgetall("sluice:targets"):
                        assert (await once(gateway.port, Ask(chat()))).status == 200

            await until_told("p0/gpt-4o-mini")
            ok.update(first=True, second=False)
            await until_told("p1/gpt-4o-mini")
            async with asyncio.timeout(20):
                while "p0/gpt-4o-mini" in store.hgetall("sluice:targets"):
                    assert (await once(gateway.port, Ask(chat()))).status == 200
                    await asyncio.sleep(0.05)
            asked = len(first.received)
            await flood(gateway.port, [Ask(chat()) for _ in range(20)], connections=4)
            await asyncio.sleep(1.5)
            await flood(gateway.port, [Ask(chat()) for _ in range(20)], connections=4)
            assert len(first.received) == asked + 40


async def test_weights_share_the_requests() -> None:
    async with Upstream(behaviour=answer) as light, Upstream(behaviour=answer) as heavy:
        sections = model("weighted", 2)
        sections["models"]["m"]["targets"][1]["weight"] = 9
        with running(config(light.url, heavy.url, **sections)) as gateway:
            await flood(gateway.port, [Ask(chat()) for _ in range(500)], connections=8)
        assert len(light.received) + len(heavy.received) == 500
        assert 20 <= len(light.received) <= 90


async def test_the_cheapest_target_is_asked_first() -> None:
    async with Upstream(behaviour=answer) as dear, Upstream(behaviour=answer) as cheap:
        sections = model("cost", 2)
        for target, price in zip(sections["models"]["m"]["targets"], (9, 1), strict=True):
            target["price"] = {"input": price, "output": price}
        with running(config(dear.url, cheap.url, **sections)) as gateway:
            await flood(gateway.port, [Ask(chat()) for _ in range(20)], connections=2)
        assert (len(dear.received), len(cheap.received)) == (0, 20)


async def test_a_slow_target_gets_less() -> None:
    async def slow(exchange: Exchange) -> None:
        await asyncio.sleep(0.15)
        await answer(exchange)

    async with Upstream(behaviour=slow) as tortoise, Upstream(behaviour=answer) as hare:
        with running(config(tortoise.url, hare.url, **model("latency", 2))) as gateway:
            await flood(gateway.port, [Ask(chat()) for _ in range(300)], connections=4)
        assert len(tortoise.received) < 40
        assert len(tortoise.received) + len(hare.received) == 300


async def test_an_unknown_strategy_is_refused_at_the_start(upstream: Upstream) -> None:
    text = config(upstream.url, **model("fastest", 1))
    with pytest.raises(AssertionError, match=r"models\.m\.strategy"), running(text):
        pass


async def test_a_clients_idempotency_key_goes_along_with_every_attempt(upstream: Upstream) -> None:
    upstream.behaviour = failing(503, times=1)
    with running(config(upstream.url, retries=PATIENT)) as gateway:
        for headers in ({"Idempotency-Key": "mine-1"}, {}):
            assert (await once(gateway.port, Ask(headers=headers))).status == 200
        seen = [one.headers.get("idempotency-key") for one in upstream.received]
        assert seen == ["mine-1", "mine-1", None]


async def test_a_provider_that_knows_them_gets_a_key_with_every_request(upstream: Upstream) -> None:
    upstream.behaviour = failing(503, times=1)
    row = {"kind": "openai", "api_key": "sk-x", "base_url": upstream.url, "idempotency": True}
    with running(config(upstream.url, retries=PATIENT, providers={"p0": row})) as gateway:
        outcomes = [await once(gateway.port, Ask()) for _ in range(2)]
        first, again, second = [one.headers["idempotency-key"] for one in upstream.received]
        assert first == again != second
        assert [one.headers["x-request-id"] for one in outcomes] == [first, second]


@pytest.mark.parametrize("key", ["a b\x00c", "käse"])
async def test_a_key_that_no_header_may_hold_is_left_out(upstream: Upstream, key: str) -> None:
    with running(config(upstream.url)) as gateway:
        outcome = await once(gateway.port, Ask(headers={"Idempotency-Key": key}))
        assert outcome.status in (200, 400)
        assert all("idempotency-key" not in one.headers for one in upstream.received)


async def test_workers_tell_each_other_how_long_targets_take() -> None:
    """A gateway that has never asked the slow one gives it next to nothing."""

    async def late(exchange: Exchange) -> None:
        await asyncio.sleep(0.3)
        await answer(exchange)

    async with Upstream(behaviour=late) as slow, Upstream(behaviour=answer) as fast:
        text = config(slow.url, fast.url, **model("latency", 2))
        with running(text) as one:
            store = one.store
            url = f"unix://{one.state}/redis.sock"
            await flood(one.port, [Ask() for _ in range(12)], connections=4)
            async with asyncio.timeout(10):
                while len(store.hgetall("sluice:targets:latency")) < 2:
                    await asyncio.sleep(0.1)
            told = {
                k: int(v.split()[0]) for k, v in store.hgetall("sluice:targets:latency").items()
            }
            assert told["p0/gpt-4o-mini"] >= 300_000 > told["p1/gpt-4o-mini"]
            other = config(slow.url, fast.url, redis={"url": url}, **model("latency", 2))
            with running(other) as two:
                await asyncio.sleep(2.2)
                before = len(slow.received)
                await flood(two.port, [Ask() for _ in range(40)], connections=1)
                assert len(slow.received) - before <= 2


@pytest.mark.parametrize("how", ["left", "refused"])
async def test_a_probe_that_tells_nothing_leaves_room_for_the_next(how: str) -> None:
    """Its client leaves, or has asked for what nobody does: the target is tried again soon."""
    ill = True

    async def first(exchange: Exchange) -> None:
        if ill:
            await exchange.reply({"error": {"message": "no"}}, status=500)
        elif exchange.request.json.get("seed") == 1:
            if how == "refused":
                await exchange.reply({"error": {"message": "your fault"}}, status=400)
            await exchange.gone()
        else:
            await answer(exchange)

    async def second(exchange: Exchange) -> None:
        await exchange.reply(completion("fine", usage(3, 1)))

    rules = {"failures": 3, "ejection": 0.5, "longest": 0.5}
    async with Upstream(behaviour=first) as one, Upstream(behaviour=second) as other:
        with running(config(one.url, other.url, breaker=rules)) as gateway:
            for _ in range(4):
                assert (await once(gateway.port, Ask(chat()))).status == 200
            ill, before = False, len(one.received)
            await asyncio.sleep(0.7)
            probe = Ask(chat(seed=1))
            async with Client(gateway.port) as client:
                if how == "refused":
                    assert (await client.ask(probe)).status == 400
                else:
                    await client.send(probe)
                    async with asyncio.timeout(5):
                        while len(one.received) == before:
                            await asyncio.sleep(0.02)
                    client.cut()
            await asyncio.sleep(1.0)
            served = [(await once(gateway.port, Ask(chat()))).headers for _ in range(3)]
            assert {headers["x-sluice-provider"] for headers in served} == {"p0"}
