"""Hot path: asks a model's targets in turn until one answers.

The only place that tries again, and only while the client has had nothing. What to do after a
failure is `policy.retry`'s to say.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import chain
from math import inf
from time import monotonic

from gateway.core import record
from gateway.core.errors import ApiError, Failure, UpstreamError
from gateway.core.hints import TIMEOUT
from gateway.core.operations import ANTHROPIC, Operation
from gateway.formats import FORMATS
from gateway.pipeline.allowance import pay_for
from gateway.pipeline.answer import common_headers, served_headers
from gateway.pipeline.ask import MAX_SHOWN_CHARS, ask, ask_rest, redacted
from gateway.pipeline.call import NO_USAGE, Call, Deliver
from gateway.pipeline.go_on import Interrupted, may_go_on, prepare, successors
from gateway.pipeline.hedge import Race, delay
from gateway.pipeline.keys import keyed, rests
from gateway.pipeline.quota import Quota
from gateway.pipeline.select import Selection, select
from gateway.pipeline.served import Route, Served
from gateway.pipeline.services import Services
from gateway.pipeline.settle import count_prompt, measure
from gateway.pipeline.tries import first_answer, tried
from gateway.policy.refusal import CONTEXT_WINDOW, refusal_of
from gateway.policy.retry import (
    Next,
    client_error,
    counts_against,
    decide,
    is_clients_fault,
    wait_seconds,
)
from gateway.policy.routing import plan

TOO_LONG = "prompt is too long"
WAITED_PART = 0.1  # of a provider's total: who waits longer for a place in our pool blames nobody

Asking = Callable[[Services, Call, Route, float], Awaitable[Deliver]]


async def attempt(services: Services, call: Call) -> Deliver:
    """Return what delivers the answer. Raises UpstreamError or ApiError when all targets failed.

    What another model may take, being too long for this one or against its provider's policy, goes
    to the models that the configuration names for that.
    """
    served = call.model
    assert served is not None
    until = deadline(services, call)
    first = _Course(services, call, served, until)
    served.budget.earn()
    deliver = await first.ask_all()
    if deliver is None:
        deliver = await first.ask_again()
    if deliver is None and served.fallbacks and first.failure is not None:
        kind = refusal_of(first.failure)
        for name in served.fallbacks.get(kind, ()) if kind is not None else ():
            other = services.catalogue.resolve(name)
            awaited = call.client.connected and monotonic() < until
            if awaited and other is not None and await pay_for(services, call, other):
                deliver = await _instead(_Course(services, call, other, until), call)
            if deliver is not None:
                break
    return first.give_up() if deliver is None else deliver


async def _instead(course: "_Course", call: Call) -> Deliver | None:
    """Ask another model; the client has not, so it does not hear of what that one cannot do."""
    try:
        course.served.budget.earn()
        return await course.ask_all() or await course.ask_again()
    except ApiError:
        if call.client.begun or call.spent is not None:
            raise
        return None


def deadline(services: Services, call: Call) -> float:
    """Return when a request must be answered, by the monotonic clock. Raises ApiError."""
    assert call.model is not None
    most = call.model.total or services.config.server.timeouts.total
    return call.started_at + (_allowed(call, most) if call.hints.timeout else most)


def _allowed(call: Call, most: float) -> float:
    """Return how long a request may take whose client asks for less than is configured."""
    try:
        seconds = float(call.hints.timeout)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < inf:
        message = f"Invalid value for '{TIMEOUT}': expected seconds above 0."
        raise ApiError("invalid_value", message, param=TIMEOUT)
    return min(seconds, most)


class _Course:
    """One request's way along a model's targets: what failed, and whether that may pass."""

    # Most requests never set these.
    failure: UpstreamError | None = None
    _passing: UpstreamError | None = None
    _failed: Route | None = None
    _misfit: ApiError | None = None
    _selection: Selection | None = None
    _order: Sequence[Route] = ()

    def __init__(self, services: Services, call: Call, served: Served, until: float) -> None:
        self._services, self._call, self.served, self._until = services, call, served, until

    async def ask_again(self) -> Deliver | None:
        """Ask the targets once more where that may help; None where none answers."""
        for number in range(self._services.retries.attempts):
            if self._passing is None or not await self._waited(self._passing, number):
                break
            deliver = await self.ask_all()
            if deliver is not None:
                return deliver
        return None

    async def _waited(self, failure: UpstreamError, tried: int) -> bool:
        """Wait before all targets are asked again; False where that is too long, or too much."""
        wait = wait_seconds(failure, tried, self._services.retries, random.random)
        if wait is None or monotonic() + wait >= self._until or not self._call.client.connected:
            return False
        if not self.served.budget.spend():
            return False
        await asyncio.sleep(wait)
        return self._call.client.connected

    def _planned(self, now: float) -> list[Route]:
        """Return the targets in the order to ask. Raises ApiError where none takes the request."""
        served, call = self.served, self._call
        routes, canary, pin = served.routes, None, b""
        if len(routes) == 1 and not served.selective and not call.hints.tags:
            return [routes[0]] if call.operation in routes[0].ways else []
        panic = self._services.config.breaker.panic
        if served.selective or call.hints.tags:
            if self._selection is None:
                self._selection = select(call, served, random.random)
            canary, routes, pin = self._selection
        order = plan(routes, served.strategy, now, random.random, panic, pin)
        if canary is not None:
            # One that is ejected comes last, as any other.
            order = (canary, *order) if canary.state.breaker.allows(now) else (*order, canary)
        return [route for route in order if call.operation in route.ways]

    async def ask_all(self) -> Deliver | None:
        """Ask the targets one after the other; None where none of them answers.

        Keys that rest are asked at the last target, and where nobody else could be.
        """
        call, served, self._passing = self._call, self.served, None
        now = monotonic()
        self._order = planned = self._planned(now)
        last, asked = len(planned) - 1, False
        hedged: list[Route] = []
        resting: list[Route] = []
        for place, route in enumerate(chain(planned, resting)):
            if asked and place == last + 1:
                break
            if hedged and any(route is one for one in hedged):
                continue
            # Handing over to a target that is well costs nobody anything; another is a retry.
            if asked and not route.state.breaker.closed(now) and not served.budget.spend():
                continue
            keys = keyed(route, resting_too=place >= last)
            if not keys:
                resting.append(route)
            for one in keys:
                if asked and (not call.client.connected or monotonic() >= self._until):
                    return None  # whom another would answer has left, or has waited long enough
                race = None
                if served.hedge_after is not None:
                    race = self._race(one, planned[place + 1 :], now)
                try:
                    if race is not None:
                        return await race.run()
                    if served.goes_on:
                        return await self._try(call, one)
                    return await self._once(call, one, ask)
                except ApiError as error:
                    if error.code != "unsupported_parameter":
                        raise
                    # What one target cannot do another may: nothing was sent.
                    call.attempts -= 1
                    self._misfit = self._misfit or error.with_traceback(None)
                    break
                except UpstreamError as error:
                    asked = True
                    # Without its frames: one of them is this one, and would keep the request.
                    self.failure, self._failed = error.with_traceback(None), one
                    if race is not None:
                        hedged += race.hedged
                        self._failed = race.failed
                    following = decide(error)
                    if following is Next.GIVE_UP:
                        return None
                    if following is Next.RETRY:
                        self._passing = error
                    if not rests(self._failed or one, error) or race is not None:
                        break
        return None

    def _race(self, route: Route, others: list[Route], now: float) -> Race | None:
        """Return a race against another target that is well, where the model is hedged."""
        assert self.served.hedge_after is not None
        seconds = delay(self.served.hedge_after, route)
        well = [other for other in others if other.state.breaker.closed(now)]
        if seconds is None or not well:
            return None
        (second, *_) = keyed(well[0], resting_too=True)
        return Race(self._call, self.served.budget, self._try, (route, second, well[0]), seconds)

    async def _try(self, call: Call, route: Route) -> Deliver:
        """Ask one target; another goes on where its stream is cut and that is wanted.

        Raises UpstreamError or ApiError.
        """
        try:
            return await self._once(call, route, ask)
        except Interrupted as cut:
            if monotonic() >= self._until or not may_go_on(self.served, call, cut.error):
                raise cut.told from None
            for other in successors(self._order, route, call):
                await prepare(call)
                try:
                    return await self._once(call, keyed(other, resting_too=True)[0], ask_rest)
                except (UpstreamError, ApiError, Interrupted) as error:
                    if isinstance(error, ApiError):
                        call.attempts -= 1  # nothing was sent
                    if monotonic() >= self._until or not may_go_on(self.served, call, error):
                        break
            raise (call.spent or cut.told) from None

    async def _once(self, call: Call, route: Route, asking: Asking) -> Deliver:
        """Ask one target, and remember how it did. Raises UpstreamError, ApiError, Interrupted."""
        state = route.state
        quota, worked_on = None, False
        if route.limits:
            quota = Quota(self._services, call, route)
            await quota.take()
        call.attempts += 1
        call.route = route
        call.sent_at, call.reply_at, call.connect_s, call.written = monotonic(), 0.0, 0.0, False
        breaker = state.breaker
        probes = not breaker.closed(call.sent_at)
        if probes:
            breaker.probe(call.sent_at, route.target.deadlines.first_byte)
        state.in_flight += 1
        try:
            until = call.sent_at + route.target.deadlines.total
            until = until if until < self._until else self._until
            deliver = await asking(self._services, call, route, until)
        except UpstreamError as error:
            if error.failure is Failure.TOTAL_TIMEOUT and until < self._until:
                _tell_whose(error, call, route.target.deadlines.total)
            worked_on = call.written and error.failure is not Failure.STATUS
            if _learn(route, error, call.sent_at):
                self._services.ejected(route)
            call.tries.append(tried(call, route, error.failure.value, error.status))
            call.attempt_ended()
            if error.failure is Failure.STREAM_ERROR:
                error.message = redacted(error.message, route)
            # What a budget ends is paid for, also where the client was shown nothing of it.
            spent = error.failure is Failure.SPENT
            if call.relay is not None and (call.relay.started or spent):
                if call.continued == 0 or call.relay.goes_on:
                    measure(call)
                told = _interrupted(call, error, route)
                if self.served.goes_on:
                    raise Interrupted(told, error) from None
                raise told from None
            raise
        except asyncio.CancelledError:
            worked_on = call.written
            call.tries.append(tried(call, route, record.CANCELLED, 0))
            raise
        finally:
            state.in_flight -= 1
            if probes:
                breaker.let_go()
            if quota is not None:
                quota.give_back(_used(call, worked_on=worked_on))
        now = monotonic()
        breaker.succeeded(now, call.sent_at)
        state.took((first_answer(call) or now) - call.sent_at, now)
        call.tries.append(tried(call, route, "", 200))
        return deliver

    def give_up(self) -> Deliver:
        """Answer with what went wrong last. Raises UpstreamError or ApiError."""
        failure, call = self.failure, self._call
        if self._failed is not None:
            call.route = self._failed
        if failure is None:
            if self._misfit is not None:
                raise self._misfit
            if call.operation is Operation.COUNT_TOKENS:
                return _count(call)
            failure = UpstreamError(Failure.CONNECT, "no target")
        if is_clients_fault(failure):
            return _pass_on(call, failure)
        self.failure = self._passing = None
        try:
            raise failure
        finally:
            del failure  # which its own traceback would hold


def _tell_whose(error: UpstreamError, call: Call, total: float) -> None:
    """Say of a provider's own total that is up whether it was the provider, or our full pool."""
    if call.pool_s > total * WAITED_PART:
        waited = f"{call.pool_s:.1f} s of {total:g} s went by without a free connection"
        error.failure, error.message = Failure.BUSY, waited
    else:
        error.failure, error.message = Failure.ATTEMPT_TIMEOUT, f"took longer than {total:g} s"


