"""Token buckets: which apply to a key, how full they are, and how that is shown."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gateway.policy.limits import (
    RATE,
    REQUESTS,
    TOKENS,
    Grant,
    Limit,
    Rates,
    limits,
    show_duration,
    tightest,
    until_full,
)


@pytest.mark.parametrize(
    ("own", "default", "expected"),
    [
        (Rates(), Rates(), Rates()),
        (Rates(), Rates(5, 9, 100), Rates(5, 9, 100)),
        (Rates(rpm=7), Rates(5, 9, 100), Rates(7, None, 100)),
        (Rates(rpm=7, burst=8), Rates(5, 9), Rates(7, 8)),
        (Rates(tpm=50), Rates(5, 9, 100), Rates(5, 9, 50)),
        (Rates(rpm=7), Rates(), Rates(7)),
        # A default's shadow is for the limits that are the default's.
        (Rates(rpm=7), Rates(5, tpm=9, shadow=("rpm", "tpm")), Rates(7, tpm=9, shadow=("tpm",))),
        (Rates(rpm=7, shadow=("rpm",)), Rates(tpm=9), Rates(7, tpm=9, shadow=("rpm",))),
        (
            Rates(rpm=7, shadow=("rpm",)),
            Rates(tpm=9, shadow=("tpm",)),
            Rates(7, tpm=9, shadow=("rpm", "tpm")),
        ),
    ],
)
def test_each_kind_of_limit_falls_back_by_itself(
    own: Rates, default: Rates, expected: Rates
) -> None:
    assert own.or_default(default) == expected


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        (Rates(), ()),
        (Rates(rpm=60), (Limit("p:rpm", REQUESTS, 60, 60, "key"),)),
        (Rates(rpm=60, burst=5), (Limit("p:rpm", REQUESTS, 5, 60, "key"),)),
        (Rates(tpm=900), (Limit("p:tpm", TOKENS, 900, 900, "key"),)),
        (
            Rates(60, 200, 900),
            (
                Limit("p:rpm", REQUESTS, 200, 60, "key"),
                Limit("p:tpm", TOKENS, 900, 900, "key"),
            ),
        ),
    ],
)
def test_rates_become_buckets(rates: Rates, expected: tuple[Limit, ...]) -> None:
    found = limits("key", "p", rates)
    assert tuple(structs.replace(one, fixed=None) for one in found) == expected
    assert all(one.fixed == one.spec(0) for one in found)


@pytest.mark.parametrize(
    ("level", "shown"), [(100, "0ms"), (99, "200ms"), (50, "10s"), (-100, "40s"), (101, "0ms")]
)
def test_the_time_until_a_bucket_is_full(level: int, shown: str) -> None:
    assert until_full(Limit("b", TOKENS, 100, 300, "key"), level) == shown


def test_the_tightest_bucket_of_a_unit_is_the_one_with_the_least_left() -> None:
    def grant(unit: str, scope: str) -> Grant:
        return Grant(Limit(f"{scope}:{unit}", unit, 100, 100, scope), "key", (RATE, 100, 100), 1)

    roomy, tight = grant(REQUESTS, "key"), grant(REQUESTS, "tenant")
    debt = grant(TOKENS, "key")
    both = {REQUESTS: (3, tight.limit), TOKENS: (-5, debt.limit)}
    assert tightest((roomy, tight, debt), [50, 3, -5]) == both
    assert tightest((tight, roomy), [3, 50]) == {REQUESTS: (3, tight.limit)}
    assert tightest((), []) == {}


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0ms"),
        (0.0001, "1ms"),
        (0.012, "12ms"),
        (0.9991, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (1.51, "1.6s"),
        (9, "9s"),
        (59.9, "59.9s"),
        (59.91, "1m0s"),
        (60, "1m0s"),
        (60.2, "1m1s"),
        (360, "6m0s"),
        (3599.5, "1h0m0s"),
        (7265, "2h1m5s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, shown: str) -> None:
    assert show_duration(seconds) == shown


@given(st.floats(0, 10_000))
def test_a_shown_duration_is_never_too_short_and_hardly_too_long(seconds: float) -> None:
    shown = show_duration(seconds)
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    parts = re.findall(r"([\d.]+)(ms|h|m|s)", shown)
    assert "".join(number + unit for number, unit in parts) == shown
    told = sum(float(number) * units[unit] for number, unit in parts)
    assert seconds <= told + 1e-9
    assert told - seconds <= (0.001 if seconds < 0.999 else 0.1 if seconds < 59.9 else 1) + 1e-9
