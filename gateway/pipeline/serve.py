"""Hot path: one request from its body to its reply.

authenticate -> decode -> cache -> admit -> attempt -> settle -> deliver. Settlement always runs,
and runs before the reply leaves: what a client has seen completed has been accounted for.
"""

import asyncio
import contextlib
import logging
import random
from functools import partial
from time import monotonic

from gateway.core import record
from gateway.core.errors import STORE_AWAY, ApiError, StoreError, UpstreamError
from gateway.core.ids import request_id
from gateway.core.operations import Operation
from gateway.formats import FORMATS
from gateway.formats.body import decode as decode_body
from gateway.pipeline.admit import admit
from gateway.pipeline.answer import error_headers
from gateway.pipeline.attempt import attempt
from gateway.pipeline.cached import Cache
from gateway.pipeline.call import Call, Deliver
from gateway.pipeline.elsewhere import Elsewhere
from gateway.pipeline.named_models import authorize_beside, limited_beside, named_beside
from gateway.pipeline.planning import Plan
from gateway.pipeline.served import Shadow
from gateway.pipeline.services import Services
from gateway.pipeline.settle import settle
from gateway.policy.access import may_use
from gateway.policy.caching import BYPASS, STALE
from gateway.policy.limits import grants
from gateway.policy.retry import client_error
from gateway.store.answers import Answer

logger = logging.getLogger("sluice.pipeline")


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
            call.outcome, call.status = record.DISCONNECTED, 499
        settle(services, call)
        raise
    if call.left:
        call.outcome, call.status = record.DISCONNECTED, 499
    call.client.expect()
    settle(services, call)
    services.admission.after_settled(deliver)


async def refuse(services: Services, call: Call, error: ApiError) -> None:
    """Refuse a request whose body has not come as it should; it is recorded as its key's."""
    try:
        with contextlib.suppress(ApiError, StoreError):  # it is refused whoever asks
            call.principal = await services.keyring.authenticate(call.secret)
        await _learn_limits(services, call)
    finally:
        deliver = _refuse(call, error)
        call.client.expect()
        settle(services, call)
        services.admission.after_settled(deliver)


async def serve_apart(services: Services, call: Call) -> None:
    """Serve a request that nobody looks at afterwards."""
    try:
        await serve(services, call)
    finally:
        part(call)


def part(call: Call) -> None:
    """Part a request from what refers to it: a circle is freed late, with all it holds."""
    call.relay = call.allowance = call.flight = None


async def _answer(services: Services, call: Call) -> Deliver:
    """Run the stages; whatever goes wrong becomes an error in the client's protocol."""
    try:
        if call.request is None:
            call.principal = services.keyring.find(call.secret)
            if call.principal is None:
                await authenticate(services, call)
            else:
                _enter(services, call)
            cache = services.cache
            if cache is None:
                if decode(services, call):
                    await _mind_others(services, call)
            elif plan := _recalled(cache, call) or await _planned(services, cache, call):
                deliver = await cache.answer(services, call, plan)
                if deliver is not None:
                    return deliver
                call.cache = BYPASS
        if not call.leased:  # else it waited for a call that it was to share
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
        told = client_error(error, provider)
        cache = services.cache
        stale = cache.stand_in(call) if cache is not None else None
        if stale is not None:  # of a stream that has begun there were only pings
            call.refused = told
            return _stale(call, stale)
        return _refuse(call, told)
    except StoreError as error:
        logger.warning("admission failed: %s", error)
        deliver = _refuse(call, ApiError("store_unavailable", STORE_AWAY, retry_after=1))
        # Though it is settled: the lease may have been taken.
        call.outcome, call.unsure = record.REFUSED, True
        return deliver
    except Exception:
        logger.exception("request %s failed inside the gateway", call.id)
        return _refuse(call, ApiError("internal_error", "The gateway failed. See its log."))


def _recalled(cache: Cache, call: Call) -> Plan | None:
    """Say what the cache may do for a request that has been here before; None: it has not."""
    plan = cache.planner.recall(call)
    if plan is not None:
        call.body = b""
    return plan


