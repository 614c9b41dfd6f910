"""How many workers there are, and what time it is, as Redis's answers tell."""

import asyncio
import time
from typing import cast

from gateway.store.client import Client
from gateway.store.levels import Levels, shared_memory
from gateway.store.roster import COUNTS, Roster


class Answers:
    """Stands for Redis: so many workers, and a clock that may be set."""

    def __init__(self) -> None:
        self.workers, self.ahead = 4, 0.0
        self.slowness = 0.0  # seconds on the way back

    async def call(self, name: str, *_: object) -> object:
        """Answer a command."""
        if name == "TIME":
            now = time.time() + self.ahead
            await asyncio.sleep(self.slowness)
            return [int(now), int(now % 1 * 1_000_000)]
        if name == "ZRANGE":
            others = [f"w{number}".encode() for number in range(self.workers - 1)]
            return [*others, b"w"][::-1]
        return 1


async def test_one_that_begins_while_redis_is_away_goes_by_what_others_have_counted() -> None:
    memory = shared_memory(2)
    roster = Roster(cast(Client, Answers()), lambda: None, Levels(memory, 1, 2))
    assert roster.live == 2
    await roster.count("w", 5)
    levels = Levels(memory, 1, 2)
    assert (levels.place, levels.live) == (0, 4)  # "w" is before "w0"
    assert Roster(cast(Client, Answers()), lambda: None, Levels(memory, 0, 2)).live == 4


def made(jumps: list[str]) -> tuple[Roster, Answers]:
    answers = Answers()
    return Roster(cast(Client, answers), lambda: jumps.append("jumped")), answers


async def test_workers_are_fewer_only_when_counted_so_several_times() -> None:
    roster, answers = made([])
    await roster.count("w", 5)
    assert roster.live == 4
    answers.workers = 1  # it was away for long, or flushed: the others are to be counted yet
    for _ in range(COUNTS - 1):
        await roster.count("w", 5)
        assert roster.live == 4
    await roster.count("w", 5)
    assert roster.live == 1


async def test_there_are_never_fewer_than_this_gateway_has() -> None:
    roster, answers = made([])
    roster.expect(3)
    assert roster.live == 3
    answers.workers = 1
    for _ in range(2 * COUNTS):
        await roster.count("w", 5)
    assert roster.live == 3


async def test_a_clock_that_is_set_is_noticed() -> None:
    jumps: list[str] = []
    roster, answers = made(jumps)
    answers.ahead = 100.0
    await roster.ask_time()
    await roster.ask_time()
    assert not jumps
    assert abs(roster.now() - time.time() - 100) < 1
    answers.ahead = 160.0
    await roster.ask_time()
    assert jumps == ["jumped"]


def is_ahead(roster: Roster, seconds: float) -> bool:
    """Tell whether it knows Redis's clock to be so far ahead, or nearly so."""
    before, now, after = time.time(), roster.now(), time.time()
    return before + seconds - 0.05 < now < after + seconds + 0.05


async def test_workers_whose_clocks_agree_agree_however_long_answers_take() -> None:
    jumps: list[str] = []
    roster, answers = made(jumps)
    for answers.slowness in (0.1, 0.0, 0.2):
        await roster.ask_time()
        roster.heard(int((time.time() - 0.1) * 1e6))
        assert is_ahead(roster, 0.0)
    answers.ahead, answers.slowness = -100.0, 0.0
    await roster.ask_time()
    assert jumps == ["jumped"]
    for answers.slowness in (0.05, 0.02):
        roster.heard(int((time.time() - 100.5) * 1e6))
        await roster.ask_time()
        assert is_ahead(roster, -100.0)
    assert jumps == ["jumped"]


async def test_a_clock_that_is_set_is_noticed_in_any_answer() -> None:
    roster, _ = made([])
    assert not roster.heard(int((time.time() - 100) * 1e6))
    assert roster.heard(int((time.time() + 100) * 1e6))
    assert is_ahead(roster, 100.0)
    assert roster.heard(int((time.time() - 100) * 1e6))
    assert is_ahead(roster, -100.0)
