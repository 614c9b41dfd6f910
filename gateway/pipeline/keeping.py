"""What is kept of an answer: made of what the first client was sent, once that has ended."""

import asyncio
import re
from functools import partial
from time import monotonic

import msgspec

from gateway.core.messages import Reply
from gateway.core.operations import CONVERSATIONS, Operation
from gateway.pipeline.flight import Flight
from gateway.pipeline.planning import KIBIBYTE, Plan
from gateway.pipeline.replay import form_of, may_be_kept, readable
from gateway.pipeline.services import Services
from gateway.store.answers import Answer, split

THREAD_BYTES = 128 * KIBIBYTE  # of an answer whose reading would hold up other requests
MICROSECONDS = 1_000_000
STREAM_FACTOR = 8  # how much longer a stream is than what it says
# What providers say beside the text, and the hub does not. Inside of texts its quotes are escaped.
_BESIDE = re.compile(
    rb'"(?:citations|search_results|related_questions|images|videos|annotations)"'
    rb"\s*:\s*[\[{]\s*[^\s\]}]"
)


async def answer_of(
    services: Services, flight: Flight, plan: Plan, most_bytes: int
) -> tuple[Answer | None, bool]:
    """Make of what the first client has what is kept, and tell whether it may be."""
    sent, call = flight.whole, flight.call
    assert call is not None
    streamed = sent is None
    data = flight.stream if sent is None else sent[3]
    if data is None or (sent is not None and sent[0] != 200) or call.route is None:
        return None, False
    if len(data) > most_bytes * STREAM_FACTOR:
        return None, False
    reply, whole = None, True
    if call.operation in CONVERSATIONS:
        read = partial(_read, call.operation, data, streamed=streamed)
        reply, whole = await asyncio.to_thread(read) if len(data) > THREAD_BYTES else read()
        if reply is None:
            return None, False
        if not plan.plain:
            reply = None  # the hub knows not all of what was asked, nor of the answer
        elif flight.usage_source == "provider":  # which a stream need not have shown
            reply = msgspec.structs.replace(reply, usage=flight.usage)
    kept, logprobs = split(reply) if reply is not None else (b"", ())
    target, ttl = call.route.target, plan.ttl
    now, clock = services.admission.now(), monotonic()
    answer = Answer(
        form=form_of(call),
        body=data if not streamed or reply is None or _says_more(data, most_bytes) else b"",
        content_type=sent[1] if sent is not None else "",
        reply=kept,
        logprobs=logprobs,
        provider=target.provider,
        model=target.model,
        usage=flight.usage,
        cost=flight.cost,
        cost_microusd=flight.microusd,
        price=call.price_version,
        dropped=call.dropped,
        created=int(now),
        ttl_ms=int(ttl * 1000),
        kept_ms=int((ttl + plan.rules.stale) * 1000),
        asked_us=int((now - clock + (call.sent_at or clock)) * MICROSECONDS),
    )
    return answer, whole and not call.odd


def _says_more(data: bytes, most_bytes: int) -> bool:
    """Tell whether a stream's own bytes are kept beside what it says, for who asks for the same."""
    return len(data) <= most_bytes // 2 and _BESIDE.search(data) is not None


def _read(operation: Operation, data: bytes, *, streamed: bool) -> tuple[Reply | None, bool]:
    """Read what a client had, and tell whether it may be kept."""
    reply = readable(operation, streamed=streamed, data=data)
    if reply is None:
        return None, False
    return reply, may_be_kept(operation, reply, data, streamed=streamed)
