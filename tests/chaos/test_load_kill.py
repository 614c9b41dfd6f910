"""Workers killed at random, again and again: their own connections end, and the books are right."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
import uvloop

from tests.chaos.test_workers import client_ports
from tests.support.config import KEY, chat, config, digest
from tests.support.gateway import Gateway, running
from tests.support.lean import Lean, Script
from tests.support.load import Ask, once, steady
from tests.support.soak import PROMISED, quantile, seconds_of, sized

SECONDS = sized(10, 60)
WORKERS, CONNECTIONS = 4, 40
BETWEEN_SECONDS = (0.2, 0.8)
LEASE_SECONDS = 5
SUPERVISOR_SHARE = 0.05 if PROMISED else 0.15  # of a core; a fork is dear on a busy machine
SCRIPT = Script(events=8, gap=0.02, latency=0.02)
KEYS = [
    {
        "name": "k",
        "tenant": "acme",
        "sha256": digest(KEY),
        "rpm": 10**7,
        "tpm": 10**9,
        "concurrency": 10_000,
        "budget": [{"usd": 10_000, "per": "day"}, {"usd": 10_000, "per": "30d"}],
    }
]


@dataclass
class Killed:
    """The workers that were killed, and the clients' ports of their connections."""

    kills: int = 0
    ports: set[int] = field(default_factory=set)
    supervisor_share: float = 0.0


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def kill_one(gateway: Gateway, rng: random.Random, killed: Killed) -> None:
    """Kill one of the workers, if it is not the last."""
    pids = gateway.worker_pids
    if len(pids) < 2:
        return
    victim = rng.choice(pids)
    try:
        os.kill(victim, signal.SIGSTOP)  # it accepts no more, once it has stopped
        while psutil.Process(victim).status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            time.sleep(0.001)
        killed.ports |= client_ports(victim, gateway.port)
    finally:
        os.kill(victim, signal.SIGKILL)
    killed.kills += 1


async def kill_on(gateway: Gateway, seconds: float) -> Killed:
    killed, rng = Killed(), random.Random(7)
    loop, before = asyncio.get_running_loop(), cpu_seconds(gateway.process.pid)
    started = loop.time()
    while loop.time() - started < seconds:
        kill_one(gateway, rng, killed)
        await asyncio.sleep(rng.uniform(*BETWEEN_SECONDS))
    spent = cpu_seconds(gateway.process.pid) - before
    killed.supervisor_share = spent / (loop.time() - started)
    return killed


@pytest.mark.timeout(300)
def test_workers_killed_at_random_harm_no_other_and_the_store_is_exact() -> None:
    uvloop.run(killed_at_random())


async def killed_at_random() -> None:
    streamed = Ask(chat(seed=1, stream=True))
    sections: dict[str, Any] = {
        "auth": {"keys": KEYS},
        "limits": {"lease": LEASE_SECONDS, "global": {"concurrency": 10_000}},
    }
    async with Lean(SCRIPT) as lean:
        with running(config(lean.url, **sections), workers=WORKERS) as gateway:
            async with (
                steady(gateway.port, lambda: Ask(chat(seed=1)), CONNECTIONS) as unary,
                steady(gateway.port, lambda: streamed, CONNECTIONS) as streams,
            ):
                killed = await kill_on(gateway, SECONDS)
            outcomes = [*unary, *streams]
            failed = [one for one in outcomes if one.failure]
            print(
                f"{killed.kills} kills in {SECONDS} s; {len(outcomes)} requests, {len(failed)} "
                f"lost with their workers; the slowest {max(seconds_of(outcomes)):.1f} s, p99 "
                f"{quantile(seconds_of(outcomes), 0.99):.2f} s; supervisor "
                f"{killed.supervisor_share:.1%} of a core"
            )
            assert killed.kills >= SECONDS // 4
            assert failed
            others = [one for one in failed if one.local_port not in killed.ports]
            assert [one.failure for one in others] == []
            assert {one.status for one in outcomes if not one.failure} == {200}
            assert killed.supervisor_share < SUPERVISOR_SHARE
            assert (await once(gateway.port, Ask(chat(seed=1)))).status == 200
            done = len(outcomes) - len(failed) + 1
            await asyncio.to_thread(check_store, gateway, done, len(outcomes) + 1)


def check_store(gateway: Gateway, least: int, most: int) -> None:
    """Nothing is reserved; money, usage and the stream of requests say the same."""
    gateway.settled(LEASE_SECONDS + 60)
    used = gateway.usage("acme")
    assert least <= used["requests"] <= most
    with gateway.store as store:
        limits = {name: store.hgetall(name) for name in store.scan_iter("sluice:limit:*")}
        budgets = [name for name in limits if ":budget:" in name]
        slots = [name for name in limits if name.endswith(":concurrency")]
        assert len(budgets) == 2
        assert len(slots) == 2
        for name in budgets:
            assert int(limits[name].get("reserved", 0)) == 0, limits[name]
            assert int(limits[name]["spent"]) == used["cost_microusd"], limits[name]
        for name in slots:
            assert int(limits[name]["in_use"]) == 0, limits[name]
        assert store.hlen("sluice:lease:{acme}") == 0
        entries = [fields for _, fields in store.xrange("sluice:requests")]
        if used["requests"] < 10_000:  # where it is cut off
            assert len(entries) == used["requests"]
            assert len({fields["id"] for fields in entries}) == len(entries)
    print(f"{used}; {Counter(fields.get('outcome') for fields in entries)}")
