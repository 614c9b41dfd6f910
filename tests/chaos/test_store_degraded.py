"""Redis in trouble under load: no error of the gateway's own, and exact accounts afterwards."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.support.config import chat, config, digest
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Outcome, once, steady
from tests.support.upstream import Exchange, Upstream, completion, like_openai, usage

PLENTY = {"rpm": 600_000, "tpm": 600_000_000, "concurrency": 30, "budget": {"usd": 1000}}
AWAY_SECONDS = 2.5
Fault = Callable[[Gateway], Awaitable[None]]


def degrading(url: str, **limits: Any) -> str:
    """Limits of every kind, an unlimited key beside them, and a lease that is over soon."""
    text = json.loads(config(url))
    text["auth"]["keys"] = [
        {"name": "k", "tenant": "acme", "sha256": digest("sk-limited"), **(limits or PLENTY)},
        {"name": "free", "tenant": "free", "sha256": digest("sk-unlimited")},
    ]
    text["limits"] = {"on_store_failure": "degrade", "lease": 3}
    text["redis"] = {"timeout": 1, "memory_mb": 64}
    return json.dumps(text)


async def slow(exchange: Exchange) -> None:
    await asyncio.sleep(0.03)
    await exchange.reply(completion("one two three four five", usage(7, 5)))


def asks() -> Callable[[], Ask]:
    """Requests of both keys in turn."""
    number = 0

    def ask() -> Ask:
        nonlocal number
        number += 1
        return Ask(chat(max_tokens=10), key="sk-limited" if number % 2 else "sk-unlimited")

    return ask


@contextlib.asynccontextmanager
async def under_load(gateway: Gateway) -> AsyncIterator[list[Outcome]]:
    """About 200 requests a second, before, during and after the block."""
    async with steady(gateway.port, asks(), connections=12, pause=0.03) as outcomes:
        await asyncio.sleep(0.7)
        yield outcomes
        await asyncio.sleep(1.5)


async def killed(gateway: Gateway) -> None:
    pid = gateway.store_pid
    os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(AWAY_SECONDS)


async def stopped(gateway: Gateway) -> None:
    pid = gateway.store_pid
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(AWAY_SECONDS)
    os.kill(pid, signal.SIGCONT)
    await asyncio.sleep(0.2)
    assert gateway.store_pid == pid, "it was stopped, not ended"


async def paused(gateway: Gateway) -> None:
    with gateway.store as store:
        store.client_pause(int(AWAY_SECONDS * 1000))
    await asyncio.sleep(AWAY_SECONDS)


async def without_scripts(gateway: Gateway) -> None:
    for _ in range(20):
        with gateway.store as store:
            store.script_flush()
        await asyncio.sleep(0.05)


async def full(gateway: Gateway) -> None:
    with gateway.store as store:
        store.config_set("maxmemory", "1mb")
    await asyncio.sleep(AWAY_SECONDS)
    with gateway.store as store:
        store.config_set("maxmemory", "64mb")


@pytest.mark.parametrize("fault", [killed, stopped, paused, without_scripts, full])
async def test_no_request_fails_and_every_one_is_counted(upstream: Upstream, fault: Fault) -> None:
    upstream.behaviour = slow
    with running(degrading(upstream.url), workers=2) as gateway:
        async with under_load(gateway) as outcomes:
            await fault(gateway)
        assert {(o.status, o.failure) for o in outcomes} == {(200, "")}
        await asyncio.to_thread(gateway.settled, 30)
        await nothing_unsettled(gateway)
        for key, tenant in (("sk-limited", "acme"), ("sk-unlimited", "free")):
            served = sum(o.ask.key == key for o in outcomes)
            used = gateway.usage(tenant)
            assert served > 20
            assert (used["requests"], used.get("errors", 0)) == (served, 0)
            assert used["completion_tokens"] == 5 * served
        with gateway.store as store:
            left = store.hgetall("sluice:limit:{acme}:key:k:concurrency")
            (budget,) = store.keys("sluice:limit:{acme}:key:k:budget:*")
            reserved = store.hget(budget, "reserved")
        assert (left["in_use"], reserved) == ("0", "0")


async def nothing_unsettled(gateway: Gateway) -> None:
    """Wait until no worker keeps anything for Redis, nor Redis anything open."""
    async with asyncio.timeout(30):
        while True:
            text = gateway.get("/metrics")[1].decode()
            kept = [x for x in text.splitlines() if x.startswith("sluice_unsettled ")]
            if kept == ["sluice_unsettled 0.0"]:
                break
            await asyncio.sleep(0.3)
    await asyncio.to_thread(gateway.settled, 30)


async def test_everything_deleted_costs_no_request(upstream: Upstream) -> None:
    upstream.behaviour = slow
    with running(degrading(upstream.url), workers=2) as gateway:
        async with under_load(gateway) as outcomes:
            with gateway.store as store:
                store.flushall()
        assert {(o.status, o.failure) for o in outcomes} == {(200, "")}
        await nothing_unsettled(gateway)
        with gateway.store as store:
            assert store.hget("sluice:limit:{acme}:key:k:concurrency", "in_use") == "0"


async def test_a_worker_alone_enforces_its_share(upstream: Upstream) -> None:
    text = degrading(upstream.url, rpm=60, burst=40)
    with running(text, workers=2) as gateway:
        await asyncio.sleep(1.5)  # the workers have counted each other
        assert (await once(gateway.port, asks()())).status == 200
        pid = gateway.store_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            outcomes = [await once(gateway.port, Ask(chat(), key="sk-limited")) for _ in range(120)]
            ready = gateway.get("/health/ready")
        finally:
            os.kill(pid, signal.SIGCONT)
    statuses = [o.status for o in outcomes]
    assert set(statuses) == {200, 429}
    # 40 at first, one a second afterwards; no worker admits more than its half.
    assert 20 <= statuses.count(200) <= 40 + 15
    assert ready[0] == 200


async def test_a_slot_that_nobody_gave_is_not_given_back(upstream: Upstream) -> None:
    """Asks that Redis was late with are refused here; they have taken nothing that could return."""
    most = now = 0

    async def slow(exchange: Exchange) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(5)
        now -= 1
        await like_openai(exchange)

    upstream.behaviour = slow
    text = json.loads(config(upstream.url, limits={"on_store_failure": "degrade"}))
    text["auth"]["keys"][0]["concurrency"] = 4
    with running(json.dumps(text), workers=1) as gateway:
        first = [asyncio.create_task(once(gateway.port, Ask(chat()))) for _ in range(4)]
        async with asyncio.timeout(5):
            while now < 4:
                await asyncio.sleep(0.02)
        os.kill(gateway.store_pid, signal.SIGSTOP)
        try:
            for _ in range(2):
                more = await asyncio.gather(*(once(gateway.port, Ask(chat())) for _ in range(6)))
                assert {outcome.status for outcome in more} == {429}
        finally:
            os.kill(gateway.store_pid, signal.SIGCONT)
        assert {(await one).status for one in first} == {200}
    assert most == 4


async def test_a_fallback_is_asked_though_redis_is_away(upstream: Upstream) -> None:
    async def too_long(exchange: Exchange) -> None:
        if exchange.request.json["model"] == "gpt-4o-mini":
            told = {"message": "too long", "code": "context_length_exceeded"}
            await exchange.reply({"error": told}, status=400)
        else:
            await like_openai(exchange)

    upstream.behaviour = too_long
    text = json.loads(config(upstream.url, limits={"on_store_failure": "degrade"}))
    text["auth"]["keys"][0]["budget"] = {"usd": 5, "per": "day"}
    text["models"]["m"] |= {"fallbacks": {"context_window": ["big"]}}
    big = {"targets": [{"provider": "p0", "model": "gpt-4o"}], "price": {"input": 9, "output": 9}}
    text["models"]["big"] = big
    with running(json.dumps(text), workers=1) as gateway:
        assert (await once(gateway.port, Ask(chat()))).status == 200
        os.kill(gateway.store_pid, signal.SIGSTOP)
        try:
            found = [(await once(gateway.port, Ask(chat()))).status for _ in range(3)]
        finally:
            os.kill(gateway.store_pid, signal.SIGCONT)
    assert found == [200] * 3


async def test_a_worker_that_is_replaced_while_redis_is_away_serves(upstream: Upstream) -> None:
    """Else the connections of its listener would hang until Redis is back."""
    with running(config(upstream.url), workers=2) as gateway:
        assert (await once(gateway.port, Ask(chat()))).status == 200
        await asyncio.to_thread(gateway.settled)  # or what is on its way ends with the worker
        os.kill(gateway.store_pid, signal.SIGSTOP)
        try:
            before = gateway.worker_pids
            os.kill(before[0], signal.SIGKILL)
            deadline = time.monotonic() + 30
            while len(gateway.worker_pids) < 2 or gateway.worker_pids == before:
                assert time.monotonic() < deadline, "nobody takes its place"
                await asyncio.sleep(0.05)
            asks = [once(gateway.port, Ask(chat())) for _ in range(24)]
            assert {one.status for one in await asyncio.gather(*asks)} == {200}
        finally:
            os.kill(gateway.store_pid, signal.SIGCONT)
        await asyncio.sleep(1)
        await asyncio.to_thread(gateway.settled)
        assert gateway.usage("acme")["requests"] == 25
