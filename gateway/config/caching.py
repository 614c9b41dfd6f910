"""The shape of `cache` in `sluice.yaml`: of the whole file, of a model, of a key."""

from typing import Annotated, Literal

from msgspec import Meta

from gateway.config.sections import Count, Seconds, Section

Which = Literal["deterministic_only", "all"]
Kept = Annotated[float, Meta(ge=0, le=7 * 86_400)]


LOCAL_EMBEDDER = "local"


class Semantic(Section, frozen=True):
    """Answers to prompts that mean nearly the same, told by the cosine of their embeddings.

    `model` is asked for embeddings: one that the gateway serves, or `local` for the one that comes
    with `sluicegate[semantic]`. `entries`: questions that a worker remembers at the most, of all
    tenants and models together, where Redis has no search of its own.
    """

    model: str = LOCAL_EMBEDDER
    threshold: Annotated[float, Meta(gt=0, le=1)] = 0.95
    entries: Count = 10_000


class Cache(Section, frozen=True):
    """Answers that are kept. `deterministic_only`: of requests with temperature 0 or a seed.

    `max_ttl` bounds what a client may ask for. A worker keeps `memory_mb` and `entries`, Redis what
    is not above `max_value_kb` once it is compressed, from `compress_kb` on. `share`: who may have
    an answer that another asked for. `stale`: how long after its time an answer may still be given
    where all targets fail. `pace`: seconds between the pieces of a stream that is replayed. `bill`:
    who pays for a call that several share.
    """

    enabled: bool = False
    ttl: Seconds = 3600
    max_ttl: Seconds = 7 * 86_400
    requests: Which = "deterministic_only"
    tools: bool = True
    images: bool = True
    max_request_kb: Count = 1024
    max_value_kb: Count = 1024
    compress_kb: Count = 4
    memory_mb: Annotated[int, Meta(ge=0, le=10**6)] = 64
    entries: Count = 100_000
    redis: bool = True
    share: Literal["key", "tenant", "all"] = "tenant"
    stale: Kept = 0
    pace: Annotated[float, Meta(ge=0, le=1)] = 0
    coalesce: Literal["off"] | Which = "deterministic_only"
    bill: Literal["leader", "split", "each"] = "leader"
    semantic: Semantic | None = None


class ModelCache(Section, frozen=True):
    """What a model has otherwise."""

    enabled: bool | None = None
    ttl: Seconds | None = None
    requests: Which | None = None
    tools: bool | None = None
    images: bool | None = None
    share: Literal["key", "tenant", "all"] | None = None
    stale: Kept | None = None
    pace: Annotated[float, Meta(ge=0, le=1)] | None = None
    coalesce: Literal["off"] | Which | None = None
    bill: Literal["leader", "split", "each"] | None = None
    semantic: Annotated[float, Meta(ge=0, le=1)] | None = None


class KeyCache(Section, frozen=True, omit_defaults=True):
    """What a key has otherwise."""

    enabled: bool | None = None
    ttl: Seconds | None = None
    requests: Which | None = None
