"""Conditions, tags, canaries and sessions: which targets a request may go to."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct, field

from gateway.policy.breaker import Breaker, Rules
from gateway.policy.routing import TargetState, plan
from gateway.policy.selection import Conditions, Facts, choose, draw, fits, share_of

PLAIN = Facts(100, tools=False, images=False, stream=False, labels=("team=a", "env=x"))


class Target(Struct, frozen=True):
    """A target as far as selection is concerned."""

    name: str
    conditions: Conditions | None = None
    tags: frozenset[str] = frozenset()
    canary: float | None = None
    priority: int = 1
    weight: int = 1
    unit_price: float = 1.0
    state: TargetState = field(default_factory=lambda: TargetState(Breaker(Rules(), lambda: 0.5)))


@pytest.mark.parametrize(
    ("conditions", "taken"),
    [
        (Conditions(), True),
        (Conditions(min_tokens=100, max_tokens=100), True),
        (Conditions(min_tokens=101), False),
        (Conditions(max_tokens=99), False),
        (Conditions(tools=False, images=False, stream=False), True),
        (Conditions(tools=True), False),
        (Conditions(images=True), False),
        (Conditions(stream=True), False),
        (Conditions(labels=("team=a",)), True),
        (Conditions(labels=("team=a", "env=x")), True),
        (Conditions(labels=("team=a", "env=y")), False),
        (Conditions(labels=("team=b",)), False),
    ],
)
def test_conditions_hold_all_together(conditions: Conditions, *, taken: bool) -> None:
    assert fits(conditions, PLAIN) is taken


def test_tags_must_all_be_there() -> None:
    both, one, none = Target("both", tags=frozenset("ab")), Target("one", tags=frozenset("a")), None
    targets = (both, one, Target("none"))
    for asked, expected in (("", 3), ("a", 2), ("ab", 1), ("c", 0)):
        facts = Facts(1, False, False, False, tags=frozenset(asked))
        assert (none, expected) == (None, len(choose(targets, facts, 0.5)[1]))


@given(st.lists(st.floats(0.5, 30), min_size=1, max_size=3), st.floats(0, 0.9999))
def test_each_share_has_one_canary_or_none(percents: list[float], share: float) -> None:
    canaries = tuple(Target(f"c{i}", canary=p) for i, p in enumerate(percents))
    chosen, ordinary = choose((Target("plain"), *canaries), PLAIN, share)
    assert [one.name for one in ordinary] == ["plain"]
    edges = [sum(percents[: i + 1]) / 100 for i in range(len(percents))]
    expected = next((i for i, edge in enumerate(edges) if share < edge), None)
    assert (chosen.name if chosen else None) == (f"c{expected}" if expected is not None else None)


def test_a_canary_that_takes_no_such_request_leaves_its_part_to_the_ordinary() -> None:
    tools = Conditions(tools=True)
    targets = (
        Target("plain"),
        Target("c0", canary=50, conditions=tools),
        Target("c1", canary=50),
    )
    assert choose(targets, PLAIN, 0.2) == (None, (targets[0],))
    assert choose(targets, PLAIN, 0.7) == (targets[2], (targets[0],))


def test_shares_are_spread_evenly_and_stay() -> None:
    shares = [share_of(f"user-{i}".encode(), "model") for i in range(20_000)]
    assert sum(share < 0.05 for share in shares) == pytest.approx(1000, abs=120)
    assert shares[7] == share_of(b"user-7", "model") != share_of(b"user-7", "other")


def placed(targets: tuple[Target, ...], users: int = 5000) -> list[str]:
    planned = [
        plan(targets, "weighted", 1.0, Random(i).random, pin=f"u{i}".encode()) for i in range(users)
    ]
    return [order[0].name for order in planned]


def test_a_session_stays_with_its_target_and_weights_are_kept() -> None:
    targets = tuple(Target(f"t{i}", weight=w) for i, w in enumerate((1, 1, 2)))
    before = placed(targets)
    assert before == placed(targets)
    counted = Counter(before)
    assert counted["t2"] == pytest.approx(2500, abs=150)
    targets[1].state.breaker.eject(1.0, 100)
    after = placed(targets)
    moved = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert {before[i] for i in moved} == {"t1"}  # nobody else has lost a cache
    assert len(moved) == counted["t1"]


@given(st.binary(), st.text())
def test_a_draw_is_between_0_and_1(identity: bytes, name: str) -> None:
    assert 0 <= draw(identity, name) < 1
