"""Hot path: turns a finished request into usage, money and one record. Runs for every request."""

from functools import lru_cache, partial
from time import monotonic

import msgspec

from gateway.core import record
from gateway.core.operations import Operation
from gateway.core.record import MICROSECONDS, Cost, RequestRecord
from gateway.core.usage import Usage
from gateway.pipeline.call import NO_USAGE, Call, Spent
from gateway.pipeline.flight import Flight
from gateway.pipeline.lanes import Answer
from gateway.pipeline.services import Services
from gateway.policy.caching import COALESCED, HIT, STALE, shares
from gateway.policy.limits import CONCURRENCY, MONEY, REQUESTS, TOKENS
from gateway.policy.pricing import cost_components, in_microusd, rounded
from gateway.policy.tokens import count_all, count_tokens
from gateway.store.lease import REAPED, Applied, Return, Settlement
from gateway.store.requests import values

OTHER = "other"  # stands for names that a client made up: counters must not grow with them
UNPRICED = "unpriced"
MOST = 2**30  # tokens: nobody's context is larger
NOTHING = (0,) * 9  # a refused request is not in the counters, also if its lease was taken

MAX_PARTS = 1024  # keys and models at a time whose counters' names are remembered

HITS = frozenset((HIT, STALE, COALESCED))  # answered without a call of its own

_PROMPT_FIELDS = ("messages", "prompt", "input", "system", "instructions", "tools")


def measure(call: Call, answer: Answer | None = None) -> None:
    """Find out how it ended, and what was used, by the provider or our own count; then its cost.

    `answer` is a whole reply; without it the call's stream tells. Idempotent.
    """
    assert call.route is not None
    assert call.request is not None
    if call.operation is Operation.COUNT_TOKENS:
        return  # counting costs nothing
    relay = call.relay
    usage = None
    if answer is not None:
        usage, call.odd = answer.usage, answer.odd
    if relay is not None:
        usage, call.odd = relay.usage, relay.decoder.odd
    if usage is not None and _is_sane(usage):
        call.usage, call.usage_source = _consistent(usage), "provider"
        if relay is not None and not relay.complete:  # some tell figures from the beginning on
            written = max(usage.completion_tokens, relay.delivered_tokens())
            call.usage = msgspec.structs.replace(call.usage, completion_tokens=written)
            call.usage_source = "partial"
    else:
        text_tokens = relay.delivered_tokens() if relay is not None else 0
        if answer is not None and text_tokens == 0:
            text_tokens = count_tokens(answer.text())
        _estimate(call, text_tokens, answer.half if answer is not None else None)
    price = call.route.price_now()
    call.cost = record.FREE
    if price is None:
        call.cost_microusd, call.price_version = 0, ""
    else:
        components = cost_components(price, call.usage)
        call.cost_microusd = rounded(components)
        call.price_version = price.version
        if call.cost_microusd:
            call.cost = in_microusd(components)
    if call.before is not None:
        _add(call, call.before)


def _estimate(call: Call, text_tokens: int, half: Usage | None) -> None:
    """Take what was written for the completion, and for the prompt what is told of it alone."""
    if half is not None and _is_sane(half):
        made = max(half.completion_tokens, text_tokens)
        call.usage = msgspec.structs.replace(_consistent(half), completion_tokens=made)
        call.usage_source = "partial"
    else:
        call.usage = Usage(prompt_tokens=count_prompt(call), completion_tokens=text_tokens)
        call.usage_source = "estimated" if call.finished else "partial"


def _add(call: Call, before: Spent) -> None:
    """Add what another target had used for the beginning of a stream."""
    call.usage = before.usage.plus(call.usage)
    call.usage_source = "estimated" if call.finished else "partial"
    call.cost_microusd += before.microusd
    call.price_version = call.price_version or before.price_version
    call.cost = before.cost.plus(call.cost)


def _is_sane(usage: Usage) -> bool:
    """Tell whether counts can be true: a mistake must not empty a budget, or corrupt a sum."""
    # One comparison for all: any count's sign, and any of its bits above, is there in the whole.
    every = (
        usage.prompt_tokens
        | usage.completion_tokens
        | usage.cached_tokens
        | usage.cache_write_tokens
        | usage.reasoning_tokens
        | usage.audio_prompt_tokens
        | usage.audio_completion_tokens
        | usage.cache_write_1h_tokens
        | usage.web_searches
        | usage.image_prompt_tokens
        | usage.image_completion_tokens
        | usage.beside_prompt_tokens
    )
    return 0 <= every < MOST


def _consistent(usage: Usage) -> Usage:
    """Bound parts by what they are parts of."""
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if (
        usage.cached_tokens + usage.cache_write_tokens <= prompt
        and usage.reasoning_tokens <= completion
    ):
        return usage
    cached = min(usage.cached_tokens, prompt)
    return msgspec.structs.replace(
        usage,
        cached_tokens=cached,
        cache_write_tokens=min(usage.cache_write_tokens, prompt - cached),
        reasoning_tokens=min(usage.reasoning_tokens, completion),
    )


def settle(services: Services, call: Call) -> None:
    """Close the lease with what was used, and emit the record."""
    if call.gated:
        assert call.principal is not None
        services.gate.leave(call.principal.tenant)
        call.gated = False
    if call.delegated:
        return
    if call.allowance is not None:
        call.allowance.close()
    cut = call.outcome == record.DISCONNECTED or call.error == "overloaded"
    if cut and call.written and not call.finished:
        measure(call)
    if call.flight is not None:
        _share(call, call.flight)
    finished = _record(services, call)
    if not call.leased:
        services.append(finished)
    elif services.admission.may_be_gone(call.id):
        _close_lease(services, call, finished, partial(_emit_once, services, finished))
        return
    else:
        _close_lease(services, call, finished)
    services.emit(finished)


