"""Leases against a real store: settled once whoever settles them, and through every outage.

Totals are compared, never times: the waits below end when the store has answered.
"""

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.core.errors import StoreError
from gateway.policy.limits import REQUESTS, TOKENS
from gateway.store import backlog as backlog_module
from gateway.store import names
from gateway.store.admission import Admission
from gateway.store.connection import Connection
from gateway.store.link import Link
from tests.support.store import (
    StoreServer,
    ask,
    bucket,
    connected,
    holding,
    new_tenant,
    principal,
    settle_all,
    settlement,
    store_server,
)

PATIENCE_SECONDS = 30  # of a test that would otherwise hang


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with (
        tempfile.TemporaryDirectory(prefix="sluice-") as directory,
        store_server(Path(directory)) as running,
    ):
        yield running


@pytest.fixture(autouse=True)
def every_key_has_a_lifetime(server: StoreServer) -> Iterator[None]:
    yield
    assert server.without_lifetime() == set()


def expire(server: StoreServer, tenant: str, *leases: str) -> None:
    server.redis.zadd(names.leases(tenant)[0], dict.fromkeys(leases, 1))


# --- Once ----------------------------------------------------------------------------------------


async def test_a_lease_counts_once_however_often_it_is_settled(server: StoreServer) -> None:
    tenant = new_tenant()
    tokens = bucket(tenant, TOKENS, 100, 1)
    who = principal(tenant, tokens)
    async with connected(server) as (admission, _):
        await ask(admission, who, "a", holding(50))
        same_turn = await settle_all(admission, [settlement("a", who, 20)] * 3)
        later = await settle_all(admission, [settlement("a", who, 20)])
        verdict = await ask(admission, who, "b", holding(1000))
    assert same_turn + later == [True, False, False, False]
    assert verdict.levels == [70]
    assert server.usage(tenant)["requests"] == 1


async def test_a_lease_counts_once_when_two_workers_settle_it(server: StoreServer) -> None:
    tenant = new_tenant()
    who = principal(tenant, bucket(tenant, TOKENS, 10_000, 1))
    async with connected(server) as (one, _), connected(server) as (other, _):
        leases = [f"{number}" for number in range(400)]
        await asyncio.gather(*(ask(one, who, lease, holding(10)) for lease in leases))
        by_one, by_other = await asyncio.gather(
            settle_all(one, [settlement(lease, who) for lease in leases]),
            settle_all(other, [settlement(lease, who) for lease in reversed(leases)]),
        )
    assert [a != b for a, b in zip(by_one, reversed(by_other), strict=True)] == [True] * 400
    assert server.usage(tenant)["prompt_tokens"] == 400 * 7


async def test_what_one_key_refuses_takes_nothing_else_along(server: StoreServer) -> None:
    """A counter of another type: the limits, the other counters and the lease are as ever."""
    tenant = new_tenant()
    tokens = bucket(tenant, TOKENS, 100, 1)
    who = principal(tenant, tokens)
    async with connected(server) as (admission, _):
        await ask(admission, who, "a", holding(50))
        await settle_all(admission, [settlement("a", who, 20)])
        broken = list(server.redis.scan_iter(f"sluice:usage:{{{tenant}}}:*"))
        month = min(broken, key=len)
        server.redis.set(month, "of another type", ex=1000)
        await ask(admission, who, "b", holding(50))
        assert await settle_all(admission, [settlement("b", who, 20)]) == [True]
        verdict = await ask(admission, who, "c", holding(1000))
    assert verdict.levels == [40]
    assert server.usage(tenant)["requests"] == 2
    assert server.redis.zcard(names.leases(tenant)[0]) == 0
    server.redis.delete(month)


async def test_what_was_never_leased_is_not_counted(server: StoreServer) -> None:
    tenant = new_tenant()
    async with connected(server) as (admission, _):
        assert await settle_all(admission, [settlement("a", principal(tenant))]) == [False]
    assert server.usage(tenant) == {}


# --- Expiry --------------------------------------------------------------------------------------


