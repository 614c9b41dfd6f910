"""Whose turn it is among a provider's keys: by weight, and a resting one's only as the last."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.config.load import load
from gateway.core.errors import ConfigError
from gateway.core.operations import Operation
from gateway.pipeline.catalogue import Catalogue
from gateway.policy.pricing import PriceTable, Table
from gateway.policy.rotation import (
    LIMITED_SECONDS,
    LONGEST_SECONDS,
    REFUSED_SECONDS,
    Rotation,
    resting_seconds,
)
from workers.settings import verify

WEIGHTS = st.lists(st.integers(1, 20), min_size=1, max_size=6)


def turns(rotation: Rotation, count: int, now: float = 0.0) -> list[int]:
    return [rotation.order(now)[0] for _ in range(count)]


def test_turns_are_those_of_nginx() -> None:
    # The example of its change 1.3.1: {5, 1, 1} gives a a b a c a a.
    assert turns(Rotation([5, 1, 1]), 14) == [0, 0, 1, 0, 2, 0, 0] * 2
    assert turns(Rotation([1, 1, 1]), 6) == [0, 1, 2] * 2
    assert turns(Rotation([1, 3]), 400).count(0) == 100
    assert turns(Rotation([7]), 3) == [0, 0, 0]


@given(WEIGHTS, st.integers(0, 30))
def test_any_round_gives_each_key_its_weight(weights: list[int], skipped: int) -> None:
    rotation, total = Rotation(weights), sum(weights)
    before = turns(rotation, skipped)
    found = turns(rotation, total)
    assert [found.count(i) for i in range(len(weights))] == weights
    for count in range(skipped):  # and on the way there nobody is more than a turn ahead
        for i, weight in enumerate(weights):
            share = (count + 1) * weight / total
            assert abs(before[: count + 1].count(i) - share) < len(weights)


@given(WEIGHTS, st.data())
def test_an_order_has_every_key_once(weights: list[int], data: st.DataObject) -> None:
    rotation, now = Rotation(weights), 0.0
    until = [0.0] * len(weights)
    for _ in range(data.draw(st.integers(0, 20))):
        now += data.draw(st.floats(0, 30))
        if data.draw(st.booleans()):
            index = data.draw(st.integers(0, len(weights) - 1))
            seconds = data.draw(st.floats(0, 2 * LONGEST_SECONDS))
            rotation.rest(index, now, seconds)
            until[index] = max(until[index], now + min(seconds, LONGEST_SECONDS))
        order = rotation.order(now)
        assert sorted(order) == list(range(len(weights)))
        ready = [i for i in order if until[i] <= now]
        resting = order[len(ready) :]
        assert set(order[: len(ready)]) == set(ready)  # those that rest come last ...
        assert [until[i] for i in resting] == sorted(until[i] for i in resting)  # ... soonest first


class Shares(RuleBasedStateMachine):
    """Keys come and go; between that, those that are ready share the turns by weight."""

    @initialize(weights=st.lists(st.integers(1, 5), min_size=2, max_size=4))
    def start(self, weights: list[int]) -> None:
        self.weights, self.rotation, self.now = weights, Rotation(weights), 0.0
        self.until = [0.0] * len(weights)

    @rule(index=st.integers(0, 3), seconds=st.integers(1, 10))
    def rest(self, index: int, seconds: int) -> None:
        if index < len(self.weights):
            self.rotation.rest(index, self.now, seconds)
            self.until[index] = max(self.until[index], self.now + seconds)

    @rule(seconds=st.integers(1, 5))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def ask(self) -> None:
        self.rotation.order(self.now)

    @invariant()
    def the_ready_share_by_weight(self) -> None:
        ready = {i for i, until in enumerate(self.until) if until <= self.now}
        if not ready:
            return
        rounds = 6
        found = turns(self.rotation, rounds * sum(self.weights[i] for i in ready), self.now)
        for i in ready:  # a key that comes back is neither flooded nor starved
            assert abs(found.count(i) - rounds * self.weights[i]) <= len(self.weights)
        assert set(found) == ready


TestShares = Shares.TestCase
TestShares.settings = settings(max_examples=40)


def test_a_key_rests_so_long_and_no_longer() -> None:
    rotation = Rotation([1, 1])
    rotation.rest(0, 100.0, 10.0)
    rotation.rest(0, 101.0, 1.0)  # what is known already is not shortened
    assert turns(rotation, 4, 109.99) == [1] * 4
    assert set(turns(rotation, 2, 110.0)) == {0, 1}
    rotation.rest(1, 110.0, 1e12)
    assert turns(rotation, 4, 110 + LONGEST_SECONDS - 1) == [0] * 4
    assert set(turns(rotation, 2, 110 + LONGEST_SECONDS)) == {0, 1}


def test_when_all_rest_the_one_that_is_back_first_is_tried_first() -> None:
    rotation = Rotation([9, 1, 1])
    for index, seconds in enumerate((60, 10, 30)):
        rotation.rest(index, 0.0, seconds)
    assert rotation.order(1.0) == rotation.order(1.0) == [1, 2, 0]
    assert rotation.order(10.0) == [1, 2, 0]
    assert rotation.order(30.0)[2] == 0


@pytest.mark.parametrize(
    ("status", "retry_after", "seconds"),
    [
        *((401, None, REFUSED_SECONDS), (401, 1.0, REFUSED_SECONDS), (402, None, REFUSED_SECONDS)),
        *((403, None, REFUSED_SECONDS), (429, None, LIMITED_SECONDS), (429, 17.0, 17.0)),
        *((429, 0.0, 0.0), (0, None, None), (200, None, None), (400, None, None), (404, 5.0, None)),
        *((408, None, None), (500, None, None), (503, 30.0, None), (529, None, None)),
    ],
)
def test_only_what_is_the_keys_own_fault_lets_it_rest(
    status: int, retry_after: float | None, seconds: float | None
) -> None:
    assert resting_seconds(status, retry_after) == seconds


# --- Configuration -------------------------------------------------------------------------------


def written(tmp_path: Path, **fields: Any) -> Path:
    """A file whose second line begins the provider p, each field on a line of its own."""
    given = {"kind": "openai", **fields}
    lines = [f"    {name}: {json.dumps(value)}" for name, value in given.items()]
    path = tmp_path / "sluice.yaml"
    path.write_text("\n".join(["providers:", "  p:", *lines, ""]))
    return path


def keys_of(path: Path, environ: dict[str, str] | None = None) -> list[tuple[str, bytes]]:
    """Each key in the order of the configuration, with the head that presents it."""
    config = load(str(path), environ or {}).config
    served = Catalogue(config, PriceTable(Table("1", ())), "").resolve("p/m")
    assert served is not None
    (route,) = served.routes
    routes = route.others or (route,)
    assert [one.number for one in routes] == list(range(len(routes)))
    assert all(one.rotation is route.rotation for one in routes)
    return [(one.target.api_key or "", one.ways[Operation.CHAT].head) for one in routes]


def test_each_key_is_a_target_of_its_own(tmp_path: Path) -> None:
    keys = ["env:FIRST", {"key": "env:SECOND", "weight": 3}, "k3"]
    path = written(tmp_path, api_key="k0", api_keys=keys)
    found = keys_of(path, {"FIRST": "k1", "SECOND": "k2"})
    assert [key for key, _ in found] == ["k0", "k1", "k2", "k3"]
    for key, head in found:
        assert head.count(b"Authorization") == 1
        assert b"Authorization: Bearer %b\r\n" % key.encode() in head


def test_models_of_a_provider_share_the_turns_of_its_keys(tmp_path: Path) -> None:
    path = written(tmp_path, api_keys=["k1", "k2"])
    catalogue = Catalogue(load(str(path), {}).config, PriceTable(Table("1", ())), "")
    first, second = catalogue.resolve("p/a"), catalogue.resolve("p/b")
    assert first is not None
    assert second is not None
    assert first.routes[0].rotation is second.routes[0].rotation is not None


def test_one_key_in_a_list_is_a_key(tmp_path: Path) -> None:
    ((key, _),) = keys_of(written(tmp_path, api_keys=["k1"]))
    assert key == "k1"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({}, "2: providers.p: "),
    "no key": ({"api_keys": []}, "2: providers.p: "),
    "empty": ({"api_key": ""}, "2: providers.p: "),
    "a weight of nothing": (
        {"api_keys": ["k1", {"key": "k2", "weight": 0}]},
        "4: providers.p.api_keys[1].weight: ",
    ),
    "half a key": ({"api_keys": [{"key": "k1", "weight": 1.5}]}, "4: providers.p.api_keys[0]"),
    "a number": ({"api_keys": ["k1", 5]}, "4: providers.p.api_keys[1]: "),
    "no list": ({"api_keys": "k1"}, "4: providers.p.api_keys: "),
    "no key in it": ({"api_keys": [{"weight": 2}]}, "4: providers.p.api_keys[0]: "),
    "unknown": ({"api_keys": [{"key": "k", "wait": 2}]}, "4: providers.p.api_keys[0].wait: "),
    "unset": ({"api_keys": ["env:FIRST"]}, "4: providers.p.api_keys[0]: "),
    "two lines": ({"api_keys": ["k1", "secret\r\nX: y"]}, "4: providers.p.api_keys[1]: "),
    "end of line": ({"api_keys": ["k1", {"key": "secret\n"}]}, "4: providers.p.api_keys[1]: "),
    "beyond ASCII": ({"api_keys": ["secrét"]}, "4: providers.p.api_keys[0]: "),
    "zero": ({"api_key": "k1", "api_keys": ["secret\0"]}, "5: providers.p.api_keys[0]: "),
    "header of two lines": (
        {"api_key": "k", "headers": {"X": "secret\n"}},
        "5: providers.p.headers.X: ",
    ),
}
EMPTY: dict[str, dict[str, Any]] = {
    "one": {"api_keys": [""]},
    "beside another": {"api_keys": ["k1", ""]},
    "weighted": {"api_keys": ["k1", {"key": "", "weight": 2}]},
    "above others": {"api_key": "", "api_keys": ["k1"]},
    "signing too": {
        "kind": "bedrock",
        "region": "r",
        "api_key": "",
        "aws": {"access_key": "a", "secret_key": "b"},
    },
}


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        verify(load(str(path), {}), PriceTable(Table("1", ())))
    assert str(caught.value).startswith(f"{path}:")
    assert "secr" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}:")


@pytest.mark.parametrize(("fields", "place"), REFUSED.values(), ids=REFUSED)
def test_keys_that_cannot_be_used_are_refused_by_line_and_field(
    tmp_path: Path, fields: dict[str, Any], place: str
) -> None:
    assert refusal(written(tmp_path, **fields)).startswith(place)


@pytest.mark.parametrize("fields", EMPTY.values(), ids=EMPTY)
def test_an_empty_key_is_no_key(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert refusal(written(tmp_path, **fields))
