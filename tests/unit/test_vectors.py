"""Questions in a worker's memory: the nearest one's place, and never another's."""

import threading
from typing import Any

import pytest

from gateway.store.answers import Place, place

np = pytest.importorskip("numpy")
vectors = pytest.importorskip("gateway.store.vectors")

MOST = 4


def where(name: str) -> Place:
    return place(name.encode(), "acme", "", "m", "k")


def axis(number: int, size: int = 8) -> Any:
    """A vector of length 1, at right angles to the others."""
    return np.eye(size, dtype=np.float32)[number]


class Written:
    """A vector that lets others look while it is being written."""

    def __init__(self, vector: Any, meanwhile: Any) -> None:
        self.size, self._vector, self._meanwhile = vector.size, vector, meanwhile

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        self._meanwhile()
        return self._vector


def test_a_row_that_is_being_replaced_answers_for_neither() -> None:
    scope = vectors._Scope(8)
    for number in range(MOST):
        scope.add(axis(number), where(str(number)), 10.0)
    scope.drop(where("0").name)  # and the last one takes its row
    found: list[Any] = []
    looking = threading.Thread(target=lambda: found.append(scope.nearest(axis(0), 0.0)))

    def look() -> None:
        looking.start()
        looking.join(0.2)  # it may have to wait until the row is written

    scope.add(Written(axis(MOST), look), where("new"), 10.0)
    looking.join()
    assert found[0] is None
    assert scope.nearest(axis(MOST), 0.0) == (where("new"), 1.0)
    for number in range(1, MOST):
        assert scope.nearest(axis(number), 0.0) == (where(str(number)), 1.0)


class Clock:
    """A time that stands still."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_the_oldest_makes_room_and_what_is_over_is_not_found() -> None:
    clock = Clock()
    index = vectors.MemoryIndex(MOST, clock)
    assert await index.nearest(b"s", axis(0)) is None
    for number in range(MOST + 1):
        await index.add(b"s", axis(number), where(str(number)), 10.0 + number)
    assert await index.nearest(b"s", axis(0)) is None
    clock.now = 10.0
    assert await index.nearest(b"s", axis(1)) == (where("1"), 1.0)
    clock.now = 11.0
    assert await index.nearest(b"s", axis(1)) is None
    index.drop(b"s", axis(2), where("2"))
    clock.now = 10.0
    assert await index.nearest(b"s", axis(2)) is None


async def test_what_is_over_makes_room_before_the_oldest() -> None:
    clock = Clock()
    index = vectors.MemoryIndex(MOST, clock)
    for number, seconds in enumerate((100.0, 1.0, 100.0, 100.0)):
        await index.add(b"s%d" % number, axis(number), where(str(number)), seconds)
    clock.now = 2.0
    await index.add(b"s1", axis(4), where("4"), 100.0)
    assert await index.nearest(b"s0", axis(0)) == (where("0"), 1.0)
    await index.add(b"s1", axis(5), where("5"), 100.0)
    assert await index.nearest(b"s0", axis(0)) is None


async def test_one_that_is_remembered_again_is_kept_for_longer_in_one_row() -> None:
    clock = Clock()
    index = vectors.MemoryIndex(MOST, clock)
    for _ in range(20):
        await index.add(b"s", axis(0), where("0"), 10.0)
        clock.now += 5.0
    assert await index.nearest(b"s", axis(0)) == (where("0"), 1.0)
    assert len(index._scopes[b"s"]) == 1
    clock.now += 5.0
    assert await index.nearest(b"s", axis(0)) is None


async def test_all_scopes_together_have_so_many_and_no_more() -> None:
    clock, most = Clock(), 100
    index = vectors.MemoryIndex(most, clock)
    for turn in range(50):
        for number in range(200):  # many of one scope, then one of each of many
            scope = b"many" if turn % 2 else b"%d" % number
            await index.add(scope, axis(number % 8), where(f"{turn} {number}"), 10.0)
        rows = sum(len(scope._rows) for scope in index._scopes.values())
        assert sum(len(scope) for scope in index._scopes.values()) == most
        assert rows <= 2 * most
        assert len(index._endings) <= 2 * most
    clock.now = 10.0
    assert await index.nearest(b"many", axis(0)) is None
    assert not index._scopes
    assert not index._kept
    assert not index._endings
