"""What a worker may admit by itself while the store is away."""

import pytest

from gateway.policy.limits import Budget, Grant, Rates, grants, limits
from gateway.policy.share import MAX_KNOWN, LocalShare
from gateway.store.levels import Levels, shared_memory

NOW = 1_800_000_000.0


def granted(rates: Rates, tokens: int = 10, microusd: int = 0) -> tuple[Grant, ...]:
    return grants(limits("key", "sluice:limit:{t}:key:k", rates), tokens, microusd, NOW)


def admitted(
    share: LocalShare, lease: str, wanted: tuple[Grant, ...], now: float, n: int = 1
) -> bool:
    return share.take(lease, wanted, n, now).refused_by is None


def test_a_rate_that_was_empty_fills_again_though_the_store_is_away() -> None:
    share, wanted = LocalShare(), granted(Rates(rpm=60))
    share.known[wanted[0].key] = 0, 100.0, 60
    assert not admitted(share, "a", wanted, 100.5)
    assert admitted(share, "b", wanted, 101.0)
    assert not admitted(share, "c", wanted, 101.5)
    assert admitted(share, "d", wanted, 102.1)
    # A long time is worth no more than the share itself.
    share.reset(1, 200.0)
    share.known[wanted[0].key] = 0, 200.0, 60
    assert sum(admitted(share, f"{n}", wanted, 1000.0, 2) for n in range(60)) == 30


def test_a_refusal_says_when_there_is_room() -> None:
    share, wanted = LocalShare(), granted(Rates(rpm=60))
    share.known[wanted[0].key] = 0, 100.0, 60
    refused = share.take("a", wanted, 1, 100.25)
    assert refused.refused_by is wanted[0].limit
    assert refused.wait == pytest.approx(0.75)


def test_a_slot_that_the_store_gave_can_be_taken_again_when_its_request_is_done() -> None:
    share, wanted = LocalShare(), granted(Rates(concurrency=1))
    (slot,) = wanted
    share.known[slot.key] = 0, 100.0, 1  # what the store said as it gave the only one
    assert not admitted(share, "a", wanted, 101.0)
    share.came_back(slot.key, 1, 1)
    assert admitted(share, "a", wanted, 101.0)
    assert not admitted(share, "b", wanted, 101.0)
    share.give_back("a", {slot.key: 0}, 100.0)
    assert admitted(share, "b", wanted, 101.0)


def test_money_that_was_reserved_and_not_spent_comes_back() -> None:
    share = LocalShare()
    wanted = granted(Rates(budgets=(Budget(1_000_000, "day"),)), microusd=300_000)
    (money,) = wanted
    share.known[money.key] = 100_000, 100.0, 1_000_000  # 900,000 are reserved
    assert not admitted(share, "a", wanted, 1000.0)
    share.came_back(money.key, 900_000 - 400_000, 1_000_000)
    assert admitted(share, "a", wanted, 1000.0)
    share.give_back("a", {money.key: 300_000}, 100.0)
    assert admitted(share, "b", wanted, 1000.0)
    assert not admitted(share, "c", wanted, 1000.0)  # all 600,000 are gone


def test_what_comes_back_is_never_more_than_there_is() -> None:
    share, wanted = LocalShare(), granted(Rates(concurrency=2))
    share.known[wanted[0].key] = 2, 100.0, 2
    share.came_back(wanted[0].key, 1, 2)
    assert [admitted(share, name, wanted, 100.0) for name in "abc"] == [True, True, False]
    share.came_back("unheard of", 1, 2)
    assert "unheard of" not in share.known


def test_a_lease_grows_as_far_as_the_share_goes_and_gives_all_of_it_back() -> None:
    share, wanted = LocalShare(), granted(Rates(budgets=(Budget(1_000_000, "day"),)), microusd=300)
    assert admitted(share, "a", wanted, 0.0, 2)
    assert share.grow("a", wanted, 400_000, 2, 0.0) is None
    assert share.grow("a", wanted, 100_000, 2, 0.0) is wanted[0].limit
    budget = Rates(budgets=(Budget(1_000_000, "day"),))
    assert not admitted(share, "b", granted(budget, microusd=99_701), 0.0, 2)
    share.give_back("a", {wanted[0].key: 0}, 100.0)
    assert admitted(share, "c", granted(budget, microusd=500_000), 0.0, 2)


