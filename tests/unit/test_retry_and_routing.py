"""What follows a failed attempt, what the client is told, and the order of targets."""

from collections import Counter
from datetime import UTC, datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct, field

from gateway.core.errors import FAULTS, Failure, UpstreamError
from gateway.policy.breaker import Breaker, Rules
from gateway.policy.retry import (
    Budget,
    Next,
    client_error,
    counts_against,
    decide,
    is_clients_fault,
    retry_after,
    wait_seconds,
)
from gateway.policy.retry import Rules as RetryRules
from gateway.policy.routing import TargetState, plan

HANDED_OVER = [401, 402, 403, 407, 501, 599]
PASSING = [408, 425, 429, 500, 502, 503, 504, 520, 529]
CLIENTS = [400, 404, 405, 406, 409, 411, 413, 415, 416, 418, 422, 451, 499]


def status(code: int) -> UpstreamError:
    return UpstreamError(Failure.STATUS, "told so", status=code)


@pytest.mark.parametrize("code", HANDED_OVER)
def test_a_status_that_is_the_targets_own_trouble_goes_to_the_next(code: int) -> None:
    assert decide(status(code)) is Next.NEXT_TARGET
    assert not is_clients_fault(status(code))


@pytest.mark.parametrize("code", PASSING)
def test_a_status_that_may_pass_is_worth_another_try(code: int) -> None:
    assert decide(status(code)) is Next.RETRY
    assert not is_clients_fault(status(code))


@pytest.mark.parametrize("code", CLIENTS)
def test_a_status_that_is_the_clients_fault_goes_to_the_client(code: int) -> None:
    assert decide(status(code)) is Next.GIVE_UP
    assert is_clients_fault(status(code))


@pytest.mark.parametrize("failure", [f for f in Failure if f is not Failure.STATUS])
def test_every_failure_but_the_total_deadline_goes_to_the_next(failure: Failure) -> None:
    passing = ("CONNECT", "RESET", "STREAM_ERROR", "STREAM_CUT", "BUSY", "FULL")
    expected = Next.RETRY if failure.name in passing else Next.NEXT_TARGET
    if failure is Failure.TOTAL_TIMEOUT:
        expected = Next.GIVE_UP
    assert decide(UpstreamError(failure, "x")) is expected
    assert not is_clients_fault(UpstreamError(failure, "x", status=400))


@pytest.mark.parametrize(
    ("failure", "code", "status"),
    [
        (Failure.CONNECT, "upstream_failed", 502),
        (Failure.TLS, "upstream_failed", 502),
        (Failure.RESET, "upstream_failed", 502),
        (Failure.PROTOCOL, "upstream_failed", 502),
        (Failure.TOO_LARGE, "upstream_failed", 502),
        (Failure.STREAM_ERROR, "upstream_failed", 502),
        (Failure.STREAM_CUT, "upstream_failed", 502),
        (Failure.CONNECT_TIMEOUT, "deadline_exceeded", 504),
        (Failure.FIRST_BYTE_TIMEOUT, "deadline_exceeded", 504),
        (Failure.FIRST_TOKEN_TIMEOUT, "deadline_exceeded", 504),
        (Failure.IDLE_TIMEOUT, "deadline_exceeded", 504),
        (Failure.ATTEMPT_TIMEOUT, "deadline_exceeded", 504),
        (Failure.TOTAL_TIMEOUT, "deadline_exceeded", 504),
        (Failure.STALLED, "deadline_exceeded", 504),
        (Failure.BUSY, "overloaded", 503),
        (Failure.FULL, "rate_limit_exceeded", 429),
    ],
)
def test_the_client_is_told_what_became_of_it(failure: Failure, code: str, status: int) -> None:
    told = client_error(UpstreamError(failure, "it broke"), "p")
    assert (told.code, told.status, told.message) == (code, status, "p: it broke")
    assert told.retry_after == (1 if failure is Failure.BUSY else None)


def test_every_failure_has_an_answer() -> None:
    told = {client_error(UpstreamError(failure, "x"), "p").code for failure in Failure}
    assert told <= FAULTS.keys()