def _used(call: Call, *, worked_on: bool) -> int:
    """Return the tokens that an attempt used, as far as that is known already.

    `worked_on`: it was sent, and has neither been answered to its end nor refused.
    """
    usage, before = call.usage, call.before.usage if call.before is not None else NO_USAGE
    if usage is not before:  # of which another target had its part
        spent = before.prompt_tokens + before.completion_tokens
        return usage.prompt_tokens + usage.completion_tokens - spent
    if not worked_on or call.request is None or call.operation is Operation.COUNT_TOKENS:
        return 0
    written = call.relay.delivered_tokens() if call.relay is not None else 0
    return call.request.prompt_estimate + written


def _learn(route: Route, error: UpstreamError, began: float) -> bool:
    """Let a target's breaker know of a failure; tell whether it is left alone from now on."""
    breaker, now = route.state.breaker, monotonic()
    if error.status == 429 and error.retry_after and route.rotation is None:
        breaker.eject(now, error.retry_after)  # for as long as it says itself
        return True
    if is_clients_fault(error) and not breaker.closed(now):
        breaker.succeeded(now, began)  # whoever refuses a request is there
    return counts_against(error) and breaker.failed(now, began)


def _count(call: Call) -> Deliver:
    """Count a prompt's tokens here: no target does it."""
    tokens = count_prompt(call)
    call.status, call.finished = 200, True
    body = b'{"input_tokens":%d}' % tokens
    return partial(call.client.reply, 200, "application/json", common_headers(call), body)


