"""Hot path: how one who asks is given an answer that is kept, or that another's call brings."""

import asyncio
from collections.abc import Callable
from copy import copy
from functools import partial
from time import monotonic

from msgspec.structs import astuple

from gateway.core import record
from gateway.core.errors import ApiError
from gateway.core.operations import Operation
from gateway.core.usage import Usage
from gateway.formats import FORMATS
from gateway.pipeline.admit import admit, admit_hit
from gateway.pipeline.allowance import pay_for, reserve, spent_error
from gateway.pipeline.answer import kept_headers, served_headers
from gateway.pipeline.call import Call, Deliver
from gateway.pipeline.flight import Flight, Reader
from gateway.pipeline.planning import Plan
from gateway.pipeline.replay import Entry, form_of, written
from gateway.pipeline.services import Services
from gateway.pipeline.settle import measure
from gateway.policy.caching import COALESCED, MISS, STALE, shares
from gateway.policy.limits import MONEY

BEHIND = "The client took too little of a stream that others share, and fell too far behind."

STALLED_SECONDS = 30.0  # that a client may take nothing of what is written at a pace

Grown = Callable[[Entry, int], None]
Whole = tuple[int, str, bytes, bytes]


async def give(
    services: Services, call: Call, plan: Plan, entry: Entry, how: str, grown: Grown
) -> Deliver:
    """Give an answer that is kept. Raises ApiError where a limit refuses it."""
    answer, call.flight = entry.answer, None
    if how == COALESCED and plan.rules.bill == "each":
        await _pay_whole(services, call, answer.usage, answer.cost_microusd)
        call.usage, call.usage_source = answer.usage, "provider"
        call.cost_microusd, call.cost = answer.cost_microusd, answer.cost
        call.price_version = answer.price
    else:
        await let_in(services, call, answer.provider, answer.model)
        call.saved = answer.cost_microusd
    call.cache, call.kept = how, answer
    call.status, call.finished = 200, True
    age = entry.age(services.loop.time())
    assert call.request is not None
    if call.request.stream:
        return await write(call, plan, entry, age, grown)
    return _whole(call, plan, entry, age, grown)


async def let_in(services: Services, call: Call, provider: str, model: str) -> None:
    """Let a request pass that needs no call, unless it has been admitted. Raises ApiError."""
    if not call.leased:
        await admit_hit(services, call, provider, model)


async def _admit(services: Services, call: Call) -> None:
    if not call.leased:
        await admit(services, call)


async def _pay_whole(services: Services, call: Call, usage: Usage, microusd: int) -> None:
    """Let a request pay for an answer whose price is known. Raises ApiError where a limit refuses.

    What it was admitted with is a slice, or a maximum of its own, of the model it asked for.
    """
    await _admit(services, call)
    holding, served = call.holding, call.model
    assert holding is not None
    assert served is not None
    call.allowance = None  # no more than this is to be paid
    if any(grant.limit.unit == MONEY for grant in call.grants):
        output = max(usage.completion_tokens, holding.output)
        refusing = await reserve(services, call, served, output, known=microusd)
        if refusing is not None:
            raise spent_error(services, call, refusing)


async def _cover(services: Services, call: Call, flight: Flight) -> None:
    """Let who shares a call reserve its part of the model that is asked instead of its own.

    It is counted among those who pay once it has. Raises ApiError where a limit refuses.
    """
    served, holding = flight.asked, call.holding
    if served is None or flight.is_covered(call):
        return
    assert holding is not None
    flight.sharers.pop(call, None)
    refusing = await reserve(services, call, served, holding.output)
    if refusing is not None:
        call.flight = None
        raise spent_error(services, call, refusing)
    await pay_for(services, call, served)  # which is reserved: its allowance is to go by that


