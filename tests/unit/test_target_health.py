"""What a worker makes of targets that others leave alone."""

from time import monotonic, time
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.core.errors import StoreError
from gateway.pipeline.health import Health
from gateway.policy.breaker import Breaker, Rules
from gateway.policy.routing import TargetState
from gateway.store.targets import Told

NAME, WHERE = "p/m", "0123456789abcdef"


class Board:
    """What all workers have told."""

    def __init__(self) -> None:
        self.told: dict[str, Told] = {}
        self.taken_back: list[Told] = []

    def tell(self, target: str, told: Told) -> None:
        self.told[target] = told

    def take_back(self, target: str, told: Told) -> None:
        self.taken_back.append(told)

    async def read(self, now: float) -> dict[str, Told]:
        if not self.told:
            raise StoreError("nobody has told anything")
        return self.told


def worker(board: Board) -> tuple[Any, TargetState]:
    state = TargetState(Breaker(Rules(failures=1, ejection=30.0), lambda: 0.5), WHERE)
    catalogue: Any = SimpleNamespace(shared_states=lambda strategy="": {NAME: state})
    admission: Any = SimpleNamespace(now=time)
    board_: Any = board
    return Health(catalogue, board_, admission), state


def told(ago: float, where: str = WHERE) -> Told:
    return Told(time() + 30, time() - ago, where)


async def test_what_others_leave_alone_is_left_alone_for_as_long() -> None:
    board = Board()
    health, state = worker(board)
    board.tell(NAME, told(1.0))
    await health._learn()
    assert state.breaker.open_until - monotonic() == pytest.approx(30, abs=1)


async def test_what_has_answered_here_since_is_not_left_alone() -> None:
    board = Board()
    health, state = worker(board)
    board.tell(NAME, told(2.0))
    state.breaker.succeeded(monotonic(), monotonic() - 1.0)
    await health._learn()
    assert state.breaker.closed(monotonic())
    assert not board.taken_back  # it was never left alone here: others find out themselves
    board.tell(NAME, told(0.5))
    await health._learn()
    assert not state.breaker.closed(monotonic())


async def test_an_answer_begun_before_says_nothing() -> None:
    board = Board()
    health, state = worker(board)
    board.tell(NAME, told(2.0))
    state.breaker.succeeded(monotonic(), monotonic() - 3.0)
    await health._learn()
    assert not state.breaker.closed(monotonic())


async def test_who_sees_it_answer_again_takes_back_what_was_told_before() -> None:
    board = Board()
    health, state = worker(board)
    board.tell(NAME, told(2.0))
    await health._learn()
    state.breaker.succeeded(monotonic())
    await health._learn()
    assert state.breaker.closed(monotonic())
    assert board.taken_back == [board.told[NAME]]
    board.tell(NAME, Told(time() + 30, time() + 0.1, WHERE))  # another one, since then
    await health._learn()
    assert not state.breaker.closed(monotonic())
    assert len(board.taken_back) == 1


async def test_one_at_another_address_is_another_target() -> None:
    board = Board()
    health, state = worker(board)
    board.tell(NAME, told(1.0, "fedcba9876543210"))
    await health._learn()
    assert state.breaker.closed(monotonic())
