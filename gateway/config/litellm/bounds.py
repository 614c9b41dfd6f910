"""What a deployment is given at the most, and of which requests: limits, tags, sizes of prompts."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from gateway.config.litellm.source import Fields, Note

MAX_COUNT = 10**12  # schema.Count
_TAG = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # schema.Label

# Ours -> theirs.
LIMITS = {"rpm": "rpm", "tpm": "tpm", "concurrency": "max_parallel_requests"}
_NEXT = (
    "of all workers together, and of all models whose target it is with the same figure; above it "
    "the next target is asked, by any strategy"
)
_SAID = {
    "rpm": f"carried over as the target's rpm, {_NEXT}",
    "tpm": f"carried over as the target's tpm, {_NEXT}",
    "concurrency": f"carried over as the target's concurrency, {_NEXT}: no request waits",
}
_TAGS = (
    "carried over: a client asks for tags with the header x-sluice-tags, and gets a target that "
    "has all of them; one that asks for none may get any"
)
_KEYS = "its provider has keys without one"
_SIZE = "carried over as when.max_tokens, where another deployment takes longer prompts"


class Bounds(msgspec.Struct, frozen=True):
    """Limits of a target, the tags that clients may ask for, and its longest prompt in tokens."""

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    tags: tuple[str, ...] = ()
    max_input: int | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields of a target."""
        limits = {name: getattr(self, name) for name in LIMITS}
        found: dict[str, Any] = {name: limit for name, limit in limits.items() if limit is not None}
        if self.tags:
            found["tags"] = list(self.tags)
        if self.max_input is not None:
            found["when"] = {"max_tokens": self.max_input}
        return found


def read_bounds(params: Fields, info: Fields, *, by_size: bool) -> Bounds:
    """Read them; `by_size`: LiteLLM compares prompts with what a deployment takes."""
    limits = {name: _count(params, theirs) for name, theirs in LIMITS.items()}
    return Bounds(
        **limits,
        tags=_tags(params),
        max_input=_count(info, "max_input_tokens") if by_size else None,
    )


def pooled(pool: Sequence[Bounds]) -> Bounds:
    """Return those of a target whose keys had bounds of their own; tags and size are alike."""
    limits = {name: [getattr(one, name) for one in pool] for name in LIMITS}
    sums = {name: None if None in each else sum(each) for name, each in limits.items()}
    return msgspec.structs.replace(pool[0], **sums)


def notes_of(pool: Sequence[tuple[str, Bounds]]) -> Iterator[Note]:
    """Yield what differs from what LiteLLM does with those of a target, by the deployments' places.

    They come from several deployments where its provider has their keys.
    """
    found = pooled([bounds for _, bounds in pool])
    for name, theirs in LIMITS.items():
        limited = [field for field, bounds in pool if getattr(bounds, name) is not None]
        said = [_SAID[name]]
        if getattr(found, name) is None:
            said = [f"not carried over: {_KEYS}: {name} is of the target"]
        elif len(limited) > 1:
            said.append(f"{name} is of the target: the sum of its keys'")
        for field in limited:
            yield from (Note(f"{field}.litellm_params.{theirs}", text) for text in said)
    for field, bounds in pool:
        if bounds.tags:
            yield Note(f"{field}.litellm_params.tags", _TAGS)
        if bounds.max_input is not None:
            yield Note(f"{field}.model_info.max_input_tokens", _SIZE)


def widest(bounds: Sequence[Bounds]) -> list[Bounds]:
    """Return them without the size of the largest: what is too long for all, a provider refuses.

    So the models that stand in for this one where a prompt is too long are asked.
    """
    sizes = [one.max_input for one in bounds]
    known = [size for size in sizes if size is not None]
    largest = max(known) if len(known) == len(sizes) and known else None
    return [
        msgspec.structs.replace(one, max_input=None) if one.max_input == largest else one
        for one in bounds
    ]


def _count(fields: Fields, name: str) -> int | None:
    found = fields.whole(name)
    if found is None or 1 <= found <= MAX_COUNT:
        return found
    fields.lost(name, "a limit is from 1 to 10**12")
    return None


def _tags(params: Fields) -> tuple[str, ...]:
    given = params.take("tags")
    if given is None:
        return ()
    listed = given if isinstance(given, list) else [given]
    fit = [tag for tag in listed if isinstance(tag, str) and _TAG.fullmatch(tag)]
    if len(fit) < len(listed):
        params.lost("tags", "a tag is up to 64 letters, digits and . _ - here: one of them is not")
    return tuple(dict.fromkeys(fit))
