"""What becomes of requests whose worker, or whose Redis, stands still or ends amid them."""

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from gateway.core.errors import STORE_AWAY
from gateway.policy.pricing import MOST_RESERVED, Price, most_microusd
from gateway.store.scripts import SETTLE
from tests.support.config import KEY, PRICED_MODEL, chat, config, digest
from tests.support.gateway import Gateway, running
from tests.support.load import CHAT, Ask, Client, once
from tests.support.store import store_server
from tests.support.upstream import Exchange, Upstream, completion, delta, like_openai, usage

GOVERNED = {"name": "k", "tenant": "acme", "sha256": digest(KEY), "concurrency": 1}


def governed(url: str, lease: float, redis: dict[str, Any] | None = None, **more: Any) -> str:
    keys = {"keys": [GOVERNED]}
    return config(url, limits={"lease": lease, **more}, auth=keys, redis=redis)


async def until(true: Any, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.05)


def leases(gateway: Gateway) -> list[str]:
    with gateway.store as store:
        found: list[str] = store.zrange("sluice:leases:{acme}", 0, -1)
    return found


async def test_a_full_store_takes_no_live_request_for_a_dead_workers(upstream: Upstream) -> None:
    going_on = asyncio.Event()

    async def waiting(exchange: Exchange) -> None:
        await going_on.wait()
        await exchange.reply(completion("one two three four five", usage(7, 5)))

    upstream.behaviour = waiting
    with running(governed(upstream.url, 2), workers=2) as gateway:
        asked = asyncio.create_task(once(gateway.port, Ask(chat(max_tokens=500))))
        await until(lambda: upstream.received)
        with gateway.store as store:
            store.config_set("maxmemory", "1")
        await asyncio.sleep(4)
        with gateway.store as store:
            store.config_set("maxmemory", "64mb")
        await asyncio.sleep(3)
        assert len(leases(gateway)) == 1
        with gateway.store as store:
            assert store.hget("sluice:limit:{acme}:key:k:concurrency", "in_use") == "1"
        going_on.set()
        assert (await asked).status == 200
        await asyncio.to_thread(gateway.settled, 30)
        assert gateway.usage("acme")["completion_tokens"] == 5
        assert [record["outcome"] for record in gateway.records(1)] == ["ok"]


async def test_a_worker_that_was_taken_for_dead_makes_no_second_record(upstream: Upstream) -> None:
    async def slowly(exchange: Exchange) -> None:
        await exchange.start_stream()
        with contextlib.suppress(ConnectionError):
            for _ in range(60):
                await exchange.event(delta("word "))
                await asyncio.sleep(0.1)
            await exchange.event(delta(None, "stop"))
            await exchange.event("[DONE]")
            await exchange.end_stream()

    upstream.behaviour = slowly
    with running(governed(upstream.url, 1), workers=2) as gateway:
        asked = asyncio.create_task(once(gateway.port, Ask(chat(stream=True))))
        await until(lambda: upstream.received)
        for pid in gateway.worker_pids:  # one of them has it; the other reaps
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(3)
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.5)
            if not leases(gateway):
                break
        await asked
        await asyncio.to_thread(gateway.settled, 30)
        await asyncio.sleep(0.5)
        (record,) = gateway.records(1)
        assert record["outcome"] == "aborted"
        assert gateway.usage("acme")["completion_tokens"] == record["usage"]["completion_tokens"]


async def test_one_record_of_what_a_gateway_serves_that_is_cut_off(
    upstream: Upstream, tmp_path: Path
) -> None:
    """Of two gateways: the other one has taken its lease for a dead worker's meanwhile."""
    going_on = asyncio.Event()

    async def waiting(exchange: Exchange) -> None:
        await going_on.wait()
        await like_openai(exchange)

    upstream.behaviour = waiting
    with store_server(tmp_path) as store, contextlib.ExitStack() as stack:
        door = tmp_path / "door.sock"
        door.symlink_to(store.socket)
        gateways = [
            stack.enter_context(
                running(governed(upstream.url, 2, redis={"url": f"unix://{path}"}), workers=1)
            )
            for path in (door, store.socket)
        ]
        cut_off, other = gateways
        asked = asyncio.create_task(once(cut_off.port, Ask(chat())))
        await until(lambda: upstream.received)
        await asyncio.sleep(1)  # it is new no more: extended when it is time
        door.unlink()
        store.redis.client_kill_filter(_type="normal", skipme=True)
        await asyncio.to_thread(other.records, 1, 30)
        going_on.set()
        assert (await asked).status == 200
        await asyncio.sleep(1)
        door.symlink_to(store.socket)
        await until(lambda: b"sluice_unsettled 0" in cut_off.get("/metrics")[1])
        assert [r["outcome"] for r in (*other.records(), *cut_off.records())] == ["aborted"]
        assert store.usage("acme")["requests"] == 1


