"""Compiles the configuration's limits into those that apply to a key. Raises ConfigError."""

import msgspec

from gateway.config import schema
from gateway.core.errors import ConfigError
from gateway.policy.access import ByModel, Principal, counting
from gateway.policy.caching import Overrides
from gateway.policy.limits import (
    CALENDAR,
    REQUESTS,
    TOKENS,
    Budget,
    Limit,
    Rates,
    check_period,
    limits,
    window_seconds,
)
from gateway.policy.pricing import microusd
from gateway.store import names

MAX_MICROUSD = 10**15  # Lua counts exactly up to 2**53


class Applied(msgspec.Struct, frozen=True):
    """The limits of one scope, for every request and for some models."""

    always: tuple[Limit, ...] = ()
    by_model: ByModel = ()

    def __add__(self, other: "Applied") -> "Applied":
        return Applied(self.always + other.always, self.by_model + other.by_model)


class LimitBook:
    """The limits of a configuration: `everybody`'s, the tenants' and what keys have by default."""

    def __init__(self, config: schema.Config) -> None:
        self._enabled = config.limits.enabled
        self._default = config.limits.default
        scope(self._default, "key", "", "limits.default")  # to find its errors
        self._configured = config.tenants
        everybody = config.limits.everybody
        self._everybody = scope(everybody, "gateway", names.GATEWAY_LIMIT, "limits.global")
        self._tenants = {
            name: scope(tenant, "tenant", names.limit_prefix(name, "tenant"), f"tenants.{name}")
            for name, tenant in config.tenants.items()
        }

    def principal(self, key: schema.KeySettings, key_id: str, field: str = "") -> Principal:
        """Return a key's holder with every limit that applies to it."""
        labels = tuple(f"{name}={value}" for name, value in sorted(key.labels.items()))
        cache = Overrides.of(key.cache)
        if not self._enabled:
            return Principal(key_id, key.tenant, key.models, (), (), labels, cache)
        prefix = names.limit_prefix(key.tenant, f"key:{key_id}")
        applied = (
            scope(key, "key", prefix, field, self._default)
            + self._tenants.get(key.tenant, Applied())
            + self._everybody
        )
        limited, by_model = applied.always, applied.by_model
        every = [*limited, *[one for _, some, _ in by_model for one in some]]
        only_rates = all(one.unit in (REQUESTS, TOKENS) for one in every)
        return Principal(
            key_id,
            key.tenant,
            key.models,
            limited,
            by_model,
            labels,
            cache,
            only_rates,
            counting(limited, 0),  # which no time changes
        )

    def check(self, key: schema.KeySettings, before: schema.KeySettings | None = None) -> None:
        """Raise ConfigError if a key's limits are invalid or above its tenant's.

        Of one that is changed only what is not as `before`, as its tenant may have less since then;
        under another tenant all of it.
        """
        if before is None or before.tenant != key.tenant:
            before = schema.KeySettings(name=key.name)
        tenant = self._configured.get(key.tenant, schema.Tenant())
        _check_below(key, tenant, before, "")
        for pattern, limit in key.per_model.items():
            earlier = before.per_model.get(pattern, schema.Limit())
            for applying in (pattern, "*"):
                most = tenant.per_model.get(applying, schema.Limit())
                _check_below(limit, most, earlier, f"per_model.{pattern}")


