"""A model's rules as they are configured, made ready to be applied."""

from collections.abc import Collection, Mapping

import msgspec

from gateway.config import schema
from gateway.policy.limits import Limit, Rates, limits
from gateway.policy.selection import Conditions
from gateway.store import names


def hedge_after(hedge: schema.Hedge | None) -> float | None:
    """Return after how many seconds a second target is asked; 0: after the first one's p95."""
    if hedge is None:
        return None
    return 0.0 if isinstance(hedge.after, str) else hedge.after


def is_selective(target: schema.Target) -> bool:
    """Tell whether not every request may go to a target, or not alike."""
    return bool(target.when or target.tags or target.canary)


def conditions_of(when: schema.When | None) -> Conditions | None:
    """Return what a target takes."""
    if when is None:
        return None
    labels = tuple([f"{name}={value}" for name, value in when.labels.items()])
    return Conditions(
        when.min_tokens, when.max_tokens, when.tools, when.images, when.stream, labels
    )


def limits_of(target: schema.Target, name: str, uneven: Collection[str] = ()) -> tuple[Limit, ...]:
    """Return what a target of a model of this name is given at the most.

    Targets of one provider and model share a limit, but for those of `uneven`: they share what has
    the same figure, which stands last in the limit's name.
    """
    rates = Rates(rpm=target.rpm, tpm=target.tpm, concurrency=target.concurrency)
    place = f"{target.provider}/{target.model or name}"
    found = limits("target", names.limit_prefix(names.TARGETS_TENANT, place), rates)
    return tuple(
        [
            msgspec.structs.replace(one, name=f"{one.name}:{one.capacity}")
            if one.name in uneven
            else one
            for one in found
        ]
    )


def uneven_limits(models: Mapping[str, schema.Model]) -> frozenset[str]:
    """Return the names of limits of which targets of one provider and model have several figures.

    Under one name the smallest would hold for all of them, or for those of one call the first.
    """
    figures: dict[str, set[int]] = {}
    for name, model in models.items():
        for target in model.targets:
            for limit in limits_of(target, name):
                figures.setdefault(limit.name, set()).add(limit.capacity)
    return frozenset([name for name, several in figures.items() if len(several) > 1])
