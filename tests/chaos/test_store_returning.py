"""Redis is back: it decides again once it has heard of all that was decided without it."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.errors import LeaseGone, StoreError
from gateway.policy.limits import Budget, Rates, grants, limits
from gateway.store import backlog, returning
from gateway.store.admission import Admission
from gateway.store.journal import Journal
from gateway.store.lease import Holding, Return, Settlement, holds
from gateway.store.levels import Levels, shared_memory
from gateway.store.link import Link
from gateway.store.location import Location
from gateway.store.part import REST_SECONDS
from gateway.store.replay import Replay
from gateway.store.requests import FIELDS
from tests.chaos.test_store_shares import (
    BUDGET,
    COST,
    FULL,
    UNREPLICATED,
    admitted,
    dear,
    limited,
)
from tests.support.config import chat
from tests.support.gateway import Gateway, running
from tests.support.load import Ask, Client
from tests.support.soak import came
from tests.support.store import StoreServer, store_server
from tests.support.upstream import Upstream

TOTAL = {"usd": BUDGET / 1e6, "per": "total"}
MOST = 1000  # micro-dollars that the tests of one worker's admission have
LIMIT = limits("key", "sluice:limit:{t}:key:k", Rates(budgets=(Budget(MOST, "total"),)))
GRANTED = grants(LIMIT, 1, 1, 0)
_numbers = itertools.count()
HOLDING = Holding("k", "m", "p", "g", "chat", 1, 1, 1, holds(GRANTED))


async def hammered(gateway: Gateway, seconds: float) -> int:
    """How many are let in of what is asked all the time, by all workers."""
    found, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        found += await admitted(gateway, 8, 100)
        await asyncio.sleep(0.02)
    return found


async def spent(store: StoreServer, requests: int) -> None:
    """Wait until Redis has the cost of so many."""
    async with asyncio.timeout(40):
        while store.usage("acme").get("cost_microusd") != requests * COST:
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", [FULL, UNREPLICATED], ids=["full", "without replicas"])
async def test_what_takes_again_is_told_before_it_decides(
    tmp_path: Path, how: tuple[str, str, str], workers: int
) -> None:
    name, on, off = how
    async with Upstream(behaviour=dear) as upstream:
        with store_server(tmp_path) as store:
            text = limited(upstream.url, store.socket, budget=TOTAL)
            with running(text, workers=workers) as gateway:
                found = [await admitted(gateway, 1, 2)]
                await asyncio.sleep(0.5)
                store.redis.config_set(name, on)
                found.append(await admitted(gateway, 4 * workers, 100))
                await asyncio.sleep(REST_SECONDS if workers == 2 else 0)
                store.redis.config_set(name, off)
                found.append(await hammered(gateway, 4))
                assert found[1] > 0
                assert sum(found) * COST <= BUDGET, found
                await spent(store, sum(found))


async def test_who_has_traffic_waits_for_who_has_not(tmp_path: Path) -> None:
    async with Upstream(behaviour=dear) as upstream:
        with store_server(tmp_path) as store:
            text = limited(upstream.url, store.socket, budget=TOTAL)
            with running(text, workers=2) as gateway:
                await asyncio.sleep(1)
                store.redis.config_set("min-replicas-to-write", 1)
                served: list[tuple[Client, int]] = []
                async with contextlib.AsyncExitStack() as clients:
                    for _ in range(16):
                        client = await clients.enter_async_context(Client(gateway.port))
                        if count := await let_in(client):
                            served.append((client, count))
                    assert len(served) == 2, "each worker has its share"
                    await asyncio.sleep(REST_SECONDS + 0.2)
                    store.redis.config_set("min-replicas-to-write", 0)
                    after, end = 0, time.monotonic() + 4
                    while time.monotonic() < end:
                        after += await let_in(served[0][0])
                        await asyncio.sleep(0.02)
                found = sum(count for _, count in served) + after
                assert found * COST <= BUDGET, (served, after)
                await spent(store, found)


async def let_in(client: Client) -> int:
    """How many requests of one connection pass, until one does not."""
    for count in range(100):
        if (await client.ask(Ask(chat(max_tokens=1000)))).status != 200:
            return count
    return 100


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("journal", [True, False], ids=["journal", "no journal"])
async def test_a_reload_gives_nothing_anew_where_redis_takes_nothing(
    tmp_path: Path, workers: int, journal: bool
) -> None:
    async with Upstream(behaviour=dear) as upstream:
        with store_server(tmp_path) as store:
            text = json.loads(limited(upstream.url, store.socket, budget=TOTAL))
            text["server"] = {"workers": 2}
            if not journal:
                text["redis"]["journal_mb"] = 0
            with running(json.dumps(text), workers=None) as gateway:
                found = [await admitted(gateway, 1, 1)]
                await asyncio.sleep(1)
                store.redis.config_set("min-replicas-to-write", 1)
                found.append(await admitted(gateway, 16, 100))
                text["server"] = {"workers": workers}
                gateway.config_file.write_text(json.dumps(text))
                before = gateway.worker_pids
                gateway.signal(signal.SIGHUP)
                async with asyncio.timeout(30):
                    while len(set(gateway.worker_pids) - set(before)) < workers:
                        await asyncio.sleep(0.05)
                await asyncio.sleep(1.5)
                found.append(await admitted(gateway, 24, 100))
                assert found[1] > 0
                assert sum(found) * COST <= BUDGET, found


@pytest.mark.parametrize("per", ["total", "1m"])
async def test_who_starts_where_redis_takes_nothing_hears_what_is_left(
    tmp_path: Path, per: str
) -> None:
    async with Upstream(behaviour=dear) as upstream:
        with store_server(tmp_path) as store:
            text = limited(upstream.url, store.socket, budget={**TOTAL, "per": per})
            with running(text, workers=1) as gateway:
                before = await admitted(gateway, 1, 40)
            await asyncio.sleep(2.1 if per == "1m" else 0)  # the window has moved on since
            store.redis.config_set("min-replicas-to-write", 1)
            with running(text, workers=1) as gateway:
                after = await admitted(gateway, 2, 200)
            store.redis.config_set("min-replicas-to-write", 0)
    assert before == 40
    assert 0 < after <= BUDGET // COST - before


async def test_a_run_tells_first_what_the_one_before_had_left(tmp_path: Path) -> None:
    async with Upstream(behaviour=dear) as upstream:
        with store_server(tmp_path) as store:
            text = limited(upstream.url, store.socket, budget=TOTAL)
            with running(text, workers=2) as gateway:
                await asyncio.sleep(1)
                store.redis.config_set("min-replicas-to-write", 1)
                found = await admitted(gateway, 16, 100)
                await came(lambda: len(list(gateway.state.rglob("*.spool"))) == 2)
                gateway.kill()
                store.redis.config_set("min-replicas-to-write", 0)
                gateway.start()
                assert not list(gateway.state.rglob("*.spool"))
                after = await admitted(gateway, 16, 100)
                assert found > 0
                assert (found + after) * COST <= BUDGET, (found, after)
                await spent(store, found + after)


class Worker:
    """One worker's admission: each request that it lets in costs a micro-dollar at once."""

    def __init__(self, store: StoreServer, directory: Path, levels: Levels) -> None:
        self.link = Link(Location(unix_path=store.socket), 2.0, "w")
        self.journal = Journal(directory, f"sluice-{levels.debts._own}", 2**28)
        self.admission = Admission(self.link, 30, degrade=True, journal=self.journal, levels=levels)
        self.admission.roster.expect(levels.live)
        self._replay = Replay(self.admission.orphans, self.journal)
        self._upkeep: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """As a worker begins that takes another one's place."""
        await self.link.start()
        self.admission.begin(left=await self._replay.has_any())
        self._upkeep = asyncio.create_task(self._keep_up())

    async def close(self) -> None:
        if self._upkeep is not None:
            self._upkeep.cancel()
        await self.admission.aclose(1)
        await self.link.aclose()
        await self.journal.aclose()

    async def ask(self, times: int) -> int:
        """How many are let in."""
        found = 0
        for _ in range(times):
            lease = f"l{next(_numbers)}"
            verdict = await self.admission.admit("t", lease, HOLDING, GRANTED)
            if verdict.refused_by is None:
                found += 1
                (grant,) = GRANTED
                returns = (Return(grant.key, grant.spec, grant.amount, 1),)
                entry = (lease, "t", *["-"] * (len(FIELDS) - 2))
                counts = (1, 0, 0, 1, 0, 1, 0, 1, 0)
                self.admission.settle(Settlement(lease, "t", returns, ("",), counts, entry))
        return found

    async def _keep_up(self) -> None:
        """As `Upkeep` does."""
        replay, returning = self._replay, self.admission.returning
        while True:
            returning.awaits_orphans.clear()
            with contextlib.suppress(StoreError):
                if await replay.turn():
                    returning.orphans_told()
            if returning.behind:
                await asyncio.sleep(0.02)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await returning.awaits_orphans.wait()


