"""What clients' headers say, which rules hold, and who pays for what is shared."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.caching import Cache, KeyCache, ModelCache
from gateway.core.errors import ApiError
from gateway.core.hints import Hints
from gateway.pipeline.planning import Planner
from gateway.policy.caching import (
    ALL,
    ASIS,
    DETERMINISTIC,
    OFF,
    PLAIN,
    Directives,
    Overrides,
    directives,
    is_deterministic,
    may_join,
    shares,
)

RULES = Planner(Cache(enabled=True, max_ttl=7200))._rules


@pytest.mark.parametrize(
    ("hints", "expected"),
    [
        (Hints(), PLAIN),
        (Hints(cache_control="private, x=1"), Directives()),
        (Hints(cache_control="no-store"), Directives(reads=False, keeps=False)),
        (Hints(cache_control="NO-CACHE"), Directives(reads=False)),
        (Hints(cache_control="only-if-cached"), Directives(only_cached=True)),
        (Hints(cache_control='max-age="5"'), Directives(max_age=5)),
        (Hints(cache_control="max-age=5 , stale-if-error=9"), Directives(max_age=5, stale=9)),
        (Hints(cache_control="max-age=" + "9" * 18), Directives(max_age=2**31)),
        (Hints(cache_ttl="60"), Directives(ttl=60)),
        (Hints(cache_ttl="0"), Directives(ttl=0, keeps=False)),
        (Hints(cache_namespace="team.a-1_x"), Directives(namespace="team.a-1_x")),
    ],
)
def test_headers_are_read(hints: Hints, expected: Directives) -> None:
    assert directives(hints) == expected


@pytest.mark.parametrize(
    ("hints", "name"),
    [
        (Hints(cache_control="max-age=-1"), "cache-control: max-age"),
        (Hints(cache_control="max-age"), "cache-control: max-age"),
        (Hints(cache_control="stale-if-error=1.5"), "cache-control: stale-if-error"),
        (Hints(cache_ttl="1h"), "x-sluice-cache-ttl"),
        (Hints(cache_ttl="9" * 19), "x-sluice-cache-ttl"),
        (Hints(cache_namespace="a" * 65), "x-sluice-cache-namespace"),
        (Hints(cache_namespace="a:b"), "x-sluice-cache-namespace"),
        (Hints(cache_namespace="a\n"), "x-sluice-cache-namespace"),
    ],
)
def test_what_is_wrong_is_named(hints: Hints, name: str) -> None:
    with pytest.raises(ApiError) as caught:
        directives(hints)
    assert caught.value.status == 400
    assert caught.value.param == name


@given(st.text(max_size=60))
def test_no_header_breaks_anything(text: str) -> None:
    for hints in (Hints(cache_control=text), Hints(cache_ttl=text), Hints(cache_namespace=text)):
        with contextlib.suppress(ApiError):  # anything else would fail here
            found = directives(hints)
            assert found.max_age is None or found.max_age >= 0


def test_the_keys_rules_go_above_the_models_and_the_models_above_all() -> None:
    model = Overrides.of(ModelCache(ttl=10, requests="all", share="key"))
    key = Overrides.of(KeyCache(ttl=20))
    found = RULES.but(model, key)
    assert (found.ttl, found.requests, found.share) == (20, ALL, "key")
    assert RULES.but(Overrides.of(ModelCache(enabled=False)), ASIS).enabled is False
    assert Overrides.of(KeyCache()) is ASIS
    assert RULES.but(ASIS, ASIS) == RULES
    assert RULES.but(Overrides.of(KeyCache(ttl=86_400))).ttl == 7200, "never above the most"


@pytest.mark.parametrize(
    ("temperature", "seed", "expected"),
    [
        (0, None, True),
        (0.0, None, True),
        (None, 7, True),
        (1, 7, True),
        (None, None, False),
        (0.1, None, False),
        (False, None, False),
        ("0", None, False),
    ],
)
def test_which_requests_are_deterministic(
    temperature: object, seed: object, expected: bool
) -> None:
    assert is_deterministic(temperature, seed) is expected


@pytest.mark.parametrize(
    ("coalesce", "deterministic", "other"),
    [(OFF, False, False), (DETERMINISTIC, True, False), (ALL, True, True)],
)
def test_who_shares_a_call(coalesce: str, deterministic: bool, other: bool) -> None:
    rules = RULES.but(Overrides((("coalesce", coalesce),)))
    assert may_join(rules, deterministic=True) is deterministic
    assert may_join(rules, deterministic=False) is other


@given(st.integers(0, 10**12), st.integers(1, 1000))
def test_parts_add_up(amount: int, takers: int) -> None:
    for bill, whole in (("leader", amount), ("split", amount), ("each", amount * takers)):
        parts = [shares(bill, amount, takers, place) for place in range(takers)]
        assert sum(parts) == whole
        assert min(parts) >= 0