def places(workers: int) -> list[LocalShare]:
    """The shares of a gateway's workers, who know of each other."""
    memory = shared_memory(workers)
    return [LocalShare(Levels(memory, place, workers)) for place in range(workers)]


@pytest.mark.parametrize("heard", [None, 3, 1, 0])
@pytest.mark.parametrize("rates", [Rates(concurrency=3), Rates(rpm=60, burst=3)])
def test_what_cannot_be_divided_is_given_once(rates: Rates, heard: int | None) -> None:
    wanted, found = granted(rates), 0
    for place, share in enumerate(places(5)):
        if heard is not None:
            share.known[wanted[0].key] = heard, 100.0, 3
        found += sum(admitted(share, f"{place} {n}", wanted, 100.0, 5) for n in range(4))
    assert found == (3 if heard is None else heard)


def test_a_rate_fills_again_where_a_worker_had_none_of_it() -> None:
    wanted = granted(Rates(rpm=60, burst=1))
    first, second = places(2)
    assert admitted(first, "a", wanted, 100.0, 2)
    assert not admitted(second, "b", wanted, 100.0, 2)
    assert not admitted(second, "c", wanted, 101.0, 2)
    assert admitted(second, "d", wanted, 102.1, 2)


@pytest.mark.parametrize("heard", [None, 3, 1, 0])
@pytest.mark.parametrize("rates", [Rates(concurrency=3), Rates(rpm=60, burst=3)])
def test_what_cannot_be_divided_is_given_once_among_several_machines(
    rates: Rates, heard: int | None
) -> None:
    wanted, found = granted(rates), 0
    for machine in range(2):
        memory = shared_memory(2)
        for slot in range(2):
            levels = Levels(memory, slot, 2)
            levels.counted(2 * slot + machine, 4)
            share = LocalShare(levels)
            if heard is not None:
                share.known[wanted[0].key] = heard, 100.0, 3
            found += sum(admitted(share, f"{n}", wanted, 100.0, levels.live) for n in range(4))
    assert found == (3 if heard is None else heard)


BUDGET = Rates(budgets=(Budget(1_000_000, "day"),))


def test_what_one_has_heard_the_others_go_by_unless_they_know_better() -> None:
    wanted = granted(BUDGET, microusd=100_000)
    memory = shared_memory(2)
    levels = [Levels(memory, place, 2) for place in range(2)]
    share = LocalShare(levels[1])
    levels[0].tell(wanted[0].key, 400_000, 100.0, 1_000_000)
    assert [admitted(share, name, wanted, 101.0, 2) for name in "abc"] == [True, True, False]
    other = LocalShare(Levels(memory, 0, 2))
    other.known[wanted[0].key] = 0, 100.5, 1_000_000
    assert not admitted(other, "a", granted(BUDGET, microusd=1), 101.0, 2)


def test_who_takes_a_place_goes_on_with_what_is_left_there_until_the_store_is_back() -> None:
    wanted = granted(BUDGET, microusd=300_000)
    memory = shared_memory(1)
    first = LocalShare(Levels(memory, 0, 1))
    assert [admitted(first, name, wanted, 100.0) for name in "ab"] == [True, True]
    second = LocalShare(Levels(memory, 0, 1))
    assert [admitted(second, name, wanted, 101.0) for name in "ab"] == [True, False]
    assert not admitted(first, "c", wanted, 101.5)  # it still serves, of the same
    first.give_back("a", {wanted[0].key: 0}, 100.0)
    assert admitted(second, "c", wanted, 102.0)
    assert not admitted(LocalShare(Levels(memory, 0, 1)), "a", wanted, 102.0)
    Levels(memory, 0, 1).told("", 102.5)
    # One that the store does not have all of yet goes on with what it has left itself.
    assert not admitted(second, "d", wanted, 103.0)
    assert admitted(LocalShare(Levels(memory, 0, 1)), "a", wanted, 103.0)


