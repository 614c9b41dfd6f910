"""A worker whose Redis takes nothing, or is slow: its share of a limit is given once."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from gateway.core.errors import StoreError
from gateway.policy.limits import REQUESTS, Grant, Limit, grants
from gateway.store.admission import Admission
from gateway.store.link import Link
from gateway.store.location import Location
from tests.support.store import (
    StoreServer,
    bucket,
    holding,
    principal,
    settlement,
    store_server,
)

LIMIT = 10
Fault = Callable[[StoreServer], Awaitable[None]]


@asynccontextmanager
async def slowed(path: str, target: str, seconds: float) -> AsyncIterator[None]:
    """A way to a server on which every reply is late."""
    loop = asyncio.get_running_loop()
    writers: set[asyncio.StreamWriter] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(target)
        writers.update((writer, back))

        async def answer() -> None:
            while data := await there.read(65536):
                loop.call_later(seconds, writer.write, data)

        answering = loop.create_task(answer())
        while data := await reader.read(65536):
            back.write(data)
        answering.cancel()

    server = await asyncio.start_unix_server(handle, path)
    try:
        yield
    finally:
        for writer in writers:
            writer.close()
        server.close()


@asynccontextmanager
async def worker(path: str, *, degrade: bool = True) -> AsyncIterator[Admission]:
    client = Link(Location(unix_path=path), 2.0, "test")
    admission = Admission(client, 30, degrade=degrade)
    await client.start()
    upkeep = asyncio.create_task(without_journals(admission))
    try:
        yield admission
    finally:
        upkeep.cancel()
        await client.aclose()


async def without_journals(admission: Admission) -> None:
    """Do of the upkeep what there is where nobody has a journal."""
    while True:
        await admission.returning.awaits_orphans.wait()
        admission.returning.awaits_orphans.clear()
        admission.returning.orphans_told()


async def admitted(admission: Admission, tenant: str, lease: str, limit: Limit) -> bool:
    wanted = grants((limit,), 10, 0, time.time())
    verdict = await admission.admit(tenant, lease, holding(), wanted)
    return verdict.refused_by is None


async def readonly(server: StoreServer) -> None:
    server.redis.execute_command("REPLICAOF", "127.0.0.1", "1")


async def full(server: StoreServer) -> None:
    server.redis.config_set("maxmemory", "1")


async def paused(server: StoreServer) -> None:
    server.redis.execute_command("CLIENT", "PAUSE", "20000", "WRITE")


@pytest.mark.parametrize("fault", [readonly, full, paused])
async def test_a_store_that_takes_nothing_gives_a_share_once(tmp_path: Path, fault: Fault) -> None:
    with store_server(tmp_path) as server:
        async with worker(server.socket) as admission:
            limit = bucket("acme", REQUESTS, LIMIT, 1)
            empty = Limit("sluice:limit:{acme}:key:other:rpm", REQUESTS, 1, 1, "key")
            assert await admitted(admission, "acme", "first", empty)
            await fault(server)
            passed, until = 0, time.monotonic() + 5
            for number in range(1_000_000):
                passed += await admitted(admission, "acme", f"r{number}", limit)
                if number % 25 == 0 and fault is not paused:  # what needs no write is answered
                    await admitted(admission, "acme", f"o{number}", empty)
                if time.monotonic() > until:
                    break
                await asyncio.sleep(0.001)
            assert LIMIT <= passed <= LIMIT + 1
            connections = server.redis.info("stats")["total_connections_received"]
            assert connections < 30
            if fault is paused:
                server.redis.client_unpause()


async def test_a_store_that_is_always_late_gives_a_share_once(tmp_path: Path) -> None:
    path = str(tmp_path / "late.sock")
    with store_server(tmp_path) as server:
        async with slowed(path, server.socket, 0.15), worker(path) as admission:
            limit = bucket("acme", REQUESTS, LIMIT, 1)
            passed, until, number = 0, time.monotonic() + 4, 0
            while time.monotonic() < until:
                number += 1
                passed += await admitted(admission, "acme", f"r{number}", limit)
                await asyncio.sleep(0.002)
            assert LIMIT <= passed <= LIMIT + 1


async def test_after_a_pause_the_store_hears_of_every_tenant(tmp_path: Path) -> None:
    with store_server(tmp_path) as server:
        async with worker(server.socket) as admission:
            one, other = bucket("a", REQUESTS, LIMIT, 1), bucket("b", REQUESTS, LIMIT, 1)
            server.stop()
            waiting = [
                asyncio.ensure_future(admitted(admission, tenant, f"{tenant}-first", limit))
                for tenant, limit in (("a", one), ("b", other))
            ]
            await asyncio.sleep(0.2)
            passed = 0
            for number in range(30):
                passed += await admitted(admission, "b", f"alone{number}", other)
            server.go_on()
            passed += (await asyncio.gather(*waiting))[1]
            await told(admission, "b")
            for number in range(30):
                passed += await admitted(admission, "b", f"after{number}", other)
            assert passed == LIMIT


async def test_requests_that_ended_meanwhile_have_used_their_rate(tmp_path: Path) -> None:
    with store_server(tmp_path) as server:
        async with worker(server.socket) as admission:
            limit = bucket("acme", REQUESTS, LIMIT, 1)
            passed = 0
            for round_ in range(4):
                server.stop()
                for number in range(LIMIT):
                    lease = f"{round_}-{number}"
                    if await admitted(admission, "acme", lease, limit):
                        passed += 1
                        admission.settle(settlement(lease, principal("acme", limit)))
                server.go_on()
                await told(admission, "acme")
            assert passed == LIMIT


async def told(admission: Admission, tenant: str) -> None:
    """Wait until the store has all that was decided without it."""
    async with asyncio.timeout(10):
        while admission.does_without(tenant) or admission._parts.of(tenant).alone:
            await asyncio.sleep(0.01)


async def test_a_delay_is_over_also_for_those_without_limits(tmp_path: Path) -> None:
    with store_server(tmp_path) as server:
        async with worker(server.socket) as admission:
            server.stop()
            await admission.admit("free", "a", holding(), ())
            await asyncio.sleep(0.3)
            assert admission.degraded
            server.go_on()
            async with asyncio.timeout(10):
                while admission.degraded:
                    await asyncio.sleep(0.01)


async def test_a_rate_in_shadow_owes_nothing_of_what_was_admitted_alone(tmp_path: Path) -> None:
    with store_server(tmp_path) as server:
        async with worker(server.socket) as admission:
            one = bucket("acme", REQUESTS, LIMIT, 1)
            shadow = msgspec.structs.replace(one, shadow=True)
            assert await admitted(admission, "acme", "first", shadow)
            server.stop()
            for number in range(5 * LIMIT):
                assert await admitted(admission, "acme", f"r{number}", shadow)
            server.go_on()
            await told(admission, "acme")
            assert int(server.redis.hget(shadow.name, "level")) >= 0


async def test_one_tenants_trouble_is_not_that_of_others(tmp_path: Path) -> None:
    with store_server(tmp_path) as server:
        async with worker(server.socket) as admission:
            limit = bucket("a", REQUESTS, LIMIT, 1)
            too_much = (Grant(limit, limit.name, limit.spec(0), 2**70),)
            asked = asyncio.ensure_future(admission.admit("a", "x", holding(), too_much))
            fine = asyncio.ensure_future(
                admitted(admission, "b", "y", bucket("b", REQUESTS, LIMIT, 1))
            )
            delivered = asyncio.Event()
            admission.after_settled(delivered.set)
            assert await asyncio.wait_for(fine, 5)
            with pytest.raises(StoreError):
                await asyncio.wait_for(asked, 5)
            assert delivered.is_set()
