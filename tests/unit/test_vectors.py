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
    scope = vectors._Scope(MOST, 8)
    for number in range(MOST):
        scope.add(axis(number), where(str(number)), 10.0)
    found: list[Any] = []
    looking = threading.Thread(target=lambda: found.append(scope.nearest(axis(0), 0.0)))

    def look() -> None:
        looking.start()
        looking.join(0.2)  # it may have to wait until the row is written

    scope.add(Written(axis(MOST), look), where("new"), 10.0)
    looking.join()
    assert found[0] is None or found[0].place == where("0")
    assert scope.nearest(axis(MOST), 0.0) == (where("new"), 1.0)


def test_the_oldest_makes_room_and_what_is_over_is_not_found() -> None:
    scope = vectors._Scope(MOST, 8)
    assert scope.nearest(axis(0), 0.0) is None
    for number in range(MOST + 1):
        scope.add(axis(number), where(str(number)), 10.0 + number)
    assert scope.nearest(axis(0), 0.0) is None
    assert scope.nearest(axis(1), 10.0) == (where("1"), 1.0)
    assert scope.nearest(axis(1), 11.0) is None
    scope.drop(where("2"))
    assert scope.nearest(axis(2), 10.0) is None
