"""Workers that are killed just as Redis stands still: a request has one record, whoever writes it.

A record is written once Redis has taken its settlement, or the disk has. Before, whoever found the
lease of a killed worker recorded the same request again.
"""

import asyncio
import json
import os
import signal
from collections import Counter

import pytest

from tests.chaos.test_store_degraded import degrading, slow
from tests.chaos.test_store_journal import kill_workers, slow_once, until
from tests.support.config import chat
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Client
from tests.support.upstream import Upstream

SECRETS = {"acme": "sk-limited", "free": "sk-unlimited"}


def configured(url: str, journal_mb: int = 64) -> str:
    document = json.loads(degrading(url))
    document["redis"] |= {"timeout": 10, "journal_mb": journal_mb}
    return json.dumps(document)


async def all_told(gateway: Gateway) -> None:
    """Wait until whoever finds what killed workers left has recorded it, and written that."""

    def done() -> bool:
        if gateway.get("/health/ready")[0] != 200 or list(gateway.state.rglob("*.spool")):
            return False
        with gateway.store as store:
            return not store.keys("sluice:leases:*")

    await until("ready", lambda: is_up(gateway))
    await until("told", done)
    await asyncio.sleep(1.0)


def is_up(gateway: Gateway) -> bool:
    try:
        return bool(gateway.worker_pids) and gateway.get("/health/ready")[0] == 200
    except OSError:
        return False


def recorded(gateway: Gateway) -> list[tuple[str, str]]:
    """Whose requests have a record, and how they ended; each has one, and one entry at the most."""
    records = gateway.records()
    assert max(Counter(record["id"] for record in records).values()) == 1, records
    with gateway.store as store:
        entries = {fields["id"]: fields for _, fields in store.xrange("sluice:requests")}
        assert len(entries) == store.xlen("sluice:requests")
    for record in records:
        if entry := entries.get(record["id"]):
            assert (entry["outcome"], entry["usage_source"]) == (
                record["outcome"],
                record["usage_source"],
            )
        else:
            assert not record["attempts"], record
    return sorted((record["tenant"], record["outcome"]) for record in records)


@pytest.mark.parametrize("tenant", SECRETS)
@pytest.mark.parametrize("journal_mb", [64, 0])
async def test_what_redis_has_not_read_is_not_recorded_yet(
    upstream: Upstream, tenant: str, journal_mb: int
) -> None:
    ready = asyncio.Event()
    upstream.behaviour = slow_once(ready)
    with running(configured(upstream.url, journal_mb)) as gateway:
        async with Client(gateway.port) as client:
            await client.send(Ask(chat(max_tokens=10), key=SECRETS[tenant]))
            await until("asked", lambda: len(upstream.received) == 1)
            store = gateway.store_pid
            os.kill(store, signal.SIGSTOP)
            ready.set()
            await client.read_head()
            await client.read_body()
            # Whoever asks for figures has all records folded, and those that may be, written.
            assert (await asyncio.to_thread(gateway.get, "/metrics"))[0] == 200
            await asyncio.sleep(0.02)
            kill_workers(gateway)
            os.kill(store, signal.SIGKILL)
        assert client.status == 200
        await all_told(gateway)
        assert recorded(gateway) == [(tenant, "aborted")] or recorded(gateway) == [(tenant, "ok")]


async def test_who_left_while_redis_stood_still_is_recorded_once(upstream: Upstream) -> None:
    upstream.behaviour = slow
    with running(configured(upstream.url)) as gateway:
        store = gateway.store_pid
        os.kill(store, signal.SIGSTOP)
        for _ in range(5):
            client = Client(gateway.port)
            await client.send(Ask(chat(max_tokens=10), key=SECRETS["acme"]))
            await asyncio.sleep(0.005)
            client.cut()
        await until("recorded", lambda: len(gateway.records()) == 5)
        kill_workers(gateway)
        os.kill(store, signal.SIGCONT)  # it reads what it was asked
        await all_told(gateway)
        assert recorded(gateway) == [("acme", "disconnected")] * 5
