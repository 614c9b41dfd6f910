"""Hot path: one request from its body to its reply.

authenticate -> decode -> admit -> attempt -> settle -> deliver. Settlement always runs, and runs
before the reply leaves: what a client has seen completed has been accounted for.
"""

import asyncio
import contextlib
import logging
import random
from functools import partial
from time import monotonic

from gateway.core import record
from gateway.core.errors import ApiError, StoreError, UpstreamError
from gateway.core.ids import request_id
from gateway.core.operations import Operation
from gateway.core.usage import Usage
from gateway.formats import FORMATS
from gateway.formats.body import decode as decode_body
from gateway.pipeline.allowance import SLICE_TOKENS, Allowance, price_of
from gateway.pipeline.answer import error_headers
from gateway.pipeline.attempt import attempt
from gateway.pipeline.call import NO_USAGE, Call, Deliver
from gateway.pipeline.elsewhere import Elsewhere
from gateway.pipeline.refusal import limit_error
from gateway.pipeline.served import Shadow
from gateway.pipeline.services import Services
from gateway.pipeline.settle import settle
from gateway.policy.access import may_use
from gateway.policy.limits import grants, has_budget
from gateway.policy.retry import client_error
from gateway.store.lease import Holding, holds

logger = logging.getLogger("sluice.pipeline")

# Reserved for the answer where neither the request nor the model's configuration sets a maximum.
DEFAULT_OUTPUT_TOKENS = 1024


async def serve(services: Services, call: Call) -> None:
    """Serve one request; the reply reaches the client when its settlement is on its way.

    Cancelled when the client goes away: the upstream connection is closed at once and what was
    delivered is settled. Where the provider is to be drained instead, `call.left` is set and it
    goes on to the end.
    """
    try:
        deliver = await _answer(services, call)
    except asyncio.CancelledError:
        if call.client.connected:  # not the client left: the gateway's time to drain is over
            message = "The gateway is shutting down."
            _refuse(call, ApiError("overloaded", message, retry_after=1))()
        else:
            call.outcome = record.DISCONNECTED
        settle(services, call)
        raise
    if call.left:
        call.outcome, call.status = record.DISCONNECTED, 499
    call.client.expect()
    settle(services, call)
    services.admission.after_settled(deliver)


async def _answer(services: Services, call: Call) -> Deliver:
    """Run the stages; whatever goes wrong becomes an error in the client's protocol."""
    try:
        if call.request is None:
            await authenticate(services, call)
            decode(services, call)
        await admit(services, call)
        assert call.model is not None
        if call.model.shadow is not None:
            _copy(services, call, call.model.shadow)
        return await attempt(services, call)
    except ApiError as error:
        await _learn_limits(services, call)
        return _refuse(call, error)
    except UpstreamError as error:
        provider = call.route.target.provider if call.route else "upstream"
        return _refuse(call, client_error(error, provider))
    except StoreError as error:
        logger.warning("admission failed: %s", error)
        message = "The store that decides over limits cannot be reached."
        deliver = _refuse(call, ApiError("store_unavailable", message, retry_after=1))
        call.outcome = record.REFUSED  # though it is settled: the lease may have been taken
        return deliver
    except Exception:
        logger.exception("request %s failed inside the gateway", call.id)
        return _refuse(call, ApiError("internal_error", "The gateway failed. See its log."))


def _copy(services: Services, call: Call, shadow: Shadow) -> None:
    """Send a copy of a request to a shadow, which pays for itself."""
    if random.random() * 100 >= shadow.percent:  # noqa: S311  no secret
        return
    copy = Call(request_id(), call.operation, b"", None, Elsewhere(), monotonic(), call.trace)
    copy.request, copy.passed_on = call.request, call.passed_on
    copy.model, copy.principal = shadow.served, shadow.principal
    services.copies.spawn(shadow.served.name, shadow.concurrency, partial(serve, services, copy))