@contextlib.asynccontextmanager
async def workers(store: StoreServer, directory: Path, count: int) -> AsyncIterator[list[Worker]]:
    """So many workers of one machine."""
    memory = shared_memory(count)
    found = [Worker(store, directory, Levels(memory, slot, count)) for slot in range(count)]
    try:
        for worker in found:
            await worker.start()
        yield found
    finally:
        for worker in found:
            await worker.close()


def connects_late(link: Link, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Let a link connect again when this is set."""
    may, connect = asyncio.Event(), link._connect

    async def connects() -> object:
        await may.wait()
        return await connect()

    monkeypatch.setattr(link, "_connect", connects)
    return may


async def test_who_is_back_first_asks_nothing_before_all_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store_server(tmp_path) as store:
        async with workers(store, tmp_path / "journal", 2) as (first, second):
            store.kill()
            await came(lambda: not (first.link.connected or second.link.connected))
            found = [await first.ask(MOST), await second.ask(MOST // 4)]
            assert found == [MOST // 2, MOST // 4]
            late = connects_late(second.link, monkeypatch)
            store.start()
            await came(lambda: first.link.connected)
            await asyncio.sleep(0.3)
            assert await first.ask(MOST) == 0
            found.append(await second.ask(MOST // 8))
            late.set()
            both = (first.admission, second.admission)
            await came(lambda: not any(one.does_without("t") for one in both))
            found.append(await first.ask(MOST))
            assert sum(found) == MOST, found
            name = LIMIT[0].key(0)
            await came(lambda: store.redis.hmget(name, "spent", "reserved") == [str(MOST), "0"])


async def test_who_decided_nothing_waits_in_its_first_outage_too(tmp_path: Path) -> None:
    with store_server(tmp_path) as store:
        async with workers(store, tmp_path / "journal", 2) as (gone, idle):
            store.kill()
            await came(lambda: not (gone.link.connected or idle.link.connected))
            found = await gone.ask(MOST)
            await gone.close()  # what it had to say is on disk
            store.start()
            await came(lambda: idle.link.connected)
            assert idle.admission.does_without("t")
            while idle.admission.does_without("t"):
                found += await idle.ask(10)
                await asyncio.sleep(0.005)
            found += await idle.ask(MOST)
            assert found == MOST


@pytest.mark.parametrize("replaces", [False, True])
async def test_who_begins_while_another_has_something_to_tell_asks_nothing_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    memory = shared_memory(2)
    with store_server(tmp_path) as store:
        first, second = [
            Worker(store, tmp_path / "journal", Levels(memory, slot, 2)) for slot in range(2)
        ]
        await first.start()
        if replaces:
            await second.start()
        found = [await first.ask(10)]
        first.admission.tell_levels()
        await second.close()
        store.kill()
        await came(lambda: not first.link.connected)
        found.append(await first.ask(MOST))
        late = connects_late(first.link, monkeypatch)
        store.start()
        second = Worker(store, tmp_path / "journal", Levels(memory, 1, 2))
        await second.start()
        found.append(await second.ask(MOST))
        await asyncio.sleep(0.3)
        found.append(await second.ask(MOST))
        late.set()
        both = (first.admission, second.admission)
        await came(lambda: not any(one.does_without("t") for one in both))
        found.append(await second.ask(MOST))
        assert sum(found) == MOST, found
        await first.close()
        await second.close()


async def test_who_begins_where_a_dead_one_had_something_to_tell_asks_nothing_yet(
    tmp_path: Path,
) -> None:
    memory = shared_memory(1)
    with store_server(tmp_path) as store:
        gone = Worker(store, tmp_path / "journal", Levels(memory, 0, 1))
        await gone.start()
        store.kill()
        await came(lambda: not gone.link.connected)
        found = [await gone.ask(MOST // 2)]
        await gone.close()  # what it had to say is on disk
        store.start()
        successor = Worker(store, tmp_path / "journal", Levels(memory, 0, 1))
        await successor.start()
        found.append(await successor.ask(MOST))
        await came(lambda: not successor.admission.does_without("t"))
        found.append(await successor.ask(MOST))
        assert sum(found) == MOST, found
        await successor.close()


async def test_what_memory_cannot_hold_is_told_from_the_disk_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "MAX_UNSETTLED", 100)
    with store_server(tmp_path) as store:
        async with workers(store, tmp_path / "journal", 1) as (worker,):
            store.kill()
            await came(lambda: not worker.link.connected)
            found = await worker.ask(400)
            assert (found, worker.admission.unsettled) == (400, 100)
            store.start()
            await came(lambda: worker.link.connected and not worker.admission.does_without("t"))
            found += await worker.ask(MOST)
            assert found == MOST


async def test_a_stream_does_not_wait_long_for_its_next_slice(tmp_path: Path) -> None:
    with store_server(tmp_path) as store:
        async with workers(store, tmp_path / "journal", 1) as (worker,):
            verdict = await worker.admission.admit("t", "a", HOLDING, GRANTED)
            assert verdict.refused_by is None
            store.stop()
            more = grants(LIMIT, 1, 11, 0)
            held = Holding("k", "m", "p", "g", "chat", 1, 1, 1, holds(more))
            with pytest.raises(StoreError, match="Redis is late"):
                await worker.admission.grow("t", "a", held, more, 10)
            assert worker.admission.grow_alone("t", "a", held, more, 10) is None
            store.go_on()
            name = LIMIT[0].key(0)
            await came(lambda: store.redis.hget(name, "reserved") == "11")


async def test_what_redis_never_takes_of_one_tenant_keeps_nobody_from_asking_it(
    tmp_path: Path,
) -> None:
    with store_server(tmp_path) as store:
        async with workers(store, tmp_path / "journal", 1) as (worker,):
            store.redis.set("sluice:limit:{poor}:key:k:budget:total:total", "of another type")
            broken = limits(
                "key", "sluice:limit:{poor}:key:k", Rates(budgets=(Budget(9, "total"),))
            )
            granted = grants(broken, 1, 1, 0)
            held = Holding("k", "m", "p", "g", "chat", 1, 1, 1, holds(granted))
            verdict = await worker.admission.admit("poor", "p", held, granted)
            assert verdict.refused_by is None  # by its share
            assert await worker.ask(MOST // 2) == MOST // 2
            assert not worker.admission.does_without("t")
            name = LIMIT[0].key(0)
            await came(lambda: store.redis.hget(name, "spent") == str(MOST // 2))


@pytest.mark.parametrize("how", ["reload", "kill"])
async def test_what_takes_again_hears_first_of_who_is_gone(tmp_path: Path, how: str) -> None:
    async with Upstream(behaviour=dear) as upstream:
        with store_server(tmp_path) as store:
            text = limited(upstream.url, store.socket, budget=TOTAL)
            with running(text, workers=1) as gateway:
                found = [await admitted(gateway, 1, 1)]
                await asyncio.sleep(0.5)
                store.redis.config_set("min-replicas-to-write", 1)
                found.append(await admitted(gateway, 2, 100))
                (before,) = gateway.worker_pids
                await asyncio.sleep(0.02)  # its journal is written
                if how == "kill":
                    os.kill(before, signal.SIGKILL)
                else:
                    gateway.signal(signal.SIGHUP)
                async with asyncio.timeout(30):
                    while before in gateway.worker_pids or not gateway.worker_pids:
                        await asyncio.sleep(0.05)
                await asyncio.sleep(0.5)
                found.append(await admitted(gateway, 1, 100))
                store.redis.config_set("min-replicas-to-write", 0)
                found.append(await hammered(gateway, 4))
                assert found[1] > 0
                assert sum(found) * COST <= BUDGET, found
                await spent(store, sum(found))


async def test_what_a_stream_was_given_is_told_by_who_takes_again(tmp_path: Path) -> None:
    more = grants(LIMIT, 1, 1 + MOST // 2, 0)
    held = Holding("k", "m", "p", "g", "chat", 1, 1, 1, holds(more))
    with store_server(tmp_path) as store:
        async with workers(store, tmp_path / "journal", 1) as (worker,):
            verdict = await worker.admission.admit("t", "stream", HOLDING, GRANTED)
            assert verdict.refused_by is None
            store.redis.config_set("min-replicas-to-write", 1)
            assert await worker.ask(1) == 1
            with pytest.raises(StoreError):
                await worker.admission.grow("t", "stream", held, more, MOST // 2)
            grown = worker.admission.grow_alone("t", "stream", held, more, MOST // 2)
            assert grown is None
            store.redis.config_set("min-replicas-to-write", 0)
            await came(lambda: not worker.admission.does_without("t"))
            assert await worker.ask(MOST) == MOST - MOST // 2 - 2
            name = LIMIT[0].key(0)
            await came(
                lambda: (
                    store.redis.hget(name, "reserved") == str(1 + MOST // 2)
                    and not worker.admission._parts.of("t").alone
                )
            )


async def test_who_refuses_by_its_share_sees_that_redis_is_well_again(tmp_path: Path) -> None:
    """Its last answer was an error, and late; since then it has had nothing to send."""
    dear = grants(LIMIT, 1, MOST - 1, 0)
    held = Holding("k", "m", "p", "g", "chat", 1, 1, 1, holds(dear))
    with store_server(tmp_path) as store:
        async with workers(store, tmp_path / "journal", 2) as (worker, _):
            assert await worker.ask(1) == 1
            store.redis.config_set("min-replicas-to-write", 1)
            store.stop()
            verdict = await worker.admission.admit("t", "dear", held, dear)
            assert verdict.refused_by is not None  # its share is half
            back = tuple(Return(one.key, one.spec, one.amount, 0) for one in dear)
            worker.admission.settle(Settlement("dear", "t", back, (), (0,) * 9, ()))
            store.go_on()
            store.redis.config_set("min-replicas-to-write", 0)  # it may read this before that
            await came(lambda: not worker.admission.does_without("t"))
            name = LIMIT[0].key(0)
            await came(lambda: store.redis.hmget(name, "spent", "reserved") == ["1", "0"])
            verdict = await worker.admission.admit("t", "again", held, dear)
            assert verdict.refused_by is None


def settled(lease: str, used: int, *, reaped: bool = False) -> Settlement:
    """A stream's end, told by its worker or by one that took that for dead."""
    returns = tuple(Return(one.key, one.spec, one.amount, used) for one in GRANTED)
    entry = (lease, "t", *["-"] * (len(FIELDS) - 2))
    counts = (1, 0, 0, 1, 0, 1, 0, used, 0)
    return Settlement(lease, "t", returns, ("",), counts, entry, marked=reaped, reaped=reaped)


async def test_a_lease_that_redis_has_lost_is_opened_again(tmp_path: Path) -> None:
    """By who asks for more of it, and by who has taken more without Redis."""
    more = grants(LIMIT, 1, 11, 0)
    held = Holding("k", "m", "p", "g", "chat", 1, 1, 1, holds(more))
    name = LIMIT[0].key(0)
    with store_server(tmp_path) as store:
        async with workers(store, tmp_path / "journal", 1) as (worker,):
            admission = worker.admission
            for lease in ("asks", "takes"):
                await admission.admit("t", lease, HOLDING, GRANTED)
            store.redis.flushall()
            verdict = await admission.grow("t", "asks", held, more, 10)
            assert verdict.refused_by is None
            assert admission.grow_alone("t", "takes", held, more, 10) is None
            admission._resend()
            await came(lambda: store.redis.hget(name, "reserved") == "22")
            for lease in ("asks", "takes"):
                admission.settle(settled(lease, 7))
            await came(lambda: store.redis.hmget(name, "spent", "reserved") == ["14", "0"])
            assert store.usage("t")["requests"] == 2


async def test_a_lease_that_another_has_settled_is_to_have_no_more(tmp_path: Path) -> None:
    more = grants(LIMIT, 1, 11, 0)
    held = Holding("k", "m", "p", "g", "chat", 1, 1, 1, holds(more))
    name = LIMIT[0].key(0)
    with store_server(tmp_path) as store:
        async with workers(store, tmp_path / "journal", 2) as (worker, other):
            admission = worker.admission
            for lease in ("asks", "takes"):
                await admission.admit("t", lease, HOLDING, GRANTED)
                other.admission.settle(settled(lease, 1, reaped=True))
            await came(lambda: store.redis.hmget(name, "spent", "reserved") == ["2", "0"])
            for _ in range(2):
                with pytest.raises(LeaseGone):
                    await admission.grow("t", "asks", held, more, 10)
            assert admission.may_be_gone("asks")
            assert admission.grow_alone("t", "takes", held, more, 10) is None
            admission._resend()
            await came(lambda: admission.may_be_gone("takes"))
            await came(lambda: not admission.does_without("t"))
            with pytest.raises(LeaseGone):
                admission.grow_alone("t", "takes", held, more, 10)
            counted: list[int] = []
            for lease in ("asks", "takes"):
                admission.settle(settled(lease, 7), counted.append)
            await came(lambda: len(counted) == 2)
            assert store.redis.hmget(name, "spent", "reserved") == ["2", "0"]
            assert store.usage("t")["requests"] == 2


async def test_what_ends_while_redis_is_away_waits_for_its_word(tmp_path: Path) -> None:
    """Another machine may have taken this one for dead, and recorded the request."""
    with store_server(tmp_path) as store:
        async with workers(store, tmp_path / "journal", 1) as (worker,):
            await worker.admission.admit("t", "before", HOLDING, GRANTED)
            assert not worker.admission.may_be_gone("before")
            store.kill()
            await came(lambda: not worker.link.connected)
            assert worker.admission.may_be_gone("before")
            await worker.admission.admit("t", "since", HOLDING, GRANTED)
            assert not worker.admission.may_be_gone("since")  # nobody else knows of it


async def test_who_never_comes_back_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(returning, "BEHIND_SECONDS", 1.5)

    async def never() -> object:
        raise StoreError("max number of clients reached")

    async def tells(worker: Worker) -> None:
        while True:
            worker.admission.tell_levels()
            await asyncio.sleep(0.1)

    with store_server(tmp_path) as store:
        async with workers(store, tmp_path / "journal", 4) as found:
            tasks = [asyncio.create_task(tells(worker)) for worker in found]
            *well, bad = found
            monkeypatch.setattr(bad.link, "_connect", never)
            assert bad.link._connection is not None
            bad.link._connection.close()
            await came(lambda: all(one.admission.does_without("t") for one in well))
            await came(lambda: not any(one.admission.does_without("t") for one in well))
            await asyncio.sleep(0.5)
            asked = {one: [] for one in well}  # type: dict[Worker, list[bool]]
            for _ in range(30):
                for one, seen in asked.items():
                    seen.append(one.admission.does_without("t"))
                await asyncio.sleep(0.1)
            assert not any(map(any, asked.values()))
            for task in tasks:
                task.cancel()


async def test_a_journal_that_cannot_be_read_keeps_nobody_waiting(tmp_path: Path) -> None:
    with store_server(tmp_path) as store:
        async with workers(store, tmp_path / "journal", 1) as (worker,):
            await worker.journal.aclose()
            journal = Journal(tmp_path / "journal", "sluice-9", 2**28)
            replay = Replay(worker.admission.orphans, journal)
            (tmp_path / "journal" / "0-sluice-0-4194305.spool").mkdir(parents=True)
            assert len(await journal.left()) == 1
            assert await replay.turn()
            await journal.aclose()
