"""The tier of kept answers in a real Redis: what it finds, who gets what nobody has."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import uvloop

from gateway.store.answers import Answer, place
from gateway.store.cache import ANOTHERS, MINE, NOBODY, NOTHING, VAIN_MS, Found, RedisTier
from gateway.store.packed import Packing
from gateway.store.patience import PATIENCE_SECONDS
from tests.support.store import StoreServer, connected, store_server
from tests.unit.test_cache_memory import answer

WHERE = place(b"form", "acme", "", "m", "k")


@pytest.mark.parametrize("jump", [-86_400, 86_400])
async def test_a_clock_that_jumps_makes_nothing_older(
    store: StoreServer, monkeypatch: pytest.MonkeyPatch, jump: int
) -> None:
    async with connected(store) as (_, client):
        tier = RedisTier(client, Packing(4096), 10**6)
        await tier.keep(WHERE, answer(), "", 0)
        await asyncio.sleep(0.05)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        found = await tier.find_soon(WHERE, "", 0)
        assert found.answer == answer()
        assert 0 < found.age_ms < 5000


async def test_one_gets_what_nobody_has(store: StoreServer) -> None:
    where = place(b"another", "acme", "", "m", "k")
    async with connected(store) as (_, client):
        tier = RedisTier(client, Packing(4096), 10**6)
        assert (await tier.find_soon(where, "", 0)).lead == NOBODY
        assert (await tier.find_soon(where, "a", 0)).lead == MINE
        assert (await tier.find_soon(where, "b", 0)).lead == ANOTHERS
        tier.leave(where, "b")  # whose it is not
        assert (await tier.find_soon(where, "b", 0)).lead == ANOTHERS
        tier.leave(where, "a")
        assert (await tier.find_soon(where, "b", 0)).lead == MINE
        store.redis.pexpire(where.keys[1], 50)
        tier.extend(where, "b")
        await asyncio.sleep(0.1)
        assert (await tier.find_soon(where, "c", 0)).lead == ANOTHERS
        await tier.keep(where, answer(), "b", 0)
        found = await tier.find_soon(where, "c", 0)
        assert (found.lead, found.answer) == (NOBODY, answer())
        assert not store.redis.exists(where.keys[1])
        # Kept, though not for long enough to be fresh: whoever asks gets another.
        assert (await tier.find_soon(where, "c", 90_000)).lead == MINE


async def test_where_nothing_came_that_can_be_kept_all_get_their_own(store: StoreServer) -> None:
    where = place(b"vain", "acme", "", "m", "k")
    async with connected(store) as (_, client):
        tier = RedisTier(client, Packing(4096), 10**6)
        assert (await tier.find_soon(where, "a", 0)).lead == MINE
        tier.leave(where, "b", in_vain=True)  # whose it is not
        assert (await tier.find_soon(where, "b", 0)).lead == ANOTHERS
        tier.leave(where, "a", in_vain=True)
        for token in "bcd":
            assert (await tier.find_soon(where, token, 0)).lead == NOBODY
        assert 0 < store.redis.pttl(where.keys[1]) <= VAIN_MS
        store.redis.delete(where.keys[1])
        assert (await tier.find_soon(where, "b", 0)).lead == MINE


def test_a_loop_that_was_busy_takes_no_redis_for_late(store: StoreServer) -> None:
    where = place(b"meanwhile", "acme", "", "m", "k")

    async def look() -> Found:
        found: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        async with connected(store) as (_, client):
            tier = RedisTier(client, Packing(4096), 10**6)
            await tier.keep(where, answer(), "", 0)

            def busy(_: Found) -> None:
                tier.find(where, "", 0, found.set_result)
                client.flush()
                time.sleep(2 * PATIENCE_SECONDS)  # it is answered, and nobody reads it

            tier.find(where, "", 0, busy)
            return await found

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(look()).answer == answer()


async def test_a_redis_that_is_late_is_left_alone_for_a_while(store: StoreServer) -> None:
    async with connected(store) as (_, client):
        tier = RedisTier(client, Packing(4096), 10**6)
        store.redis.client_pause(300)
        assert await tier.find_soon(WHERE, "a", 0) == NOTHING
        assert not tier.reaches("acme")
        tier.close()


async def test_what_is_too_large_is_kept_nowhere_and_leads_nobody(store: StoreServer) -> None:
    where = place(b"large", "acme", "", "m", "k")
    async with connected(store) as (_, client):
        tier = RedisTier(client, Packing(10**9), 1000)
        assert (await tier.find_soon(where, "a", 0)).lead == MINE
        await tier.keep(where, answer("x" * 2000), "a", 0)
        found = await tier.find_soon(where, "b", 0)
        assert (found.answer, found.lead, tier.refused) == (None, NOBODY, 1)


def asked(text: str, ago_s: float) -> Answer:
    return msgspec.structs.replace(answer(text), asked_us=int((time.time() - ago_s) * 1_000_000))


async def test_what_was_asked_for_later_stays(store: StoreServer) -> None:
    where, told = place(b"ordered", "acme", "", "m", "k"), list[bool]()
    async with connected(store) as (_, client):
        tier = RedisTier(client, Packing(4096), 10**6)
        newer, older, newest = asked("newer", 5), asked("older", 6), asked("newest", 4)
        for one, there in ((newer, newer), (older, newer), (newest, newest)):
            await tier.keep(where, one, "", 0, told.append)
            assert (await tier.find_soon(where, "", 0)).answer == there
        assert told == [True, False, True]
        ahead = asked("by a clock that was set back", -3600)
        await tier.keep(where, ahead, "", 0)
        assert (await tier.find_soon(where, "", 0)).answer == ahead
        await tier.keep(where, newest, "", 0)
        assert (await tier.find_soon(where, "", 0)).answer == newest


async def test_what_is_got_anew_and_too_large_leaves_nothing_older(store: StoreServer) -> None:
    where, told = place(b"anew", "acme", "", "m", "k"), list[bool]()
    async with connected(store) as (_, client):
        tier = RedisTier(client, Packing(10**9), 1000)
        small, large = asked("small", 5), "x" * 2000
        await tier.keep(where, small, "", 0)
        for anew, there, renews in (
            (asked(large, 4), small, False),
            (asked(large, 6), small, True),  # which was asked for before
            (asked(large, 4), None, True),
        ):
            assert not await tier.keep(where, anew, "", 0, told.append, renews=renews)
            assert (await tier.find_soon(where, "", 0)).answer == there
        assert told == [False, True]


@pytest.fixture(scope="module")
def store() -> Iterator[StoreServer]:
    with (
        tempfile.TemporaryDirectory(prefix="sluice-", dir="/tmp") as directory,
        store_server(Path(directory)) as running,
    ):
        yield running
