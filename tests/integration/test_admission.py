"""Admission against a real store: what the Lua functions decide and count, to the unit.

Time is simulated by moving a bucket's `updated` back in Redis. Buckets that must not refill while
a test runs get one unit a minute.
"""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gateway.policy.limits import REQUESTS, TOKENS, Limit, grants
from gateway.store import names
from gateway.store.admission import Admission
from gateway.store.lease import MAX_BATCH, Ask, Verdict
from tests.support.store import (
    COUNTERS,
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


@pytest.fixture(autouse=True)
def every_key_has_a_lifetime(server: StoreServer) -> Iterator[None]:
    yield
    assert server.without_lifetime() == set()


def levels(verdict: Verdict) -> list[int]:
    return verdict.levels


# --- Deciding ------------------------------------------------------------------------------------


async def test_a_request_takes_from_all_its_buckets_or_from_none(server: StoreServer) -> None:
    tenant = new_tenant()
    requests = bucket(tenant, REQUESTS, 2, 1)
    tokens = bucket(tenant, TOKENS, 100, 1, "tenant")
    who = principal(tenant, requests, tokens)
    async with connected(server) as (admission, _):
        first = await ask(admission, who, "a", holding(60))
        second = await ask(admission, who, "b", holding(60))
        third = await ask(admission, who, "c", holding(40))
        fourth = await ask(admission, who, "d", holding(0))
    assert (first.refused_by, levels(first)) == (None, [1, 40])
    assert (second.refused_by, levels(second)) == (tokens, [1, 40])
    assert (third.refused_by, levels(third)) == (None, [0, 0])
    assert (fourth.refused_by, levels(fourth)) == (requests, [0, 0])
    assert sorted(server.redis.zrange(names.leases(tenant)[0], 0, -1)) == ["a", "c"]
    assert sorted(server.redis.hkeys(names.leases(tenant)[1])) == ["a", "c"]


async def test_a_refusal_consumes_nothing(server: StoreServer) -> None:
    tenant = new_tenant()
    requests, tokens = bucket(tenant, REQUESTS, 9, 1), bucket(tenant, TOKENS, 100, 1)
    who = principal(tenant, requests, tokens)
    async with connected(server) as (admission, _):
        await ask(admission, who, "a", holding(60))
        before = [server.redis.hgetall(b.name) for b in who.limits]
        for number in range(20):
            refused = await ask(admission, who, f"r{number}", holding(41))
            assert refused.refused_by == tokens
        assert [server.redis.hgetall(b.name) for b in who.limits] == before
        assert admission.open_leases == 1
    assert before[0] == {**before[0], "level": "8", "capacity": "9", "refill": "1"}


async def test_the_requests_of_one_turn_are_decided_in_order(server: StoreServer) -> None:
    tenant = new_tenant()
    tokens = bucket(tenant, TOKENS, 100, 1)
    who = principal(tenant, tokens)
    async with connected(server) as (admission, _):
        wanted = (50, 60, 30, 30, 20)
        asked = [ask(admission, who, f"{i}", holding(n)) for i, n in enumerate(wanted)]
        verdicts = await asyncio.gather(*asked)
    assert [verdict.refused_by is None for verdict in verdicts] == [True, False, True, False, True]
    assert [levels(verdict) for verdict in verdicts] == [[50], [50], [20], [20], [0]]


async def test_two_workers_share_a_limit_exactly(server: StoreServer) -> None:
    tenant = new_tenant()
    who = principal(tenant, bucket(tenant, REQUESTS, 300, 1))
    async with connected(server) as (one, _), connected(server) as (other, _):
        verdicts = await asyncio.gather(
            *(ask(w, who, f"{w is one}-{i}", holding()) for i in range(1000) for w in (one, other))
        )
    assert sum(verdict.refused_by is None for verdict in verdicts) == 300


async def test_more_than_a_batch_in_one_turn(server: StoreServer) -> None:
    tenant, count = new_tenant(), 3 * MAX_BATCH + 1
    who = principal(tenant, bucket(tenant, TOKENS, 10 * (count - 5), 1))
    async with connected(server) as (admission, _):
        verdicts = await asyncio.gather(
            *(ask(admission, who, f"{i}", holding(10)) for i in range(count))
        )
        admitted = [i for i, verdict in enumerate(verdicts) if verdict.refused_by is None]
        assert admitted == list(range(count - 5))
        counted = await settle_all(admission, (settlement(f"{i}", who) for i in range(count)))
    assert counted == [True] * (count - 5) + [False] * 5
    assert server.usage(tenant)["requests"] == count - 5
    assert server.redis.exists(*names.leases(tenant)) == 0


async def test_a_request_that_can_never_fit_is_told_so(server: StoreServer) -> None:
    tenant = new_tenant()
    requests, tokens = bucket(tenant, REQUESTS, 1, 1), bucket(tenant, TOKENS, 100, 1)
    who = principal(tenant, requests, tokens)
    async with connected(server) as (admission, _):
        alone = await ask(admission, who, "a", holding(101))
        await ask(admission, who, "b", holding(10))
        also_short_of_requests = await ask(admission, who, "c", holding(101))
    for verdict in (alone, also_short_of_requests):
        assert verdict.refused_by == tokens
        assert verdict.wait_seconds is None


# --- Refilling -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("per_minute", "seconds", "expected"),
    [
        (1, 59, 0),
        (1, 60, 1),
        (1, 119, 1),
        (1, 300, 5),
        (3, 19, 0),
        (3, 20, 1),
        (3, 100, 5),
        (2, 86_400, 10),
        (1, 600, 10),
    ],
)
async def test_a_bucket_refills_by_whole_units(
    server: StoreServer, per_minute: int, seconds: float, expected: int
) -> None:
    tenant = new_tenant()
    requests = bucket(tenant, REQUESTS, 10, per_minute)
    who = principal(tenant, requests)
    async with connected(server) as (admission, _):
        for number in range(10):
            await ask(admission, who, f"{number}", holding())
        server.rewind(requests, seconds)
        later = [(await ask(admission, who, f"n{i}", holding())).refused_by for i in range(11)]
    assert later == [None] * expected + [requests] * (11 - expected)


