"""Hot path: money is reserved for a stream a slice at a time, so a large maximum starves nobody.

A stream that nears the end of its slice is paused while the next one is reserved; where a budget
refuses it, the stream ends with an error event.
"""

import asyncio
import re
from collections.abc import Callable

import msgspec

from gateway.core.errors import ApiError, Failure, LeaseGone, StoreError, UpstreamError
from gateway.core.request import Request
from gateway.pipeline.call import Call
from gateway.pipeline.refusal import limit_error
from gateway.pipeline.served import Served
from gateway.pipeline.services import Services
from gateway.policy.limits import MONEY, PERIOD, Grant, Limit, may_refuse_money
from gateway.policy.pricing import Price, most_microusd
from gateway.store.lease import Holding, holds

# Output tokens that one reservation covers: what a stream can overspend its budget by is less.
SLICE_TOKENS = 1024
# How far a slice reaches. English has about four bytes a token, Chinese three: on the safe side.
BYTES_PER_TOKEN = 3
# How far a request's own maximum reaches: no text has more. A provider that does not keep to the
# maximum is not believed any further.
MOST_BYTES_PER_TOKEN = 16
NO_MAXIMUM = float("inf")
SETTLED = "The gateway was away for so long that this request has been ended, and accounted for."
# What is passed through is one field, its whole body.
BODY = "body"
_KEPT_FIELDS = ("cache_control", "system", "tools", "messages", BODY)
_AN_HOUR = re.compile(rb'"(?:1|\\u0031)(?:h|\\u0068)"')
_SOUND = re.compile(rb'"(?:input_audio|audio|AUDIO)"|"audio/')
# Letters that are written as escapes: so nobody writes, but who hides a word.
_HIDDEN = re.compile(rb"\\u00(?:5[fF]|[46][1-9a-fA-F]|[57][0-9aA])")


def needs_price(services: Services, applied: tuple[Limit, ...]) -> bool:
    """Tell whether a model without a price is refused under these limits."""
    return services.config.pricing.unknown == "refuse" or may_refuse_money(applied)


def price_of(served: Served, request: Request, prompt: int, output: int, *, needed: bool) -> int:
    """Return what so many tokens may cost, in micro-dollars, at the dearest of a model's targets.

    What nobody knows costs nothing; raises ApiError where it is needed.
    """
    sound, lasting = _may_be_sound(request), _may_last(request)
    return max(
        [
            most_microusd(price, prompt, output, sound=sound, lasting=lasting)
            for price in known_prices(served, needed=needed)
        ],
        default=0,
    )


def known_prices(served: Served, *, needed: bool) -> list[Price]:
    """Return the prices of a model's targets. Raises ApiError where one is needed and not known."""
    known = [price for route in served.routes if (price := route.price_now()) is not None]
    if needed and len(known) < len(served.routes):
        message = (
            f"Nobody knows what the model '{served.name}' costs, so it cannot be charged. Its "
            "operator can set a price for it, or pricing.default."
        )
        raise ApiError("price_unknown", message, param="model")
    return known


def _may_be_sound(request: Request) -> bool:
    fields = request.fields
    if "audio" in fields or b"audio" in bytes(fields.get("modalities", b"")):
        return True
    if BODY in fields:
        return _SOUND.search(fields[BODY]) is not None or _HIDDEN.search(fields[BODY]) is not None
    prompt = bytes(fields.get("messages") or fields.get("input") or b"")
    return b'"input_audio"' in prompt or _HIDDEN.search(prompt) is not None


def _may_last(request: Request) -> bool:
    """Tell whether a part of the prompt may be kept for an hour, as Anthropic's API has it."""
    parts = [request.fields.get(name, b"") for name in _KEPT_FIELDS]
    return any(_AN_HOUR.search(part) is not None for part in parts)


class Allowance:
    """What a stream may deliver before it must ask again. `spent` is the error that ended it.

    `most_tokens` is what the request says itself, or NO_MAXIMUM.
    """

    def __init__(self, services: Services, call: Call, most_tokens: float) -> None:
        self._services, self._call, self._most = services, call, most_tokens
        self._task: asyncio.Task[None] | None = None
        self.served = call.model  # whose price counts
        self.spent: ApiError | None = None

    @property
    def text_bytes(self) -> float:
        """Return how much generated text the reservation covers."""
        assert self._call.holding is not None
        output = self._call.holding.output
        reach = output * BYTES_PER_TOKEN
        return reach if output < self._most else max(reach, self._most * MOST_BYTES_PER_TOKEN)

    def extend(self, granted: Callable[[], None], refused: Callable[[UpstreamError], None]) -> None:
        """Reserve the next slice; exactly one of the two is called, unless the call ends first."""
        self._task = self._services.loop.create_task(self._extend(granted, refused))

    def close(self) -> None:
        """Ask no more. Idempotent."""
        task, self._task = self._task, None  # it refers to this, by how it ended
        if task is not None:
            task.cancel()

    async def _extend(
        self, granted: Callable[[], None], refused: Callable[[UpstreamError], None]
    ) -> None:
        refusal = await self.more()
        if refusal is not None:
            refused(UpstreamError(Failure.SPENT, refusal.message))
            return
        granted()

    async def more(self) -> ApiError | None:
        """Reserve the next slice; return what refuses it."""
        holding = self._call.holding
        assert holding is not None
        output = holding.output + SLICE_TOKENS
        if holding.output < self._most < output:
            output = int(self._most)
        return await self._reserve(output)

    async def begin_again(self, prompt: int) -> ApiError | None:
        """Reserve so much prompt in all, as one more target is to be asked; return what refuses."""
        call, holding = self._call, self._call.holding
        assert holding is not None
        call.holding = msgspec.structs.replace(holding, prompt=prompt)
        return await self._reserve(holding.output)

    async def _reserve(self, output: int) -> ApiError | None:
        assert self.served is not None
        try:
            refusing = await reserve(self._services, self._call, self.served, output)
        except ApiError as error:
            self.spent = error.with_traceback(None)
            return self.spent
        if refusing is not None:
            self.spent = spent_error(self._services, self._call, refusing)
        return self.spent


