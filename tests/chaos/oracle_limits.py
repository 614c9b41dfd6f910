"""Limits of every scope that a seed makes, and whether what Redis has of them is what was used.

Each check gives what is wrong, in words; nothing where all is well.
"""

import copy
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

LIMIT_KEY = re.compile(
    r"sluice:limit:(?:gateway|\{(?P<tenant>.+?)\}:(?:tenant|key:(?P<key>.+?)))"
    r"(?::model:(?P<model>.+?))?:(?P<unit>rpm|tpm|concurrency|budget:(?P<per>\w+)).*$"
)
TARGET_KEY = "sluice:limit:{~targets}:"
COPIES_KEY = "sluice:limit:{~shadow}:"
PATTERNS = ("c*", "gemini")
VARIES = 2
Entry = dict[str, str]


def some(dice: random.Random, often: float = 1.0) -> dict[str, Any]:
    """Limits of one scope, some of them in shadow. `often`: how likely each is, of the usual."""
    found: dict[str, Any] = {}
    if dice.random() < 0.3 * often:
        found |= {"rpm": dice.choice([60, 300]), "burst": dice.choice([20, 60])}
    if dice.random() < 0.3 * often:
        found["tpm"] = dice.choice([20_000, 200_000])
    if dice.random() < 0.4 * often:
        found["concurrency"] = dice.choice([2, 4, 8])
    if dice.random() < 0.6 * often:
        usd = dice.choice(["0.02", "0.2", "5"])
        periods = dice.sample(["day", "month", "total", "90m"], dice.choice([1, 2]))
        watched = dice.random() < 0.2
        found["budget"] = [{"usd": usd, "per": per, "shadow": watched} for per in periods]
    watched_kinds = [kind for kind in ("rpm", "tpm", "concurrency") if kind in found]
    if watched_kinds and dice.random() < 0.2:
        found["shadow"] = [dice.choice(watched_kinds)]
    return found


def with_models(dice: random.Random, often: float = 1.0) -> dict[str, Any]:
    """Limits of one scope, and of models inside it."""
    found = some(dice, often)
    if dice.random() < 0.4 * often:
        found["per_model"] = {dice.choice(PATTERNS): some(dice, often)}
    return found


def varied(dice: random.Random, limits: dict[str, Any]) -> dict[str, Any]:
    """The same limits with other amounts: at most `VARIES` times as many, or as few."""
    found = copy.deepcopy(limits)
    for name in ("rpm", "burst", "tpm", "concurrency"):
        if name in found:
            found[name] = int(found[name] * dice.choice([1 / VARIES, 1, VARIES]))
    for one in found.get("budget", ()):
        one["usd"] = str(float(one["usd"]) * dice.choice([1 / VARIES, 1, VARIES]))
    for model, inner in found.get("per_model", {}).items():
        found["per_model"][model] = varied(dice, inner)
    return found


def refuses(limits: dict[str, Any]) -> bool:
    """Tell whether anything of a scope's limits may refuse a request."""
    watched = limits.get("shadow", ())
    budgets = [one for one in limits.get("budget", ()) if not one["shadow"]]
    kinds = [kind for kind in ("rpm", "tpm", "concurrency") if kind in limits]
    own = bool(budgets) or any(kind not in watched for kind in kinds)
    return own or any(refuses(inner) for inner in limits.get("per_model", {}).values())


@dataclass
class LimitState:
    """One limit as Redis has it. `whose`: its name there, without a calendar period's."""

    whose: str
    place: re.Match[str]
    found: dict[str, str]
    limits: dict[str, Any]

    @property
    def unit(self) -> str:
        """Of what it is: rpm, tpm, concurrency, budget."""
        return self.place["unit"].partition(":")[0]

    @property
    def watched(self) -> bool:
        """Tell whether it is in shadow."""
        if self.unit == "budget":
            per = self.place["per"]
            return any(b["shadow"] for b in self.limits["budget"] if b["per"] == per)
        return self.unit in self.limits.get("shadow", ())

    def counts(self, entry: Entry) -> bool:
        """Tell whether an entry's request is one that this limit is of."""
        if entry["outcome"] == "refused" or entry["tenant"].startswith("~"):
            return False
        model = self.place["model"]
        return (
            self.place["tenant"] in (None, entry["tenant"])
            and self.place["key"] in (None, entry["key"])
            and (model is None or fnmatchcase(entry["model"], model))
        )


