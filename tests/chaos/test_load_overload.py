"""Three times what the gateway takes: it goes on at its capacity, and refuses the rest at once."""

import asyncio

import psutil
import pytest
import uvloop

from tests.support.config import KEY, chat, config, digest
from tests.support.gateway import Gateway, running
from tests.support.lean import Lean, Script
from tests.support.load import Ask, Outcome, flood
from tests.support.soak import (
    MIB,
    PROMISED,
    OpenLoop,
    for_seconds,
    open_loop,
    quantile,
    seconds_of,
    sized,
    workers_rss,
)

AT_ONCE, LATENCY_SECONDS = 20, 0.1
CAPACITY = AT_ONCE / LATENCY_SECONDS  # requests a second
FLOOD_SECONDS = sized(4, 10)
# Other tests may take the machine for seconds: then this shows only that it does not collapse.
LEAST_GOODPUT = 0.9 if PROMISED else 0.2
REFUSAL_SECONDS = 2.0  # a guard: it takes milliseconds
GROWTH_BYTES = 48 * MIB
QUIET = "sk-quiet-0123456789"
KEYS = [
    {"name": "k", "tenant": "acme", "sha256": digest(KEY)},
    {"name": "q", "tenant": "quiet", "sha256": digest(QUIET)},
]


def numbered(number: int, key: str = KEY) -> Ask:
    return Ask(chat(seed=number), key=key)


def right(outcome: Outcome) -> bool:
    """Whether the answer is to this very request."""
    said = outcome.json["choices"][0]["message"]["content"]
    return bool(said == str(outcome.ask.body["seed"]))


def milliseconds(outcomes: list[Outcome]) -> str:
    spent = seconds_of(outcomes)
    return f"p50 {quantile(spent, 0.5) * 1000:.1f} ms, p99 {quantile(spent, 0.99) * 1000:.1f} ms"


def at_once(outcome: Outcome, outcomes: list[Outcome]) -> int:
    """How many requests were under way as one was sent, as their clients saw it."""
    return sum(one.started <= outcome.started < one.ended for one in outcomes)


def configured(lean: Lean) -> str:
    return config(
        lean.url, auth={"keys": KEYS}, server={"overload": {"requests": AT_ONCE, "lag": 5}}
    )


async def peak_of(gateway: Gateway) -> float:
    """Answers a second while there are just as many at once as are taken."""
    asks = [numbered(n) for n in range(int(CAPACITY * 2))]
    outcomes = await flood(gateway.port, asks, AT_ONCE)
    assert {one.status for one in outcomes} == {200}
    return len(outcomes) / (max(o.ended for o in outcomes) - min(o.started for o in outcomes))


def test_three_times_the_capacity_is_served_at_capacity_and_the_rest_refused() -> None:
    uvloop.run(three_times_the_capacity())


async def three_times_the_capacity() -> None:
    async with Lean(Script(latency=LATENCY_SECONDS)) as lean:
        with running(configured(lean)) as gateway:
            peak = await peak_of(gateway)
            before = workers_rss(gateway)
            load = OpenLoop(gateway.port, numbered)
            await load.run(3 * CAPACITY, for_seconds(FLOOD_SECONDS))
            grown = workers_rss(gateway) - before
            served = [one for one in load.outcomes if one.status == 200]
            refused = [one for one in load.outcomes if one.status != 200]
            goodput = len(served) / FLOOD_SECONDS
            print(
                f"peak {peak:.0f}/s; {load.sent / FLOOD_SECONDS:.0f}/s offered, {goodput:.0f}/s "
                f"served ({goodput / peak:.1%}: {milliseconds(served)}); {len(refused)} refused "
                f"({milliseconds(refused)}); workers grew by {grown / MIB:.1f} MiB"
            )
            assert [one.failure for one in load.outcomes if one.failure] == []
            assert {one.status for one in refused} == {503}
            assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
            assert all(one.json["error"]["code"] == "overloaded" for one in refused)
            assert all(map(right, served))
            assert quantile(seconds_of(refused), 0.99) < REFUSAL_SECONDS
            assert goodput >= LEAST_GOODPUT * peak
            assert grown < GROWTH_BYTES
            assert lean.asked == len(served) + int(CAPACITY * 2)  # what is refused goes nowhere
            await load.aclose()
            gateway.settled()
            assert gateway.usage("acme")["requests"] == lean.asked


def test_a_flooding_tenant_costs_another_no_request() -> None:
    uvloop.run(a_flooding_tenant())


async def a_flooding_tenant() -> None:
    quiet_rate = 40  # some four at once: well within half of what is taken
    async with Lean(Script(latency=LATENCY_SECONDS)) as lean:
        with running(configured(lean)) as gateway:

            def quiet(number: int) -> Ask:
                return numbered(number, QUIET)

            async with open_loop(gateway.port, quiet_rate, quiet) as alone:
                await asyncio.sleep(FLOOD_SECONDS)
            async with (
                open_loop(gateway.port, 3 * CAPACITY, numbered) as flooding,
                open_loop(gateway.port, quiet_rate, quiet) as mine,
            ):
                await asyncio.sleep(FLOOD_SECONDS)
            refused = [one for one in flooding.outcomes if one.status == 503]
            print(
                f"alone: {len(alone.outcomes)}, {milliseconds(alone.outcomes)}; beside a flood of "
                f"{len(flooding.outcomes)} ({len(refused)} refused): {len(mine.outcomes)}, "
                f"{milliseconds(mine.outcomes)}"
            )
            assert len(refused) > len(flooding.outcomes) // 4
            for outcomes in (alone.outcomes, mine.outcomes):
                assert len(outcomes) > FLOOD_SECONDS * quiet_rate // 2
                assert not any(one.failure for one in outcomes)
                # Where the machine stalls it asks for more at once than its half.
                modest = [one for one in outcomes if at_once(one, outcomes) < AT_ONCE // 2]
                assert len(modest) > len(outcomes) // 2
                assert all(one.status == 200 and right(one) for one in modest)


@pytest.mark.parametrize("workers", [2])
def test_a_flood_that_the_machine_cannot_take_leaves_no_request_without_an_answer(
    workers: int,
) -> None:
    uvloop.run(as_fast_as_it_goes(workers))


async def as_fast_as_it_goes(workers: int) -> None:
    """Many more connections than are taken, each as fast as it is answered."""
    async with Lean(Script(latency=LATENCY_SECONDS)) as lean:
        with running(configured(lean), workers=workers) as gateway:
            asks = [numbered(n) for n in range(sized(3000, 30_000))]
            outcomes = await flood(gateway.port, asks, 400)
            served = [one for one in outcomes if one.status == 200]
            print(f"{len(served)} of {len(outcomes)} served; {milliseconds(outcomes)}")
            assert {(one.status, one.failure) for one in outcomes} == {(200, ""), (503, "")}
            assert all(map(right, served))
            assert all(psutil.pid_exists(pid) for pid in gateway.worker_pids)
            assert lean.asked == len(served)