async def test_the_wait_that_is_told_is_the_wait_that_helps(server: StoreServer) -> None:
    tenant = new_tenant()
    slow, fast = bucket(tenant, TOKENS, 10, 1), bucket(tenant, REQUESTS, 1, 6, "tenant")
    who = principal(tenant, slow, fast)
    async with connected(server) as (admission, _):
        await ask(admission, who, "a", holding(10))
        refused = await ask(admission, who, "b", holding(4))
        assert refused.refused_by == slow  # 4 minutes; the other bucket needs 10 seconds
        assert refused.wait_seconds is not None
        assert 180 < refused.wait_seconds <= 240
        server.rewind(fast, 60)
        server.rewind(slow, refused.wait_seconds - 60)
        assert (await ask(admission, who, "c", holding(4))).refused_by == slow
        server.rewind(slow, 60)
        assert (await ask(admission, who, "d", holding(4))).refused_by is None


async def test_a_clock_that_steps_back_gives_nothing_and_takes_nothing(server: StoreServer) -> None:
    tenant = new_tenant()
    requests = bucket(tenant, REQUESTS, 5, 1)
    who = principal(tenant, requests)
    async with connected(server) as (admission, _):
        await ask(admission, who, "a", holding())
        server.rewind(requests, -86_400)
        assert levels(await ask(admission, who, "b", holding())) == [3]


async def test_an_empty_bucket_refills_though_the_clock_stepped_back(server: StoreServer) -> None:
    tenant = new_tenant()
    requests = bucket(tenant, REQUESTS, 2, 60)
    who = principal(tenant, requests)
    async with connected(server) as (admission, _):
        for lease in ("a", "b"):
            assert (await ask(admission, who, lease, holding())).refused_by is None
        server.rewind(requests, -300)  # it was taken from five minutes from now
        assert (await ask(admission, who, "c", holding())).refused_by == requests
        server.rewind(requests, 2)
        assert (await ask(admission, who, "d", holding())).refused_by is None


# --- Settling ------------------------------------------------------------------------------------


async def reserved(admission: Admission, tenant: str, tokens: Limit, amount: int) -> None:
    verdict = await ask(admission, principal(tenant, tokens), "lease", holding(amount))
    assert verdict.refused_by is None


@pytest.mark.parametrize(("used", "left"), [(60, 40), (0, 100), (25, 75), (100, 0), (160, -60)])
async def test_settling_replaces_what_was_reserved_by_what_was_used(
    server: StoreServer, used: int, left: int
) -> None:
    tenant = new_tenant()
    tokens = bucket(tenant, TOKENS, 100, 1)
    who = principal(tenant, tokens)
    async with connected(server) as (admission, _):
        await reserved(admission, tenant, tokens, 60)
        await settle_all(admission, [settlement("lease", who, 60 - used)])
        verdict = await ask(admission, who, "next", holding(1000))
    assert levels(verdict) == [left]


