"""Many streams against one budget, with clients that leave and workers that are killed.

What is shown each time: never over the limit, and afterwards nothing is reserved any more.
"""

import asyncio
import json
import os
import random
import signal
import time
from typing import Any

from tests.support.config import chat, config, digest
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Outcome, flood, steady
from tests.support.upstream import Exchange, Upstream, delta, usage

ROUNDS = 10
STREAMS = 800
WORKERS = 4
LEASE_SECONDS = 2
MOST_TOKENS = 10
USED_TOKENS = 5
BUDGET_MICROUSD = STREAMS // 10 * USED_TOKENS * 1000
TOKENS_A_MINUTE = 600
SLOTS = 60


async def five_words(exchange: Exchange) -> None:
    """A stream of five tokens, slow enough that many are under way at once."""
    await words(exchange)
    await exchange.event("[DONE]")
    await exchange.end_stream()


async def words(exchange: Exchange) -> None:
    """All of it but the end marker, at which the gateway settles."""
    await exchange.start_stream()
    for word in ("one", " two", " three", " four", " five"):
        await exchange.event(delta(word))
        await asyncio.sleep(0.02)
    await exchange.event(delta(None, "stop"))
    await exchange.event({**delta(None), "choices": [], "usage": usage(0, USED_TOKENS)})


def rounds_config(url: str, limits: dict[str, Any]) -> str:
    """A key and a tenant of its own for each round; a token costs a thousandth of a dollar."""
    text = json.loads(config(url))
    names = [f"r{number}" for number in range(ROUNDS)]
    text["auth"]["keys"] = [
        {"name": name, "tenant": name, "sha256": digest(f"sk-of-{name}")} for name in names
    ]
    text["tenants"] = {name: {"concurrency": SLOTS, **limits} for name in names}
    text["limits"] = {"lease": LEASE_SECONDS}
    text["models"]["m"]["price"] = {"input": 0, "output": 1000}
    return json.dumps(text)


def limit(gateway: Gateway, tenant: str, last: str) -> dict[str, int]:
    with gateway.store as store:
        found = store.hgetall(f"sluice:limit:{{{tenant}}}:tenant:{last}")
    return {name: int(value) for name, value in found.items()}


def ledger(gateway: Gateway, tenant: str) -> list[dict[str, str]]:
    """A tenant's entries in the stream of finished requests; no request has two."""
    with gateway.store as store:
        found = [e for _, e in store.xrange("sluice:requests") if e["tenant"] == tenant]
    ids = [entry["id"] for entry in found]
    assert len(ids) == len(set(ids)), "a request has two entries"
    return found


