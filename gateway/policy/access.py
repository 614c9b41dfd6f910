"""Hot path: who a key is, and which models it may use. Pure."""

from fnmatch import fnmatchcase

import msgspec

from gateway.policy.caching import ASIS, Overrides
from gateway.policy.limits import Limit


class Principal(msgspec.Struct, frozen=True, gc=False):
    """The holder of a key: `key` is its id, never the secret.

    `limits` apply to every request, those of `by_model` to models that match a pattern; `labels`
    are `name=value`. `only_rates`: none of the limits is a budget or a number of slots.
    """

    key: str
    tenant: str
    models: tuple[str, ...]
    limits: tuple[Limit, ...]
    by_model: tuple[tuple[str, tuple[Limit, ...]], ...] = ()
    labels: tuple[str, ...] = ()
    cache: Overrides = ASIS
    only_rates: bool = False

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


def may_use(principal: Principal, model: str) -> bool:
    """Tell whether an allowlist with wildcards covers a model name."""
    for pattern in principal.models:
        if pattern in ("*", model) or fnmatchcase(model, pattern):
            return True
    return False