@pytest.mark.parametrize("wait", [None, 7.0])
def test_a_limit_of_the_provider_is_a_limit_for_the_client(wait: float | None) -> None:
    limited = UpstreamError(Failure.STATUS, "org-secret", status=429, retry_after=wait)
    told = client_error(limited, "p")
    assert (told.code, told.status, told.retry_after) == ("rate_limit_exceeded", 429, wait)
    assert "org-secret" not in told.message


@pytest.mark.parametrize("code", [401, 402, 403, 407, 408, 425])
def test_a_refused_credential_is_not_shown_to_the_client(code: int) -> None:
    told = client_error(UpstreamError(Failure.STATUS, "bad key sk-1", status=code), "p")
    assert (told.code, told.status) == ("upstream_failed", 502)
    assert "sk-1" not in told.message
    assert str(code) in told.message


@pytest.mark.parametrize("code", [500, 503, 529])
def test_a_failing_provider_is_quoted(code: int) -> None:
    assert client_error(status(code), "p").message == "p: told so"


class Target(Struct, frozen=True):
    """A target as far as the plan is concerned."""

    place: int
    priority: int = 1
    weight: int = 1
    unit_price: float = 1.0
    state: TargetState = field(default_factory=lambda: TargetState(Breaker(Rules(), lambda: 0.5)))

    @property
    def name(self) -> str:
        """What it is called."""
        return f"p{self.place}/m"


STRATEGIES = ["priority", "weighted", "latency", "least-busy", "cost"]


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9))),
    st.sampled_from(STRATEGIES),
    st.randoms(use_true_random=False),
)
def test_every_target_is_planned_once_and_by_priority(
    given_targets: list[tuple[int, int]], strategy: str, chance: Random
) -> None:
    targets = tuple(Target(i, p, w) for i, (p, w) in enumerate(given_targets))
    planned = plan(targets, strategy, 0.0, chance.random)
    assert sorted(planned, key=lambda t: t.place) == list(targets)
    ranks = [target.priority for target in planned]
    assert ranks == sorted(ranks)
    if strategy == "priority":
        assert [(t.priority, t.place) for t in planned] == sorted(
            (t.priority, t.place) for t in targets
        )


def first(targets: tuple[Target, ...], strategy: str, chance: Random) -> int:
    return plan(targets, strategy, 0.0, chance.random)[0].place


def test_weights_are_kept() -> None:
    targets = (Target(0, weight=1), Target(1, weight=3), Target(2, weight=6))
    chance = Random(7)
    asked = Counter(first(targets, "weighted", chance) for _ in range(20_000))
    assert [round(asked[i] / 20_000, 2) for i in range(3)] == [
        pytest.approx(0.1, abs=0.02),
        pytest.approx(0.3, abs=0.02),
        pytest.approx(0.6, abs=0.02),
    ]


def test_the_cheapest_comes_first() -> None:
    targets = (Target(0, unit_price=3.0), Target(1, unit_price=1.0), Target(2, unit_price=2.0))
    assert [t.place for t in plan(targets, "cost", 0.0, Random(1).random)] == [1, 2, 0]


def test_the_least_busy_comes_first_and_equals_take_turns() -> None:
    targets = (Target(0), Target(1), Target(2, weight=2))
    chance = Random(3)
    assert {first(targets, "least-busy", chance) for _ in range(100)} == {0, 1, 2}
    targets[0].state.in_flight = 2
    targets[1].state.in_flight = 1
    targets[2].state.in_flight = 3  # of a weight of two: one and a half
    assert {first(targets, "least-busy", chance) for _ in range(100)} == {1}


def test_a_slow_target_gets_little() -> None:
    targets = tuple(Target(i) for i in range(4))
    for target, seconds in zip(targets, (0.1, 0.1, 0.1, 5.0), strict=True):
        target.state.took(seconds, 0.0)
    chance = Random(5)
    asked = Counter(first(targets, "latency", chance) for _ in range(4000))
    assert asked[3] == 0
    assert min(asked[i] for i in range(3)) > 1000


def test_a_peak_counts_at_once_and_is_forgotten_slowly() -> None:
    state = Target(0).state
    state.took(0.1, 0.0)
    state.took(2.0, 1.0)
    assert state.load == 2.0
    state.took(0.1, 2.0)
    assert 1.5 < state.load < 2.0
    for second in range(3, 90):
        state.took(0.1, float(second))
    assert state.load == pytest.approx(0.1, abs=0.01)
    state.in_flight = 3
    assert state.load == pytest.approx(0.4, abs=0.04)