async def _planned(services: Services, cache: Cache, call: Call) -> Plan | None:
    """Decode a request, and say what the cache may do for it; None: nothing."""
    planner = cache.planner
    body, holder = call.body, call.principal
    if decode(services, call):
        await _mind_others(services, call)
    plan = planner.plan(call)
    if plan is not None and call.principal is holder:
        planner.remember(call, body, plan)  # else limits of other models apply, this once
    return plan


def _stale(call: Call, answer: Answer) -> Deliver:
    """Let an old answer stand in where all targets fail; whoever waits for the call has it."""
    assert call.flight is not None
    call.cache, call.kept, call.saved = STALE, answer, answer.cost_microusd
    call.status, call.finished = 200, True
    return call.flight.delivered.set


def _copy(services: Services, call: Call, shadow: Shadow) -> None:
    """Send a copy of a request to a shadow, which pays for itself."""
    if random.random() * 100 >= shadow.percent:  # noqa: S311  no secret
        return
    copy = Call(request_id(), call.operation, b"", None, Elsewhere(), monotonic(), call.trace)
    copy.request, copy.passed_on = call.request, call.passed_on
    copy.model, copy.principal = shadow.served, shadow.principal
    run = partial(serve_apart, services, copy)
    services.copies.spawn(shadow.served.name, shadow.concurrency, run)


async def _learn_limits(services: Services, call: Call) -> None:
    """Ask where the limits stand, for an answer that was refused before it was admitted."""
    principal = call.principal
    if principal is None or not principal.limits or call.verdict.levels:
        return
    if services.admission.does_without(principal.tenant):
        return
    nothing = grants(principal.limits, 0, 0, services.admission.now())
    with contextlib.suppress(StoreError):  # the refusal stands without the figures
        call.verdict = await services.admission.peek(principal.tenant, nothing)


async def authenticate(services: Services, call: Call) -> None:
    """Find out who asks, and whether there is room for it; `settle` gives the room back."""
    call.principal = await services.keyring.authenticate(call.secret)
    _enter(services, call)


def _enter(services: Services, call: Call) -> None:
    assert call.principal is not None
    call.gated = services.gate.enter(call.principal.tenant)
    if not call.gated:
        message = "The gateway has as many requests as it can serve. Try again."
        raise ApiError("overloaded", message, retry_after=1)


def decode(services: Services, call: Call) -> bool:
    """Understand the request: its model must exist, and the key must be allowed to use it.

    Tell whether it matters to the key which other models it names.
    """
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
    if not served.does(call.operation) and call.operation is not Operation.COUNT_TOKENS:
        message = f"The model '{request.model}' does not do {call.operation.value}."
        raise ApiError("invalid_value", message, param="model")
    call.model = served
    return bool(call.principal.by_model) or "*" not in call.principal.models


async def _mind_others(services: Services, call: Call) -> None:
    """Let the models that a request names beside its own be allowed, and count against limits."""
    principal, served, request = call.principal, call.model, call.request
    assert principal is not None
    assert served is not None
    assert request is not None
    call.model = None  # what is refused here was asked of none
    beside = await named_beside(services.catalogue, served, request)
    if beside:
        if "*" not in principal.models:
            authorize_beside(principal, beside)
        call.principal = limited_beside(principal, served, beside)
    call.model = served


def _refuse(call: Call, error: ApiError) -> Deliver:
    """Answer with an error: as a reply, or on a stream that is open as its last event."""
    # The frames it has come through refer to the call, which keeps it.
    error.__traceback__ = error.__context__ = None
    call.status, call.error, call.refused = error.status, error.code, error
    call.outcome = record.ERROR if call.leased and not call.unsure else record.REFUSED
    form = FORMATS[call.operation]
    call.client.follow(None)
    if call.client.begun:
        ending = call.relay.failing(error) if call.relay is not None else b""
        ending = ending or form.error_event(error, call.id)
        return partial(call.client.finish, ending)
    body = form.error_body(error, call.id)
    headers = error_headers(call, error)
    return partial(call.client.reply, error.status, "application/json", headers, body)
