"""When a target is left alone, and when it is tried again. Times are given, none is waited for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.breaker import Breaker, Rules

RULES = Rules(failures=3, ratio=0.5, minimum=10, window=10, ejection=4, longest=60)


def breaker(rules: Rules = RULES, jitter: float = 0.5) -> Breaker:
    return Breaker(rules, lambda: jitter)


def test_it_opens_after_failures_in_a_row() -> None:
    one = breaker()
    assert [one.failed(0.0), one.failed(0.1)] == [False, False]
    one.succeeded(0.2)
    assert [one.failed(0.3), one.failed(0.4), one.failed(0.5)] == [False, False, True]
    assert not one.allows(0.6)
    assert not one.closed(0.6)
    assert one.open_until == pytest.approx(4.5)


def test_it_opens_at_a_ratio_in_the_window() -> None:
    one, opened = breaker(), False
    for i in range(10):  # every other one fails: five of ten
        if i % 2:
            opened = one.failed(i * 0.1)
        else:
            one.succeeded(i * 0.1)
    assert opened


def test_what_is_older_than_the_window_is_forgotten() -> None:
    one = breaker()
    for i in range(4):
        one.failed(float(i))
        one.succeeded(float(i))
    for i in range(30):
        if i % 3 == 0:
            assert not one.failed(20.0 + i)
        else:
            one.succeeded(20.0 + i)
    assert one.closed(60.0)


def test_one_probe_decides() -> None:
    one = breaker()
    for _ in range(3):
        one.failed(0.0)
    assert not one.allows(3.9)
    assert one.allows(4.0)
    one.probe(4.0, seconds=10)
    assert not one.allows(4.1)  # somebody is trying it
    assert one.allows(14.1)  # who never came back
    one.succeeded(5.0)
    assert one.closed(5.0)
    assert one.allows(5.0)


def test_what_was_begun_before_the_ejection_does_not_close_it() -> None:
    one = breaker()
    one.eject(2.0, 30)
    one.succeeded(3.0, began=1.0)
    assert not one.closed(3.0)
    assert not one.allows(3.0)
    one.probe(32.0, seconds=10)
    one.succeeded(32.5, began=1.0)  # nor while it is probed
    assert not one.closed(32.5)
    one.succeeded(33.0, began=32.0)
    assert one.closed(33.0)


def test_each_ejection_is_longer_up_to_a_bound() -> None:
    one, now, lengths = breaker(), 0.0, []
    for _ in range(3):
        one.failed(now)
    for _ in range(8):
        lengths.append(one.open_until - now)
        now = one.open_until
        one.probe(now, 1)
        assert one.failed(now)
    assert lengths == [4, 8, 16, 32, 60, 60, 60, 60]


def test_failures_of_what_was_under_way_do_not_lengthen_it() -> None:
    one = breaker()
    for _ in range(3):
        one.failed(0.0)
    until = one.open_until
    for _ in range(20):
        assert not one.failed(1.0)
    assert one.open_until == until


def test_after_a_while_without_failures_it_begins_anew() -> None:
    one = breaker()
    for _ in range(3):
        one.failed(0.0)
    one.succeeded(5.0)
    for second in range(6, 30):
        one.succeeded(float(second))
    for _ in range(3):
        one.failed(30.0)
    assert one.open_until == pytest.approx(34.0)


def test_a_provider_says_itself_how_long() -> None:
    one = breaker()
    one.eject(0.0, 7)
    assert not one.allows(6.9)
    assert one.allows(7.0)
    one.eject(0.0, 1e9)
    assert one.open_until <= 60


@given(st.floats(0, 1))
def test_jitter_is_a_quarter_either_way(jitter: float) -> None:
    one = breaker(jitter=jitter)
    for _ in range(3):
        one.failed(0.0)
    assert 3.0 <= one.open_until <= 5.0


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=300))
def test_it_is_never_open_for_longer_than_the_bound(steps: list[tuple[float, bool]]) -> None:
    one, now = breaker(jitter=1.0), 0.0
    for passed, fails in steps:
        now += passed
        if fails:
            one.failed(now)
        else:
            one.succeeded(now)
        assert one.open_until <= now + 60
        assert one.closed(now) == (one.open_until == 0)


def test_a_probe_that_tells_nothing_makes_room_for_the_next() -> None:
    one = breaker()
    for _ in range(3):
        one.failed(0.0)
    now = one.open_until
    one.probe(now, 60)
    assert not one.allows(now + 1)
    one.let_go()  # its client has left, or nothing was sent
    assert one.allows(now + 1)
    assert not one.closed(now + 1)


def test_it_knows_when_what_went_well_was_begun() -> None:
    one = breaker()
    one.succeeded(5.0, 3.0)
    one.succeeded(6.0, 2.0)
    assert (one.well_at, one.closed_at) == (3.0, float("-inf"))
    one.eject(7.0)
    one.succeeded(8.0, 6.5)  # begun before the ejection
    assert not one.closed(8.0)
    one.succeeded(13.0, 12.0)
    assert (one.well_at, one.closed_at) == (12.0, 12.0)
