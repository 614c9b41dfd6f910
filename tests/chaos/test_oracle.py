"""Random traffic through a whole gateway, whose every figure is compared with what really happened.

The providers know the truth: what they did, told and sent. With SLUICE_SOAK=1 many more seeds run,
and SLUICE_SEED=n runs that one alone, with everything that is done to the gateway.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from tests.chaos.oracle_books import Books
from tests.chaos.oracle_checks import Checks
from tests.chaos.oracle_store import DOWN_SECONDS, PAUSE_MS, Clustered, Embedded
from tests.chaos.oracle_traffic import CHANGES, LEASE_SECONDS, Traffic
from tests.support.cluster import cluster
from tests.support.gateway import Gateway, running
from tests.support.soak import PROMISED, came, sized
from tests.support.upstream import Upstream

Store = Embedded | Clustered
REQUESTS, SECONDS = 150, 3.0
DISTURBANCES = {
    "nothing": (),
    "workers are killed": ("kill",) * 2,
    "Redis is killed": ("kill store", "kill store"),
    "Redis pauses": ("pause store", "pause store"),
    "Redis is full": ("fill store", "fill store"),
    "Redis takes nothing": ("close store", "close store"),
    "Redis is late": ("store hesitates", "store hesitates"),
    "workers are killed in the dark": ("kill in the dark",) * 2,
    "workers stand still for long": ("long pause",) * 2,
    "workers are worn": ("worn",),
    "workers are worn, Redis in trouble": (
        *("worn", "fill store", "store hesitates", "kill store", "pause store"),
    ),
    "it starts again": ("restart",),
    "two gateways, one starts again": ("restart", "pause store", "store hesitates"),
    "it refuses without Redis": ("refuse", "kill store", "pause store", "kill in the dark"),
    "scripts are flushed": ("flush scripts",) * 20,
    "workers pause": ("pause", "pause"),
    "reloads": ("reload",) * 3,
    "keys change": ("revoke", "rotate", "rotate with grace"),
    "all of it": ("kill", "kill store", "pause store", "pause", "flush scripts", "reload"),
    "two gateways, nothing": (),
    "two gateways, one is killed": ("kill gateway", "pause store"),
    "two gateways, all of it": (
        *("kill gateway", "kill", "kill store", "pause store"),
        *("pause", "flush scripts", "reload"),
    ),
    "two gateways, one is killed, Redis in trouble": (
        *("kill gateway", "kill in the dark", "fill store", "close store", "store hesitates"),
    ),
    "limits change": ("limits",),
    "limits change, with all of it": ("limits", "kill", "kill store", "pause store", "pause"),
    "two gateways, limits change": ("limits", "kill gateway"),
    "a cluster": (),
    "a cluster, keys change": ("revoke", "rotate", "rotate with grace"),
    "a cluster, two gateways, all of it": (
        *("kill gateway", "kill", "kill store", "kill store", "pause store", "pause store"),
        *("pause", *("flush scripts",) * 6, "reload"),
    ),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "worn": {"server": {"recycle": {"requests": 10}}},
    "refuse": {"limits": {"on_store_failure": "refuse"}},
}
SEEDS = sized(1, 8)  # of each
ALWAYS = (
    *("workers are killed", "Redis pauses", "keys change", "all of it"),
    *("two gateways, one is killed", "limits change, with all of it", "a cluster"),
    *("workers are killed in the dark", "workers are worn, Redis in trouble"),
)
# Who stands still for longer than a lease is taken for dead.
KILLS = {"kill", "kill gateway", "kill in the dark", "long pause"}


def cases() -> Iterator[tuple[str, int]]:
    """What is done, and the seeds to do it with."""
    if given := os.environ.get("SLUICE_SEED"):
        yield from ((what, int(given)) for what in DISTURBANCES)
        return
    for number, what in enumerate(DISTURBANCES if PROMISED else ALWAYS):
        yield from ((what, number * 1000 + seed) for seed in range(SEEDS))


@pytest.mark.parametrize(("what", "seed"), list(cases()))
async def test_what_is_written_down_is_what_happened(what: str, seed: int, tmp_path: Path) -> None:
    deeds = DISTURBANCES[what]
    settings = [deed for deed in deeds if deed in SETTINGS]
    deeds = tuple(deed for deed in deeds if deed not in SETTINGS)
    traffic = Traffic(seed, REQUESTS, SECONDS, clustered="cluster" in what)
    ledgers = [tmp_path / name for name in ("one", "other")[: 1 + ("two" in what)]]
    async with Upstream(traffic.providers) as upstream:
        with contextlib.ExitStack() as stack:
            gateways: list[Gateway] = []
            store: Store = Embedded()
            if "cluster" in what:
                (tmp_path / "cluster").mkdir()
                store = Clustered(
                    stack.enter_context(cluster(tmp_path / "cluster", replicas=False))
                )
            for ledger in ledgers:
                config = traffic.config(upstream.url, str(ledger), store.url(gateways))
                for setting in settings:
                    config = _with(config, SETTINGS[setting])
                gateways.append(stack.enter_context(running(config, workers=2)))
            store.belongs_to(gateways[0])
            await traffic.make(gateways[0])
            async with asyncio.TaskGroup() as group:
                group.create_task(traffic.run(gateways))
                group.create_task(disturb(gateways, store, traffic, deeds, random.Random(seed)))
            if "long pause" in deeds:  # what has been sent is read afterwards
                traffic.took += 2 * LEASE_SECONDS
            await came(lambda: is_quiet(gateways, store, traffic), seconds=2 * LEASE_SECONDS + 30)
            await asyncio.sleep(1.0)  # records are written a quarter of a second later
            killed = not KILLS.isdisjoint(deeds)
            books = Books.of(gateways, ledgers, store.client(), killed)
            books.restarted = "restart" in deeds
            errors = [
                line
                for gateway in gateways
                for line in gateway.log_file.read_text().splitlines()
                if '"level":"error"' in line or "Traceback" in line
            ]
    wrong = [*books.wrong(traffic), *Checks(traffic, books, bool(deeds)).wrong(), *errors]
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:12])
    outcomes = {record["outcome"] for record in books.records}
    least = {"ok"} if "refused" in outcomes else {"ok", "error", "disconnected"}
    assert least <= outcomes, "the traffic shows too little"


def _with(config: str, settings: dict[str, dict[str, Any]]) -> str:
    document = json.loads(config)
    for section, values in settings.items():
        document[section] |= values
    return json.dumps(document)


async def disturb(
    gateways: list[Gateway],
    store: Store,
    traffic: Traffic,
    deeds: tuple[str, ...],
    dice: random.Random,
) -> None:
    """Do this to gateways and their store, spread over the traffic's time."""
    async with asyncio.TaskGroup() as group:
        for deed in deeds:
            if deed in CHANGES:
                group.create_task(traffic.change(deed, dice.uniform(0.2, 1.0), gateways[0]))
                continue
            moment = dice.uniform(0.2, SECONDS)
            if deed == "limits":
                group.create_task(traffic.change_limits(moment, gateways))
                continue
            # The last of several: the first may have the store.
            last = deed in ("kill gateway", "restart")
            gateway = gateways[-1] if last else dice.choice(gateways)
            group.create_task(_disturb(gateway, store, traffic, deed, moment, dice))


