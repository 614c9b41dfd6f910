"""What limits a key may have, which apply to it, and when a budget's period ends."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.schema import Config, KeySettings, Limit
from gateway.core.errors import ConfigError
from gateway.pipeline.limiting import LimitBook, rates
from gateway.pipeline.refusal import limit_error
from gateway.policy.limits import Budget, Rates, check_period, limits, period, window_seconds


def book(**sections: Any) -> LimitBook:
    """The limits of a configuration."""
    return LimitBook(msgspec.convert(sections, Config))


def key(**settings: Any) -> KeySettings:
    """A key of tenant acme."""
    return msgspec.convert({"name": "a", "tenant": "acme", **settings}, KeySettings)


def applied(found: LimitBook, holder: KeySettings, model: str = "m") -> dict[str, int]:
    """The limits of a request for a model: capacity by the name in Redis."""
    principal = found.principal(holder, "key_0")
    return {one.name: one.capacity for one in principal.limits_for(model)}


KEY, TENANT = "sluice:limit:{acme}:key:key_0", "sluice:limit:{acme}:tenant"


def test_a_key_is_under_its_own_limits_its_tenants_and_everybodys() -> None:
    found = book(
        tenants={
            "acme": {"tpm": 500, "per_model": {"m*": {"concurrency": 4}}},
            "other": {"rpm": 1},
        },
        limits={"global": {"rpm": 9000}},
    )
    holder = key(rpm=60, burst=90, budget={"usd": 5}, per_model={"m": {"rpm": 3}, "x": {"rpm": 1}})
    assert applied(found, holder) == {
        f"{KEY}:rpm": 90,
        f"{KEY}:budget:month": 5_000_000,
        f"{KEY}:model:m:rpm": 3,
        f"{TENANT}:tpm": 500,
        f"{TENANT}:model:m*:concurrency": 4,
        "sluice:limit:gateway:rpm": 9000,
    }
    assert set(applied(found, key(tenant="nobody"))) == {"sluice:limit:gateway:rpm"}


def test_a_default_holds_for_each_kind_that_a_key_does_not_set() -> None:
    default = {
        "rpm": 10,
        "burst": 20,
        "tpm": 100,
        "concurrency": 5,
        "budget": [{"usd": 1, "per": "day"}, {"usd": 2, "per": "30d"}],
        "per_model": {"m": {"rpm": 2}},
    }
    found = book(limits={"default": default})
    whole = {"rpm": 20, "tpm": 100, "concurrency": 5, "model:m:rpm": 2}
    whole |= {"budget:day": 1_000_000, "budget:30d": 2_000_000}

    def named(**limits: int) -> dict[str, int]:
        return {f"{KEY}:{name}": value for name, value in limits.items()}

    assert applied(found, key()) == named(**whole)
    assert applied(found, key(rpm=7)) == named(**{**whole, "rpm": 7})
    assert applied(found, key(tpm=1, concurrency=1)) == named(
        **{**whole, "tpm": 1, "concurrency": 1}
    )
    own = applied(found, key(budget={"usd": 3, "per": "week"}))
    kept = {name: whole[name] for name in ("rpm", "tpm", "concurrency", "model:m:rpm")}
    assert own == named(**kept, **{"budget:week": 3_000_000})


def test_a_default_holds_for_each_model_and_kind_that_a_key_does_not_set() -> None:
    default = {
        "m": {"rpm": 2, "tpm": 9, "budget": {"usd": 1}, "shadow": ["rpm"]},
        "x*": {"rpm": 1},
    }
    found = book(limits={"default": {"per_model": default}})
    m = {f"{KEY}:model:m:rpm": 2, f"{KEY}:model:m:tpm": 9}
    m |= {f"{KEY}:model:m:budget:month": 1_000_000}
    assert applied(found, key(per_model={"other": {"rpm": 9}})) == m
    assert applied(found, key(per_model={"other": {"rpm": 9}}), "other") == {
        f"{KEY}:model:other:rpm": 9
    }
    holder = key(per_model={"m": {"rpm": 7, "budget": {"usd": 3, "per": "day"}}})
    own = found.principal(holder, "key_0")
    assert {one.name: (one.capacity, one.shadow) for one in own.limits_for("m")} == {
        f"{KEY}:model:m:rpm": (7, False),
        f"{KEY}:model:m:tpm": (9, False),
        f"{KEY}:model:m:budget:day": (3_000_000, False),
    }
    assert [one.name for one in own.limits_for("x1")] == [f"{KEY}:model:x*:rpm"]


def test_a_key_s_own_limit_of_a_model_lifts_a_wider_default() -> None:
    found = book(limits={"default": {"per_model": {"*": {"rpm": 2, "tpm": 9}}}})
    holder = found.principal(key(per_model={"gpt-*": {"rpm": 1000}, "o3": {"tpm": 5}}), "key_0")
    of = {
        model: {one.name.rpartition(":model:")[2] for one in holder.limits_for(model)}
        for model in ("gpt-5", "p/gpt-5", "o3", "claude")
    }
    assert of["gpt-5"] == of["p/gpt-5"] == {"gpt-*:rpm", "*:tpm"}
    assert of["o3"] == {"*:rpm", "o3:tpm"}
    assert of["claude"] == {"*:rpm", "*:tpm"}


def test_where_limits_are_off_none_applies() -> None:
    found = book(limits={"enabled": False, "default": {"rpm": 1}}, tenants={"acme": {"rpm": 1}})
    principal = found.principal(key(rpm=1, labels={"b": "2", "a": "1"}, models=["m"]), "key_0")
    assert (principal.limits, principal.by_model) == ((), ())
    assert (principal.key, principal.tenant, principal.models) == ("key_0", "acme", ("m",))
    assert principal.labels == ("a=1", "b=2")


@pytest.mark.parametrize(
    ("sections", "settings", "only_rates"),
    [
        ({}, {"rpm": 1, "tpm": 5, "per_model": {"m": {"rpm": 1}}}, True),
        ({}, {"rpm": 1, "concurrency": 1}, False),
        ({}, {"budget": {"usd": 5}}, False),
        ({}, {"per_model": {"m": {"concurrency": 1}}}, False),
        ({"tenants": {"acme": {"budget": {"usd": 5}}}}, {"rpm": 1}, False),
        ({"limits": {"global": {"per_model": {"x": {"concurrency": 1}}}}}, {"rpm": 1}, False),
    ],
)
def test_whether_anything_must_be_given_back(
    sections: dict[str, Any], settings: dict[str, Any], only_rates: bool
) -> None:
    assert book(**sections).principal(key(**settings), "key_0").only_rates is only_rates


# -- what is above a tenant's ----------------------------------------------------------------------

BOUNDED = book(
    tenants={
        "acme": {
            "rpm": 100,
            "tpm": 1000,
            "concurrency": 10,
            "budget": [{"usd": 5, "per": "day"}, {"usd": "50.5", "per": "30d"}],
        },
        "slow": {"rpm": 100, "burst": 10},
        "models": {
            "per_model": {
                "m*": {"rpm": 10, "tpm": 100, "budget": {"usd": 5, "per": "1d"}},
                "*": {"concurrency": 4, "budget": {"usd": 50}},
            }
        },
    }
)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rpm": 100, "tpm": 1000, "concurrency": 10},
        {"rpm": 1, "burst": 100},
        {"budget": {"usd": 5, "per": "day"}},
        {"budget": [{"usd": "50.5", "per": "30d"}, {"usd": 4, "per": "day"}]},
        {"budget": {"usd": 1000, "per": "total"}},
        {"budget": {"usd": 1000, "per": "month"}},
        {"budget": [{"usd": 1000, "per": "24h"}, {"usd": "50.5", "per": "720h"}]},
        {"tpm": 1000, "per_model": {"m": {"rpm": 1000, "burst": 1000}}},
        {"tenant": "slow", "rpm": 100},
        {"tenant": "slow", "rpm": 100, "burst": 10},
        {"tenant": "models", "rpm": 1000, "concurrency": 100, "budget": {"usd": 1000}},
        {"tenant": "models", "per_model": {"m*": {"rpm": 10, "tpm": 100, "concurrency": 4}}},
        {"tenant": "models", "per_model": {"m": {"rpm": 1000}, "*": {"tpm": 1000}}},
        {"tenant": "nobody", "rpm": 10**6, "burst": 10**7, "budget": {"usd": 10**6, "per": "day"}},
    ],
)
def test_limits_up_to_the_tenants_pass(settings: dict[str, Any]) -> None:
    BOUNDED.check(key(**settings))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"rpm": 101}, "rpm"),
        ({"tpm": 1001}, "tpm"),
        ({"concurrency": 11}, "concurrency"),
        ({"rpm": 1, "concurrency": 10**9}, "concurrency"),
        ({"budget": {"usd": "5.000001", "per": "day"}}, "budget"),
        ({"budget": [{"usd": 1, "per": "day"}, {"usd": 51, "per": "30d"}]}, "budget"),
        ({"rpm": 1, "burst": 101}, "burst"),
        ({"tenant": "slow", "rpm": 20, "burst": 11}, "burst"),
        ({"budget": {"usd": 51, "per": "720h"}}, "budget"),
        ({"budget": [{"usd": 1, "per": "30d"}, {"usd": 1, "per": "720h"}]}, "budget"),
        ({"tenant": "models", "per_model": {"m*": {"rpm": 11}}}, "per_model.m*.rpm"),
        (
            {"tenant": "models", "per_model": {"m*": {"rpm": 1, "burst": 11}}},
            "per_model.m*.burst",
        ),
        (
            {"tenant": "models", "per_model": {"m*": {"budget": {"usd": 6, "per": "1440m"}}}},
            "per_model.m*.budget",
        ),
        ({"tenant": "models", "per_model": {"*": {"concurrency": 5}}}, "per_model.*.concurrency"),
        ({"tenant": "models", "per_model": {"m": {"concurrency": 5}}}, "per_model.m.concurrency"),
        ({"tenant": "models", "per_model": {"m*": {"budget": {"usd": 51}}}}, "per_model.m*.budget"),
        ({"per_model": {"m": {"budget": {"usd": 0}}}}, "per_model.m.budget.usd"),
        ({"per_model": {"m": {"budget": {"usd": 1, "per": "1s"}}}}, "per_model.m.budget.per"),
    ],
)
def test_a_limit_above_the_tenants_is_named(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as raised:
        BOUNDED.check(key(**settings))
    assert raised.value.field == field


ABOVE = {
    "rpm": 500,
    "burst": 800,
    "concurrency": 10,
    "budget": [{"usd": 9, "per": "day"}, {"usd": 1, "per": "30d"}],
    "per_model": {"m*": {"rpm": 99}, "x": {"rpm": 1}},
}


@pytest.mark.parametrize(
    "changes",
    [
        {"models": ["m"], "expires": 0, "labels": {"a": "b"}},
        {"rpm": 100},
        {"rpm": 50, "burst": 60, "tpm": 1000},
        {"rpm": None, "burst": None},
        {"concurrency": None},
        {"budget": [{"usd": 9, "per": "day"}, {"usd": 50, "per": "30d"}]},
        {"budget": {"usd": 5, "per": "day"}},
        {"per_model": {"m*": {"rpm": 99, "tpm": 100}}},
    ],
)
def test_a_key_that_is_above_its_tenant_can_be_restricted(changes: dict[str, Any]) -> None:
    for tenant in ("acme", "models"):
        before = {**ABOVE, "tenant": tenant}
        BOUNDED.check(key(**{**before, **changes}), key(**before))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rpm": 501}, "rpm"),
        ({"rpm": 499}, "rpm"),
        ({"rpm": 100, "burst": 799}, "burst"),
        ({"concurrency": 11}, "concurrency"),
        ({"tpm": 1001}, "tpm"),
        ({"budget": {"usd": 10, "per": "day"}}, "budget"),
        ({"budget": {"usd": 51, "per": "30d"}}, "budget"),
        ({"budget": {"usd": 51, "per": "720h"}}, "budget"),
        ({"tenant": "slow"}, "rpm"),
        ({"tenant": "models"}, "per_model.m*.rpm"),
    ],
)
def test_a_key_that_is_above_its_tenant_is_given_no_more(
    changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        BOUNDED.check(key(**{**ABOVE, **changes}), key(**ABOVE))
    assert raised.value.field == field


@given(st.integers(1, 200), st.integers(1, 2000), st.integers(1, 20), st.integers(1, 10**7))
def test_a_check_passes_what_is_not_above_and_nothing_else(
    rpm: int, tpm: int, concurrency: int, microusd: int
) -> None:
    dollars = f"{microusd // 10**6}.{microusd % 10**6:06d}"
    holder = key(rpm=rpm, tpm=tpm, concurrency=concurrency, budget={"usd": dollars, "per": "day"})
    if rpm <= 100 and tpm <= 1000 and concurrency <= 10 and microusd <= 5 * 10**6:
        BOUNDED.check(holder)
    else:
        with pytest.raises(ConfigError):
            BOUNDED.check(holder)


# -- budgets ---------------------------------------------------------------------------------------


def test_one_budget_or_several_become_micro_dollars() -> None:
    one = msgspec.convert({"budget": {"usd": 0.1, "per": "day"}}, Limit)
    several = msgspec.convert({"budget": [{"usd": "2.5"}, {"usd": 3, "per": "1h"}]}, Limit)
    assert rates(one, "f").budgets == (Budget(100_000, "day"),)
    assert rates(several, "f").budgets == (Budget(2_500_000, "month"), Budget(3_000_000, "1h"))
    assert rates(Limit(), "f").budgets == ()


@pytest.mark.parametrize(
    ("budget", "field"),
    [
        ([{"usd": 1}, {"usd": 2}], "keys.budget"),
        ([{"usd": 1, "per": "30d"}, {"usd": 2}, {"usd": 3, "per": "30d"}], "keys.budget"),
        ([{"usd": 1, "per": "30d"}, {"usd": 2, "per": "720h"}], "keys.budget"),
        ({"usd": 1, "per": "year"}, "keys.budget.per"),
        ({"usd": 1, "per": ""}, "keys.budget.per"),
        ({"usd": 1, "per": "30s"}, "keys.budget.per"),
        ({"usd": 0}, "keys.budget.usd"),
        ({"usd": -1}, "keys.budget.usd"),
        ({"usd": "0.0000009"}, "keys.budget.usd"),
        ({"usd": "free"}, "keys.budget.usd"),
        ({"usd": ""}, "keys.budget.usd"),
        ({"usd": "NaN"}, "keys.budget.usd"),
        ({"usd": "inf"}, "keys.budget.usd"),
    ],
)
def test_a_budget_that_cannot_be_is_named(budget: Any, field: str) -> None:
    with pytest.raises(ConfigError) as raised:
        rates(msgspec.convert({"budget": budget}, Limit), "keys")
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("moment", "day", "week", "month"),
    [
        ("2026-11-21T12:00:00", "2026-11-21/22", "2026-W47/2026-11-23", "2026-11/2026-12-01"),
        ("2026-12-31T23:59:59", "2026-12-31/01", "2026-W53/2027-01-04", "2026-12/2027-01-01"),
        ("2027-01-01T00:00:00", "2027-01-01/02", "2026-W53/2027-01-04", "2027-01/2027-02-01"),
        ("2027-01-03T23:59:59", "2027-01-03/04", "2026-W53/2027-01-04", "2027-01/2027-02-01"),
        ("2027-01-04T00:00:00", "2027-01-04/05", "2027-W01/2027-01-11", "2027-01/2027-02-01"),
        ("2024-12-30T00:00:00", "2024-12-30/31", "2025-W01/2025-01-06", "2024-12/2025-01-01"),
        ("2024-02-28T23:59:59", "2024-02-28/29", "2024-W09/2024-03-04", "2024-02/2024-03-01"),
        ("2024-02-29T00:00:00", "2024-02-29/01", "2024-W09/2024-03-04", "2024-02/2024-03-01"),
        ("2025-02-28T23:59:59", "2025-02-28/01", "2025-W09/2025-03-03", "2025-02/2025-03-01"),
        ("2026-01-31T00:00:00", "2026-01-31/01", "2026-W05/2026-02-02", "2026-01/2026-02-01"),
    ],
)
def test_a_period_is_named_and_ends_by_the_calendar_in_utc(
    moment: str, day: str, week: str, month: str
) -> None:
    now = datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()
    for per, expected in (("day", day), ("week", week), ("month", month)):
        name, end = period(per, now)
        ends = datetime.fromtimestamp(end / 1_000_000, UTC)
        shown = f"{ends:%d}" if per == "day" else f"{ends:%Y-%m-%d}"
        assert f"{name}/{shown}" == expected
        assert f"{ends:%H:%M:%S}" == "00:00:00"
    assert period("total", now) == ("total", 0)


@given(st.floats(0, 4e9), st.sampled_from(("day", "week", "month")))
def test_a_period_holds_to_its_end_and_the_next_begins_there(now: float, per: str) -> None:
    name, end = period(per, now)
    assert 0 < end - now * 1_000_000 <= 31 * 86_400 * 1_000_000
    assert period(per, end / 1_000_000 - 0.001) == (name, end)
    after, later = period(per, end / 1_000_000)
    assert after > name
    assert later > end


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1m", 60), ("90m", 5400), ("1h", 3600), ("12h", 43_200), ("30d", 2_592_000)],
)
def test_a_window_has_its_length(text: str, seconds: int) -> None:
    assert window_seconds(text) == seconds
    check_period(text)


@given(st.integers(1, 9999), st.sampled_from((("m", 60), ("h", 3600), ("d", 86_400))))
def test_every_whole_number_of_a_unit_is_a_window(number: int, unit: tuple[str, int]) -> None:
    assert window_seconds(f"{number}{unit[0]}") == number * unit[1]


NO_WINDOWS = ["0m", "00d", "01d", "-1d", "+1d", "1.5h", "10000d", "30", "d", "30s", "30w", "30D"]
NO_WINDOWS += ["1h30m", "\u0663d", "", " ", " 30d", "30d ", "30d\n", "3 d", "days", "Day", "years"]


@pytest.mark.parametrize("text", NO_WINDOWS)
def test_another_text_is_no_window(text: str) -> None:
    with pytest.raises(ValueError, match="expected day, week, month, total, or a window"):
        check_period(text)


def test_a_calendars_period_is_no_window() -> None:
    for per in ("day", "week", "month", "total"):
        check_period(per)
        with pytest.raises(ValueError, match="expected"):
            window_seconds(per)


@pytest.mark.parametrize(
    ("per", "wait", "left", "said"),
    [
        ("day", 59.7, 4_100, "per day of this key does not cover this request: $0.0041 is left."),
        ("day", 59.7, 4_100, "$0.0041 is left. The period ends in 60 s."),
        ("30d", 59.7, -7, ": $0 is left. The first of it returns in 60 s."),
        ("total", None, 12_345_678, "in total of this key does not cover this request: $12.345678"),
        ("day", None, None, "per day of this key does not cover this request."),
    ],
)
def test_a_refusal_says_what_is_left_of_a_budget(
    per: str, wait: float | None, left: int | None, said: str
) -> None:
    (budget,) = limits("key", "x", Rates(budgets=(Budget(20_500_000, per),)))
    message = limit_error(budget, wait, left=left).message
    assert message.startswith("The budget of $20.5 ")
    assert said in message
