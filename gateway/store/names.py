"""The names of Redis keys: stable API for people with redis-cli. Those of a tenant carry its name.

Lifetimes: buckets until they are full again, leases a day after the last, marks of settled ones
two days, day counters 400 days, month counters 5 years; virtual keys, `sluice:tenants` and
`sluice:requests` (capped) stay.
"""

from datetime import UTC, datetime
from functools import lru_cache

TENANTS = "sluice:tenants"
REQUESTS = "sluice:requests"
KEYS = "sluice:keys"  # SHA-256 of a virtual key's secret -> key id
KEYS_VERSION = "sluice:keys:version"  # raised with every change of a virtual key
WORKERS = "sluice:workers"  # live workers of all machines -> when last seen (Unix seconds)
TARGETS = "sluice:targets"  # provider/model -> until when it is left alone, since when, and where
LATENCIES = "sluice:targets:latency"  # provider/model -> microseconds, and when (Unix ms)
GATEWAY_LIMIT = "sluice:limit:gateway"  # the limits of everybody together
TARGETS_TENANT = "~targets"  # holds the limits of targets; no tenant can be called so
SHADOW_TENANT = "~shadow"  # has what copies of requests cost
SHARED_TENANT = "~shared"  # has the answers that all tenants share
CACHE_VERSION = "sluice:cache:version"  # raised with every purge
CACHE_RENEWED = "sluice:cache:renewed"  # names of answers that were got anew before their time
VECTORS = "sluice:vectors:"  # search indexes of questions, by the length of their vectors
REQUESTS_KEPT = 10_000

DAY_TTL_SECONDS = 400 * 86_400
MONTH_TTL_SECONDS = 5 * 366 * 86_400


def requests(tenant: str, *, clustered: bool) -> str:
    """Return the name of the stream of finished requests: in a cluster each tenant has its own."""
    return f"{REQUESTS}:{{{tenant}}}" if clustered else REQUESTS


def limit_prefix(tenant: str, scope: str) -> str:
    """Return the common part of the names of a scope's limits; scope is `tenant` or `key:ID`."""
    return f"sluice:limit:{{{tenant}}}:{scope}"


def key(key_id: str) -> str:
    """Return the name of a virtual key's record."""
    return f"sluice:key:{key_id}"


def leases(tenant: str) -> tuple[str, str]:
    """Return the names of the lease deadlines and of what the leases hold."""
    return f"sluice:leases:{{{tenant}}}", f"sluice:lease:{{{tenant}}}"


def answer(tenant: str, name: str) -> tuple[str, str]:
    """Return the names of a kept answer, and of who is getting it."""
    return f"sluice:cache:{{{tenant}}}:{name}", f"sluice:cache:{{{tenant}}}:{name}:lead"


def answers(tenant: str) -> str:
    """Return the name of the index of kept answers -> when each is gone (Unix ms)."""
    return f"sluice:cache:{{{tenant}}}"


def vectors(size: int) -> str:
    """Return the name of the search index over questions whose vectors are so long."""
    return f"{VECTORS}{size}"


def vector_prefix(size: int) -> str:
    """Return the common part of the names of such questions."""
    return f"sluice:vector:{size}:"


def vector(size: int, tenant: str, name: str) -> str:
    """Return the name of a question's vector; its answer has the same name."""
    return f"{vector_prefix(size)}{{{tenant}}}:{name}"


def settled(tenant: str) -> str:
    """Return the name of the marks of leases that must not be opened again -> until when (ms)."""
    return f"sluice:settled:{{{tenant}}}"


def usage(tenant: str, period: str, part: str = "") -> str:
    """Return a counter hash: period is a day or month, part empty or `model:NAME` and the like."""
    return f"sluice:usage:{{{tenant}}}:{period}{':' + part if part else ''}"


def periods(unix_seconds: float) -> tuple[str, str]:
    """Return the UTC day and month of a moment, as they stand in usage names."""
    return _periods(int(unix_seconds) // 86_400 * 86_400)


@lru_cache(maxsize=4)
def _periods(unix_seconds: int) -> tuple[str, str]:
    day = datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d")
    return day, day[:7]
