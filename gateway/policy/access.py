"""Hot path: who a key is, and which models it may use. Pure."""

from functools import lru_cache

import msgspec

from gateway.core.patterns import covers
from gateway.policy.caching import ASIS, Overrides
from gateway.policy.limits import REQUESTS, Grant, Limit, grants

MAX_KEPT, MAX_KEPT_CHARS = 2048, 256  # patterns with names that are remembered, and one's length


# Patterns, what holds for models that meet them, and the patterns of models that have their own.
ByModel = tuple[tuple[str, tuple[Limit, ...], tuple[str, ...]], ...]


class Principal(msgspec.Struct, frozen=True, gc=False):
    """The holder of a key: `key` is its id, never the secret.

    `limits` apply to every request, those of `by_model` to models that match a pattern, unless they
    match one of others; `labels`
    are `name=value`. `only_rates`: none of the limits is a budget or a number of slots. `counted`
    is what a request takes of `limits` that is to count as a request and nothing else.
    """

    key: str
    tenant: str
    models: tuple[str, ...]
    limits: tuple[Limit, ...]
    by_model: ByModel = ()
    labels: tuple[str, ...] = ()
    cache: Overrides = ASIS
    only_rates: bool = False
    counted: tuple[Grant, ...] = ()

    def limits_for(self, model: str, full_names: tuple[str, ...] = ()) -> tuple[Limit, ...]:
        """Return all limits that apply to a request for a model.

        A pattern means a model by its name alone, too, where it is asked for as `provider/name`,
        and as that where it is asked for by its name alone: `full_names` are what it is then.
        """
        found = self.limits
        if self.by_model:
            bare = model.partition("/")[2]
            names = (model, bare, *full_names) if bare else (model, *full_names)
            meets = _met if len(model) <= MAX_KEPT_CHARS else _meets
            for pattern, limits, unless in self.by_model:
                if meets(pattern, names) and not any(meets(one, names) for one in unless):
                    found += limits
        return found

    def limited_to(self, limits: tuple[Limit, ...]) -> "Principal":
        """Return the same holder for one request, to which these limits and no others apply."""
        counted = counting(limits, 0)  # which no time changes
        return msgspec.structs.replace(self, limits=limits, by_model=(), counted=counted)

    def counts(self, model: str, full_names: tuple[str, ...], now: float) -> tuple[Grant, ...]:
        """Return what a request takes that needs no call; `now` is Unix seconds."""
        if not self.by_model:
            return self.counted
        return counting(self.limits_for(model, full_names), now)


def _meets(pattern: str, names: tuple[str, ...]) -> bool:
    return any(covers(pattern, name) for name in names)


_met = lru_cache(MAX_KEPT)(_meets)


def counting(limits: tuple[Limit, ...], now: float) -> tuple[Grant, ...]:
    """Return what a request takes of limits on requests alone; `now` is Unix seconds."""
    return grants(tuple([one for one in limits if one.unit == REQUESTS]), 0, 0, now)


def may_use(principal: Principal, model: str) -> bool:
    """Tell whether an allowlist with wildcards covers a model name."""
    for pattern in principal.models:  # noqa: SIM110  a generator costs more than the loop
        if pattern == "*" or covers(pattern, model):
            return True
    return False
