"""One of four targets fails, or all do: who notices, who is asked, and when it is taken back."""

import asyncio
import time
from typing import Any

import pytest

from tests.support.config import chat, config
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, flood
from tests.support.soak import sized
from tests.support.upstream import Exchange, Upstream, completion, usage

REQUESTS = sized(2000, 2000)
CONNECTIONS = 16
FAILURES, EJECTION_SECONDS = 5, 6.0
LEAST_EJECTION_SECONDS = 0.75 * EJECTION_SECONDS  # an ejection's length is jittered by a quarter
WATCH_SECONDS = 1.5  # within which a worker learns what another leaves alone
PATIENT = {"attempts": 1, "backoff": 0.01, "longest": 1}


class Switch:
    """A behaviour: fails or answers as it is set, and remembers when it was asked."""

    def __init__(self, *, ok: bool) -> None:
        self.ok = ok
        self.asked_at = list[float]()

    async def __call__(self, exchange: Exchange) -> None:
        self.asked_at.append(time.monotonic())
        if self.ok:
            await exchange.reply(completion("fine", usage(3, 1)))
        else:
            await exchange.reply({"error": {"message": "broken"}}, 500)


def four(servers: list[Upstream], strategy: str) -> str:
    """A model of four equal targets, with the breaker as it is by default but for its time."""
    targets = [{"provider": f"p{i}", "model": "gpt-4o-mini"} for i in range(4)]
    sections: dict[str, Any] = {
        "models": {"m": {"strategy": strategy, "targets": targets}},
        "breaker": {"failures": FAILURES, "ejection": EJECTION_SECONDS, "longest": 6},
        "retries": PATIENT,
    }
    return config(*[server.url for server in servers], **sections)


def asks(count: int) -> list[Ask]:
    return [Ask(chat()) for _ in range(count)]


async def ejected_at(gateway: Gateway, workers: int) -> float:
    """Wait until every worker leaves the target alone; return when the first one began to."""
    with gateway.store as store:
        async with asyncio.timeout(20):
            while not store.hgetall("sluice:targets"):
                await asyncio.sleep(0.01)
        (told,) = store.hgetall("sluice:targets").values()
    until = int(told.split()[0]) / 1000
    began = time.monotonic() - max(0.0, EJECTION_SECONDS * 1.25 - (until - time.time()))
    await asyncio.sleep(WATCH_SECONDS if workers > 1 else 0)
    return began


async def test_one_of_four_that_fails_is_noticed_by_few_and_taken_back() -> None:
    workers = 2
    switches = [Switch(ok=number != 1) for number in range(4)]
    bad = switches[1]
    async with (
        Upstream(behaviour=switches[0]) as a,
        Upstream(behaviour=switches[1]) as b,
        Upstream(behaviour=switches[2]) as c,
        Upstream(behaviour=switches[3]) as d,
    ):
        with running(four([a, b, c, d], "least-busy"), workers=workers) as gateway:
            first = await flood(gateway.port, asks(REQUESTS // 4), CONNECTIONS)
            began = await ejected_at(gateway, workers)
            met_before = len(bad.asked_at)
            rest = await flood(gateway.port, asks(REQUESTS - REQUESTS // 4), CONNECTIONS)
            outcomes = [*first, *rest]
            errors = [one for one in outcomes if one.status != 200 or one.failure]
            later = [
                at
                for at in bad.asked_at[met_before:]
                if at < began + LEAST_EJECTION_SECONDS  # after it is a probe
            ]
            print(
                f"{len(errors)} of {len(outcomes)} requests saw an error; {len(bad.asked_at)} "
                f"had an attempt there, {met_before} before all left it alone, {len(later)} after"
            )
            assert len(errors) <= len(outcomes) // 100
            # Of each worker: a row of failures, and what was under way already.
            assert met_before <= workers * FAILURES + CONNECTIONS
            assert later == []

            bad.ok = True
            before, recovered = len(bad.asked_at), time.monotonic()
            async with asyncio.timeout(60):
                while len(bad.asked_at) < before + 20:
                    again = await flood(gateway.port, asks(40), CONNECTIONS)
                    assert {one.status for one in again} == {200}
                    await asyncio.sleep(0.1)
            print(f"taken back {time.monotonic() - recovered:.1f} s after it recovered")
            await asyncio.sleep(WATCH_SECONDS)
            before = len(bad.asked_at)
            outcomes = await flood(gateway.port, asks(REQUESTS // 4), CONNECTIONS)
            assert {one.status for one in outcomes} == {200}
            share = (len(bad.asked_at) - before) / len(outcomes)
            print(f"its share afterwards: {share:.1%}")
            assert share > 0.1


@pytest.mark.parametrize(
    "known", [False, True], ids=["from_the_first_failure", "once_they_are_left_alone"]
)
async def test_while_all_four_fail_they_are_asked_a_fifth_more_than_there_are_requests(
    known: bool,
) -> None:
    switches = [Switch(ok=False) for _ in range(4)]
    async with (
        Upstream(behaviour=switches[0]) as a,
        Upstream(behaviour=switches[1]) as b,
        Upstream(behaviour=switches[2]) as c,
        Upstream(behaviour=switches[3]) as d,
    ):
        with running(four([a, b, c, d], "weighted")) as gateway:
            if known:
                await flood(gateway.port, asks(REQUESTS // 4), CONNECTIONS)
            before = sum(len(switch.asked_at) for switch in switches)
            outcomes = await flood(gateway.port, asks(REQUESTS), CONNECTIONS)
            asked = sum(len(switch.asked_at) for switch in switches) - before
            print(f"{asked} attempts for {REQUESTS} requests: {asked / REQUESTS:.3f}")
            assert {one.status for one in outcomes} == {502}
            assert asked <= 1.2 * REQUESTS