def test_slots_of_one_that_is_gone_are_free() -> None:
    wanted, memory = granted(Rates(concurrency=1)), shared_memory(1)
    assert admitted(LocalShare(Levels(memory, 0, 1)), "a", wanted, 100.0)
    assert admitted(LocalShare(Levels(memory, 0, 1)), "b", wanted, 101.0)


def test_what_two_have_taken_in_one_outage_neither_takes_again_in_the_next() -> None:
    wanted, more = granted(BUDGET, microusd=400_000), granted(BUDGET, microusd=1)
    memory = shared_memory(2)
    first, second = (LocalShare(Levels(memory, place, 2)) for place in range(2))
    assert admitted(first, "a", wanted, 100.0, 2)
    assert admitted(second, "a", wanted, 100.0, 2)
    # The second is back first, and hears what the store knows without the first.
    second.reset(2, 101.0)
    second.known[wanted[0].key] = 600_000, 101.5, 1_000_000
    Levels(memory, 1, 2).tell(wanted[0].key, 600_000, 101.5, 1_000_000)
    first.reset(2, 102.0)
    assert not admitted(first, "b", wanted, 110.0, 2)
    assert not admitted(second, "b", granted(BUDGET, microusd=100_001), 110.0, 2)
    fresh = LocalShare(Levels(memory, 0, 2))  # who takes the first one's place
    assert not admitted(fresh, "b", granted(BUDGET, microusd=100_001), 110.0, 2)
    assert admitted(fresh, "c", more, 110.0, 2)


