"""How many workers there are, and what time it is, as Redis's answers tell."""

import time
from typing import cast

from gateway.store.client import Client
from gateway.store.roster import COUNTS, Roster


class Answers:
    """Stands for Redis: so many workers, and a clock that may be set."""

    def __init__(self) -> None:
        self.workers, self.ahead = 4, 0.0

    async def call(self, name: str, *_: object) -> object:
        """Answer a command."""
        if name == "TIME":
            now = time.time() + self.ahead
            return [int(now), int(now % 1 * 1_000_000)]
        return self.workers if name == "ZCARD" else 1


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