async def test_what_ends_after_redis_was_emptied_has_its_record(upstream: Upstream) -> None:
    going_on = asyncio.Event()

    async def waiting(exchange: Exchange) -> None:
        await going_on.wait()
        await like_openai(exchange)

    upstream.behaviour = waiting
    with running(governed(upstream.url, 2), workers=2) as gateway:
        asked = asyncio.create_task(once(gateway.port, Ask(chat())))
        await until(lambda: upstream.received)
        with gateway.store as store:
            store.flushall()
        await asyncio.sleep(3)
        going_on.set()
        assert (await asked).status == 200
        assert [r["outcome"] for r in gateway.records(1)] == ["ok"]


async def test_what_a_killed_worker_had_of_a_model_that_is_gone_costs_what_was_reserved(
    upstream: Upstream,
) -> None:
    upstream.behaviour = lambda exchange: exchange.gone()
    text = json.loads(governed(upstream.url, 2))
    text["auth"]["keys"][0] |= {"budget": {"usd": 5, "per": "total"}}
    text["models"]["m"]["price"] = {"input": 0, "output": 1000}
    with running(json.dumps(text), workers=1) as gateway:
        (old,) = gateway.worker_pids
        async with Client(gateway.port) as client:
            await client.send(Ask(chat(max_tokens=100)))
            await until(lambda: upstream.received)
            text["models"]["new"] = text["models"].pop("m")
            gateway.config_file.write_text(json.dumps(text))
            gateway.signal(signal.SIGHUP)
            await until(lambda: set(gateway.worker_pids) - {old})
            await asyncio.sleep(0.5)
            os.kill(old, signal.SIGKILL)
        (record,) = await asyncio.to_thread(gateway.records, 1, 30)
        assert (record["outcome"], record["cost_microusd"]) == ("aborted", 100_000)
        assert record["price"] == "reserved"
        assert sum(record["cost"].values()) == 100_000
        with gateway.store as store:
            budget = store.hgetall("sluice:limit:{acme}:key:k:budget:total:total")
        assert (budget["spent"], budget["reserved"]) == ("100000", "0")


async def test_no_settlement_overtakes_its_admission(upstream: Upstream) -> None:
    with running(governed(upstream.url, 1)) as gateway:
        assert (await once(gateway.port, Ask(chat()))).status == 200
        with gateway.store as store:
            store.script_flush()
            store.script_load(SETTLE.source)  # as another worker's settlement would
        pid = gateway.store_pid
        os.kill(pid, signal.SIGSTOP)
        client = Client(gateway.port)
        await client.send(Ask(chat(max_tokens=100_000)))
        await asyncio.sleep(0.02)
        client.cut()
        await asyncio.sleep(0.03)
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(3)
        assert leases(gateway) == []
        assert [record["outcome"] for record in gateway.records(2)] == ["ok", "disconnected"]
        assert gateway.usage("acme")["completion_tokens"] == 5


async def test_what_a_killed_worker_had_is_charged_as_it_was_reserved(upstream: Upstream) -> None:
    async def behave(exchange: Exchange) -> None:
        model = exchange.request.json["model"]
        if model == "small":
            error = {"message": "maximum context length", "code": "context_length_exceeded"}
            await exchange.reply({"error": error}, 400)
        elif model in ("dear", "copied"):
            await asyncio.sleep(60)
        else:
            await like_openai(exchange)

    upstream.behaviour = behave
    small = {"provider": "pa", "model": "small", "price": {"input": 1, "output": 1}}
    dear = {"provider": "pa", "model": "dear", "price": {"input": 1000, "output": 1000}}
    free = {"provider": "pa", "model": "free", "price": {"input": 0, "output": 0}}
    budget = {"usd": 50, "per": "day"}
    pa = {"kind": "openai-compatible", "base_url": upstream.url, "api_key": "sk-pa"}
    text = config(
        providers={"pa": pa},
        pricing={"default": {"input": 1000, "output": 1000}},
        tenants={"acme": {"budget": budget}},
        limits={"lease": 1},
        models={
            "m": {"targets": [small], "fallbacks": {"context_window": ["big"]}},
            "big": {"targets": [dear]},
            "s": {
                "targets": [free],
                "shadow": {"provider": "pa", "model": "copied", "budget": budget},
            },
        },
    )
    with running(text) as gateway:
        async with Client(gateway.port) as one, Client(gateway.port) as other:
            await one.send(Ask(chat("m", max_tokens=1000)))
            await other.send(Ask(chat("s", max_tokens=1000)))
            await until(lambda: reserved(gateway) == [1_022_000, 1_022_000])
            os.kill(gateway.worker_pids[0], signal.SIGKILL)
            await until(lambda: reserved(gateway) == [0, 0])
            aborted = [r for r in gateway.records(3) if r["outcome"] == "aborted"]
            assert sorted((r["served_model"], r["cost_microusd"]) for r in aborted) == [
                ("copied", 1_022_000),
                ("dear", 1_022_000),
            ]