class Limits:
    """All limits of a configuration, by scope."""

    def __init__(
        self,
        everybody: dict[str, Any],
        tenants: dict[str, dict[str, Any]],
        keys: dict[str, dict[str, Any]],
    ) -> None:
        self.everybody, self.tenants, self.keys = everybody, tenants, keys
        self.changed = 1  # how many times as much as now there may have been of a limit

    def change(self, dice: random.Random, configured: Set[str]) -> None:
        """Give all other amounts, but keys that are not configured."""
        self.everybody = varied(dice, self.everybody)
        self.tenants = {name: varied(dice, found) for name, found in self.tenants.items()}
        for name in configured & self.keys.keys():
            self.keys[name] = varied(dice, self.keys[name])
        self.changed = VARIES

    def of(self, tenant: str, key: str) -> Iterator[dict[str, Any]]:
        """The limits of every scope that a request of a key is in."""
        yield from (self.everybody, self.tenants.get(tenant, {}), self.keys.get(key, {}))

    def wrong(
        self, states: dict[str, dict[str, str]], entries: list[Entry], seconds: float
    ) -> Iterator[str]:
        """Compare the limits' hashes with the entries of requests that took so many seconds."""
        spent: dict[str, list[LimitState]] = defaultdict(list)
        for name, found in states.items():
            if int(found.get("in_use", 0)) or int(found.get("reserved", 0)):
                yield f"taken at rest: {name} {found}"
            if name.startswith(TARGET_KEY):
                continue
            if name.startswith(COPIES_KEY):
                if int(found["spent"]) > int(found["capacity"]):
                    yield f"overspent: {name} {found}"
                continue
            one = self._state(name, found)
            if one is None:
                yield f"a limit that nobody configured: {name}"
                continue
            mine = [entry for entry in entries if one.counts(entry)]
            wrong = _rate_is_wrong(one, mine, seconds, self.changed)
            yield from (f"{what}: {name} {found}" for what in wrong)
            if one.unit == "budget":
                spent[one.whose].append(one)
                most = int(found["capacity"]) * self.changed
                if int(found["spent"]) > most and not one.watched:
                    yield f"overspent: {name} {found}"
        for whose, periods in spent.items():
            total = sum(
                int(entry["cost_microusd"]) for entry in entries if periods[0].counts(entry)
            )
            if (said := sum(int(one.found["spent"]) for one in periods)) != total:
                yield f"{whose} says {said}, what was spent is {total}"

    def _state(self, name: str, found: dict[str, str]) -> LimitState | None:
        place = LIMIT_KEY.match(name)
        if place is None:
            return None
        limits = self.everybody
        if place["tenant"]:
            limits = self.tenants.get(place["tenant"], {})
        if place["key"]:
            limits = self.keys.get(place["key"], {})
        if place["model"]:
            limits = limits.get("per_model", {}).get(place["model"], {})
        whose = name[: place.end("unit")]
        one = LimitState(whose, place, found, limits)
        return one if one.unit in limits else None


def _rate_is_wrong(
    one: LimitState, mine: list[Entry], seconds: float, changed: int
) -> Iterator[str]:
    # What a killed worker had taken of a rate beyond its record comes back as time passes.
    lost = any(entry["outcome"] == "aborted" for entry in mine)
    if one.unit == "tpm" and not lost and changed == 1:
        used = sum(int(e["prompt_tokens"]) + int(e["completion_tokens"]) for e in mine)
        if int(one.found["level"]) < int(one.found["capacity"]) - used - 1:
            yield f"tokens are lost, used {used}"
    elif one.unit == "rpm" and not one.watched:
        refilled = int(one.found["refill"]) * (seconds + 1) / 60
        if len(mine) > (int(one.found["capacity"]) + refilled) * changed + 1:
            yield f"{len(mine)} requests let in, in {seconds} s"
