"""Clients that leave in the middle of streams, by the thousand: nothing is left of them."""

import asyncio
import time

import pytest
import uvloop

from tests.support.config import chat, config
from tests.support.gateway import Gateway, running
from tests.support.lean import Lean, Script
from tests.support.load import Ask, Client, once
from tests.support.soak import (
    MIB,
    PROMISED,
    came,
    gauge,
    in_parallel,
    quantile,
    sized,
    workers_files,
    workers_rss,
)

LEAVING = sized(1000, 10_000)
AT_ONCE = 100
SCRIPT = Script(events=1000, gap=0.05, held=True)
GUARD_SECONDS = 5.0  # the promise is one second
GAUGES = ("sluice_upstream_connections", "sluice_requests_in_flight", "sluice_open_leases")


def counts(gateway: Gateway) -> dict[str, float]:
    """What must come back to where it was."""
    return {name: gauge(gateway, name) for name in GAUGES} | {"files": workers_files(gateway)}


async def leave(port: int, number: int, left: dict[int, float]) -> None:
    """Begin a stream, read some of it, and go: some at once, some in order, some in silence."""
    async with Client(port) as client:
        await client.send(Ask(chat(seed=number, stream=True)))
        await client.read_head()
        assert client.status == 200
        for _ in range(1 + number % 3):
            await client.read_chunk()
        left[number] = time.monotonic()
        if number % 2:
            client.cut()
        else:
            assert client.writer is not None
            client.writer.close()


@pytest.mark.timeout(600 if PROMISED else 120)
def test_clients_that_leave_mid_stream_leave_nothing_behind() -> None:
    uvloop.run(all_leave())


async def all_leave() -> None:
    async with Lean(SCRIPT) as lean:
        with running(config(lean.url)) as gateway:
            # What is opened once and kept is opened before.
            assert (await once(gateway.port, Ask(chat(seed=10**9)))).status == 200
            warmed = dict[int, float]()
            await in_parallel(
                AT_ONCE, AT_ONCE, lambda number: leave(gateway.port, 2 * 10**9 + number, warmed)
            )
            await came(lambda: gauge(gateway, "sluice_open_leases") == 0)
            await came(lambda: gauge(gateway, "sluice_upstream_connections") <= 1)
            await asyncio.sleep(1)
            before, rss = await asyncio.to_thread(counts, gateway), workers_rss(gateway)

            left = dict[int, float]()
            await in_parallel(LEAVING, AT_ONCE, lambda number: leave(gateway.port, number, left))
            await came(lambda: all(number in lean.lost for number in left))
            took = [lean.lost[number] - at for number, at in left.items()]
            print(
                f"{len(took)} left; the provider's connection closed after p50 "
                f"{quantile(took, 0.5) * 1000:.1f} ms, p99 {quantile(took, 0.99) * 1000:.0f} ms, "
                f"at most {max(took) * 1000:.0f} ms"
            )
            assert len(took) == LEAVING
            assert max(took) < GUARD_SECONDS

            def is_as_before() -> bool:
                now = counts(gateway)
                return all(now[name] <= before[name] for name in before)

            await came(is_as_before)
            grown = workers_rss(gateway) - rss
            print(f"before {before}, after {counts(gateway)}; memory {grown / MIB:+.1f} MiB")
            await asyncio.to_thread(gateway.settled)
            assert gateway.usage("acme")["requests"] == 1 + AT_ONCE + LEAVING
            outcomes = [record["outcome"] for record in gateway.records(1 + AT_ONCE + LEAVING, 20)]
            assert outcomes.count("disconnected") == AT_ONCE + LEAVING
            assert (await once(gateway.port, Ask(chat(seed=5)))).status == 200
