"""Hot path: an entry of the capped stream `sluice:requests`, the newest finished requests.

An admitted request's entry is written by its settlement, so there is exactly one; a refused one's
by itself.
"""

from gateway.core.record import RequestRecord
from gateway.store import names
from gateway.store.client import Client

# What an operator looks for first, in the order of `values`.
FIELDS = (
    "id",
    "tenant",
    "key",
    "operation",
    "model",
    "provider",
    "status",
    "outcome",
    "error",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "usage_source",
    "cost_microusd",
    "attempts",
    "duration_us",
    "cache",
)

Values = tuple[str | int, ...]


def values(record: RequestRecord) -> Values:
    """Return an entry's values."""
    usage = record.usage
    return (
        record.id,
        record.tenant,
        record.key,
        record.operation,
        record.model,
        record.provider,
        record.status,
        record.outcome,
        record.error,
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        usage.reasoning_tokens,
        record.usage_source,
        record.cost_microusd,
        record.attempts,
        record.duration_us,
        record.cache,
    )


def append(client: Client, record: RequestRecord) -> None:
    """Add the entry of a request that no settlement will add."""
    pairs = [part for pair in zip(FIELDS, values(record), strict=True) for part in pair]
    stream = names.requests(record.tenant, clustered=client.clustered)
    client.post("XADD", stream, "MAXLEN", "~", names.REQUESTS_KEPT, "*", *pairs)
