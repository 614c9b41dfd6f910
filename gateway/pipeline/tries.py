"""Hot path: what a request's record says of one attempt."""

from time import monotonic

from gateway.core.record import MICROSECONDS, AttemptRecord
from gateway.pipeline.call import Call
from gateway.pipeline.served import Route


def tried(call: Call, route: Route, failure: str, status: int) -> AttemptRecord:
    """Return the record of an attempt that ends now; `failure` is empty where it answered."""
    first, now = first_answer(call), monotonic()
    connect_s = call.connect_s if call.written else now - call.sent_at
    return AttemptRecord(  # by position: see `settle`
        route.target.provider,
        route.target.model,
        status,
        failure,
        int(connect_s * MICROSECONDS),
        int((first - call.sent_at) * MICROSECONDS) if first else 0,  # first byte
        int((now - call.sent_at) * MICROSECONDS),  # duration
    )


def first_answer(call: Call) -> float:
    """Return when an attempt had its first answer: one that goes on has none of the stream's."""
    relay = call.relay
    if relay is not None and relay.first_event_at >= call.sent_at:
        return relay.first_event_at
    return call.reply_at
