"""What a worker may admit by itself while the store is away."""

import pytest

from gateway.policy.limits import Budget, Grant, Limit, Rates, grants, limits
from gateway.policy.share import MAX_KNOWN, LocalShare

NOW = 1_800_000_000.0


def granted(rates: Rates, tokens: int = 10, microusd: int = 0) -> tuple[Grant, ...]:
    return grants(limits("key", "sluice:limit:{t}:key:k", rates), tokens, microusd, NOW)


def admitted(
    share: LocalShare, lease: str, wanted: tuple[Grant, ...], now: float, n: int = 1
) -> bool:
    return share.take(lease, wanted, n, now) is None


def test_a_rate_that_was_empty_fills_again_though_the_store_is_away() -> None:
    share, wanted = LocalShare(), granted(Rates(rpm=60))
    share.known[wanted[0].key] = 0, 100.0
    assert not admitted(share, "a", wanted, 100.5)
    assert admitted(share, "b", wanted, 101.0)
    assert not admitted(share, "c", wanted, 101.5)
    assert admitted(share, "d", wanted, 102.1)
    # A long time is worth no more than the share itself.
    share.reset(1)
    share.known[wanted[0].key] = 0, 200.0
    assert sum(admitted(share, f"{n}", wanted, 1000.0, 2) for n in range(60)) == 30


def test_a_refusal_says_when_there_is_room() -> None:
    share, wanted = LocalShare(), granted(Rates(rpm=60))
    share.known[wanted[0].key] = 0, 100.0
    refused = share.take("a", wanted, 1, 100.25)
    assert refused is not None
    limit, wait = refused
    assert isinstance(limit, Limit)
    assert wait == pytest.approx(0.75)


def test_a_slot_that_the_store_gave_can_be_taken_again_when_its_request_is_done() -> None:
    share, wanted = LocalShare(), granted(Rates(concurrency=1))
    (slot,) = wanted
    share.known[slot.key] = 0, 100.0  # what the store said as it gave the only one
    assert not admitted(share, "a", wanted, 101.0)
    share.came_back(slot.key, 1, 1)
    assert admitted(share, "a", wanted, 101.0)
    assert not admitted(share, "b", wanted, 101.0)
    share.give_back("a", {slot.key: 0})
    assert admitted(share, "b", wanted, 101.0)


def test_money_that_was_reserved_and_not_spent_comes_back() -> None:
    share = LocalShare()
    wanted = granted(Rates(budgets=(Budget(1_000_000, "day"),)), microusd=300_000)
    (money,) = wanted
    share.known[money.key] = 100_000, 100.0  # 900,000 are reserved
    assert not admitted(share, "a", wanted, 1000.0)
    share.came_back(money.key, 900_000 - 400_000, 1_000_000)
    assert admitted(share, "a", wanted, 1000.0)
    share.give_back("a", {money.key: 300_000})
    assert admitted(share, "b", wanted, 1000.0)
    assert not admitted(share, "c", wanted, 1000.0)  # all 600,000 are gone


def test_what_comes_back_is_never_more_than_there_is() -> None:
    share, wanted = LocalShare(), granted(Rates(concurrency=2))
    share.known[wanted[0].key] = 2, 100.0
    share.came_back(wanted[0].key, 1, 2)
    assert [admitted(share, name, wanted, 100.0) for name in "abc"] == [True, True, False]
    share.came_back("unheard of", 1, 2)
    assert "unheard of" not in share.known


def test_a_lease_grows_as_far_as_the_share_goes_and_gives_all_of_it_back() -> None:
    share, wanted = LocalShare(), granted(Rates(budgets=(Budget(1_000_000, "day"),)), microusd=300)
    assert share.take("a", wanted, 2, 0.0) is None
    assert share.grow("a", wanted, 400_000, 2, 0.0) is None
    assert share.grow("a", wanted, 100_000, 2, 0.0) is wanted[0].limit
    assert share.take(
        "b", granted(Rates(budgets=(Budget(1_000_000, "day"),)), microusd=99_701), 2, 0.0
    )
    share.give_back("a", {wanted[0].key: 0})
    assert (
        share.take(
            "c", granted(Rates(budgets=(Budget(1_000_000, "day"),)), microusd=500_000), 2, 0.0
        )
        is None
    )


@pytest.mark.parametrize("back", [True, False], ids=["reset", "not told all yet"])
def test_what_came_back_in_one_outage_is_not_given_again_in_the_next(back: bool) -> None:
    share, wanted = LocalShare(), granted(Rates(rpm=60))
    share.known[wanted[0].key] = 60, 100.0
    assert admitted(share, "a", wanted, 100.0, 2)
    share.known[wanted[0].key] = 0, 150.0  # the store has told: others have taken what was left
    if back:
        share.reset(2)
    assert sum(admitted(share, f"{n}", wanted, 151.0, 2) for n in range(60)) <= 1


def test_what_was_heard_longest_ago_is_forgotten_first() -> None:
    share = LocalShare()
    for number in range(MAX_KNOWN):
        share.known[f"k{number}"] = 0, float(number)
    share.forget_some()
    assert len(share.known) == MAX_KNOWN // 2
    assert f"k{MAX_KNOWN - 1}" in share.known
