"""Deployments that differ in nothing but the key: a provider's keys take turns at one target."""

import json
from collections.abc import Iterator
from math import gcd
from typing import Any

import msgspec

from gateway.config.litellm.bounds import pooled, widest
from gateway.config.litellm.deployments import Deployment
from gateway.config.litellm.source import Note

_TWICE = "the same target as that of an earlier deployment: it is asked once"

Pool = list[Deployment]


def sized(deployments: list[Deployment]) -> list[Deployment]:
    """Return them with the sizes of prompts that tell them apart."""
    bounds = widest([one.bounds for one in deployments])
    return [
        msgspec.structs.replace(one, bounds=own)
        for one, own in zip(deployments, bounds, strict=True)
    ]


def pools_of(deployments: list[Deployment], strategy: str) -> list[Pool]:
    """Put those of a group together; keys without a share of the requests stand by, apart."""
    alike: dict[str, Pool] = {}
    for one in _weighed(deployments, strategy):
        entry = {k: v for k, v in one.reached.entry.items() if k != "api_key"}
        keyed = "api_key" in one.reached.entry
        bounds = (one.bounds.tags, one.bounds.max_input)
        parts = [entry, keyed, one.reached.model, one.price, one.order, bounds]
        alike.setdefault(json.dumps(parts), []).append(one)
    return [found for pool in alike.values() for found in _parted(pool)]


def joined(pool: Pool, notes: list[Note]) -> Deployment:
    """Return a pool as one deployment, whose provider may have several keys."""
    weights: dict[str | None, int] = {}
    for one in pool:
        key = _key(one)
        if key in weights:
            notes.append(Note(one.field, _TWICE))
        weights[key] = weights.get(key, 0) + (one.weight or 0)
    first = msgspec.structs.replace(
        pool[0],
        weight=sum(weights.values()),
        ids=tuple(id for one in pool for id in one.ids),
        bounds=pooled([one.bounds for one in pool]),
    )
    if len(weights) == 1:
        return first
    common = gcd(*weights.values()) or 1
    keys: list[Any] = list(weights)
    if len(set(weights.values())) > 1:
        keys = [{"key": k, "weight": weight // common} for k, weight in weights.items()]
    entry = {
        ("api_keys" if name == "api_key" else name): keys if name == "api_key" else value
        for name, value in first.reached.entry.items()
    }
    reached = msgspec.structs.replace(first.reached, entry=entry)
    return msgspec.structs.replace(first, reached=reached)


def _weighed(deployments: list[Deployment], strategy: str) -> list[Deployment]:
    """Return them with their shares: LiteLLM goes by what an order's first one has of three."""
    ranked: dict[int | None, list[Deployment]] = {}
    for one in deployments:
        ranked.setdefault(one.order, []).append(one)
    measures = {order: _measure(rank[0]) for order, rank in ranked.items()}
    if strategy != "weighted":
        measures = {}
    return [
        msgspec.structs.replace(one, weight=1 if by is None else _shares(one)[by] or 0)
        for one in deployments
        for by in (measures.get(one.order),)
    ]


def _measure(one: Deployment) -> int | None:
    return next((i for i, share in enumerate(_shares(one)) if share is not None), None)


def _shares(one: Deployment) -> tuple[int | None, ...]:
    return one.weight, one.bounds.rpm, one.bounds.tpm


def _parted(pool: Pool) -> Iterator[Pool]:
    sharing = {_key(one) for one in pool if one.weight}
    for shares in (True, False):
        if found := [one for one in pool if (_key(one) in sharing) is shares]:
            yield found


def _key(one: Deployment) -> str | None:
    key: str | None = one.reached.entry.get("api_key")
    return key