def test_an_ejected_target_comes_last_unless_too_many_are() -> None:
    targets = tuple(Target(i) for i in range(4))
    targets[0].state.breaker.eject(0.0, 10)
    assert [t.place for t in plan(targets, "priority", 1.0, Random(1).random)] == [1, 2, 3, 0]
    targets[2].state.breaker.eject(0.0, 5)
    assert [t.place for t in plan(targets, "priority", 1.0, Random(1).random)] == [1, 3, 2, 0]
    targets[3].state.breaker.eject(0.0, 10)  # three of four: it is not them
    assert [t.place for t in plan(targets, "priority", 1.0, Random(1).random)] == [0, 1, 2, 3]
    assert [t.place for t in plan(targets, "priority", 6.0, Random(1).random)] == [1, 2, 0, 3]


# --- Trying again --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({b"retry-after": b"7"}, 7.0),
        ({b"retry-after": b" 1.5 "}, 1.5),
        ({b"retry-after-ms": b"250"}, 0.25),
        ({b"retry-after-ms": b"250", b"retry-after": b"9"}, 0.25),
        ({b"retry-after-ms": b"x", b"retry-after": b"9"}, 9.0),
        ({b"retry-after": b"Sat, 21 Nov 2026 10:00:30 GMT"}, 30.0),
        ({b"retry-after": b"Saturday, 21-Nov-26 10:00:30 GMT"}, 30.0),
        ({b"retry-after": b"Sat, 21 Nov 2026 09:00:00 GMT"}, 0.0),
        ({b"retry-after": b"soon"}, None),
        ({b"retry-after": b"-5"}, None),
        ({b"retry-after": b"1e9"}, None),
        ({b"retry-after": b"9" * 40}, None),
        ({b"retry-after": b"\xff"}, None),
        ({b"retry-after": b"1.2.3"}, None),
        ({b"retry-after": b"Mon, 1 Jan 2000 00:00:00 +99999999999999999"}, None),
        ({b"retry-after": b"Mon, 1 Jan 2000 99999999999999999999999:00:00 GMT"}, None),
    ],
)
def test_how_long_a_provider_wants_to_be_left_alone(
    headers: dict[bytes, bytes], seconds: float | None
) -> None:
    moment = datetime(2026, 11, 21, 10, 0, 0, tzinfo=UTC).timestamp()
    assert retry_after(headers, moment) == seconds


def test_the_wait_grows_with_full_jitter_and_keeps_to_what_was_asked() -> None:
    rules = RetryRules(backoff=0.5, longest=4)
    waits = [wait_seconds(status(503), tried, rules, lambda: 1.0) for tried in range(6)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert wait_seconds(status(503), 3, rules, lambda: 0.0) == 0.0
    limited = UpstreamError(Failure.STATUS, "x", status=429, retry_after=3)
    assert wait_seconds(limited, 0, rules, lambda: 1.0) == 3
    limited.retry_after = 5
    assert wait_seconds(limited, 0, rules, lambda: 1.0) is None


@given(st.lists(st.booleans(), max_size=2000), st.floats(0, 1))
def test_retries_are_a_part_of_the_requests(asks: list[bool], ratio: float) -> None:
    budget = Budget(ratio)
    spent = 0
    for wants in asks:
        budget.earn()
        spent += wants and budget.spend()
    assert spent <= ratio * len(asks) + Budget.CAPACITY


def test_what_counts_against_a_target() -> None:
    assert counts_against(status(500))
    assert counts_against(status(401))
    assert counts_against(UpstreamError(Failure.CONNECT, "x"))
    assert counts_against(UpstreamError(Failure.FIRST_BYTE_TIMEOUT, "x"))
    assert counts_against(UpstreamError(Failure.ATTEMPT_TIMEOUT, "x"))
    assert not counts_against(status(429))  # it says itself how long
    assert not counts_against(status(400))
    assert not counts_against(UpstreamError(Failure.BUSY, "x"))
    assert not counts_against(UpstreamError(Failure.TOO_LARGE, "x"))
    assert not counts_against(UpstreamError(Failure.TOTAL_TIMEOUT, "x"))
    assert not counts_against(UpstreamError(Failure.STALLED, "x"))
