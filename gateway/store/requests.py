"""Hot path: the capped stream `sluice:requests`, the newest finished requests for redis-cli."""

from gateway.core.record import RequestRecord
from gateway.store import names
from gateway.store.client import Client


class RequestStream:
    """Appends a finished request; it leaves in the same write as its settlement."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._head = ("XADD", names.REQUESTS, "MAXLEN", "~", names.REQUESTS_KEPT, "*")

    def append(self, record: RequestRecord) -> None:
        """Add one entry; the fields are those an operator looks for first."""
        usage = record.usage
        self._client.post(
            *self._head,
            *("id", record.id, "tenant", record.tenant, "key", record.key),
            *("operation", record.operation, "model", record.model),
            *("provider", record.provider, "status", record.status),
            *("outcome", record.outcome, "error", record.error),
            *("prompt_tokens", usage.prompt_tokens, "cached_tokens", usage.cached_tokens),
            *("completion_tokens", usage.completion_tokens),
            *("reasoning_tokens", usage.reasoning_tokens, "usage_source", record.usage_source),
            *("cost_microusd", record.cost_microusd, "attempts", record.attempts),
            *("duration_us", record.duration_us),
        )
