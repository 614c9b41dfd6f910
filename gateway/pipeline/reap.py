"""Settles what dead workers left behind: expired leases become usage at their estimate."""

import contextlib
import logging
from functools import partial

from gateway.core import record
from gateway.core.errors import StoreError
from gateway.core.operations import Operation
from gateway.core.record import RequestRecord
from gateway.core.usage import Usage
from gateway.pipeline.services import Services
from gateway.pipeline.settle import OTHER, UNPRICED, counts, parts
from gateway.policy.limits import RATE, SLOTS
from gateway.policy.pricing import Price, cost_components, cost_microusd, in_microusd
from gateway.store import names
from gateway.store.lease import COUNTED, Holding, Return, Settlement
from gateway.store.requests import values

logger = logging.getLogger("sluice.pipeline")

RESERVED = "reserved"
_FREE = Price.from_rates(0, 0)


async def reap(services: Services) -> None:
    """Settle every tenant's expired leases as aborted, where Redis can be reached.

    Safe from several workers at once: a lease counts once, and only then is its record emitted.
    """
    admission = services.admission
    with contextlib.suppress(StoreError):
        await admission.roster.ask_time()  # one that was set makes leases look expired
    try:
        tenants = await admission.orphans.tenants()
    except StoreError:  # in a cluster others may be there all the same
        tenants = admission.tenants_seen().union(key.tenant for key in services.config.auth.keys)
    for tenant in tenants:
        if admission.may_reap(tenant):
            try:
                await _reap(services, tenant)
            except StoreError:
                pass
            except Exception:  # one tenant's trouble is its own
                logger.exception("leases of %s cannot be settled", tenant)


async def _reap(services: Services, tenant: str) -> None:
    admission = services.admission
    try:
        expired = await admission.orphans.expired(tenant)
    except StoreError:
        admission.unsteady(tenant)
        raise
    own = admission.own_leases() if expired else frozenset[str]()
    for lease, holding in expired:
        if lease in own:
            continue  # it could not be extended, or is about to be settled
        if tenant == names.TARGETS_TENANT:
            _free(services, lease, holding or _NOTHING)
        else:
            _abort(services, tenant, lease, holding or _NOTHING)


_NOTHING = Holding("unknown", OTHER, "", "", "chat", 0, 0, 0)


def _free(services: Services, lease: str, holding: Holding) -> None:
    """Give back what an attempt held of a target's limits; its request is accounted for itself."""
    returns = tuple([Return(key, spec, amount, 0) for key, spec, amount in holding.holds])
    services.admission.settle(Settlement(lease, names.TARGETS_TENANT, returns, (), (), ()))


def _abort(services: Services, tenant: str, lease: str, holding: Holding) -> None:
    usage = Usage(prompt_tokens=holding.prompt, completion_tokens=holding.output)
    if holding.operation == Operation.COUNT_TOKENS.label:
        usage = Usage()
    served = services.catalogue.resolve(holding.model)
    price = _price_of(services, tenant, holding)
    if usage == Usage():  # an answer that was kept, or counting: free, whatever a request costs
        price = _FREE if price is not None else None
    cost = cost_microusd(price, usage) if price is not None else 0
    parts_of_cost = in_microusd(cost_components(price, usage)) if price is not None else record.FREE
    if price is None:  # nobody knows the model any more: what was reserved for it is known
        money = [amount for _, spec, amount in holding.holds if spec[0] not in (RATE, SLOTS)]
        cost = max(money, default=0)
        parts_of_cost = record.Cost(output=cost)
    catalogue = services.catalogue
    if served is None:
        known = catalogue.has_label(holding.model)
    else:
        known = served.configured or catalogue.may_label(holding.model)
    model = holding.model if known else OTHER
    finished = RequestRecord(
        id=lease,
        time=services.admission.now(),
        tenant=tenant,
        key=holding.key,
        operation=holding.operation,
        model=model,
        provider=holding.provider,
        served_model=holding.served,
        status=499,
        outcome=record.ABORTED,
        error="worker_lost",
        stream=holding.stream,
        usage=usage,
        usage_source=RESERVED,
        cost_microusd=cost,
        price=price.version if price is not None else RESERVED if cost else UNPRICED,
        attempts=1,
        duration_us=0,
        first_byte_us=0,
        upstream_us=0,
        labels=holding.labels,
        cost=parts_of_cost,
    )
    settlement = Settlement(
        lease=lease,
        tenant=tenant,
        returns=tuple(
            Return(key, spec, reserved, 0 if spec[0] == SLOTS else cost)
            for key, spec, reserved in holding.holds
        ),
        parts=parts(holding.key, model, holding.provider, holding.labels),
        counts=counts(usage, 1, cost),
        entry=values(finished),
        marked=True,  # a worker may have it in its journal
        reaped=True,
    )
    services.admission.settle(settlement, partial(_emit_once, services, finished))


def _price_of(services: Services, tenant: str, holding: Holding) -> Price | None:
    """Return the price of the target that was to be asked first, where it is known by now."""
    served = services.catalogue.resolve(holding.priced or holding.model)
    if served is not None and served.shadow is not None and tenant == names.SHADOW_TENANT:
        served = served.shadow.served
    if served is None:
        return None
    wanted = (holding.provider, holding.served)
    routes = [r for r in served.routes if (r.target.provider, r.target.model) == wanted]
    return (*routes, served.routes[0])[0].price_now()


def _emit_once(services: Services, finished: RequestRecord, counted: int) -> None:
    if counted == COUNTED:
        services.emit(finished)
