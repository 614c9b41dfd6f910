"""What limits hold when they change, grow or are in shadow: against a real store, by state."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gateway.policy.limits import CONCURRENCY, MONEY, REQUESTS, TOKENS, Grant, Limit, grants
from gateway.store.lease import Holding, Return, Verdict, holds
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


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with (
        tempfile.TemporaryDirectory(prefix="sluice-") as directory,
        store_server(Path(directory)) as running,
    ):
        yield running


async def test_a_slice_that_arrives_late_or_twice_is_taken_once(server: StoreServer) -> None:
    tenant = new_tenant()
    budget = Limit(f"sluice:limit:{{{tenant}}}:key:k:budget:total", MONEY, 1000, 0, "key", "total")
    who = principal(tenant, budget)

    def held(amount: int) -> tuple[tuple[Grant, ...], Holding]:
        granted = grants((budget,), 0, amount, 0)
        return granted, msgspec.structs.replace(holding(), holds=holds(granted))

    def state() -> tuple[str, ...]:
        found = server.redis.hgetall(granted[0].key)
        return found["spent"], found["reserved"]

    async with connected(server) as (admission, _):
        granted, first = held(100)
        await admission.admit(tenant, "a", first, granted)
        assert state() == ("0", "100")
        second, third = held(300)[1], held(500)[1]
        assert await admission.grow(tenant, "a", third, granted, 200) == Verdict()
        assert await admission.grow(tenant, "a", second, granted, 200) == Verdict()  # it comes late
        assert await admission.grow(tenant, "a", third, granted, 400) == Verdict()
        assert state() == ("0", "500")
        refused = await admission.grow(tenant, "a", held(1001)[1], granted, 501)
        assert refused.refused_by is budget
        assert state() == ("0", "500")
        given = msgspec.structs.replace(settlement("a", who), returns=_returns(granted, 40))
        assert await settle_all(admission, [given]) == [True]
        assert state() == ("40", "0")


def _returns(granted: tuple[Grant, ...], used: int) -> tuple[Return, ...]:
    return tuple(Return(one.key, one.spec, 0, used) for one in granted)


async def test_a_rate_in_shadow_runs_into_no_debt(server: StoreServer) -> None:
    tenant = new_tenant()
    watched = msgspec.structs.replace(bucket(tenant, REQUESTS, 5, 1), shadow=True)
    who = principal(tenant, watched)
    async with connected(server) as (admission, _):
        verdicts = [await ask(admission, who, f"{n}", holding()) for n in range(20)]
        assert [one.refused_by for one in verdicts] == [None] * 20
        assert [bool(one.overdrawn) for one in verdicts] == [False] * 5 + [True] * 15
        assert server.redis.hget(watched.name, "level") == "0"
        server.rewind(watched, 120)
        later = [await ask(admission, who, f"later {n}", holding()) for n in range(3)]
        assert [bool(one.overdrawn) for one in later] == [False, False, True]


@pytest.mark.parametrize(("before", "after"), [((100, 60), (5000, 6000)), ((600_000, 1), (100, 1))])
async def test_a_lease_of_before_does_not_undo_a_changed_limit(
    server: StoreServer, before: tuple[int, int], after: tuple[int, int]
) -> None:
    tenant = new_tenant()
    old, new = bucket(tenant, TOKENS, *before), bucket(tenant, TOKENS, *after)
    earlier, now = principal(tenant, old), principal(tenant, new)
    async with connected(server) as (admission, _):
        await ask(admission, earlier, "old", holding(50))
        await ask(admission, now, "new", holding(10))
        server.redis.hset(new.name, mapping={"level": after[0] - 50})
        assert await settle_all(admission, [settlement("old", earlier, 20)]) == [True]
        found = server.redis.hgetall(new.name)
    assert (int(found["capacity"]), int(found["refill"])) == after
    assert after[0] - 30 <= int(found["level"]) <= after[0]


def _budget(tenant: str, capacity: int, period: str) -> Limit:
    return Limit(
        f"sluice:limit:{{{tenant}}}:key:k:budget:{period}", MONEY, capacity, 0, "key", period
    )


@pytest.mark.parametrize("period", ["total", "30d"])
@pytest.mark.parametrize(("before", "after"), [(1000, 300), (300, 1000)])
async def test_a_budget_that_was_changed_holds_for_what_is_open(
    server: StoreServer, period: str, before: int, after: int
) -> None:
    tenant = new_tenant()

    def held(capacity: int, amount: int) -> tuple[tuple[Grant, ...], Holding]:
        granted = grants((_budget(tenant, capacity, period),), 0, amount, 0)
        return granted, msgspec.structs.replace(holding(), holds=holds(granted))

    async with connected(server) as (admission, _):
        old, first = held(before, 100)
        key = old[0].key
        await admission.admit(tenant, "old", first, old)
        new, dear = held(after, 5000)
        refused = await admission.admit(tenant, "dear", dear, new)
        assert refused.refused_by is not None
        assert server.redis.hmget(key, "capacity", "reserved") == [str(after), "100"]
        grown = await admission.grow(tenant, "old", held(before, 250)[1], old, 150)
        assert grown == Verdict()
        grown = await admission.grow(tenant, "old", held(before, 600)[1], old, 350)
        assert (grown.refused_by is None) == (after == 1000)
        assert server.redis.hget(key, "capacity") == str(after)
        given = msgspec.structs.replace(
            settlement("old", principal(tenant, old[0].limit)), returns=_returns(old, 40)
        )
        assert await settle_all(admission, [given]) == [True]
        left = server.redis.hmget(key, "spent", "reserved", "capacity")
        assert left == ["40", "0", str(after)]


async def test_slots_that_were_changed_stay_changed_when_one_is_given_back(
    server: StoreServer,
) -> None:
    tenant = new_tenant()
    name = f"sluice:limit:{{{tenant}}}:tenant:concurrency"

    def slots(capacity: int) -> tuple[tuple[Grant, ...], Holding]:
        granted = grants((Limit(name, CONCURRENCY, capacity, 0, "tenant"),), 0, 0, 0)
        return granted, msgspec.structs.replace(holding(), holds=holds(granted))

    async with connected(server) as (admission, _):
        old, first = slots(3)
        await admission.admit(tenant, "old", first, old)
        fewer, second = slots(1)
        refused = await admission.admit(tenant, "new", second, fewer)
        assert refused.refused_by is not None
        assert server.redis.hmget(name, "in_use", "capacity") == ["1", "1"]
        given = msgspec.structs.replace(
            settlement("old", principal(tenant, old[0].limit)), returns=_returns(old, 0)
        )
        assert await settle_all(admission, [given]) == [True]
        assert server.redis.hmget(name, "in_use", "capacity") == ["0", "1"]
