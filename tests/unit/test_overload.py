"""The gate: how much a worker takes, from whom, and how its bound follows the event loop."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.overload import LATE_IN_ROW, Gate, Rules


def test_one_tenant_has_all_of_it_and_no_more() -> None:
    gate = Gate(Rules(most=10))
    assert [gate.enter("a") for _ in range(12)] == [True] * 10 + [False] * 2
    assert (gate.in_flight, gate.refused, gate.entered) == (10, 2, 10)
    gate.leave("a")
    assert gate.enter("a")


def test_a_flood_leaves_others_their_share() -> None:
    gate = Gate(Rules(most=10))
    for _ in range(50):
        gate.enter("flood")
    assert [gate.enter("b") for _ in range(6)] == [True] * 5 + [False]
    assert not gate.enter("flood")
    assert gate.enter("c")  # a third of ten, rounded up
    assert gate.in_flight == 16
    for _ in range(5):
        gate.leave("b")
    assert not gate.enter("flood")  # it has all that one may have


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=300))
def test_what_is_taken_is_bounded_and_given_back(steps: list[tuple[str, bool]]) -> None:
    gate, held = Gate(Rules(most=8)), Counter[str]()
    for tenant, enters in steps:
        if enters:
            alone = sum(held.values()) < 8
            taken = gate.enter(tenant)
            assert taken or not alone
            held[tenant] += taken
        elif held[tenant]:
            gate.leave(tenant)
            held[tenant] -= 1
        assert gate.in_flight == sum(held.values()) <= 8 + 8
        assert max(held.values(), default=0) <= 8
    for tenant, count in held.items():
        for _ in range(count):
            gate.leave(tenant)
    assert gate.in_flight == 0
    assert all(gate.enter(tenant) for tenant in "abcdefgh")


def test_a_loop_that_stays_late_lowers_the_bound_and_one_in_time_raises_it() -> None:
    gate = Gate(Rules(most=1000, least=20, lag=0.1))
    for _ in range(100):
        gate.enter("a")
    for _ in range(LATE_IN_ROW - 1):
        gate.late(1.0)
    gate.late(0.0)  # a hiccup
    assert gate.bound == 1000
    for _ in range(LATE_IN_ROW):
        gate.late(0.2)
    assert gate.bound == 70
    assert not gate.enter("a")
    for _ in range(100):
        gate.late(0.2)
    assert gate.bound == 20
    for _ in range(12):
        gate.late(0.01)
    assert gate.bound == 1000


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_a_loop_in_time_changes_nothing(seconds: float) -> None:
    gate = Gate(Rules(most=50, lag=0.1))
    for _ in range(10):
        gate.late(seconds)
    assert gate.bound == 50