def _pass_on(call: Call, error: UpstreamError) -> Deliver:
    """Give the client the provider's own refusal of its request, in the provider's words."""
    told = ApiError("invalid_value", error.message)
    if refusal_of(error) == CONTEXT_WINDOW:  # SDKs and agents look for these words
        said = error.message
        if call.operation in ANTHROPIC and TOO_LONG not in said.lower():
            said = f"{TOO_LONG}: {said}"
        told = ApiError("context_length_exceeded", said)
    call.status, call.error, call.outcome = error.status, f"upstream_{error.status}", "error"
    native = call.route is not None and call.route.ways[call.operation].lane.native
    told.status, call.refused = error.status, told
    if call.client.begun:
        return partial(call.client.finish, FORMATS[call.operation].error_event(told, call.id))
    body = error.body if native else b""
    body = body or FORMATS[call.operation].error_body(told, call.id)
    headers = served_headers(call, with_cost=False) if call.route else common_headers(call)
    return partial(call.client.reply, error.status, "application/json", headers, body)


def _interrupted(call: Call, error: UpstreamError, route: Route) -> ApiError:
    """Say on an open stream why it ends here."""
    if error.failure is Failure.STREAM_ERROR:
        said = route.adapter.parse_error(error.message.encode()) or error.message
        said = redacted(said, route)[:MAX_SHOWN_CHARS]
        message = f"{route.target.provider} reported an error: {said}"
        return ApiError("stream_interrupted", message)
    if error.failure is Failure.SPENT:
        assert call.spent is not None
        return call.spent
    told = client_error(error, route.target.provider)
    if told.code == "upstream_failed":
        return ApiError("stream_interrupted", told.message)
    return told