async def test_only_expired_leases_are_listed_with_what_they_hold(server: StoreServer) -> None:
    tenant = new_tenant()
    who = principal(tenant)
    async with connected(server) as (admission, _):
        for number in range(5):
            await ask(admission, who, f"{number}", holding(number))
        assert await admission.orphans.expired(tenant) == []
        expire(server, tenant, "1", "3")
        server.redis.hdel(names.leases(tenant)[1], "3")
        assert await admission.orphans.expired(tenant) == [("1", holding(1)), ("3", None)]
        assert await admission.orphans.expired(tenant, most=1) == [("1", holding(1))]
        assert tenant in await admission.orphans.tenants()


async def test_a_lease_that_is_served_on_is_extended(server: StoreServer) -> None:
    tenant = new_tenant()
    who = principal(tenant)
    async with connected(server) as (admission, client):
        for lease in ("new", "old", "gone"):
            await ask(admission, who, lease, holding())
        await client.call("PING")
        for lease in ("old", "gone"):
            admission._open[lease] = (tenant, float("-inf"))  # as if it were long ago
        server.redis.zrem(names.leases(tenant)[0], "gone")
        expire(server, tenant, "new", "old")
        admission.extend_open()
        expired = [lease for lease, _ in await admission.orphans.expired(tenant)]
    assert expired == ["new"]
    assert sorted(server.redis.zrange(names.leases(tenant)[0], 0, -1)) == ["new", "old"]


async def test_two_workers_that_find_the_same_expired_leases_settle_them_once(
    server: StoreServer,
) -> None:
    tenant = new_tenant()
    who = principal(tenant)
    leases = [f"{number:03}" for number in range(100)]
    async with connected(server) as (one, _), connected(server) as (other, _):
        await asyncio.gather(*(ask(one, who, lease, holding()) for lease in leases))
        await one.orphans.tenants()
        expire(server, tenant, *leases)
        found = await asyncio.gather(one.orphans.expired(tenant), other.orphans.expired(tenant))
        assert [[lease for lease, _ in each] for each in found] == [leases, leases]
        ends = [settlement(lease, who) for lease in leases]
        counted = await asyncio.gather(settle_all(one, ends), settle_all(other, ends))
        assert await one.orphans.expired(tenant) == []
    assert sum(map(sum, counted)) == 100
    assert server.usage(tenant)["requests"] == 100


# --- The connection ------------------------------------------------------------------------------


async def test_flushed_scripts_are_loaded_again(server: StoreServer) -> None:
    tenant = new_tenant()
    limited = principal(tenant, bucket(tenant, REQUESTS, 100, 1))
    async with connected(server) as (admission, _):
        for number in range(5):
            server.redis.script_flush()
            verdicts = await asyncio.gather(
                *(ask(admission, limited, f"{number}-{i}", holding()) for i in range(4))
            )
            assert [v.levels[0] for v in verdicts] == [
                100 - 4 * number - taken for taken in (1, 2, 3, 4)
            ]
            server.redis.script_flush()
            ends = [settlement(f"{number}-{i}", limited) for i in range(4)]
            assert await settle_all(admission, ends) == [True] * 4
            server.redis.script_flush()
            await ask(admission, principal(tenant), f"{number}", holding())  # in one write:
            assert await settle_all(admission, [settlement(f"{number}", limited)]) == [True]
    assert server.usage(tenant)["requests"] == 25


async def test_a_cancelled_wait_never_gives_its_reply_to_another(server: StoreServer) -> None:
    loop, rng = asyncio.get_running_loop(), random.Random(7)
    lost: list[Connection] = []
    _, connection = await loop.create_unix_connection(
        lambda: Connection(loop, 10.0, lost.append), server.socket
    )
    kept: dict[int, asyncio.Future[bytes]] = {}
    cancelled = 0
    for number in range(5000):
        future = connection.call("ECHO", number)
        if rng.random() < 0.4:
            if rng.random() < 0.5:
                await asyncio.sleep(0)  # it has left already
            cancelled += future.cancel()
        else:
            kept[number] = future
        if rng.random() < 0.05:
            await asyncio.sleep(0)
    replies = await asyncio.gather(*kept.values())
    connection.close()
    assert cancelled > 1000
    assert replies == [b"%d" % number for number in kept]
    assert lost == [connection]