def _check_below(
    limit: schema.Limit, tenants: schema.Limit, before: schema.Limit, field: str
) -> None:
    """Raise ConfigError if a limit is invalid, or another than before and above the tenant's.

    A burst that was not asked for is nobody's to refuse; the tenant's own holds in any case.
    """
    own, most, earlier = rates(limit, field), rates(tenants, field), rates(before, field)
    bounds = {"rpm": most.rpm, "burst": most.burst or most.rpm}
    bounds |= {"tpm": most.tpm, "concurrency": most.concurrency}
    for name, bound in bounds.items():
        wanted = getattr(own, name)
        if wanted in (None, getattr(earlier, name)):
            continue
        if bound is not None and wanted > bound:
            message = f"{wanted} is above the tenant's {bound}"
            raise ConfigError(message, field=_inside(field, name))
    allowed = {_length(budget.per): budget.microusd for budget in most.budgets}
    known = {(budget.per, budget.microusd) for budget in earlier.budgets}
    for budget in own.budgets:
        if (budget.per, budget.microusd) in known:
            continue
        if budget.microusd > allowed.get(_length(budget.per), budget.microusd):
            message = f"above the tenant's per {budget.per}"
            raise ConfigError(message, field=_inside(field, "budget"))


def scope(
    found: schema.Scope,
    whose: str,
    prefix: str,
    field: str,
    default: schema.Scope | None = None,
) -> Applied:
    """Compile one scope; `prefix` is where its limits are in Redis.

    The default fills in what is not set; of a model's limits those of the kinds that no pattern of
    this scope sets for it.
    """
    own, ours = rates(found, field), _rates_by_model(found, field)
    every: list[tuple[str, Rates, tuple[str, ...]]]
    every = [(pattern, one, ()) for pattern, one in ours.items()]
    if default is not None:
        own = own.or_default(rates(default, "limits.default"))
        for pattern, one in _rates_by_model(default, "limits.default").items():
            every += [(pattern, one.only(kinds), unless) for kinds, unless in _left_by(ours, one)]
    return Applied(
        limits(whose, prefix, own),
        tuple(
            (
                pattern,
                limits(f"{whose} and model {pattern}", f"{prefix}:model:{pattern}", one),
                unless,
            )
            for pattern, one, unless in every
        ),
    )


def _left_by(ours: dict[str, Rates], usual: Rates) -> list[tuple[frozenset[str], tuple[str, ...]]]:
    """Return the kinds of a default, each with the patterns that set it themselves."""
    found: dict[tuple[str, ...], frozenset[str]] = {}
    for kind in sorted(usual.kinds):
        unless = tuple([pattern for pattern, one in ours.items() if kind in one.kinds])
        found[unless] = found.get(unless, frozenset()) | {kind}
    return [(kinds, unless) for unless, kinds in found.items()]


def _rates_by_model(found: schema.Scope, field: str) -> dict[str, Rates]:
    return {
        pattern: rates(limit, f"{field}.per_model.{pattern}")
        for pattern, limit in found.per_model.items()
    }


def rates(limit: schema.Limit, field: str) -> Rates:
    """Convert a limit as the file has it."""
    if limit.burst is not None and limit.rpm is None:
        raise ConfigError("a burst needs an rpm", field=_inside(field, "burst"))
    found = limit.budget if isinstance(limit.budget, tuple) else (limit.budget,)
    budgets = tuple(_budget(one, _inside(field, "budget")) for one in found)
    if len({_length(budget.per) for budget in budgets}) < len(budgets):
        raise ConfigError("two budgets have the same period", field=_inside(field, "budget"))
    return Rates(limit.rpm, limit.burst, limit.tpm, limit.concurrency, budgets, limit.shadow)


def _budget(budget: schema.Budget, field: str) -> Budget:
    try:
        check_period(budget.per)
    except ValueError as error:
        raise ConfigError(str(error), field=f"{field}.per") from None
    try:
        amount = microusd(budget.usd)
    except ValueError as error:
        raise ConfigError(str(error), field=f"{field}.usd") from None
    if not 1 <= amount <= MAX_MICROUSD:
        raise ConfigError("expected more than 0 and at most 1e9 dollars", field=f"{field}.usd")
    return Budget(amount, budget.per, budget.shadow)


def _length(per: str) -> str | int:
    """Return what tells a period from another, in whatever words: 30d is 720h, but no month."""
    return per if per in CALENDAR else window_seconds(per)


def _inside(field: str, name: str) -> str:
    return f"{field}.{name}".lstrip(".")
