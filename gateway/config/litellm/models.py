"""LiteLLM's model groups as models of ours: ranks, fallbacks, aliases, wildcards."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import chain
from math import gcd, inf
from typing import Any

from gateway.config.litellm.bounds import Bounds, notes_of
from gateway.config.litellm.claims import Pattern, divided, meet_any
from gateway.config.litellm.deployments import Deployment
from gateway.config.litellm.names import Providers
from gateway.config.litellm.pools import joined, pools_of, sized
from gateway.config.litellm.prefixes import GUESSED, ROWS
from gateway.config.litellm.source import Note
from gateway.core.patterns import covers
from gateway.providers import PROVIDERS

Target = dict[str, Any]
# A name and where it stands in the source.
Place = tuple[str, str]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # schema.Name
_ANYTHING = "*"

_OVERLAP = "a name that two patterns cover is known to neither: clients put provider/ before it"
_NO_MODEL = "no model has that name"
_NOT_BEHIND_PATTERNS = (
    "not carried over for names that only a pattern of model_list covers: write a model for each"
)
_MAX_OUTPUT = (
    "carried over as max_output_tokens: reserved where a request sets no maximum, and sent only to "
    "providers that demand one"
)
_NOT_ITS_MAX = "carried over; max_output_tokens is that of the model it follows, not its own"


class Models:
    """The models as they come together.

    `strategy` spreads requests over targets of one rank.
    """

    def __init__(self, notes: list[Note], strategy: str) -> None:
        self._notes, self._strategy = notes, strategy
        self.providers = Providers()
        self.models: dict[str, dict[str, Any]] = {}
        self._groups: dict[str, list[Target]] = {}
        self._by_id: dict[str, list[Target]] = {}
        self._group_of: dict[str, str] = {}  # by id
        self._aliases: dict[str, str] = {}
        self._open: set[str] = set()  # providers whose every model could be named
        self._prefixes: set[str] = set()  # those of them that a wildcard's prefix names
        self._patterns: list[Pattern] = []

    def add(self, deployments: Iterable[Deployment]) -> None:
        """Add what model_list has, wildcards first: their prefixes are those that clients know."""
        groups: dict[str, list[Deployment]] = {}
        for one in deployments:
            groups.setdefault(one.name, []).append(one)
        for name in sorted(groups, key=lambda name: (_ANYTHING not in name, "/" not in name)):
            if _ANYTHING in name:
                self._add_wildcard(name, groups[name])
            else:
                self._add_group(name, groups[name])
        self._close_claims()

    def add_alias(self, alias: str, group: str, field: str) -> None:
        """Let a further name stand for a group."""
        targets = self._resolve(group)
        if targets is None:
            self._lose(field, self._unknown(group))
            return
        if alias in self.models:
            self._say(field, "a model has this name too: the alias takes its place")
        self._aliases[alias] = group
        self._groups[alias] = targets
        self.models[alias] = dict(self.models.get(group, {}))

    def add_fallbacks(
        self, wanted: Mapping[str, list[Place]], default: list[Place], deepest: int
    ) -> None:
        """Put the targets of other groups behind a group's own, and of those that follow them."""

        def followers(name: str) -> list[Place]:
            keys = (name, self._aliases.get(name, name), _without_prefix(name))
            return next((wanted[key] for key in keys if key in wanted), default)

        self._name_groups(wanted, prefixed=True)
        known = {}
        for name, place in _all(wanted, default):
            known[place] = self._resolve(name)
            if known[place] is None:
                self._lose(place, self._unknown(name))
        self._lose_of_patterns(place for _, place in default if known[place] is not None)
        grown, stays = {}, dict[str, None]()
        for name, own in self._groups.items():
            chosen = list(_chain(name, followers, deepest))
            grown[name] = _followed(own, [known[place] or [] for _, place in chosen])
            for other, place in chosen:
                if known[place] and self._longest(other) != self._longest(name):
                    stays.setdefault(place)
        self._groups = grown
        for place in stays:
            self._say(place, _NOT_ITS_MAX)

    def add_instead(
        self,
        kind: str,
        wanted: Mapping[str, list[Place]],
        default: list[Place],
    ) -> None:
        """Name the models that get what a group's providers refuse (`fallbacks` of a model)."""
        self._name_groups(wanted)
        usable = {place for name, place in _all(wanted, default) if self._is_model(name, place)}
        self._lose_of_patterns(place for _, place in default if place in usable)
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
        found = {}
        for name, fields in self.models.items():
            targets = _reduced(self._groups[name])
            shared = len({target["priority"] for target in targets}) < len(targets)
            spread = {"strategy": self._strategy} if shared else {}
            short = [_short(name, target) for target in targets]
            found[name] = {**spread, "targets": short, **fields}
        return {"providers": self.providers.entries, "models": found}

    def _longest(self, name: str) -> int | None:
        """Return the max_output_tokens of a model, or of the one that a deployment's id is in."""
        group = name if name in self.models else self._group_of.get(name, "")
        found: int | None = self.models.get(group, {}).get("max_output_tokens")
        return found

    def _name_groups(self, wanted: Mapping[str, list[Place]], *, prefixed: bool = False) -> None:
        """Make models of groups that only a wildcard reaches, and that others follow.

        `prefixed`: a bare name is that of `prefix/name` too.
        """
        for name, names in wanted.items():
            for one in (name, *(self._under_prefixes(name) if prefixed else ())):
                if one not in self._groups and (targets := self._resolve(one)) is not None:
                    self._groups[one], self.models[one] = targets, {}
            known = {_without_prefix(group) for group in self._groups} if prefixed else set()
            if name not in self._groups and name not in known:
                self._lose(names[0][1], self._unknown(name, "no model has the name it is for"))

    def _under_prefixes(self, name: str) -> Iterator[str]:
        """Yield `prefix/name` for the wildcards whose providers may have a model of that name."""
        for prefix in self.providers.entries if name.partition("/")[0] not in self._open else ():
            claims = PROVIDERS[self.providers.entries[prefix]["kind"]].claims
            has_it = not claims or any(fnmatchcase(name, pattern) for pattern in claims)
            if prefix in self._prefixes and prefix in ROWS and has_it:
                yield f"{prefix}/{name}"

    def _lose_of_patterns(self, places: Iterable[str]) -> None:
        """Say that what follows every model does not follow those that a pattern alone covers."""
        for place in places if self._open else ():
            self._say(place, _NOT_BEHIND_PATTERNS)

    def _is_model(self, name: str, place: str) -> bool:
        """Tell whether clients could name it; what they cannot is noted."""
        if name in self.models or (name not in self._by_id and self._resolve(name) is not None):
            return True
        known = name in self._by_id
        self._lose(
            place, "it is a deployment's id, no model's name" if known else self._unknown(name)
        )
        return False

    def _say(self, field: str, text: str) -> None:
        self._notes.append(Note(field, text))

    def _lose(self, field: str, why: str) -> None:
        self._say(field, f"not carried over: {why}")

    def _add_group(self, name: str, deployments: list[Deployment]) -> None:
        pools = pools_of(sized(deployments), self._strategy)
        for pool in pools:
            self._notes.extend(notes_of([(one.field, one.bounds) for one in pool]))
        group = [joined(pool, self._notes) for pool in pools]
        ranks = _ranks(group)
        targets: list[Target] = []
        for one, rank in sorted(zip(group, ranks, strict=True), key=lambda pair: pair[1]):
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
            self._group_of |= dict.fromkeys(one.ids, name)
        self._groups[name] = targets
        self.models[name] = self._fields(deployments)

    def _fields(self, deployments: list[Deployment]) -> dict[str, Any]:
        """Return what holds for a model whatever its target."""
        found: dict[str, Any] = {}
        bounds = [(one.field, *one.max_output) for one in deployments if one.max_output]
        for field, name, tokens in bounds:
            most = found.setdefault("max_output_tokens", tokens)
            lost = "not carried over: another deployment's holds for all of the model"
            self._say(f"{field}.litellm_params.{name}", _MAX_OUTPUT if tokens == most else lost)
        return found

    def _add_wildcard(self, name: str, deployments: list[Deployment]) -> None:
        """Name a provider as clients name it before the slash, or let it claim bare names."""
        pool, *others = pools_of(deployments, self._strategy)
        for other in chain(*others):
            self._lose(other.field, "a provider alone answers for a pattern of names")
        for own in pool:
            self._lose_of_models(own)
        one = joined(pool, self._notes)
        prefix, slash, rest = name.partition("/")
        model = one.reached.model
        if slash and rest == model and _NAME.fullmatch(prefix):
            reserved = self.providers.reserve(prefix, one.reached.entry)
            if not reserved:
                self._lose(one.field, f"another provider is named {prefix} already")
                return
            self._open.add(prefix)
            self._prefixes.add(prefix)
            if rest != _ANYTHING:
                self._say(one.field, f"wider here: {prefix}/ANYTHING reaches the provider")
        elif name == model and not set("?[") & set(name):
            self._claim(name, one)
        else:
            self._lose(one.field, "a pattern cannot change what is asked of the provider")

    def _lose_of_models(self, one: Deployment) -> None:
        """Say what a deployment has that a provider has not."""
        if one.price is not None:
            self._lose(one.field, "a price is of a model: those of a pattern have their list price")
        if one.bounds != Bounds():
            self._lose(
                one.field, "limits, tags and sizes are of a model's targets: not of a pattern's"
            )
        if one.max_output is not None:
            place = f"{one.field}.litellm_params.{one.max_output[0]}"
            self._lose(place, "max_output_tokens is of a model: not of a pattern's")

    def _claim(self, pattern: str, one: Deployment) -> None:
        """Let a provider answer for bare names."""
        name = self.providers.name(one.reached)
        self._patterns.append(Pattern(pattern, name, one.field))
        self._open.add(name)

    def _close_claims(self) -> None:
        """Let each bare name have the provider that LiteLLM gives it to: two owners are none.

        Where no pattern has it, that is the wildcard of the prefix that it is guessed to have.
        """
        entries = self.providers.entries
        guessed = {name: GUESSED[name] for name in entries if name in self._prefixes & set(GUESSED)}
        claims, unclear = divided(self._patterns, guessed)
        for pattern in unclear:
            self._say(pattern.field, _OVERLAP)
        given = [pattern for found in claims.values() for pattern in found]
        named = {ROWS[name].kind: name for name in self._prefixes if name in ROWS}
        for name, entry in entries.items():
            own = PROVIDERS[entry["kind"]].claims
            if name in claims:
                if tuple(claims[name]) != own:
                    entry["models"] = claims[name]
            elif named.get(entry["kind"], name) != name or meet_any(own, given):
                entry["models"] = []

    def _resolve(self, name: str) -> list[Target] | None:
        """Return the targets of a group, of a deployment's id, or of what a wildcard covers."""
        found = self._groups.get(name) or self._by_id.get(name)
        if found is not None:
            return found
        if _ANYTHING in name or not name.isprintable():
            return None
        provider, slash, model = name.partition("/")
        if not (slash and model and provider in self._open):
            owners = self._owners(name)
            provider, model = owners[0] if len(owners) == 1 else "", name
        if provider not in self._open:
            return None
        return [{"provider": provider, "model": model, "priority": 1, "weight": 1}]

    def _owners(self, name: str) -> list[str]:
        """Return the providers that claim a bare name: of several none answers for it."""
        return [
            provider
            for provider, entry in self.providers.entries.items()
            if any(
                covers(pattern, name)
                for pattern in entry.get("models", PROVIDERS[entry["kind"]].claims)
            )
        ]

    def _unknown(self, name: str, said: str = _NO_MODEL) -> str:
        """Say why a name has no targets."""
        return _OVERLAP if len(self._owners(name)) > 1 else said


def _all(wanted: Mapping[str, list[Place]], default: list[Place]) -> Iterator[Place]:
    for names in wanted.values():
        yield from names
    yield from default


def _without_prefix(name: str) -> str:
    """Return the bare name of `prefix/name`, by which LiteLLM finds its fallbacks too."""
    prefix, _, rest = name.partition("/")
    return rest if prefix in ROWS else name


def _chain(group: str, followers: Callable[[str], list[Place]], deepest: int) -> Iterator[Place]:
    """Yield what follows a group in LiteLLM's order, each name once: a fallback's own come next.

    The fallbacks of the one that is number `deepest` on its way are not followed.
    """
    seen = {group}

    def behind(name: str, depth: int) -> Iterator[Place]:
        others = [one for one in followers(name) if one[0] != name] if depth < deepest else []
        for number, (other, place) in enumerate(others, depth + 1):
            if other not in seen:
                seen.add(other)
                yield other, place
                yield from behind(other, number)

    return behind(group, 0)


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


def _identity(target: Target) -> Target:
    """Return what tells targets apart, wherever they stand."""
    return {field: value for field, value in target.items() if field not in ("priority", "weight")}


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
