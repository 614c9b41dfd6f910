"""A model's rules as they are configured, made ready to be applied."""

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


def limits_of(target: schema.Target) -> tuple[Limit, ...]:
    """Return what a target is given at the most."""
    rates = Rates(rpm=target.rpm, tpm=target.tpm, concurrency=target.concurrency)
    prefix = names.limit_prefix(names.TARGETS_TENANT, f"{target.provider}/{target.model}")
    return limits("target", prefix, rates)