def reserved(gateway: Gateway) -> list[int]:
    """What every budget has reserved."""
    with gateway.store as store:
        budgets = list(store.scan_iter("sluice:limit:*budget*"))
        return [int(store.hget(name, "reserved")) for name in budgets]


@pytest.mark.parametrize("path", [CHAT, "/providers/p0/chat/completions"])
async def test_a_request_that_waited_for_the_store_in_vain_is_no_usage(
    upstream: Upstream, path: str
) -> None:
    body = chat("m" if path == CHAT else PRICED_MODEL)
    text = json.loads(governed(upstream.url, 30, on_store_failure="refuse"))
    text["redis"] = {"timeout": 1}
    with running(json.dumps(text)) as gateway:
        assert (await once(gateway.port, Ask(body, path))).status == 200
        pid = gateway.store_pid
        os.kill(pid, signal.SIGSTOP)
        told = await once(gateway.port, Ask(body, path))
        os.kill(pid, signal.SIGCONT)
        assert (told.status, told.json["error"]["message"]) == (503, STORE_AWAY)
        assert told.headers["retry-after"] == "1"
        await asyncio.to_thread(gateway.settled, 30)
        await until(lambda: leases(gateway) == [])
        assert [record["outcome"] for record in gateway.records(2)] == ["ok", "refused"]
        assert gateway.usage("acme")["requests"] == 1


async def test_what_is_answered_while_the_store_is_late_outlives_its_worker(
    upstream: Upstream, tmp_path: Path
) -> None:
    keys = [{"name": "free", "tenant": "acme", "sha256": digest(KEY)}]
    text = json.loads(config(upstream.url, limits={"lease": 1}, auth={"keys": keys}))
    text["redis"] = {"timeout": 5}
    with running(json.dumps(text)) as gateway:
        assert (await once(gateway.port, Ask(chat()))).status == 200
        await asyncio.to_thread(gateway.settled, 30)
        with gateway.store as store:
            store.client_pause(3000)
        for _ in range(3):
            await once(gateway.port, Ask(chat()))
            await asyncio.sleep(0.2)
        before = gateway.worker_pids
        os.kill(before[0], signal.SIGKILL)
        await until(lambda: gateway.worker_pids and gateway.worker_pids != before)
        await until(lambda: gateway.usage("acme").get("completion_tokens") == 20)
        assert gateway.usage("acme")["requests"] == 4


def test_no_reservation_is_more_than_can_be_counted() -> None:
    price = Price.from_rates(20, 20)
    assert most_microusd(price, 10, 2**31 * 128 * 1_200_000) == MOST_RESERVED


async def test_a_lost_request_keeps_the_name_of_a_model_that_nobody_configured(
    upstream: Upstream,
) -> None:
    async def begins(exchange: Exchange) -> None:
        if not exchange.request.json.get("stream"):
            await like_openai(exchange)
            return
        await exchange.start_stream()
        await exchange.event(delta("word"))
        await exchange.gone()

    upstream.behaviour = begins
    key = {"name": "k", "tenant": "acme", "sha256": digest(KEY)}
    text = config(upstream.url, limits={"lease": 1}, auth={"keys": [key]}, models={})
    with running(text, workers=1) as gateway:
        assert (await once(gateway.port, Ask(chat("gpt-4o-mini")))).status == 200
        lost = asyncio.create_task(once(gateway.port, Ask(chat("gpt-4o-mini", stream=True))))
        await until(lambda: leases(gateway) and len(upstream.received) == 2)
        for pid in gateway.worker_pids:
            os.kill(pid, signal.SIGKILL)
        await lost
        await asyncio.to_thread(gateway.settled, 30)
        (record,) = [one for one in gateway.records(2) if one["outcome"] == "aborted"]
        used = gateway.usage("acme", part="model:gpt-4o-mini")
    assert (record["model"], record["stream"]) == ("gpt-4o-mini", True)
    assert used["requests"] == 2
