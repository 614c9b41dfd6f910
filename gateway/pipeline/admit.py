"""Hot path: takes a lease for a request, on what it may use or on its being a request alone."""

from collections.abc import Awaitable
from functools import lru_cache
from time import monotonic

from gateway.core.errors import NotSent
from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.pipeline.allowance import (
    SLICE_TOKENS,
    allowance_for,
    known_prices,
    needs_price,
    price_of,
)
from gateway.pipeline.call import Call
from gateway.pipeline.refusal import limit_error
from gateway.pipeline.served import Served
from gateway.pipeline.services import Services
from gateway.policy.limits import MONEY, Grant, Limit, grants, has_budget, taken_of
from gateway.store.lease import Holding, Verdict, holds

# Reserved for the answer where neither the request nor the model's configuration sets a maximum.
DEFAULT_OUTPUT_TOKENS = 1024
MAX_KEPT = 256
MOST_OUTPUT = 2**52  # tokens: no limit is larger, and Lua counts them exactly


def output_of(request: Request, served: Served) -> int:
    """Return the output tokens that a request may come to, of all its texts."""
    output = request.max_output
    if output is None:
        output = served.max_output or DEFAULT_OUTPUT_TOKENS
    return min(output * request.texts, MOST_OUTPUT)


def admit(services: Services, call: Call) -> Awaitable[None]:
    """Reserve what the request may use, under every limit that applies at once.

    Raises ApiError, and StoreError once it is awaited.
    """
    request, served, principal = call.request, call.model, call.principal
    assert request is not None
    assert served is not None
    assert principal is not None
    output = output_of(request, served)
    tokens = request.prompt_estimate + output
    now = services.admission.now()
    limits = principal.limits_for(request.model, served.full_names)
    if call.operation is Operation.COUNT_TOKENS:  # counting costs nothing
        limits = tuple([limit for limit in limits if limit.unit != MONEY])
    money = 0
    if not principal.only_rates and has_budget(limits):
        if request.stream:
            output = min(output, SLICE_TOKENS)
        needed = needs_price(services, limits)
        money = price_of(served, request, request.prompt_estimate, output, needed=needed)
    elif services.config.pricing.unknown == "refuse":
        known_prices(served, needed=True)
    granted = grants(limits, tokens, money, now)
    target = served.routes[0].target
    holding = Holding(  # by position: see `settle`
        principal.key,
        request.model,
        target.provider,
        target.model,
        call.operation.label,
        request.prompt_estimate,
        output,
        int(now),
        () if principal.only_rates else holds(granted),
        principal.labels,
        "" if served.name == request.model else served.name,
        request.stream,
    )
    if request.stream and money:
        call.holding = holding
        call.grants = granted
        call.allowance = allowance_for(services, call, request)
    return _take(services, call, holding, granted, tokens)


def admit_hit(services: Services, call: Call, provider: str, model: str) -> Awaitable[None]:
    """Let a request pass that needs no call: it counts as a request, and uses nothing."""
    request, served, principal = call.request, call.model, call.principal
    assert request is not None
    assert served is not None
    assert principal is not None
    now = services.admission.now()
    granted = principal.counts(request.model, served.full_names, now)
    holding = _kept(
        principal.key,
        request.model,
        provider,
        model,
        call.operation.label,
        int(now),
        principal.labels,
    )
    return _take(services, call, holding, granted, 0)


@lru_cache(MAX_KEPT)
def _kept(
    key: str, model: str, provider: str, served: str, label: str, now: int, labels: tuple[str, ...]
) -> Holding:
    """Return what an answer holds that is kept: those of one second are the same."""
    return Holding(key, model, provider, served, label, 0, 0, now, (), labels)


async def _take(
    services: Services, call: Call, holding: Holding, granted: tuple[Grant, ...], tokens: int
) -> None:
    principal = call.principal
    assert principal is not None
    call.grants, call.holding, call.leased = granted, holding, True
    asked_at = monotonic()
    try:
        verdict = await services.admission.admit(principal.tenant, call.id, holding, granted)
    except NotSent:
        call.leased = False
        raise
    call.verdict, call.queued_s = verdict, monotonic() - asked_at
    if verdict.overdrawn:
        call.grants = taken_of(granted, verdict.overdrawn)
    if verdict.refused_by is not None:
        call.leased = call.unsure = verdict.unsure
        left = _left(verdict, verdict.refused_by)
        raise limit_error(verdict.refused_by, verdict.wait_seconds, tokens, left)


def _left(verdict: Verdict, limit: Limit) -> int | None:
    """Return what is left of a limit, where a verdict says so."""
    levels = zip(verdict.grants, verdict.levels, strict=True)
    return next((level for grant, level in levels if grant.limit.name == limit.name), None)
