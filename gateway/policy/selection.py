"""Which of a model's targets a request may go to: conditions, tags, canaries, sessions. Pure."""

from hashlib import blake2b
from typing import Protocol, TypeVar

import msgspec

FULL = 2**64
PERCENT = 100


class Conditions(msgspec.Struct, frozen=True):
    """What a target takes; None takes anything. Tokens are the prompt's, estimated.

    `labels` are the key's, as name=value: each must be there.
    """

    min_tokens: int | None = None
    max_tokens: int | None = None
    tools: bool | None = None
    images: bool | None = None
    stream: bool | None = None
    labels: tuple[str, ...] = ()


class Facts(msgspec.Struct, frozen=True):
    """What a request is like."""

    tokens: int
    tools: bool
    images: bool
    stream: bool
    labels: tuple[str, ...] = ()
    tags: frozenset[str] = frozenset()


class Choosable(Protocol):
    """A target with what restricts it; `name` is stable, `canary` a percentage or None."""

    @property
    def name(self) -> str:
        """Return what it is called."""
        ...

    @property
    def conditions(self) -> Conditions | None:
        """Return what it takes."""
        ...

    @property
    def tags(self) -> frozenset[str]:
        """Return what clients may ask for."""
        ...

    @property
    def canary(self) -> float | None:
        """Return which part of the users it gets before all others."""
        ...


_C = TypeVar("_C", bound=Choosable)


def fits(wanted: Conditions, facts: Facts) -> bool:
    """Tell whether a target with these conditions takes such a request."""
    return (
        (wanted.min_tokens is None or facts.tokens >= wanted.min_tokens)
        and (wanted.max_tokens is None or facts.tokens <= wanted.max_tokens)
        and (wanted.tools is None or facts.tools is wanted.tools)
        and (wanted.images is None or facts.images is wanted.images)
        and (wanted.stream is None or facts.stream is wanted.stream)
        and set(wanted.labels) <= set(facts.labels)
    )


def choose(targets: tuple[_C, ...], facts: Facts, share: float) -> tuple[_C | None, tuple[_C, ...]]:
    """Return the canary whose turn it is, if any, and the ordinary targets that take a request.

    `share` is from 0 to 1, the same for a user each time.
    """
    able = [
        one
        for one in targets
        if (one.conditions is None or fits(one.conditions, facts)) and facts.tags <= one.tags
    ]
    ordinary = tuple([one for one in able if one.canary is None])
    edge = 0.0
    for one in targets:  # a canary that is not able keeps its part: the others' do not move
        if one.canary is not None:
            edge += one.canary / PERCENT
            if share < edge:
                return (one if one in able else None), ordinary
    return None, ordinary


def share_of(identity: bytes, purpose: str) -> float:
    """Return a number from 0 to 1 that is always the same for somebody, and evenly spread."""
    digest = blake2b(identity, digest_size=8, person=purpose.encode()[:16])
    return int.from_bytes(digest.digest()) / FULL


def draw(identity: bytes, name: str) -> float:
    """Return a target's number for somebody: the one with the highest keeps them.

    Where a target goes away its own people find others, and everybody else stays (rendezvous
    hashing).
    """
    return share_of(name.encode() + b"\0" + identity, "affinity")