async def test_a_debt_must_be_paid_before_anything_is_admitted(server: StoreServer) -> None:
    tenant = new_tenant()
    tokens = bucket(tenant, TOKENS, 10, 1)
    who = principal(tenant, tokens)
    async with connected(server) as (admission, _):
        await reserved(admission, tenant, tokens, 10)
        await settle_all(admission, [settlement("lease", who, -5)])
        refused = await ask(admission, who, "b", holding(1))
        assert levels(refused) == [-5]
        assert refused.wait_seconds is not None
        assert 300 < refused.wait_seconds <= 360
        server.rewind(tokens, 300)
        assert levels(await ask(admission, who, "c", holding(1))) == [0]
        server.rewind(tokens, 60)
        assert (await ask(admission, who, "d", holding(1))).refused_by is None


async def test_a_bucket_forgotten_while_full_is_still_charged(server: StoreServer) -> None:
    tenant = new_tenant()
    tokens = bucket(tenant, TOKENS, 100, 1)
    async with connected(server) as (admission, _):
        await reserved(admission, tenant, tokens, 10)
        server.redis.delete(tokens.name)  # as its expiry does
        await settle_all(admission, [settlement("lease", principal(tenant, tokens), -30)])
        verdict = await ask(admission, principal(tenant, tokens), "b", holding(1000))
    assert levels(verdict) == [70]


async def test_a_bucket_refilled_meanwhile_is_charged_from_its_level_now(
    server: StoreServer,
) -> None:
    tenant = new_tenant()
    tokens = bucket(tenant, TOKENS, 100, 1)
    async with connected(server) as (admission, _):
        await reserved(admission, tenant, tokens, 10)
        server.rewind(tokens, 10_000)  # full again long before the stream's end
        await settle_all(admission, [settlement("lease", principal(tenant, tokens), -30)])
        verdict = await ask(admission, principal(tenant, tokens), "b", holding(1000))
    assert levels(verdict) == [70]


async def test_counters_are_summed_exactly_by_part_day_and_month(server: StoreServer) -> None:
    tenant = new_tenant()
    who = principal(tenant)
    expected: dict[str, list[int]] = {}
    settlements = []
    async with connected(server) as (admission, _):
        for number in range(MAX_BATCH + 44):
            cost = 10**9 + number
            counts = (1, number % 2, number % 3, number, number // 2, 7, number % 5, cost, 2 * cost)
            parts = ("", f"model:m{number % 3}", f"key:k{number % 2}")
            for part in parts:
                sums = expected.setdefault(part, [0] * len(counts))
                expected[part] = [a + b for a, b in zip(sums, counts, strict=True)]
            await ask(admission, who, f"{number}", holding())
            settlements.append(settlement(f"{number}", who, 0, counts, parts))
        assert all(await settle_all(admission, settlements))
    for part, sums in expected.items():
        named = {name: sum_ for name, sum_ in zip(COUNTERS, sums, strict=True) if sum_}
        assert server.usage(tenant, part) == named
        assert server.usage(tenant, part, period_length=7) == named
    day, month = names.periods(admission.now())
    assert server.redis.ttl(names.usage(tenant, day)) > 399 * 86_400
    assert server.redis.ttl(names.usage(tenant, month)) > 1829 * 86_400
    assert server.redis.sismember("sluice:tenants", tenant)


async def test_what_is_read_after_its_doubtful_settlement_opens_nothing(
    server: StoreServer,
) -> None:
    tenant = new_tenant()
    tokens = bucket(tenant, TOKENS, 100, 1)
    who = principal(tenant, tokens)
    async with connected(server) as (admission, _):
        given_up = msgspec.structs.replace(settlement("late", who), marked=True)
        await settle_all(admission, [given_up])
        verdict = await ask(admission, who, "late", holding(10))
        assert verdict.refused_by is None  # nobody waits for it
        assert server.redis.zcard(f"sluice:leases:{{{tenant}}}") == 0
        assert levels(await ask(admission, who, "another", holding(10))) == [90]
        # One that was settled in order is another matter: its id is nobody else's.
        await settle_all(admission, [settlement("another", who)])
        assert server.redis.zscore(f"sluice:settled:{{{tenant}}}", "another") is None


async def test_what_a_worker_has_taken_of_a_rate_in_shadow_is_taken(server: StoreServer) -> None:
    tenant = new_tenant()
    tokens = msgspec.structs.replace(bucket(tenant, TOKENS, 100, 1), shadow=True)
    who = principal(tenant, tokens)
    async with connected(server) as (admission, _):
        assert levels(await ask(admission, who, "a", holding(90))) == [10]
        held = holding(50)
        forced = Ask("b", msgspec.json.encode(held), grants(who.limits, 50, 0, 0), None, True)
        await admission.orphans.reopen(tenant, [forced])
        assert levels(await ask(admission, who, "c", holding(1))) == [-41]
        await settle_all(admission, [settlement("b", who, surplus=40)])
        assert server.redis.hget(tokens.name, "level") == "0"
