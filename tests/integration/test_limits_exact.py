"""Limits are exact across workers: what the bucket held plus what time refilled, never one more."""

import asyncio
import contextlib
import math
import time
from typing import Any

import pytest

from tests.support.config import KEY, chat, config, digest
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Outcome, flood, once, steady
from tests.support.upstream import Exchange, Upstream, completion, usage

OTHER = "sk-other-0123456789"
MINUTE_US = 60_000_000
TOKENS_USED = 12  # by each answer of the upstream


def key(name: str = "k", secret: str = KEY, **limits: Any) -> dict[str, Any]:
    return {"name": name, "tenant": "acme", "sha256": digest(secret), **limits}


def limited(url: str, *keys: dict[str, Any], **tenant: int) -> str:
    tenants = {"acme": tenant} if tenant else None
    return config(url, auth={"keys": list(keys)}, tenants=tenants)


def redis_us(gateway: Gateway) -> int:
    """Redis's clock."""
    with contextlib.closing(gateway.store) as store:
        seconds, micros = store.time()
        return int(seconds) * 1_000_000 + int(micros)


def bucket(gateway: Gateway, name: str) -> dict[str, int]:
    with contextlib.closing(gateway.store) as store:
        found = store.hgetall(f"sluice:limit:{{acme}}:{name}")
        return {field: int(value) for field, value in found.items()}


