"""What a client's headers ask of the gateway itself, as they were written."""

import msgspec

TIMEOUT, TAGS, SESSION = "x-sluice-timeout", "x-sluice-tags", "x-sluice-session"
IDEMPOTENCY_KEY = "idempotency-key"
CACHE_CONTROL, CACHE_TTL = "cache-control", "x-sluice-cache-ttl"
CACHE_NAMESPACE = "x-sluice-cache-namespace"
NAMES = (TIMEOUT, TAGS, SESSION, IDEMPOTENCY_KEY, CACHE_CONTROL, CACHE_TTL, CACHE_NAMESPACE)


class Hints(msgspec.Struct, frozen=True, gc=False):
    """`timeout` is seconds; `tags` stand between commas; empty where a client says nothing."""

    timeout: str = ""
    tags: str = ""
    session: str = ""
    idempotency_key: str = ""
    cache_control: str = ""
    cache_ttl: str = ""
    cache_namespace: str = ""


NO_HINTS = Hints()
