"""What workers go by while Redis is away, or takes nothing: never more than there was, in all."""

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from gateway.core.errors import StoreError
from gateway.policy.limits import Budget, Grant, Rates, grants, limits
from gateway.store.admission import Admission
from gateway.store.cluster import SLOTS, slot_of
from gateway.store.lease import Holding, holds
from gateway.store.link import Link
from gateway.store.location import Location
from tests.support.cluster import MASTERS, cluster
from tests.support.config import KEY, chat, config, digest
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Client, once
from tests.support.soak import came
from tests.support.store import store_server
from tests.support.upstream import Exchange, Upstream, completion, delta, like_openai, usage

BUDGET = 50_000  # micro-dollars
COST = 603  # of 17 tokens of prompt and 1,000 of answer
FULL = ("maxmemory", "1", "64mb")
UNREPLICATED = ("min-replicas-to-write", "1", "0")


async def dear(exchange: Exchange) -> None:
    await exchange.reply(completion("one", usage(17, 1000)))


def limited(url: str, store: str | None = None, **limits: Any) -> str:
    """A configuration whose one key has limits."""
    key = {"name": "k", "tenant": "acme", "sha256": digest(KEY), **limits}
    return config(url, auth={"keys": [key]}, redis={"url": store and f"unix://{store}"})


async def admitted(gateway: Gateway, connections: int, each: int) -> int:
    """How many are let in: so many at most on each of some connections, of any worker."""
    found = 0
    for _ in range(connections):
        async with Client(gateway.port) as client:
            for _ in range(each):
                outcome = await client.ask(Ask(chat(max_tokens=1000)))
                found += outcome.status == 200
                if outcome.status != 200:
                    break
    return found


async def test_what_one_worker_has_heard_all_of_them_go_by(tmp_path: Path) -> None:
    budget = {"usd": BUDGET / 1e6, "per": "month"}
    async with Upstream(behaviour=dear) as upstream:
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(store_server(tmp_path))
            text = limited(upstream.url, store.socket, budget=budget)
            gateway = stack.enter_context(running(text, workers=4))
            before = await admitted(gateway, 1, 60)  # by one connection, so by one worker
            await asyncio.sleep(1.0)
            store.stop()
            away = await admitted(gateway, 24, 30)
            store.go_on()
            assert before == 60
            assert (before + away) * COST <= BUDGET
            assert away > 0, "each has its share of what is left"


async def replaced(gateway: Gateway, old: int) -> None:
    """Wait until a worker is gone and another one serves."""
    async with asyncio.timeout(30):
        while old in (pids := gateway.worker_pids) or not pids:
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)


@pytest.mark.parametrize("how", ["kill", "recycle", "kill after a reload that fails"])
async def test_who_takes_a_workers_place_goes_on_from_its_share(tmp_path: Path, how: str) -> None:
    budget = {"usd": BUDGET / 1e6, "per": "total"}
    async with Upstream(behaviour=dear) as upstream:
        with store_server(tmp_path) as store:
            text = json.loads(limited(upstream.url, store.socket, budget=budget))
            if how == "recycle":
                text["server"] = {"recycle": {"requests": 20}}
            with running(json.dumps(text), workers=1) as gateway:
                found = [await admitted(gateway, 1, 5)]
                await asyncio.sleep(0.5)
                store.stop()
                if "reload" in how:
                    gateway.signal(signal.SIGHUP)
                    await asyncio.to_thread(gateway.wait_for, "reload failed")
                for _ in range(1 if how == "recycle" else 3):
                    old = gateway.worker_pids[0]
                    found.append(await admitted(gateway, 2, 30))
                    if "kill" in how:
                        await asyncio.sleep(0.02)  # its journal is written, if not synced
                        os.kill(old, signal.SIGKILL)
                    await replaced(gateway, old)
                found.append(await admitted(gateway, 2, 30))
                assert found[1] > 0
                assert sum(found) * COST <= BUDGET, found
                store.go_on()
                async with asyncio.timeout(30):
                    while "sluice_store_connected 1.0" not in gateway.get("/metrics")[1].decode():
                        found.append(await admitted(gateway, 1, 1))
                        await asyncio.sleep(0.01)
                found.append(await admitted(gateway, 2, 30))
                assert sum(found) * COST <= BUDGET, found
                async with asyncio.timeout(30):  # others replay what a killed one had to tell
                    while store.usage("acme").get("cost_microusd") != sum(found) * COST:
                        await asyncio.sleep(0.1)