async def _learn_limits(services: Services, call: Call) -> None:
    """Ask where the limits stand, for an answer that was refused before it was admitted."""
    principal = call.principal
    if principal is None or not principal.limits or call.verdict.standings:
        return
    if services.admission.degraded:
        return
    nothing = grants(principal.limits, 0, 0, services.admission.now())
    with contextlib.suppress(StoreError):  # the refusal stands without the figures
        call.verdict = await services.admission.peek(principal.tenant, nothing)


async def authenticate(services: Services, call: Call) -> None:
    """Find out who asks, and whether there is room for it; `settle` gives the room back."""
    call.principal = services.keyring.find(call.secret)
    if call.principal is None:
        call.principal = await services.keyring.authenticate(call.secret)
    call.gated = services.gate.enter(call.principal.tenant)
    if not call.gated:
        message = "The gateway has as many requests as it can serve. Try again."
        raise ApiError("overloaded", message, retry_after=1)


def decode(services: Services, call: Call) -> None:
    """Understand the request: its model must exist, and the key must be allowed to use it."""
    assert call.principal is not None
    call.request = request = decode_body(call.operation, call.body)
    call.body = b""
    served = services.catalogue.resolve(request.model)
    if not may_use(call.principal, request.model):
        message = f"This key may not use the model '{request.model}'."
        raise ApiError("model_not_allowed", message, param="model")
    if served is None:
        message = f"The model '{request.model}' does not exist here."
        raise ApiError("model_not_found", message, param="model")
    ways = any(call.operation in route.ways for route in served.routes)
    if not ways and call.operation is not Operation.COUNT_TOKENS:
        message = f"The model '{request.model}' does not do {call.operation.value}."
        raise ApiError("invalid_value", message, param="model")
    call.model = served


async def admit(services: Services, call: Call) -> None:
    """Reserve what the request may use, under every limit that applies at once."""
    request, served, principal = call.request, call.model, call.principal
    assert request is not None
    assert served is not None
    assert principal is not None
    output = request.max_output
    if output is None:
        output = served.max_output or DEFAULT_OUTPUT_TOKENS
    output *= request.choices
    tokens = request.prompt_estimate + output
    now = services.admission.now()
    limits = principal.limits_for(request.model)
    money = 0
    if has_budget(limits):
        if request.stream:
            output = min(output, SLICE_TOKENS)
        money = price_of(served, Usage(request.prompt_estimate, completion_tokens=output))
    elif services.config.pricing.unknown == "refuse":
        price_of(served, NO_USAGE)
    target = served.routes[0].target
    call.grants = granted = grants(limits, tokens, money, now)
    call.holding = Holding(
        key=principal.key,
        model=request.model,
        provider=target.provider,
        served=target.model,
        operation=call.operation.value,
        prompt=request.prompt_estimate,
        output=output,
        started=int(now),
        holds=holds(granted),
        labels=principal.labels,
    )
    if request.stream and money:
        call.allowance = Allowance(services, call, tokens - request.prompt_estimate)
    call.leased = True
    asked_at = monotonic()
    verdict = await services.admission.admit(principal.tenant, call.id, call.holding, granted)
    call.verdict, call.queued_s = verdict, monotonic() - asked_at
    if verdict.refused_by is not None:
        call.leased = call.unsure = verdict.unsure
        raise limit_error(verdict.refused_by, verdict.wait_seconds, tokens)


def _refuse(call: Call, error: ApiError) -> Deliver:
    """Answer with an error: as a reply, or on a stream that is open as its last event."""
    call.status, call.error = error.status, error.code
    call.outcome = record.ERROR if call.leased and not call.unsure else record.REFUSED
    form = FORMATS[call.operation]
    if call.client.begun:
        call.client.follow(None)
        ending = call.relay.failing(error) if call.relay is not None else b""
        ending = ending or form.error_event(error, call.id)
        return partial(call.client.finish, ending)
    body = form.error_body(error, call.id)
    headers = error_headers(call, error)
    return partial(call.client.reply, error.status, "application/json", headers, body)
