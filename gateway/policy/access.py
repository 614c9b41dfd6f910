"""Hot path: who a key is, and which models it may use. Pure."""

from fnmatch import fnmatchcase

import msgspec

from gateway.policy.caching import ASIS, Overrides
from gateway.policy.limits import REQUESTS, Grant, Limit, grants


class Principal(msgspec.Struct, frozen=True, gc=False):
    """The holder of a key: `key` is its id, never the secret.

    `limits` apply to every request, those of `by_model` to models that match a pattern; `labels`
    are `name=value`. `only_rates`: none of the limits is a budget or a number of slots. `counted`
    is what a request takes of `limits` that is to count as a request and nothing else.
    """

    key: str
    tenant: str
    models: tuple[str, ...]
    limits: tuple[Limit, ...]
    by_model: tuple[tuple[str, tuple[Limit, ...]], ...] = ()
    labels: tuple[str, ...] = ()
    cache: Overrides = ASIS
    only_rates: bool = False
    counted: tuple[Grant, ...] = ()

    def limits_for(self, model: str) -> tuple[Limit, ...]:
        """Return all limits that apply to a request for a model.

        A pattern means a model by its name alone, too, where it is asked for as `provider/name`.
        """
        found = self.limits
        for pattern, limits in self.by_model:
            bare = model.partition("/")[2]
            if fnmatchcase(model, pattern) or (bare and fnmatchcase(bare, pattern)):
                found += limits
        return found

    def limited_to(self, limits: tuple[Limit, ...]) -> "Principal":
        """Return the same holder for one request, to which these limits and no others apply."""
        counted = counting(limits, 0)  # which no time changes
        return msgspec.structs.replace(self, limits=limits, by_model=(), counted=counted)

    def counts(self, model: str, now: float) -> tuple[Grant, ...]:
        """Return what a request takes that needs no call; `now` is Unix seconds."""
        if not self.by_model:
            return self.counted
        return counting(self.limits_for(model), now)


def counting(limits: tuple[Limit, ...], now: float) -> tuple[Grant, ...]:
    """Return what a request takes of limits on requests alone; `now` is Unix seconds."""
    return grants(tuple([one for one in limits if one.unit == REQUESTS]), 0, 0, now)


def may_use(principal: Principal, model: str) -> bool:
    """Tell whether an allowlist with wildcards covers a model name."""
    for pattern in principal.models:
        if pattern in ("*", model) or fnmatchcase(model, pattern):
            return True
    return False