async def test_in_a_cluster_who_takes_a_workers_place_goes_on_from_its_share(
    tmp_path: Path,
) -> None:
    """While one master is away, whatever those of others say."""
    budget = {"usd": BUDGET / 1e6, "per": "total"}
    with cluster(tmp_path, replicas=False) as nodes:
        async with Upstream(behaviour=dear) as upstream:
            text = json.loads(limited(upstream.url, budget=budget))
            text["redis"] = {"url": nodes.url, "timeout": 1}
            with running(json.dumps(text), workers=1) as gateway:
                found = [await admitted(gateway, 1, 3)]
                await asyncio.sleep(0.5)
                number = slot_of("{acme}") * MASTERS // SLOTS
                nodes.kill(number)
                for _ in range(3):
                    old = gateway.worker_pids[0]
                    found.append(await admitted(gateway, 2, 100))
                    await asyncio.sleep(0.02)
                    os.kill(old, signal.SIGKILL)
                    await replaced(gateway, old)
                found.append(await admitted(gateway, 2, 100))
                assert found[1] > 0
                assert sum(found) * COST <= BUDGET, found
                nodes.start(number)


async def test_who_takes_a_workers_place_knows_of_other_gateways(tmp_path: Path) -> None:
    budget = {"usd": BUDGET / 1e6, "per": "total"}
    async with Upstream(behaviour=dear) as upstream:
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(store_server(tmp_path))
            text = limited(upstream.url, store.socket, budget=budget)
            gateways = [stack.enter_context(running(text, workers=1)) for _ in range(2)]
            async with asyncio.timeout(30):
                while store.redis.zcard("sluice:workers") < 2:
                    await asyncio.sleep(0.1)
            await asyncio.sleep(6)  # each has counted the other
            found = [await admitted(gateway, 1, 2) for gateway in gateways]
            await asyncio.sleep(0.5)
            store.stop()
            for gateway in gateways:
                old = gateway.worker_pids[0]
                os.kill(old, signal.SIGKILL)
                await replaced(gateway, old)
            found += [await admitted(gateway, 1, 100) for gateway in gateways]
            # Each may know nothing of the two that the other has let in last.
            assert sum(found) * COST <= BUDGET + 2 * COST, found
            store.go_on()


async def test_slots_of_a_killed_worker_are_free_again(tmp_path: Path) -> None:
    async def hangs(exchange: Exchange) -> None:
        if exchange.request.json.get("stream"):
            await exchange.start_stream()
            await exchange.event(delta("one"))
            await asyncio.sleep(60)
        await exchange.reply(completion("one", usage(7, 5)))

    async with Upstream(behaviour=hangs) as upstream:
        with store_server(tmp_path) as store:
            text = json.loads(limited(upstream.url, store.socket, concurrency=2))
            text["limits"] = {"lease": 3}
            with running(json.dumps(text)) as gateway:
                assert (await once(gateway.port, Ask(chat()))).status == 200
                store.stop()
                await asyncio.sleep(0.3)
                async with Client(gateway.port) as one, Client(gateway.port) as other:
                    for client in (one, other):
                        await client.send(Ask(chat(stream=True)))
                        await client.read_head()
                        assert client.status == 200
                    assert (await once(gateway.port, Ask(chat()))).status == 429
                    old = gateway.worker_pids[0]
                    os.kill(old, signal.SIGKILL)
                await replaced(gateway, old)
                assert (await once(gateway.port, Ask(chat()))).status == 200
                store.go_on()


