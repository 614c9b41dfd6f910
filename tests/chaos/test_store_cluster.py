"""A Redis Cluster of three masters with replicas: limits are exact, a failover fails nobody."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from gateway.store.cluster import SLOTS, slot_of
from tests.support.cluster import MASTERS, cluster
from tests.support.config import chat, config, digest
from tests.support.gateway import running
from tests.support.load import Ask, flood, steady
from tests.support.upstream import Exchange, Upstream, completion, usage

TENANTS = [f"t{number}" for number in range(6)]
RPM = 60


def clustered(url: str, store: str, **limits: Any) -> str:
    text = json.loads(config(url))
    text["auth"]["keys"] = [
        {"name": name, "tenant": name, "sha256": digest(f"sk-of-{name}"), **limits}
        for name in TENANTS
    ]
    text["redis"] = {"url": store, "timeout": 1}
    text["limits"] = {"lease": 3}
    return json.dumps(text)


async def slow(exchange: Exchange) -> None:
    await asyncio.sleep(0.03)
    await exchange.reply(completion("one two three four five", usage(7, 5)))


def test_the_tenants_of_these_tests_are_on_every_master() -> None:
    assert {slot_of(f"{{{name}}}") * MASTERS // SLOTS for name in TENANTS} == {0, 1, 2}
    assert slot_of("123456789") == 12739  # the specification's own example


async def test_limits_are_exact_on_every_node(upstream: Upstream, tmp_path: Path) -> None:
    with cluster(tmp_path) as nodes:
        text = clustered(upstream.url, nodes.url, rpm=RPM, burst=50)
        with running(text, workers=4) as gateway:
            asks = [Ask(chat(), key=f"sk-of-{name}") for _ in range(150) for name in TENANTS]
            began = time.monotonic()
            outcomes = await flood(gateway.port, asks, connections=48)
            refilled = (time.monotonic() - began) * RPM / 60
            day = time.strftime("%Y-%m-%d", time.gmtime())
            await asyncio.sleep(1)
            for name in TENANTS:
                mine = [o for o in outcomes if o.ask.key == f"sk-of-{name}"]
                admitted = sum(o.status == 200 for o in mine)
                assert {o.status for o in mine} == {200, 429}
                assert 50 <= admitted <= 50 + refilled + 1
                store = nodes.of(name, nodes.ports)
                assert int(store.hget(f"sluice:usage:{{{name}}}:{day}", "requests")) == admitted
                assert store.xlen(f"sluice:requests:{{{name}}}") == len(mine)
                store.close()


async def test_a_masters_death_costs_no_request(upstream: Upstream, tmp_path: Path) -> None:
    upstream.behaviour = slow
    with cluster(tmp_path) as nodes:
        text = clustered(upstream.url, nodes.url, rpm=600_000, concurrency=99)
        number = 0

        def ask() -> Ask:
            nonlocal number
            number += 1
            return Ask(chat(), key=f"sk-of-{TENANTS[number % len(TENANTS)]}")

        with running(text, workers=2) as gateway:
            async with steady(gateway.port, ask, 10, 0.03) as outcomes:
                await asyncio.sleep(1)
                await asyncio.to_thread(nodes.kill, 0)
                heir = nodes.ports[MASTERS]
                deadline = time.monotonic() + 30
                while (await asyncio.to_thread(nodes.at(heir).role))[0] != b"master":
                    assert time.monotonic() < deadline, "nobody is promoted"
                    await asyncio.sleep(0.1)
                await asyncio.sleep(4)
            assert {(o.status, o.failure) for o in outcomes} == {(200, "")}
            await asyncio.sleep(5)
            day = time.strftime("%Y-%m-%d", time.gmtime())
            used = 0
            for name in TENANTS:
                store = nodes.of(name, nodes.ports[1:])
                assert store.zcard(f"sluice:leases:{{{name}}}") == 0
                used += int(store.hget(f"sluice:usage:{{{name}}}:{day}", "requests"))
                slots = store.hget(f"sluice:limit:{{{name}}}:key:{name}:concurrency", "in_use")
                assert slots == "0"
                store.close()
    # What the dead master had answered for and not yet passed on is lost with it.
    assert len(outcomes) - 20 <= used <= len(outcomes)


async def test_a_master_that_is_gone_leaves_its_tenants_their_share_alone(
    upstream: Upstream, tmp_path: Path
) -> None:
    """What others' masters answer meanwhile gives them nothing."""
    gone, *others = sorted(TENANTS, key=lambda name: slot_of(f"{{{name}}}"))
    with cluster(tmp_path) as nodes:
        text = json.loads(clustered(upstream.url, nodes.url, rpm=6_000_000))
        key = next(one for one in text["auth"]["keys"] if one["name"] == gone)
        key |= {"rpm": 1, "burst": 10, "budget": {"usd": 1, "per": "day"}}
        with running(json.dumps(text), workers=1) as gateway:
            every = [Ask(chat(), key=f"sk-of-{name}") for name in TENANTS]
            assert {one.status for one in await flood(gateway.port, every, 1)} == {200}
            await asyncio.to_thread(nodes.kill, MASTERS)  # its heir, or it would take over
            await asyncio.to_thread(nodes.kill, 0)
            await asyncio.sleep(1)
            mine, theirs = Ask(chat(), key=f"sk-of-{gone}"), Ask(chat(), key=f"sk-of-{others[-1]}")
            outcomes = await flood(gateway.port, [mine, theirs] * 60, connections=1)
            served = [one.ask.key for one in outcomes if one.status == 200]
            assert served.count(theirs.key) == 60
            assert 5 <= served.count(mine.key) <= 11
            gateway.kill()


async def test_where_all_known_masters_go_the_seeds_are_asked(
    upstream: Upstream, tmp_path: Path
) -> None:
    with cluster(tmp_path) as nodes:
        seeds = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in nodes.ports)
        with running(clustered(upstream.url, seeds, rpm=60_000), workers=1) as gateway:
            every = [Ask(chat(), key=f"sk-of-{name}") for name in TENANTS]
            assert {one.status for one in await flood(gateway.port, every, 1)} == {200}
            for number in range(MASTERS):
                await asyncio.to_thread(nodes.kill, number)
            for port in nodes.ports[MASTERS:]:
                nodes.at(port).execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
            deadline = time.monotonic() + 30
            while "sluice_store_connected 1.0" not in gateway.get("/metrics")[1].decode():
                assert time.monotonic() < deadline, "it does not find them"
                await asyncio.sleep(0.2)
            assert {one.status for one in await flood(gateway.port, every, 1)} == {200}
