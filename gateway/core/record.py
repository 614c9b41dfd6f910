"""The one record of a finished request: what the ledger, the log and the metrics are made of."""

import msgspec

from gateway.core.usage import Usage

# What became of a request.
OK, ERROR, REFUSED, DISCONNECTED, ABORTED = "ok", "error", "refused", "disconnected", "aborted"
MICROSECONDS = 1_000_000  # of a second: all times of a record
CANCELLED = "cancelled"  # the failure of an attempt that was under way when its client left


class AttemptRecord(msgspec.Struct, frozen=True, gc=False):
    """One attempt at one target. `failure` is empty where it answered; times are microseconds.

    `connect_us` is spent before the request was sent: waiting for a connection or making one.
    `cost_microusd` is what an attempt cost that served nobody; it is in no counter.
    """

    provider: str
    model: str
    status: int
    failure: str
    connect_us: int
    first_byte_us: int
    duration_us: int
    cost_microusd: int = 0


class Cost(msgspec.Struct, frozen=True, gc=False):
    """What a request's cost is made of, in micro-dollars; the parts add up to the whole.

    `input` is the prompt without what was read from or written to a cache.
    """

    input: int = 0
    cached: int = 0
    cache_write: int = 0
    output: int = 0
    request: int = 0

    def plus(self, other: "Cost") -> "Cost":
        """Return what both cost together."""
        mine, theirs = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return Cost(*[a + b for a, b in zip(mine, theirs, strict=True)])


FREE = Cost()


class RequestRecord(msgspec.Struct, frozen=True, gc=False, tag_field="event", tag="request"):
    """Times are microseconds, `time` is Unix seconds, money is micro-dollars.

    As JSON it begins with `"event": "request"`.

    `usage_source` says who counted: provider, estimated (the gateway, from the text), partial
    (the gateway, from what a client took before it left), reserved (an aborted request's
    estimate) or none. `trace` is the client's `traceparent`, where it sent one;
    `cost` says what `cost_microusd` is made of; `queue_us` is the wait for admission; `tries` has
    each attempt at a provider, in order; `shadow` names the limits in shadow that would have
    refused, as `scope:unit`, a budget's with its period; `continued`: how often another target went
    on with the stream.
    `cache` says what the cache had to do with it (hit, miss, bypass, stale, coalesced; empty
    without one), `saved_microusd` what an answer would have cost that needed no call of its own.
    """

    id: str
    time: float
    tenant: str
    key: str
    operation: str
    model: str
    provider: str
    served_model: str
    status: int
    outcome: str
    error: str
    stream: bool
    usage: Usage
    usage_source: str
    cost_microusd: int
    price: str
    attempts: int
    duration_us: int
    first_byte_us: int
    upstream_us: int
    trace: str = ""
    shadow: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    queue_us: int = 0
    tries: tuple[AttemptRecord, ...] = ()
    cost: Cost = FREE
    continued: int = 0
    cache: str = ""
    saved_microusd: int = 0