@contextlib.contextmanager
def refusing(gateway: Gateway, how: tuple[str, str, str]) -> Any:
    """Let Redis take nothing, and then again."""
    name, on, off = how
    with gateway.store as store:
        store.config_set(name, on)
        yield
        store.config_set(name, off)


@pytest.mark.parametrize("how", [FULL, UNREPLICATED], ids=["full", "without replicas"])
async def test_a_stream_ends_with_its_share_where_redis_takes_nothing(
    how: tuple[str, str, str],
) -> None:
    async def streams(exchange: Exchange) -> None:
        await exchange.start_stream()
        with contextlib.suppress(ConnectionError):
            for number in range(1500):
                await exchange.event(delta("word after word " * 8))
                if number % 20 == 0:
                    await asyncio.sleep(0.005)
            await exchange.end_stream()

    budget = {"usd": 0.002, "per": "total"}
    async with Upstream(behaviour=streams) as upstream:
        with running(limited(upstream.url, budget=budget)) as gateway:
            with refusing(gateway, how):
                outcome = await once(gateway.port, Ask(chat(stream=True)))
                (record,) = await asyncio.to_thread(gateway.records, 1)
            assert b"budget_exceeded" in outcome.body
            assert record["error"] == "budget_exceeded"
            # What comes with one read is beyond it: 16 KiB, at four bytes a token.
            assert record["cost_microusd"] < 2000 + 0.6 * 4096


@pytest.mark.parametrize("how", ["kill", "reload"])
async def test_who_takes_a_place_goes_on_where_redis_takes_nothing(
    tmp_path: Path, how: str
) -> None:
    """It is connected, and Redis has heard of nothing all the same."""
    budget = {"usd": BUDGET / 1e6, "per": "total"}
    async with Upstream(behaviour=dear) as upstream:
        with store_server(tmp_path) as store:
            text = limited(upstream.url, store.socket, budget=budget)
            with running(text, workers=1) as gateway:
                found = [await admitted(gateway, 1, 2)]
                await asyncio.sleep(0.5)
                store.redis.config_set("min-replicas-to-write", 1)
                for _ in range(3):
                    found.append(await admitted(gateway, 2, 100))
                    before = gateway.worker_pids
                    if how == "kill":
                        await asyncio.sleep(0.02)
                        os.kill(before[0], signal.SIGKILL)
                        await replaced(gateway, before[0])
                    else:
                        gateway.signal(signal.SIGHUP)
                        async with asyncio.timeout(30):
                            while not set(gateway.worker_pids) - set(before):
                                await asyncio.sleep(0.05)
                        await asyncio.sleep(1.5)
                found.append(await admitted(gateway, 4, 100))
                assert found[1] > 0
                assert sum(found) * COST <= BUDGET, found
                store.redis.config_set("min-replicas-to-write", 0)
                async with asyncio.timeout(40):
                    while store.usage("acme").get("cost_microusd") != sum(found) * COST:
                        await asyncio.sleep(0.1)


async def test_what_a_stream_was_given_away_redis_hears_of_first(tmp_path: Path) -> None:
    limit = limits("key", "sluice:limit:{t}:key:k", Rates(budgets=(Budget(100_000, "total"),)))

    def granted(money: int) -> tuple[Grant, ...]:
        return grants(limit, 1, money, 0)

    def holding(money: int) -> Holding:
        return Holding("k", "m", "p", "g", "chat", 1, 1, 1, holds(granted(money)))

    with store_server(tmp_path) as store:
        client = Link(Location(unix_path=store.socket), 1.0, "w")
        admission = Admission(client, 30, degrade=True)
        await client.start()

        async def asked(lease: str, money: int) -> bool:
            verdict = await admission.admit("t", lease, holding(money), granted(money))
            return verdict.refused_by is None

        assert await asked("there", 1000)
        store.kill()
        await came(lambda: not client.connected)
        assert await asked("away", 1000)
        for lease, more in (("there", 40_000), ("away", 50_000)):
            grown = holding(1000 + more), granted(1000 + more)
            with pytest.raises(StoreError):
                await admission.grow("t", lease, *grown, more)
            assert admission.grow_alone("t", lease, *grown, more) is None
        assert not await asked("more", 20_000)
        store.start()
        await came(lambda: client.connected and not admission.does_without("t"))
        assert not await asked("again", 20_000)
        assert await asked("what is left", 8000)
        assert store.redis.hget(limit[0].key(0), "reserved") == "100000"
        await client.aclose()