def split(outcomes: list[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """The admitted and the refused; there is nothing else."""
    assert not any(o.failure for o in outcomes)
    assert {o.status for o in outcomes} <= {200, 429}
    return [o for o in outcomes if o.status == 200], [o for o in outcomes if o.status == 429]


def certain_seconds(outcomes: list[Outcome]) -> float:
    """The time that surely lay between the first admission and the last refusal."""
    first = min(o.ended for o in outcomes if o.status == 200)
    return max(0.0, max(o.started for o in outcomes if o.status == 429) - first)


def assert_refusal(outcome: Outcome, kind: str, limit: int) -> None:
    assert outcome.json["error"]["code"] == "rate_limit_exceeded"
    assert outcome.json["error"]["type"] == "rate_limit_error"
    assert int(outcome.headers["retry-after"]) >= 1
    assert 1 <= int(outcome.headers["retry-after-ms"]) <= 1000 * int(outcome.headers["retry-after"])
    assert_standing(outcome, kind, limit)


def assert_standing(outcome: Outcome, kind: str, limit: int) -> None:
    assert outcome.headers[f"x-ratelimit-limit-{kind}"] == str(limit)
    assert 0 <= int(outcome.headers[f"x-ratelimit-remaining-{kind}"]) <= limit
    assert outcome.headers[f"x-ratelimit-reset-{kind}"]


async def test_requests_across_four_workers(upstream: Upstream) -> None:
    text = limited(upstream.url, key(rpm=300, burst=300))
    with running(text, workers=4) as gateway:
        before = redis_us(gateway)
        outcomes = await flood(gateway.port, [Ask()] * 2000, 100)
        after = redis_us(gateway)
        admitted, refused = split(outcomes)
        most = 300 + (after - before) * 300 // MINUTE_US
        least = 300 + math.floor(certain_seconds(outcomes) * 5) - 1
        print(f"{len(admitted)} of {least}..{most} in {(after - before) / 1e6:.2f} s")
        assert least <= len(admitted) <= most
        assert len(admitted) + len(refused) == 2000
        assert len(upstream.received) == len(admitted)
        for outcome in refused:
            assert_refusal(outcome, "requests", 300)
            assert outcome.headers["x-ratelimit-remaining-requests"] == "0"
        for outcome in admitted:
            assert_standing(outcome, "requests", 300)
        left = sorted(int(o.headers["x-ratelimit-remaining-requests"]) for o in admitted)
        assert left[-1] == 299
        gateway.settled()
        used = gateway.usage("acme")
        assert used["requests"] == len(admitted)
        assert bucket(gateway, "key:k:rpm")["level"] < 1
        records = gateway.records(2000)
        assert sum(r["outcome"] == "refused" for r in records) == len(refused)
        assert len(records) == 2000


async def test_the_refill_is_exact_over_time(upstream: Upstream) -> None:
    text = limited(upstream.url, key(rpm=1200, burst=50))
    with running(text, workers=4) as gateway:
        before = redis_us(gateway)
        async with steady(gateway.port, Ask, connections=30, pause=0.02) as outcomes:
            await asyncio.sleep(4)
        after = redis_us(gateway)
        admitted, _ = split(outcomes)
        most = 50 + (after - before) * 1200 // MINUTE_US
        least = 50 + math.floor(certain_seconds(outcomes) * 20) - 1
        print(f"{len(admitted)} of {least}..{most} in {(after - before) / 1e6:.2f} s")
        assert least <= len(admitted) <= most


async def test_retry_after_tells_the_truth(upstream: Upstream) -> None:
    text = limited(upstream.url, key(rpm=20, burst=2))
    with running(text, workers=2) as gateway:
        assert [(await once(gateway.port)).status for _ in range(2)] == [200, 200]
        for _ in range(2):
            outcome = await once(gateway.port)
            assert outcome.status == 429
            wait = int(outcome.headers["retry-after-ms"]) / 1000
            assert 0 < wait <= 3.01
            await asyncio.sleep(wait + 0.01)
            assert (await once(gateway.port)).status == 200
            assert (await once(gateway.port)).status == 429


async def test_tokens_across_four_workers(upstream: Upstream) -> None:
    tpm = 6000
    ask = Ask(chat(max_tokens=50))
    text = limited(upstream.url, key(tpm=tpm))
    with running(text, workers=4) as gateway:
        before = redis_us(gateway)
        outcomes = await flood(gateway.port, [ask] * 2000, 60)
        # One by one, until what is left is less than a request needs.
        while (last := await once(gateway.port, ask)).status == 200:
            outcomes.append(last)
        after = redis_us(gateway)
        outcomes.append(last)
        admitted, refused = split(outcomes)
        used = TOKENS_USED * len(admitted)
        most = tpm + (after - before) * tpm // MINUTE_US
        reserved = 50 + 100  # and an estimate of the prompt that is far below 100
        least = tpm + math.floor(certain_seconds(outcomes) * tpm / 60) - reserved
        print(f"{used} tokens of {least}..{most} in {(after - before) / 1e6:.2f} s")
        assert least <= used <= most
        for outcome in refused:
            assert_refusal(outcome, "tokens", tpm)
        for outcome in admitted:
            assert_standing(outcome, "tokens", tpm)
        gateway.settled()
        spent = gateway.usage("acme")
        assert spent["prompt_tokens"] + spent["completion_tokens"] == used
        # What was reserved has come back: the level is what was not used, and the refill.
        level = bucket(gateway, "key:k:tpm")["level"]
        assert tpm - used <= level <= most - used


async def test_tokens_used_beyond_the_reservation_are_owed(upstream: Upstream) -> None:
    async def talkative(exchange: Exchange) -> None:
        await exchange.reply(completion("x", usage(100, 6900)))

    upstream.behaviour = talkative
    with running(limited(upstream.url, key(tpm=6000)), workers=2) as gateway:
        started = time.monotonic()
        assert (await once(gateway.port, Ask(chat(max_tokens=10)))).status == 200
        gateway.settled()
        outcome = await once(gateway.port, Ask(chat(max_tokens=10)))
        assert outcome.status == 429
        assert outcome.headers["x-ratelimit-remaining-tokens"] == "0"
        # 1,000 in debt at 100 a second, and what the request itself needs.
        assert int(outcome.headers["retry-after"]) >= 10 - (time.monotonic() - started)
        assert bucket(gateway, "key:k:tpm")["level"] <= -1000 + 100 * (time.monotonic() - started)


async def test_a_request_that_no_wait_can_admit(upstream: Upstream) -> None:
    with running(limited(upstream.url, key(tpm=100))) as gateway:
        outcome = await once(gateway.port, Ask(chat(max_tokens=101)))
        assert outcome.status == 429
        assert outcome.headers["x-should-retry"] == "false"
        assert "retry-after" not in outcome.headers
        assert upstream.received == []
        assert (await once(gateway.port, Ask(chat(max_tokens=20)))).status == 200


async def test_key_and_tenant_limits_hold_together(upstream: Upstream) -> None:
    keys = key(rpm=80, burst=80), key("o", OTHER, rpm=80, burst=80)
    text = limited(upstream.url, *keys, rpm=100, burst=100)
    with running(text, workers=4) as gateway:
        before = redis_us(gateway)
        asks = [Ask(key=secret) for _ in range(300) for secret in (KEY, OTHER)]
        outcomes = await flood(gateway.port, asks, 60)
        after = redis_us(gateway)
        admitted, refused = split(outcomes)
        minutes = (after - before) / MINUTE_US
        assert 100 <= len(admitted) <= 100 + minutes * 100
        for secret in (KEY, OTHER):
            assert sum(o.ask.key == secret for o in admitted) <= 80 + minutes * 80
        assert any("this tenant" in o.json["error"]["message"] for o in refused)
        # The header shows whichever of the two limits is nearer.
        assert {o.headers["x-ratelimit-limit-requests"] for o in refused} <= {"80", "100"}


@pytest.mark.parametrize("tight", ["key", "tenant"])
async def test_what_one_limit_refuses_costs_the_other_nothing(
    upstream: Upstream, tight: str
) -> None:
    small: dict[str, Any] = {"rpm": 60, "burst": 50}
    large: dict[str, Any] = {"rpm": 1000, "burst": 1000, "tpm": 900_000}
    own, shared = (small, large) if tight == "key" else (large, small)
    with running(limited(upstream.url, key(**own), **shared), workers=4) as gateway:
        before = redis_us(gateway)
        admitted, refused = split(await flood(gateway.port, [Ask()] * 600, 50))
        after = redis_us(gateway)
        assert 50 <= len(admitted) <= 50 + (after - before) * 60 // MINUTE_US
        assert all(f"this {tight}" in o.json["error"]["message"] for o in refused)
        gateway.settled()
        wide = "tenant" if tight == "key" else "key:k"
        assert bucket(gateway, f"{wide}:rpm")["level"] >= 1000 - len(admitted)
        assert bucket(gateway, f"{wide}:tpm")["level"] >= 900_000 - TOKENS_USED * len(admitted)


async def test_limits_from_the_environment(upstream: Upstream) -> None:
    environ = {"RATE_LIMIT_RPM": "60", "RATE_LIMIT_BURST": "5", "API_KEYS": OTHER}
    text = limited(upstream.url, key(rpm=600, burst=40))
    with running(text, workers=4, environ=environ) as gateway:
        before = redis_us(gateway)
        outcomes = await flood(gateway.port, [Ask(key=OTHER)] * 60, 20)
        admitted, refused = split(outcomes)
        after = redis_us(gateway)
        assert 5 <= len(admitted) <= 5 + (after - before) * 60 // MINUTE_US
        for outcome in refused:
            assert_refusal(outcome, "requests", 60)
        own, _ = split(await flood(gateway.port, [Ask()] * 30, 20))
        assert len(own) == 30, "a key's own limit stands above the default"


async def test_limits_switched_off(upstream: Upstream) -> None:
    environ = {"RATE_LIMIT_ENABLED": "false", "RATE_LIMIT_RPM": "1"}
    text = limited(upstream.url, key(rpm=1, burst=1, tpm=1), rpm=1)
    with running(text, workers=2, environ=environ) as gateway:
        outcomes = await flood(gateway.port, [Ask()] * 30, 10)
        assert [o.status for o in outcomes] == [200] * 30
        assert not any(name.startswith("x-ratelimit") for o in outcomes for name in o.headers)
        gateway.settled()
        assert gateway.usage("acme")["requests"] == 30
