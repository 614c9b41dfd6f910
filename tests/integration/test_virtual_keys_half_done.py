"""Changes of virtual keys that fail half-way, as where Redis goes at that moment."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from msgspec.structs import replace

from gateway.config.schema import Auth, Config, KeySettings
from gateway.core.errors import ApiError, StoreError
from gateway.http.admin import AdminRoutes
from gateway.pipeline.keyring import Keyring
from gateway.pipeline.limiting import LimitBook
from gateway.store import names
from gateway.store.connection import Callback
from gateway.store.keys import MAX_TRIES, VirtualKey, VirtualKeys
from gateway.store.link import Link
from gateway.store.location import Location
from gateway.store.scripts import Script
from gateway.store.usage import UsageReader
from tests.support.store import store_server


class Cut:
    """A connection that loses one command, or the replies to a Lua function, so many times.

    With `held` it answers a command only then.
    """

    def __init__(self, link: Link) -> None:
        self._link, self.command, self.times = link, "", 0
        self.held: dict[str, asyncio.Event] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def call(self, *command: Any) -> Any:
        if command[0] == self.command and self.times:
            self.times -= 1
            raise StoreError("the connection to Redis was lost")
        held = self.held.get(command[0])
        return self._link.call(*command) if held is None else self._late(held, command)

    async def _late(self, held: asyncio.Event, command: tuple[Any, ...]) -> Any:
        await held.wait()
        return await self._link.call(*command)

    def run(
        self,
        script: Script,
        keys: list[str],
        args: tuple[bytes, ...],
        done: Callback,
        command: bytes = b"",
    ) -> None:
        if script.name == self.command and self.times:
            self.times -= 1
            late = StoreError("no answer in 2 s")
            self._link.run(script, keys, args, lambda _: done(late), command)
        else:
            self._link.run(script, keys, args, done, command)

    def lose(self, command: str, times: int) -> None:
        self.command, self.times = command, times


@pytest.fixture
async def cut(tmp_path: Path) -> AsyncIterator[Cut]:
    with store_server(tmp_path) as server:
        link = Link(Location(unix_path=server.socket), 5, "test")
        await link.start()
        yield Cut(link)
        await link.aclose()


async def opens(keys: VirtualKeys, secret: str) -> bool:
    ring = Keyring(Config(auth=Auth(enabled=True)), keys)
    try:
        await ring.authenticate(secret)
    except ApiError:
        return False
    return True


@pytest.mark.parametrize(("command", "times"), [("INCR", 1), ("INCR", MAX_TRIES), ("HDEL", 1)])
async def test_a_rotation_that_is_done_tells_its_secret(cut: Cut, command: str, times: int) -> None:
    keys = VirtualKeys(cut)
    record, first = await keys.create(KeySettings(name="a"))
    version = await keys.version()
    cut.lose(command, times)
    rotated, second = await keys.rotate(record.id, 86400)
    assert cut.times == 0
    assert rotated.previous_sha256 == record.sha256
    assert await opens(keys, first)
    assert await opens(keys, second)
    if times < MAX_TRIES:
        assert await keys.version() > version


@pytest.mark.parametrize("times", [1, MAX_TRIES - 1])
async def test_a_rotation_whose_reply_is_lost_is_done_once(cut: Cut, times: int) -> None:
    keys = VirtualKeys(cut)
    record, first = await keys.create(KeySettings(name="a"))
    cut.lose("rotate", times)
    rotated, second = await keys.rotate(record.id, 3600)
    assert cut.times == 0
    assert rotated.previous_sha256 == record.sha256
    assert await opens(keys, first)
    assert await opens(keys, second)
    assert await cut.call("HLEN", names.KEYS) == 2


async def test_a_change_that_was_half_done_is_told_when_it_is_asked_for_again(cut: Cut) -> None:
    keys = VirtualKeys(cut)
    record, _ = await keys.create(KeySettings(name="a"))
    version = await keys.version()
    changes: list[Callable[[], Awaitable[VirtualKey]]] = [
        partial(keys.revoke, record.id),
        partial(keys.update, record.id, blocked=True),
        partial(keys.update, record.id, lambda _: KeySettings(name="b")),
    ]
    for change in changes:
        cut.lose("INCR", MAX_TRIES)
        with pytest.raises(StoreError):
            await change()
        assert await keys.version() == version
        await change()
        assert await keys.version() > version
        version = await keys.version()


async def test_a_record_that_no_gateway_wrote_opens_nothing(cut: Cut) -> None:
    keys = VirtualKeys(cut)
    record, secret = await keys.create(KeySettings(name="a"))
    await cut.call("HSET", names.key(record.id), "burst", "5")
    assert not await opens(keys, secret)


@pytest.mark.parametrize("command", ["HSET", "INCR"])
async def test_a_change_whose_caller_hangs_up_is_made_to_its_end(cut: Cut, command: str) -> None:
    keys = VirtualKeys(cut)
    record, _ = await keys.create(KeySettings(name="a"))
    version = await keys.version()
    admin = AdminRoutes("an-admin-key", keys, LimitBook(Config()), UsageReader(cut))
    cut.held[command] = asyncio.Event()
    request = cast(web.Request, SimpleNamespace(match_info={"id": record.id}))
    asking = asyncio.create_task(admin.revoke(request))
    await asyncio.sleep(0.05)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    cut.held[command].set()
    await admin.aclose(20)
    assert (await keys.get(record.id)).revoked
    assert await keys.version() > version


async def test_a_worker_that_ends_waits_for_no_redis_that_stands_still(cut: Cut) -> None:
    keys = VirtualKeys(cut)
    record, _ = await keys.create(KeySettings(name="a"))
    admin = AdminRoutes("an-admin-key", keys, LimitBook(Config()), UsageReader(cut))
    cut.held["HSET"] = asyncio.Event()
    request = cast(web.Request, SimpleNamespace(match_info={"id": record.id}))
    asking = asyncio.create_task(admin.revoke(request))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(20):
        await admin.aclose(0.01)
        await asyncio.gather(asking, return_exceptions=True)
    assert asking.cancelled()


async def test_what_is_checked_is_what_is_written(cut: Cut) -> None:
    keys = VirtualKeys(cut)
    record, _ = await keys.create(KeySettings(name="a", rpm=5))
    seen = []

    def change(found: VirtualKey) -> KeySettings:
        seen.append(found.settings.rpm)
        return replace(found.settings, tpm=7)

    def raised(found: VirtualKey) -> KeySettings:
        return replace(found.settings, rpm=(found.settings.rpm or 0) + 1)

    first = asyncio.create_task(keys.update(record.id, raised))
    await asyncio.gather(keys.update(record.id, change), first)
    settings = (await keys.get(record.id)).settings
    assert (settings.rpm, settings.tpm) == (6, 7)
    assert seen[-1] in (5, 6)
