"""Random traffic through a whole gateway, whose every figure is compared with what really happened.

The providers know the truth: what they did, told and sent. With SLUICE_SOAK=1 many more seeds run,
and SLUICE_SEED=n runs that one alone, with everything that is done to the gateway.
"""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.chaos.oracle_books import Books
from tests.chaos.oracle_checks import Checks
from tests.chaos.oracle_traffic import LEASE_SECONDS, Traffic
from tests.support.gateway import Gateway, running
from tests.support.soak import PROMISED, came, sized
from tests.support.upstream import Upstream

REQUESTS, SECONDS = 150, 3.0
PAUSE_MS = 600
DISTURBANCES = {
    "nothing": (),
    "workers are killed": ("kill",) * 2,
    "Redis is killed": ("kill store", "kill store"),
    "Redis pauses": ("pause store", "pause store"),
    "scripts are flushed": ("flush scripts",) * 20,
    "workers pause": ("pause", "pause"),
    "reloads": ("reload",) * 3,
    "all of it": ("kill", "kill store", "pause store", "pause", "flush scripts", "reload"),
}
SEEDS = sized(1, 8)  # of each
ALWAYS = ("nothing", "workers are killed", "Redis pauses", "all of it")


def cases() -> Iterator[tuple[str, int]]:
    """What is done, and the seeds to do it with."""
    if given := os.environ.get("SLUICE_SEED"):
        yield from ((what, int(given)) for what in DISTURBANCES)
        return
    for number, what in enumerate(DISTURBANCES if PROMISED else ALWAYS):
        yield from ((what, number * 1000 + seed) for seed in range(SEEDS))


@pytest.mark.parametrize(("what", "seed"), list(cases()))
async def test_what_is_written_down_is_what_happened(what: str, seed: int, tmp_path: Path) -> None:
    traffic = Traffic(seed, REQUESTS, SECONDS)
    ledger, deeds = tmp_path / "ledger", DISTURBANCES[what]
    async with Upstream(traffic.providers) as upstream:
        config = traffic.config(upstream.url, str(ledger))
        with running(config, workers=2) as gateway:
            traffic.make()
            async with asyncio.TaskGroup() as group:
                group.create_task(traffic.run(gateway.port))
                group.create_task(disturb(gateway, deeds, random.Random(seed)))
            await came(lambda: is_quiet(gateway, traffic), seconds=2 * LEASE_SECONDS + 30)
            await asyncio.sleep(1.0)  # records are written a quarter of a second later
            books = Books.of(gateway, ledger, "kill" in deeds)
            errors = [
                line
                for line in gateway.log_file.read_text().splitlines()
                if '"level":"error"' in line or "Traceback" in line
            ]
    wrong = [*books.wrong(traffic), *Checks(traffic, books, bool(deeds)).wrong(), *errors]
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:12])
    outcomes = {record["outcome"] for record in books.records}
    assert {"ok", "error", "disconnected"} <= outcomes, "the traffic shows too little"


async def disturb(gateway: Gateway, deeds: tuple[str, ...], dice: random.Random) -> None:
    """Do this to a gateway, spread over the traffic's time."""
    async with asyncio.TaskGroup() as group:
        for deed in deeds:
            group.create_task(_disturb(gateway, deed, dice.uniform(0.2, SECONDS), dice))


async def _disturb(gateway: Gateway, deed: str, moment: float, dice: random.Random) -> None:
    await asyncio.sleep(moment)
    match deed:
        case "kill":
            os.kill(await _worker(gateway, dice), signal.SIGKILL)
        case "kill store":
            with contextlib.suppress(StopIteration, ProcessLookupError):  # it is being restarted
                os.kill(gateway.store_pid, signal.SIGKILL)
        case "pause":
            worker = await _worker(gateway, dice)
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGSTOP)
                await asyncio.sleep(PAUSE_MS / 1000)
                os.kill(worker, signal.SIGCONT)
        case "reload":
            gateway.signal(signal.SIGHUP)
        case _:
            with contextlib.suppress(redis.RedisError), contextlib.closing(gateway.store) as store:
                if deed == "flush scripts":
                    store.script_flush()
                else:
                    store.client_pause(PAUSE_MS)


async def _worker(gateway: Gateway, dice: random.Random) -> int:
    """One of those that there are now, or soon."""
    async with asyncio.timeout(20):
        while not (workers := gateway.worker_pids):
            await asyncio.sleep(0.02)
    return dice.choice(workers)


def is_quiet(gateway: Gateway, traffic: Traffic) -> bool:
    """Tell whether no lease is open, and no provider busy."""
    try:
        with contextlib.closing(gateway.store) as store:
            open_leases = sum(
                store.zcard(key) for key in store.scan_iter("sluice:leases:*", count=1000)
            )
    except redis.RedisError:
        return False
    return not open_leases and not traffic.providers.busy