@pytest.mark.parametrize("usd", [2_000_000, 700_000, 100_000])
@pytest.mark.parametrize("how", ["heard", "known", "left"])
def test_of_a_limit_that_is_changed_what_was_taken_stays_taken(how: str, usd: int) -> None:
    wanted, memory = granted(BUDGET, microusd=300_000), shared_memory(2)
    levels = Levels(memory, 0, 2)
    share = LocalShare(levels)
    key = wanted[0].key
    if how == "left":
        assert admitted(share, "a", wanted, 100.0, 2)
    elif how == "known":
        share.known[key] = 400_000, 100.0, 1_000_000
    else:
        levels.tell(key, 400_000, 100.0, 1_000_000)
    # 300,000 are gone of this one's half, or 600,000 of all.
    left = max(0, usd // 2 - 300_000)
    changed = Rates(budgets=(Budget(usd, "day"),))
    if left:
        assert admitted(share, "b", granted(changed, microusd=left), 101.0, 2)
    assert not admitted(share, "c", granted(changed, microusd=1), 101.0, 2)


def test_a_rate_in_shadow_says_what_it_would_have_refused() -> None:
    share = LocalShare()
    rates = Rates(tpm=10, shadow=("tpm",), budgets=(Budget(100, "day", True),))
    wanted = granted(rates, 10, 60)
    assert share.take("a", wanted, 1, 100.0).overdrawn == ()
    found = share.take("b", wanted, 1, 100.0)
    assert found.refused_by is None
    assert found.overdrawn == tuple(grant.limit for grant in wanted)
    share.give_back("b", {grant.key: 0 for grant in wanted}, 100.0)
    share.give_back("a", {grant.key: 0 for grant in wanted}, 100.0)
    assert share.take("c", wanted, 1, 100.0).overdrawn == ()
    assert share.take("d", wanted, 1, 100.0).overdrawn == found.overdrawn


@pytest.mark.parametrize("back", [True, False], ids=["reset", "not told all yet"])
def test_what_came_back_in_one_outage_is_not_given_again_in_the_next(back: bool) -> None:
    share, wanted = LocalShare(), granted(Rates(rpm=60))
    share.known[wanted[0].key] = 60, 100.0, 60
    assert admitted(share, "a", wanted, 100.0, 2)
    share.known[wanted[0].key] = 0, 150.0, 60  # the store has told: others have taken what was left
    if back:
        share.reset(2, 150.5)
    assert sum(admitted(share, f"{n}", wanted, 151.0, 2) for n in range(60)) <= 1


def test_what_was_heard_longest_ago_is_forgotten_first() -> None:
    share = LocalShare()
    for number in range(MAX_KNOWN):
        share.known[f"k{number}"] = 0, float(number), 1
    share.forget_some()
    assert len(share.known) == MAX_KNOWN // 2
    assert f"k{MAX_KNOWN - 1}" in share.known


def test_what_the_store_says_late_is_not_all_that_there_will_be() -> None:
    """What it counted as taken comes back here as well."""
    wanted = granted(Rates(concurrency=1))
    share = LocalShare(Levels(shared_memory(1), 0, 1))
    assert admitted(share, "a", wanted, 100.0)
    share.known[wanted[0].key] = 0, 100.1, 1  # with that one in it
    share.give_back("a", {wanted[0].key: 0}, 100.0)
    assert admitted(share, "b", wanted, 101.0)


def test_a_window_passes_though_the_store_is_away() -> None:
    wanted = granted(Rates(budgets=(Budget(1_000_000, "1m"),)), microusd=400_000)
    share = LocalShare(Levels(shared_memory(1), 0, 1))
    assert [admitted(share, name, wanted, 100.0) for name in "abc"] == [True, True, False]
    share.give_back("a", {wanted[0].key: 400_000}, 100.0)
    assert not admitted(share, "c", wanted, 150.0)
    assert not admitted(share, "c", wanted, 161.0)  # it was spent in a part of a window
    # What is under way counts in the next one too.
    assert [admitted(share, name, wanted, 162.0) for name in "cd"] == [True, False]


def test_a_window_gets_back_what_was_spent_when_a_whole_one_has_passed() -> None:
    wanted = granted(Rates(budgets=(Budget(1_000_000, "1m"),)), microusd=500_000)
    share = LocalShare(Levels(shared_memory(1), 0, 1))
    for name, now in (("a", 100.0), ("b", 159.0)):
        assert admitted(share, name, wanted, now)
        share.give_back(name, {wanted[0].key: 500_000}, now)
    assert [admitted(share, name, wanted, 162.5) for name in "cd"] == [True, False]
    share.give_back("c", {wanted[0].key: 100_000}, 163.0)  # of which some comes back at once
    assert not admitted(share, "d", wanted, 219.0)
    assert admitted(share, "d", wanted, 222.0)
    assert not admitted(share, "e", wanted, 222.0)


def test_a_slot_that_is_new_in_an_outage_has_nothing_of_what_was_divided_before() -> None:
    memory, wanted = shared_memory(3), granted(BUDGET, microusd=300_000)
    before = Levels(memory, 0, 1)
    first = LocalShare(before)
    assert admitted(first, "a", wanted, 100.0)
    before.debts.owe(100.0)
    new = Levels(memory, 1, 2, process=2)
    share = LocalShare(new)
    assert not admitted(share, "b", wanted, 101.0, 2)
    slots = granted(Rates(concurrency=2))
    assert admitted(share, "c", slots, 101.0, 2)
    rate = granted(Rates(rpm=60))
    assert not admitted(share, "d", rate, 101.0, 2)
    assert admitted(share, "e", rate, 103.1, 2)
    new.told("", 104.0)
    new.tell(wanted[0].key, 1_000_000, 104.0, 1_000_000)
    assert admitted(share, "b", wanted, 105.0, 2)


def test_what_another_noted_of_a_changed_limit_is_read_as_of_its_capacity() -> None:
    """A slot may have two processes, and they two configurations."""
    memory = shared_memory(1)
    old, new = (LocalShare(Levels(memory, 0, 1)) for _ in range(2))
    before = granted(Rates(budgets=(Budget(100, "day"),)), microusd=40)
    after = granted(Rates(budgets=(Budget(200, "day"),)), microusd=40)
    assert admitted(old, "a", before, 100.0)
    assert [admitted(new, name, after, 101.0) for name in "bc"] == [True, True]
    old.give_back("a", {before[0].key: 30}, 102.0)  # 110 are spent or held
    third = LocalShare(Levels(memory, 0, 1))
    assert [admitted(third, name, after, 103.0) for name in "def"] == [True, True, False]