async def _disturb(
    gateway: Gateway,
    store: Store,
    traffic: Traffic,
    deed: str,
    moment: float,
    dice: random.Random,
) -> None:
    await asyncio.sleep(moment)
    match deed:
        case "kill":
            await _kill(gateway, dice)
        case "kill gateway":
            gateway.kill()
            gateway.process.wait()
            await asyncio.sleep(DOWN_SECONDS)
            gateway.start()
        case "kill in the dark":
            async with asyncio.TaskGroup() as group:
                group.create_task(store.pause(dice))
                await asyncio.sleep(dice.uniform(0.02, 0.3))
                await _kill(gateway, dice)
                if dice.random() < 0.5:
                    await store.kill(dice)
        case "fill store" | "close store" | "store hesitates":
            await store.trouble(deed, dice)
        case "kill store":
            await store.kill(dice)
        case "pause store":
            await store.pause(dice)
        case "restart":
            await asyncio.to_thread(gateway.stop)
            await asyncio.to_thread(gateway.start)
        case "flush scripts":
            await store.flush_scripts(dice)
        case "pause" | "long pause":
            worker = await _worker(gateway, dice)
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGSTOP)
                await asyncio.sleep(PAUSE_MS / 1000 if deed == "pause" else 2 * LEASE_SECONDS)
                os.kill(worker, signal.SIGCONT)
        case "reload":
            gateway.signal(signal.SIGHUP)
        case _:
            raise ValueError(deed)


async def _kill(gateway: Gateway, dice: random.Random) -> None:
    worker = await _worker(gateway, dice)
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself meanwhile
        os.kill(worker, signal.SIGKILL)


async def _worker(gateway: Gateway, dice: random.Random) -> int:
    """One of those that there are now, or soon."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(psutil.NoSuchProcess):  # all of it has been killed
                if workers := gateway.worker_pids:
                    return dice.choice(workers)
            await asyncio.sleep(0.02)


def is_quiet(gateways: list[Gateway], store: Store, traffic: Traffic) -> bool:
    """Tell whether no lease is open, the store has been told of all, and no provider is busy."""
    if any(list(gateway.state.rglob("*.spool")) for gateway in gateways):
        return False
    try:
        with contextlib.closing(store.client()) as client:
            open_leases = sum(
                client.zcard(key) for key in client.scan_iter("sluice:leases:*", count=1000)
            )
    except (redis.RedisError, redis.exceptions.RedisClusterException):
        return False
    return not open_leases and not traffic.providers.busy