async def write(call: Call, plan: Plan, entry: Entry, age: float, grown: Grown) -> Deliver:
    """Write an answer that is kept, a stream at its pace."""
    request, client = call.request, call.client
    assert request is not None
    if not request.stream:
        return _whole(call, plan, entry, age, grown)
    pieces = written(entry, call, plan.form, grown)
    # What its part is of a call that it shares is known at its end.
    client.start(kept_headers(call, entry, age, with_cost=call.flight is None))
    if not plan.rules.pace:
        return partial(client.finish, b"".join(pieces))
    reader = Reader(None, call, 0.0)
    client.follow(reader)
    try:
        for piece in pieces[:-1]:
            reader.until = monotonic() + STALLED_SECONDS
            await reader.caught_up()
            client.write(piece)
            await asyncio.sleep(plan.rules.pace)
    finally:
        client.follow(None)
    return partial(client.finish, pieces[-1])


def _whole(call: Call, plan: Plan, entry: Entry, age: float, grown: Grown) -> Deliver:
    (body, *_) = written(entry, call, plan.form, grown)
    content_type = entry.answer.content_type or "application/json"
    return partial(_reply, call, content_type, partial(kept_headers, call, entry, age), body)


def _reply(call: Call, content_type: str, headers: Callable[[], bytes], body: bytes) -> None:
    """Send a whole reply, whose headers name what was paid: once that has been settled."""
    call.client.reply(200, content_type, headers(), body)


def suits(flight: Flight, call: Call) -> bool:
    """Tell whether a call's answer may be passed on to a request as it comes."""
    leader = flight.leader
    if leader is None or leader is call:
        return leader is call
    return form_of(leader) == form_of(call)


async def lead(
    services: Services, call: Call, flight: Flight, reader: Reader, plan: Plan, grown: Grown
) -> Deliver:
    """Let the first one have what its call brings; the call itself is accounted for."""
    await _pass_on(services, flight, reader, lambda: flight.headers)
    assert flight.call is not None
    if flight.call.cache == STALE:
        assert flight.entry is not None
        call.cache, call.verdict = STALE, flight.verdict
        return await write(call, plan, flight.entry, flight.age, grown)
    if flight.whole is not None:
        return partial(call.client.reply, *_as_paid(flight, flight.whole))
    return _finish(call, flight, lambda: flight.headers)


def _as_paid(flight: Flight, whole: Whole) -> Whole:
    """Return a reply with the part that its call has paid."""
    status, content_type, _, body = whole
    if status != 200 or flight.takers == 1 or flight.bill != "split":
        return whole
    assert flight.call is not None
    return status, content_type, served_headers(flight.call, with_cost=True), body


async def take_part(
    services: Services, call: Call, flight: Flight, reader: Reader
) -> Deliver | None:
    """Let another have what a call brings, as it comes; None where nothing but pings came.

    Raises ApiError where a limit refuses.
    """
    await join(services, call, flight)
    leading = flight.call
    assert leading is not None

    def headers() -> bytes:
        return served_headers(call, with_cost=False)

    try:
        await _pass_on(services, flight, reader, headers)
    except asyncio.CancelledError:
        if flight.bill == "each" and reader.place and not flight.takers and call.flight is flight:
            _pay_so_far(flight, call)  # it leaves before the call is paid for
            call.flight = None
        raise
    except ApiError:
        if not reader.place:
            call.cache = MISS  # it was refused, and given nothing
        raise
    finally:  # another target may have gone on since
        call.route, call.dropped = leading.route, leading.dropped
    if flight.how == STALE:
        return None
    call.status, call.finished = 200, not leading.error
    if leading.error:
        told = leading.refused
        if flight.void or told is None:  # the reason is none of this client's business
            told = ApiError("stream_interrupted", "The call that this answer came from has ended.")
        call.outcome, call.error, call.status = record.ERROR, told.code, told.status
        return partial(call.client.finish, _broken(call, flight, told))
    if flight.whole is not None:
        _, content_type, _, body = flight.whole
        paid = partial(served_headers, call, with_cost=True)
        return partial(_reply, call, content_type, paid, body)
    return _finish(call, flight, headers)


def _broken(call: Call, flight: Flight, error: ApiError) -> bytes:
    """Return what ends a stream that broke off, for one who shared it."""
    leading = flight.call
    assert leading is not None
    if call.operation is Operation.RESPONSES:  # whose events are numbered
        if error is leading.refused:
            return flight.ending
        if leading.relay is not None and (ending := leading.relay.failing(error)):
            return ending
    return FORMATS[call.operation].error_event(error, call.id)


