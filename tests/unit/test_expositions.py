"""Metrics that many ask for at once."""

import asyncio
import time

import pytest

from gateway.observe.exposition import REST_TIMES, Expositions
from gateway.observe.series import Totals


class Counted:
    """Totals that say how often they were asked for."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.times, self._seconds = 0, seconds

    def __call__(self) -> Totals:
        time.sleep(self._seconds)
        self.times += 1
        totals = Totals()
        totals.gauges["sluice_workers"] = self.times
        return totals


async def test_who_asks_meanwhile_gets_the_same_bytes() -> None:
    counted = Counted()
    expositions = Expositions(counted)
    first, *others = await asyncio.gather(*[expositions.get() for _ in range(100)])
    assert counted.times == 1
    assert all(one is first for one in others)


async def test_what_is_told_is_no_older_than_the_question() -> None:
    expositions = Expositions(Counted())
    for number in range(1, 4):
        assert f"sluice_workers {number}.0".encode() in await expositions.get()


async def test_rendering_takes_a_small_share_of_the_time() -> None:
    counted, loop = Counted(0.01), asyncio.get_running_loop()
    expositions, began = Expositions(counted), loop.time()
    while counted.times < 4:
        await expositions.get()
    assert loop.time() - began >= 3 * REST_TIMES * 0.01


async def test_a_client_that_leaves_takes_nothing_from_another() -> None:
    expositions = Expositions(Counted())
    leaves, stays = (asyncio.create_task(expositions.get()) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    assert b"sluice_workers 1.0" in await stays