async def test_a_dearer_fallback_is_asked_where_redis_takes_nothing() -> None:
    async def too_long(exchange: Exchange) -> None:
        error = {"message": "maximum context length is 8", "code": "context_length_exceeded"}
        await exchange.reply({"error": {**error, "type": "invalid_request_error"}}, 400)

    async with Upstream(behaviour=too_long) as one, Upstream(behaviour=like_openai) as two:
        key = {"name": "k", "tenant": "acme", "sha256": digest(KEY)}
        key["budget"] = {"usd": 100, "per": "total"}  # type: ignore[assignment]
        text = json.loads(config(one.url, two.url, auth={"keys": [key]}))
        text["models"] = {
            "m": {
                "targets": [{"provider": "p0", "model": "gpt-4o-mini"}],
                "fallbacks": {"context_window": ["big"]},
            },
            "big": {"targets": [{"provider": "p1", "model": "gpt-4o"}]},
        }
        with running(json.dumps(text)) as gateway, refusing(gateway, UNREPLICATED):
            assert (await once(gateway.port, Ask(chat()))).status == 200
            assert len(two.received) == 1


@pytest.mark.parametrize("limited_is", ["the key", "the target"])
async def test_who_is_refused_unasked_leaves_nothing_to_settle(
    upstream: Upstream, tmp_path: Path, limited_is: str
) -> None:
    with store_server(tmp_path) as store:
        text = json.loads(limited(upstream.url, store.socket))
        where = text["auth"]["keys"] if limited_is == "the key" else text["models"]["m"]["targets"]
        where[0]["rpm"] = 1000
        text["limits"] = {"on_store_failure": "refuse"}
        with running(json.dumps(text)) as gateway:
            assert (await once(gateway.port, Ask(chat()))).status == 200
            store.kill()
            async with asyncio.timeout(10):
                while (await once(gateway.port, Ask(chat()))).status != 503:
                    await asyncio.sleep(0.05)
            before = unsettled(gateway)
            for _ in range(30):
                outcome = await once(gateway.port, Ask(chat()))
                assert (outcome.status, outcome.json["error"]["code"]) == (503, "store_unavailable")
            # Each has a record of its own; of a target's lease that was never asked for, nothing.
            assert unsettled(gateway) - before == (0 if limited_is == "the key" else 30)
            store.start()


def unsettled(gateway: Gateway) -> float:
    """How many settlements wait for Redis."""
    metrics = gateway.get("/metrics")[1].decode()
    (line,) = [one for one in metrics.splitlines() if one.startswith("sluice_unsettled")]
    return float(line.split()[-1])


async def test_what_only_watches_refuses_nobody_while_redis_is_away(
    upstream: Upstream, tmp_path: Path
) -> None:
    budget = {"usd": 1, "per": "day", "shadow": True}
    with store_server(tmp_path) as store:
        shadows = {"rpm": 1000, "tpm": 1000, "shadow": ["rpm", "tpm"], "budget": budget}
        text = json.loads(limited(upstream.url, store.socket, **shadows))
        text["limits"] = {"on_store_failure": "refuse"}
        with running(json.dumps(text)) as gateway:
            assert (await once(gateway.port, Ask(chat()))).status == 200
            store.kill()
            outcomes = [await once(gateway.port, Ask(chat(stream=n % 2 > 0))) for n in range(20)]
            assert [one.status for one in outcomes] == [200] * 20
            store.start()
            async with asyncio.timeout(30):
                while store.usage("acme").get("requests") != 21:
                    await asyncio.sleep(0.1)
