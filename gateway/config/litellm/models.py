"""LiteLLM's model groups as models of ours: ranks, fallbacks, aliases, wildcards."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from math import gcd, inf
from typing import Any

import msgspec

from gateway.config.litellm.bounds import LIMITS, Bounds, pooled, widest
from gateway.config.litellm.deployments import Deployment
from gateway.config.litellm.names import Providers
from gateway.config.litellm.prefixes import ROWS
from gateway.config.litellm.source import Note

Target = dict[str, Any]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # schema.Name
_ANYTHING = "*"

_TWICE = "the same target as that of an earlier deployment: it is asked once"
_OVERLAP = "a name that two patterns cover is known to neither: clients put provider/ before it"


class Models:
    """The models as they come together.

    `strategy` spreads requests over targets of one rank; `drops`: fields that fit no provider are
    left out.
    """

    def __init__(self, notes: list[Note], strategy: str, *, drops: bool) -> None:
        self._notes, self._strategy, self._drops = notes, strategy, drops
        self.providers = Providers()
        self.models: dict[str, dict[str, Any]] = {}
        self._groups: dict[str, list[Target]] = {}
        self._by_id: dict[str, list[Target]] = {}
        self._aliases: dict[str, str] = {}
        self._open: set[str] = set()  # providers whose every model could be named

    def add(self, deployments: Iterable[Deployment]) -> None:
        """Add what model_list has, wildcards first: their names are those that clients know."""
        groups: dict[str, list[Deployment]] = {}
        for one in deployments:
            groups.setdefault(one.name, []).append(one)
        for name in sorted(groups, key=lambda name: _ANYTHING not in name):
            if _ANYTHING in name:
                self._add_wildcard(name, self._pooled(groups[name]))
            else:
                self._add_group(name, groups[name])

    def add_alias(self, alias: str, group: str, field: str) -> None:
        """Let a further name stand for a group."""
        targets = self._resolve(group)
        if targets is None:
            self._lose(field, "no model has that name")
            return
        if alias in self.models:
            self._say(field, "a model has this name too: the alias takes its place")
        self._aliases[alias] = group
        self._groups[alias] = targets
        self.models[alias] = dict(self.models.get(group, {}))

    def add_fallbacks(
        self, wanted: Mapping[str, list[tuple[str, str]]], default: list[tuple[str, str]]
    ) -> None:
        """Put the targets of other groups (name and place in the source) behind a group's own."""
        self._name_groups(wanted)
        known = {place: self._resolve(name) for name, place in _all(wanted, default)}
        for place, targets in known.items():
            if targets is None:
                self._lose(place, "no model has that name")
        grown = {}
        for name, own in self._groups.items():
            chosen = wanted.get(name) or wanted.get(self._aliases.get(name, "")) or default
            grown[name] = _followed(own, [known[place] or [] for _, place in chosen])
        self._groups = grown

    def add_instead(
        self,
        kind: str,
        wanted: Mapping[str, list[tuple[str, str]]],
        default: list[tuple[str, str]],
    ) -> None:
        """Name the models that get what a group's providers refuse (`fallbacks` of a model)."""
        self._name_groups(wanted)
        usable = {place for name, place in _all(wanted, default) if self._is_model(name, place)}
        for group, fields in self.models.items():
            own = self._aliases.get(group, group)
            chosen = wanted.get(group) or wanted.get(own) or default
            others = [name for name, place in chosen if place in usable]
            names = [name for name in others if self._aliases.get(name, name) != own]
            if names:
                instead = {**fields.get("fallbacks", {}), kind: list(dict.fromkeys(names))}
                self.models[group] = {**fields, "fallbacks": instead}

    def result(self) -> dict[str, Any]:
        """Return the providers and models sections."""
        self._close_claims()
        found = {}
        for name, fields in self.models.items():
            targets = _reduced(self._groups[name])
            shared = len({target["priority"] for target in targets}) < len(targets)
            spread = {"strategy": self._strategy} if shared else {}
            short = [_short(name, target) for target in targets]
            found[name] = {**spread, "targets": short, **fields}
        return {"providers": self.providers.entries, "models": found}

    def _name_groups(self, wanted: Mapping[str, list[tuple[str, str]]]) -> None:
        """Make models of groups that only a wildcard reaches, and that others follow."""
        for name, names in wanted.items():
            if name in self._groups:
                continue
            targets = self._resolve(name)
            if targets is None:
                self._lose(names[0][1], "no model has the name it is for")
            else:
                self._groups[name], self.models[name] = targets, {}

    def _is_model(self, name: str, place: str) -> bool:
        """Tell whether clients could name it; what they cannot is noted."""
        if name in self.models or (name not in self._by_id and self._resolve(name) is not None):
            return True
        known = name in self._by_id
        self._lose(
            place, "it is a deployment's id, no model's name" if known else "no model has that name"
        )
        return False

    def _say(self, field: str, text: str) -> None:
        self._notes.append(Note(field, text))

    def _lose(self, field: str, why: str) -> None:
        self._say(field, f"not carried over: {why}")

    def _add_group(self, name: str, deployments: list[Deployment]) -> None:
        deployments = _sized(deployments)
        for one in deployments:
            self._notes.extend(one.bounds.notes(one.field))
        joined = self._pooled(deployments)
        ranks = _ranks(joined)
        targets: list[Target] = []
        for one, rank in sorted(zip(joined, ranks, strict=True), key=lambda pair: pair[1]):
            target: Target = {
                "provider": self.providers.name(one.reached),
                "model": one.reached.model,
                "priority": rank,
                "weight": max(1, one.weight or 0),
                **one.bounds.fields(),
            }
            if one.price is not None:
                target["price"] = one.price
            targets.append(target)
            self._by_id |= {id: [{**target, "priority": 1}] for id in one.ids}
        self._groups[name] = targets
        self.models[name] = self._fields(deployments)

    def _fields(self, deployments: list[Deployment]) -> dict[str, Any]:
        """Return what holds for a model whatever its target."""
        found: dict[str, Any] = {}
        bounds = [one.max_output for one in deployments if one.max_output is not None]
        if bounds:
            found["max_output_tokens"] = bounds[0]
        drops = [self._drops if one.drops is None else one.drops for one in deployments]
        if len(set(drops)) > 1:
            self._lose(
                f"{deployments[0].field}.litellm_params.drop_params",
                "it holds for all targets of a model or for none",
            )
        elif drops[0] is not self._drops:
            found["unsupported"] = "drop" if drops[0] else "refuse"
        return found

    def _add_wildcard(self, name: str, deployments: list[Deployment]) -> None:
        """Name a provider as clients name it before the slash, or let it claim bare names."""
        one, *others = deployments
        for other in others:
            self._lose(other.field, "a provider alone answers for a pattern of names")
        if one.price is not None:
            self._lose(one.field, "a price is of a model: those of a pattern have their list price")
        if one.bounds != Bounds():
            self._lose(
                one.field, "limits, tags and sizes are of a model's targets: not of a pattern's"
            )
        prefix, slash, rest = name.partition("/")
        model = one.reached.model
        if slash and rest == model and _NAME.fullmatch(prefix):
            reserved = self.providers.reserve(prefix, one.reached.entry)
            if not reserved:
                self._lose(one.field, f"another provider is named {prefix} already")
                return
            self._open.add(prefix)
            if rest != _ANYTHING:
                self._say(one.field, f"wider here: {prefix}/ANYTHING reaches the provider")
        elif name == model and not set("?[") & set(name):
            self._claim(name, one)
        else:
            self._lose(one.field, "a pattern cannot change what is asked of the provider")

    def _claim(self, pattern: str, one: Deployment) -> None:
        """Let a provider answer for bare names."""
        name = self.providers.name(one.reached)
        entry = self.providers.entries[name]
        claims = [entry.get("models", []) for entry in self.providers.entries.values()]
        if any(claims) and (pattern == _ANYTHING or [_ANYTHING] in claims):
            self._say(one.field, _OVERLAP)
        entry["models"] = [*entry.get("models", ()), pattern]
        self._open.add(name)

    def _close_claims(self) -> None:
        """Let no provider claim bare names that LiteLLM gives to another: two owners are none.

        They go to the wildcard of the prefix that they are guessed to have, or to that of all.
        """
        entries = self.providers.entries
        everything = any(_ANYTHING in entry.get("models", ()) for entry in entries.values())
        guessed = {ROWS[name].kind: name for name in self._open if name in ROWS}
        for name, entry in entries.items():
            if everything or guessed.get(entry["kind"], name) != name:
                entry.setdefault("models", [])

    def _resolve(self, name: str) -> list[Target] | None:
        """Return the targets of a group, of a deployment's id, or of what a wildcard covers."""
        found = self._groups.get(name) or self._by_id.get(name)
        if found is not None:
            return found
        provider, slash, model = name.partition("/")
        if slash and model and provider in self._open and _ANYTHING not in model:
            return [{"provider": provider, "model": model, "priority": 1, "weight": 1}]
        return None

    def _pooled(self, deployments: list[Deployment]) -> list[Deployment]:
        """Join deployments that differ in nothing but the key: a provider's keys take turns."""
        pools: dict[str, list[Deployment]] = {}
        for one in self._weighed(deployments):
            entry = {k: v for k, v in one.reached.entry.items() if k != "api_key"}
            keyed = "api_key" in one.reached.entry
            alike = (one.bounds.tags, one.bounds.max_input)
            parts = [entry, keyed, one.reached.model, one.price, one.order, alike]
            pools.setdefault(json.dumps(parts), []).append(one)
        return [self._pool(pool) for pool in pools.values()]

    def _weighed(self, deployments: list[Deployment]) -> list[Deployment]:
        """Return them with their shares: LiteLLM goes by what the first one has of three."""
        measures = range(3) if self._strategy == "weighted" else ()
        each = [(one.weight, one.bounds.rpm, one.bounds.tpm) for one in deployments]
        by = next((measure for measure in measures if each[0][measure] is not None), None)
        shares = [1 if by is None else one[by] or 0 for one in each]
        return [
            msgspec.structs.replace(one, weight=share)
            for one, share in zip(deployments, shares, strict=True)
        ]

    def _pool(self, pool: list[Deployment]) -> Deployment:
        weights: dict[str | None, int] = {}
        for one in pool:
            key = one.reached.entry.get("api_key")
            if key in weights:
                self._say(one.field, _TWICE)
            weights[key] = weights.get(key, 0) + (one.weight or 0)
        ids = tuple(id for one in pool for id in one.ids)
        bounds = self._joined(pool)
        first = msgspec.structs.replace(
            pool[0], weight=sum(weights.values()), ids=ids, bounds=bounds
        )
        if len(weights) == 1:
            return first
        common = gcd(*weights.values()) or 1
        keys: list[Any] = list(weights)
        if len(set(weights.values())) > 1:
            keys = [{"key": k, "weight": max(1, weight // common)} for k, weight in weights.items()]
        entry = {
            ("api_keys" if name == "api_key" else name): keys if name == "api_key" else value
            for name, value in first.reached.entry.items()
        }
        reached = msgspec.structs.replace(first.reached, entry=entry)
        return msgspec.structs.replace(first, reached=reached)

    def _joined(self, pool: list[Deployment]) -> Bounds:
        """Return the bounds of a target that has several deployments' keys."""
        found = pooled([one.bounds for one in pool])
        for name, theirs in LIMITS.items():
            limited = [one for one in pool if getattr(one.bounds, name) is not None]
            place = f"{limited[0].field}.litellm_params.{theirs}" if limited else ""
            if limited and getattr(found, name) is None:
                self._lose(place, f"its provider has keys without one: {name} is of the target")
            elif len(limited) > 1:
                self._say(place, f"{name} is of the target: the sum of its keys'")
        return found


def _sized(deployments: list[Deployment]) -> list[Deployment]:
    """Return them with the sizes of prompts that tell them apart."""
    bounds = widest([one.bounds for one in deployments])
    return [
        msgspec.structs.replace(one, bounds=own)
        for one, own in zip(deployments, bounds, strict=True)
    ]


def _all(
    wanted: Mapping[str, list[tuple[str, str]]], default: list[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    for names in wanted.values():
        yield from names
    yield from default


def _followed(own: list[Target], others: list[list[Target]]) -> list[Target]:
    """Return a group's targets and, behind all of them, those of others that are new."""
    found = list(own)
    known = [_identity(one) for one in own]
    for targets in others:
        last = max((one["priority"] for one in found), default=0)
        for one in targets:
            if (identity := _identity(one)) not in known:
                known.append(identity)
                found.append({**one, "priority": last + one["priority"]})
    return found


def _identity(target: Target) -> tuple[Any, ...]:
    return tuple(target.get(field) for field in ("provider", "model", "tags", "when"))


def _short(name: str, target: Target) -> Target:
    """Return a target without what goes without saying."""
    return {
        field: value
        for field, value in target.items()
        if (field, value) not in (("model", name), ("priority", 1), ("weight", 1))
    }


def _reduced(targets: list[Target]) -> list[Target]:
    """Return targets with the smallest weights that say the same; one alone needs none."""
    ranks: dict[int, list[int]] = {}
    for target in targets:
        ranks.setdefault(target["priority"], []).append(target["weight"])
    common = {rank: gcd(*weights) for rank, weights in ranks.items()}
    return [
        {**target, "weight": target["weight"] // common[target["priority"]]} for target in targets
    ]


def _ranks(deployments: list[Deployment]) -> list[int]:
    """Return the priority of each: by order, none last; what has no share stands by."""
    places = [(inf if one.order is None else one.order, not one.weight) for one in deployments]
    known = sorted(set(places))
    return [known.index(place) + 1 for place in places]