async def one_round(
    gateway: Gateway, upstream: Upstream, name: str, dice: random.Random
) -> list[Outcome]:
    """Send everything at once; in the middle of it kill a worker."""
    known, begun = len(upstream.received), dice.randint(2, 12)

    def ask() -> Ask:
        leaves = dice.randint(1, 4) if dice.random() < 0.2 else None
        body = chat(stream=True, max_tokens=MOST_TOKENS)
        return Ask(body, key=f"sk-of-{name}", leave_after=leaves)

    async def kill() -> None:
        async with asyncio.timeout(20):
            while len(upstream.received) - known < begun:
                await asyncio.sleep(0.002)
        os.kill(dice.choice(gateway.worker_pids), signal.SIGKILL)

    killer = asyncio.create_task(kill())
    outcomes = await flood(gateway.port, [ask() for _ in range(STREAMS)], connections=STREAMS // 2)
    await killer
    return outcomes


def completed(outcomes: list[Outcome]) -> list[Outcome]:
    return [o for o in outcomes if not o.failure and o.status == 200]


def error_codes(outcomes: list[Outcome]) -> set[Any]:
    return {o.json["error"]["code"] for o in outcomes if not o.failure and o.status != 200}


async def test_a_budget_is_never_overspent_and_nothing_stays_reserved(upstream: Upstream) -> None:
    upstream.behaviour = five_words
    dice = random.Random(20261121)
    refusals: set[Any] = set()
    served = aborted = 0
    budget = {"budget": {"usd": BUDGET_MICROUSD / 1e6, "per": "total"}}
    with running(rounds_config(upstream.url, budget), workers=WORKERS) as gateway:
        for number in range(ROUNDS):
            name = f"r{number}"
            outcomes = await one_round(gateway, upstream, name, dice)
            gateway.settled(LEASE_SECONDS + 20)
            state = limit(gateway, name, "budget:total:total")
            done = completed(outcomes)
            refusals |= error_codes(outcomes)
            assert state["spent"] <= BUDGET_MICROUSD, f"round {number}: overspent"
            assert state["reserved"] == 0, f"round {number}: a leak"
            assert limit(gateway, name, "concurrency")["in_use"] == 0, f"round {number}: a leak"
            assert state["spent"] == gateway.usage(name)["cost_microusd"]
            assert state["spent"] >= len(done) * USED_TOKENS * 1000
            served += len(done)
            admitted = [entry for entry in ledger(gateway, name) if entry["outcome"] != "refused"]
            assert len(admitted) == gateway.usage(name)["requests"], f"round {number}"
            assert sum(int(e["cost_microusd"]) for e in admitted) == state["spent"]
            aborted += sum(entry["outcome"] == "aborted" for entry in admitted)
    assert served, "nothing was served: the test shows nothing"
    assert aborted, "no killed worker had anything in flight: the test shows nothing"
    assert "budget_exceeded" in refusals <= {"budget_exceeded", "rate_limit_exceeded"}


async def test_tokens_are_never_overdrawn_and_none_are_lost(upstream: Upstream) -> None:
    upstream.behaviour = five_words
    dice, served = random.Random(1121), 0
    with running(rounds_config(upstream.url, {"tpm": TOKENS_A_MINUTE}), workers=WORKERS) as gateway:
        for number in range(ROUNDS):
            name, began = f"r{number}", time.monotonic()
            outcomes = await one_round(gateway, upstream, name, dice)
            took = time.monotonic() - began
            gateway.settled(LEASE_SECONDS + 20)
            state, used = limit(gateway, name, "tpm"), gateway.usage(name)
            tokens = used.get("prompt_tokens", 0) + used["completion_tokens"]
            refilled = TOKENS_A_MINUTE * took / 60 + 1
            assert len(completed(outcomes)) * USED_TOKENS <= TOKENS_A_MINUTE + refilled
            # Were anything still reserved, less than this would be left.
            assert state["level"] >= TOKENS_A_MINUTE - tokens, f"round {number}: a leak"
            served += len(completed(outcomes))
    assert served, "nothing was served: the test shows nothing"


async def test_never_one_request_more_at_once(upstream: Upstream) -> None:
    under_way, most, full = 0, 0, asyncio.Event()

    async def counted(exchange: Exchange) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if under_way == SLOTS:
            full.set()
        async with asyncio.timeout(20):
            await full.wait()  # a slow machine ends some before all have begun
        await words(exchange)
        under_way -= 1
        await exchange.event("[DONE]")
        await exchange.end_stream()

    upstream.behaviour = counted
    with running(rounds_config(upstream.url, {}), workers=WORKERS) as gateway:
        ask = Ask(chat(stream=True), key="sk-of-r0")
        async with steady(gateway.port, lambda: ask, 4 * SLOTS, pause=0.05) as outcomes:
            async with asyncio.timeout(60):
                while len(completed(outcomes)) < 4 * SLOTS:
                    await asyncio.sleep(0.05)
        gateway.settled()
        assert limit(gateway, "r0", "concurrency")["in_use"] == 0
    assert most == SLOTS
    assert error_codes(outcomes) == {"rate_limit_exceeded"}
