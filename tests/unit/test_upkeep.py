"""A worker's upkeep goes on, whatever fails in a part of it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import cast

import pytest

from gateway.core.errors import StoreError
from gateway.pipeline import upkeep
from gateway.pipeline.services import Services
from gateway.pipeline.upkeep import Mishaps, Upkeep
from gateway.store.journal import Journal


class Parts:
    """Stands for what the upkeep does: notes each part; those in `failing` raise what is there."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.hanging: set[str] = set()
        admission = SimpleNamespace(
            extend_open=lambda: self._do("extend"),
            retry_unsettled=lambda: self._do("retry"),
            roster=SimpleNamespace(count=lambda *_, **__: self._wait("count"), ask_time=self._time),
            orphans=SimpleNamespace(tenants=lambda: self._wait("reap")),
            may_reap=lambda _: False,
            returning=SimpleNamespace(
                awaits_orphans=asyncio.Event(), behind=False, orphans_told=lambda: None
            ),
        )
        self.services = cast(Services, SimpleNamespace(admission=admission))
        self.journal = cast(Journal, SimpleNamespace(left=lambda: self._wait("replay")))

    async def _time(self) -> None:
        pass

    def _do(self, part: str) -> list[str]:
        self.done.append(part)
        if part in self.failing:
            raise self.failing[part]
        return []

    async def _wait(self, part: str) -> list[str]:
        found = self._do(part)
        if part in self.hanging:
            await asyncio.Event().wait()
        return found

    async def seen(self, *parts: str, times: int = 3) -> None:
        """Wait until each of these was done so often from now on."""
        self.done.clear()
        await until(lambda: all(self.done.count(part) >= times for part in parts))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def kept_up(parts: Parts) -> AsyncIterator[None]:
    one = Upkeep(parts.services, Mishaps(), parts.journal, "w", 0.001)
    parts_of_it = (one.keep_leases, one.be_counted, one.settle_orphans)
    tasks = [asyncio.create_task(part()) for part in parts_of_it]
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


ALL = ("extend", "retry", "count", "replay", "reap")


@pytest.mark.parametrize("part", ALL)
@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), ValueError()])
async def test_a_part_that_fails_takes_no_other_along(part: str, error: Exception) -> None:
    parts = Parts()
    parts.failing = {part: error}
    async with kept_up(parts):
        await parts.seen(*ALL)


@pytest.mark.parametrize("part", ["replay", "reap", "count"])
async def test_what_hangs_keeps_no_lease_from_being_extended(part: str) -> None:
    parts = Parts()
    parts.hanging = {part}
    async with kept_up(parts):
        await parts.seen("extend", "retry")


async def test_what_fails_again_and_again_is_logged_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts()
    parts.failing = {"extend": ValueError("odd"), "count": StoreError("Redis is away")}
    with caplog.at_level(logging.ERROR, "sluice.upkeep"):
        async with kept_up(parts):
            await parts.seen("extend", "count", times=20)
        (line,) = caplog.messages
        assert line.startswith("extending leases")
        monkeypatch.setattr(upkeep, "LOGGED_SECONDS", 0.0)
        async with kept_up(parts):
            await parts.seen("extend", times=20)
        assert len(caplog.messages) > 10


async def test_a_watch_that_fails_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "AGAIN_SECONDS", 0.0)
    begun = 0

    async def watch() -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise OSError

    await Mishaps().outlived("odd", watch)
    assert begun == 3