def _emit_once(services: Services, finished: RequestRecord, counted: int) -> None:
    if counted != REAPED:  # else another worker has taken this one for dead, and has emitted one
        services.emit(finished)


def _went_on(call: Call) -> int:
    """Return how often another target has gone on with a stream, not only been asked to."""
    return call.went_on + (call.relay is not None and call.relay.goes_on)


def _share(call: Call, flight: Flight) -> None:
    """Let a request pay its part of a call that others share."""
    if flight.call is call:
        flight.paid(call)
    elif not flight.takers:
        return  # it left before the call was paid for
    else:
        call.usage_source, call.price_version = flight.usage_source, flight.price
    place = 0 if flight.call is call else 1
    bill = flight.bill
    if place and bill == "split" and call not in flight.sharers:
        bill = "leader"  # it came when the call was paid for
    part = partial(shares, bill, takers=flight.takers, place=place)
    call.usage = Usage(*[part(n) for n in msgspec.structs.astuple(flight.usage)])
    call.cost = Cost(*[part(n) for n in msgspec.structs.astuple(flight.cost)])
    call.cost_microusd = sum(msgspec.structs.astuple(call.cost))
    call.saved += flight.microusd - call.cost_microusd
    if place and bill == "leader":
        call.usage_source = "none"


def _close_lease(
    services: Services, call: Call, finished: RequestRecord, applied: Applied | None = None
) -> None:
    principal = call.principal
    assert principal is not None
    usage = call.usage
    failed = 1 if call.outcome == record.ERROR else 0
    services.admission.settle(
        Settlement(
            call.id,
            principal.tenant,
            _returns(call),
            parts(principal.key, finished.model, finished.provider, principal.labels),
            NOTHING
            if call.unsure
            else counts(usage, failed, call.cost_microusd, int(call.cache in HITS), call.saved),
            values(finished),
            applied is not None,  # so that its own is told from another worker's
            int(finished.time),
        ),
        applied,
    )


def _returns(call: Call) -> tuple[Return, ...]:
    found = []
    for grant in call.grants:
        unit, reserved = grant.limit.unit, grant.amount
        if unit == REQUESTS:
            continue
        if unit == TOKENS:
            used = call.usage.prompt_tokens + call.usage.completion_tokens
            if used != reserved:
                found.append(Return(grant.key, grant.spec, reserved, used))
        elif unit == CONCURRENCY:
            found.append(Return(grant.key, grant.spec, reserved, 0))
        elif unit == MONEY:
            found.append(Return(grant.key, grant.spec, reserved, call.cost_microusd))
    return tuple(found)


@lru_cache(MAX_PARTS)
def parts(key: str, model: str, provider: str, labels: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the names of the counters a request adds to; the first is the tenant's total."""
    named: tuple[str, ...] = ("", f"model:{model}", f"key:{key}")
    if provider:
        named += (f"provider:{provider}",)
    return (*named, *[f"label:{label}" for label in labels]) if labels else named


def counts(usage: Usage, failed: int, cost: int, hits: int = 0, saved: int = 0) -> tuple[int, ...]:
    """Return a request's counters in the order of `settle.lua`."""
    return (
        1,
        failed,
        hits,
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        usage.reasoning_tokens,
        cost,
        saved,
    )


def _record(services: Services, call: Call) -> RequestRecord:
    now = monotonic()
    request, principal, route = call.request, call.principal, call.route
    waited = call.asked_s + ((call.reply_at or now) - call.sent_at if call.sent_at else 0.0)
    first = call.relay.first_event_at if call.relay is not None else call.reply_at
    overdrawn = call.verdict.overdrawn
    # By position: so many names would take six times as long, more than all else here.
    return RequestRecord(
        call.id,
        services.admission.now(),
        principal.tenant if principal else "",
        principal.key if principal else "",
        call.operation.label,
        _model_label(services, call),
        _provider(call),
        route.target.model if route else call.kept.model if call.kept else "",
        call.status or 499,  # nginx's figure for a client that went away
        call.outcome,
        call.error,
        request.stream if request else False,
        call.usage,
        call.usage_source,
        call.cost_microusd,
        call.price_version or (UNPRICED if call.usage is not NO_USAGE else ""),
        call.attempts,
        int((now - call.started_at) * MICROSECONDS),  # duration
        int((first - call.started_at) * MICROSECONDS) if first else 0,
        int(waited * MICROSECONDS),
        call.trace,
        tuple([limit.label for limit in overdrawn]) if overdrawn else (),
        principal.labels if principal else (),
        int(call.queued_s * MICROSECONDS),
        tuple(call.tries),
        call.cost,
        _went_on(call) if call.continued else 0,
        call.cache,
        call.saved,
    )


def _model_label(services: Services, call: Call) -> str:
    served = call.model
    if served is None:
        return OTHER
    if served.configured or services.catalogue.has_label(served.name):
        return served.name
    # A name that a provider has begun to answer to is not made up.
    answered = call.finished or (call.relay is not None and call.relay.started)
    return served.name if answered and services.catalogue.may_label(served.name) else OTHER


def _provider(call: Call) -> str:
    if call.route is not None:
        return call.route.target.provider
    return call.kept.provider if call.kept is not None else ""


def count_prompt(call: Call) -> int:
    """Count the prompt from the request's own JSON; a file inside it is estimated instead."""
    request = call.request
    assert request is not None
    given = [bytes(request.fields[name]) for name in _PROMPT_FIELDS if name in request.fields]
    if not given or sum(map(len, given)) // 4 > request.prompt_estimate:
        return request.prompt_estimate
    return count_all([raw.decode(errors="replace") for raw in given])