async def enter(services: Services, flight: Flight, reader: Reader) -> None:
    """Let one who waits pay its part, which must be known before the call is paid for.

    Raises ApiError where a limit refuses it.
    """
    call, reader.entering = reader.call, True
    try:
        await _admit(services, call)
        await _cover(services, call, flight)
    finally:
        reader.entering = False
    if flight.may_enter(reader) and flight.is_covered(call):
        call.flight = flight
        flight.sharers[call] = None


async def join(services: Services, call: Call, flight: Flight) -> None:
    """Let a request share a call, and its price."""
    assert flight.call is not None
    route = flight.call.route
    assert route is not None
    if flight.bill == "leader":
        await let_in(services, call, route.target.provider, route.target.model)
    elif flight.bill == "each" and flight.takers:
        await _pay_whole(services, call, flight.usage, flight.microusd)
    else:
        await _admit(services, call)
        await _cover(services, call, flight)
    call.cache, call.route, call.dropped = COALESCED, route, flight.call.dropped
    call.flight = flight
    _count_in(flight, call)


def _count_in(flight: Flight, call: Call) -> None:
    """Count who pays a part of a call, unless that has been paid for."""
    if not flight.takers:
        flight.sharers[call] = None


async def _pass_on(
    services: Services, flight: Flight, reader: Reader, headers: Callable[[], bytes]
) -> None:
    """Write pieces of a stream as they come, as fast as the client takes them."""
    call, client = reader.call, reader.call.client
    if flight.has_lost(reader):
        raise ApiError("stream_interrupted", BEHIND)  # its beginning is there no more
    client.follow(reader)
    reader.takes = True
    try:
        while True:
            if reader.lost:
                raise ApiError("stream_interrupted", BEHIND)
            if flight.has_more(reader):
                if reader.paused:
                    await reader.caught_up()
                    continue
                if call is not flight.leader and not flight.is_covered(call):
                    await _cover(services, call, flight)
                    _count_in(flight, call)
                    continue
                if call.allowance is not None and _outgrown(flight, call):
                    await _pay_on(flight, reader)
                    continue
                if not client.begun:
                    client.start(headers())
                client.write(flight.piece(reader))
            elif flight.over:
                return
            else:
                await flight.news()
    finally:
        reader.takes = False
        client.follow(None)


def _outgrown(flight: Flight, call: Call) -> bool:
    """Tell whether more of a stream has come than one who shares it has reserved its part of."""
    leading, allowance = flight.call, call.allowance
    if allowance is None or leading is None or leading.relay is None or call is flight.leader:
        return False
    size = leading.relay.decoder.text_bytes
    if flight.bill == "split":
        return call in flight.sharers and size / (1 + len(flight.sharers)) > allowance.text_bytes
    return size > allowance.text_bytes


async def _pay_on(flight: Flight, reader: Reader) -> None:
    """Reserve one more slice for who shares a stream.

    Raises ApiError where its budget does not cover that: it pays for what there is so far.
    """
    call = reader.call
    assert call.allowance is not None
    refusal = await call.allowance.more()
    if refusal is not None:
        if reader.place:
            _pay_so_far(flight, call)
        call.flight = None
        raise refusal


def _pay_so_far(flight: Flight, call: Call) -> None:
    """Let one who shares a stream that goes on without it pay its part of what came."""
    assert flight.call is not None
    so_far = copy(flight.call)
    measure(so_far)
    part = partial(shares, flight.bill, takers=1 + len(flight.sharers), place=1)
    call.usage = Usage(*[part(n) for n in astuple(so_far.usage)])
    call.cost = record.Cost(*[part(n) for n in astuple(so_far.cost)])
    call.cost_microusd = sum(astuple(call.cost))
    call.usage_source, call.price_version = "partial", so_far.price_version


def _finish(call: Call, flight: Flight, headers: Callable[[], bytes]) -> Deliver:
    if not call.client.begun:
        call.client.start(headers())
    return partial(call.client.finish, flight.ending)