def allowance_for(services: Services, call: Call, request: Request) -> Allowance:
    """Return the allowance of a stream whose first slice is reserved."""
    known = request.max_output is not None
    return Allowance(
        services, call, (request.max_output or 0) * request.texts if known else NO_MAXIMUM
    )


def spent_error(services: Services, call: Call, budget: Limit) -> ApiError:
    """Return the error where a budget refuses what a request needs beyond its admission."""
    ends = [g.spec[2] for g in call.grants if g.limit.name == budget.name and g.spec[0] == PERIOD]
    if not any(ends):  # a window, or a budget in total
        return limit_error(budget, None)
    return limit_error(budget, max(0.0, ends[0] / 1e6 - services.admission.now()))


async def reserve(
    services: Services,
    call: Call,
    served: Served,
    output: int,
    *,
    known: int | None = None,
) -> Limit | None:
    """Reserve the money for so much output of a model; return the budget that refuses, if any.

    `known` is what it costs in all (micro-dollars), where that is known already. Where Redis is
    away, or does not take it, this worker's share decides. Raises ApiError where nobody knows a
    price that is needed, and where the request has been settled by another worker.
    """
    holding, principal = call.holding, call.principal
    assert holding is not None
    assert principal is not None
    budgets = tuple([grant for grant in call.grants if grant.limit.unit == MONEY])
    assert call.request is not None
    total = known
    if total is None:
        needed = needs_price(services, tuple([grant.limit for grant in budgets]))
        total = price_of(served, call.request, holding.prompt, output, needed=needed)
    if budgets:
        more = max(0, total - budgets[0].amount)
        total = budgets[0].amount + more
    grown = tuple(
        [
            msgspec.structs.replace(g, amount=total) if g.limit.unit == MONEY else g
            for g in call.grants
        ]
    )
    wanted = msgspec.structs.replace(holding, output=output, holds=holds(grown))
    if served is not call.model:
        target = served.routes[0].target
        wanted = msgspec.structs.replace(
            wanted, priced=served.name, provider=target.provider, served=target.model
        )
    if budgets and more:
        admission = services.admission
        try:
            verdict = await admission.grow(principal.tenant, call.id, wanted, budgets, more)
            refusing = verdict.refused_by
            note_overdrawn(call, verdict.overdrawn)
        except LeaseGone:
            raise ApiError("stream_interrupted", SETTLED) from None
        except StoreError:
            refusing = _alone(services, call, wanted, budgets, more)
        if refusing is not None:
            return refusing
    call.grants, call.holding = grown, wanted
    return None


def _alone(
    services: Services, call: Call, wanted: Holding, budgets: tuple[Grant, ...], more: int
) -> Limit | None:
    assert call.principal is not None
    try:
        return services.admission.grow_alone(call.principal.tenant, call.id, wanted, budgets, more)
    except LeaseGone:
        raise ApiError("stream_interrupted", SETTLED) from None


def note_overdrawn(call: Call, found: tuple[Limit, ...]) -> None:
    """Note the limits in shadow that would have refused by now."""
    seen = call.verdict.overdrawn
    more = tuple([limit for limit in found if limit not in seen])
    if more:
        call.verdict = msgspec.structs.replace(call.verdict, overdrawn=seen + more)


async def pay_for(services: Services, call: Call, other: Served) -> bool:
    """Reserve what another model costs more, to ask it instead; tell whether that is possible."""
    limited = any(grant.limit.unit == MONEY for grant in call.grants)
    try:
        if limited:
            assert call.holding is not None
            output = call.holding.output
            if await reserve(services, call, other, output) is not None:
                return False
        elif services.config.pricing.unknown == "refuse":
            known_prices(other, needed=True)
    except ApiError:  # nobody knows its price
        return False
    request = call.request
    assert request is not None
    if request.stream and call.allowance is None and limited:
        call.allowance = allowance_for(services, call, request)  # the first model costs nothing
    if isinstance(call.allowance, Allowance):
        call.allowance.served = other
    if call.flight is not None and call.flight.call is call:
        call.flight.asks(other)  # those who share the call are to reserve their part of that
    return True