# --- Outages -------------------------------------------------------------------------------------


@asynccontextmanager
async def leased(
    server: StoreServer, tenant: str, count: int, timeout: float
) -> AsyncIterator[tuple[Admission, Link]]:
    """So many open leases, `0`, `1` and on."""
    async with connected(server, timeout) as (admission, client):
        who = principal(tenant, bucket(tenant, REQUESTS, 10_000, 1))
        for lease in range(count):
            await ask(admission, who, f"{lease}", holding())
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield admission, client


async def test_a_silent_store_ends_the_connection_and_nothing_is_lost(server: StoreServer) -> None:
    tenant = new_tenant()
    who = principal(tenant, bucket(tenant, REQUESTS, 10_000, 1))
    async with leased(server, tenant, 60, timeout=0.2) as (admission, client):
        server.redis.execute_command("CLIENT", "PAUSE", 1000, "ALL")
        ends = [settlement(f"{i}", who) for i in range(30)]
        sent = asyncio.ensure_future(settle_all(admission, ends))
        with pytest.raises(StoreError, match="did not answer within"):
            await ask(admission, who, "late", holding())
        assert not client.connected
        assert admission.unsettled == 30
        afterwards = settle_all(admission, [settlement(f"{i}", who) for i in range(30, 60)])
        assert await afterwards == [True] * 30
        assert await sent == [True] * 30
        assert (admission.unsettled, admission.lost_settlements) == (0, 0)
    assert server.usage(tenant)["requests"] == 60
    assert server.usage(tenant)["cost_microusd"] == 60 * 4


@pytest.mark.parametrize("turns_before", [0, 1, 2, 3])
async def test_a_killed_store_loses_and_doubles_nothing(
    server: StoreServer, turns_before: int
) -> None:
    """The settlements are unsent, on their way, or applied without an answer when it dies."""
    tenant = new_tenant()
    who = principal(tenant, bucket(tenant, REQUESTS, 10_000, 1))
    async with leased(server, tenant, 600, timeout=5.0) as (admission, client):
        ends = [settlement(f"{i}", who) for i in range(600)]
        sent = asyncio.ensure_future(settle_all(admission, ends))
        for _ in range(turns_before):
            await asyncio.sleep(0)
        server.kill()
        while client.connected:
            await asyncio.sleep(0)
        delivered: list[str] = []
        admission.after_settled(lambda: delivered.append("reply"))
        with pytest.raises(StoreError, match="not reachable"):
            await ask(admission, who, "late", holding())
        assert delivered == ["reply"]
        server.start()
        await sent
        assert (admission.unsettled, admission.lost_settlements) == (0, 0)
    assert server.usage(tenant)["requests"] == 600
    assert server.usage(tenant)["prompt_tokens"] == 600 * 7
    assert server.redis.exists(names.leases(tenant)[0]) == 0


async def test_past_its_bound_the_oldest_settlements_are_lost_and_counted(
    server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog_module, "MAX_UNSETTLED", 10)
    tenant = new_tenant()
    who = principal(tenant, bucket(tenant, REQUESTS, 10_000, 1))
    async with leased(server, tenant, 15, timeout=5.0) as (admission, client):
        server.kill()
        while client.connected:
            await asyncio.sleep(0)
        for lease in range(5):
            admission.settle(settlement(f"{lease}", who))
        sent = settle_all(admission, [settlement(f"{i}", who) for i in range(5, 15)])
        server.start()
        assert await sent == [True] * 10
        assert admission.lost_settlements == 5
    assert sorted(server.redis.zrange(names.leases(tenant)[0], 0, -1)) == list("01234")


async def test_a_request_without_limits_is_counted_though_the_store_was_away(
    server: StoreServer,
) -> None:
    tenant = new_tenant()
    unlimited = principal(tenant)
    async with connected(server) as (admission, client):
        server.kill()
        while client.connected:
            await asyncio.sleep(0)
        assert (await ask(admission, unlimited, "a", holding())).refused_by is None
        sent = asyncio.ensure_future(settle_all(admission, [settlement("a", unlimited)]))
        await asyncio.sleep(0)
        server.start()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await sent
    assert server.usage(tenant).get("requests") == 1
