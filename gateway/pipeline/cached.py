"""Hot path: requests that others have asked before, or ask at the same time.

Memory, then Redis, then one call for all who ask the same. A request whose answer is neither taken
from the cache nor kept for others goes its usual way.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import TypeVar

from gateway.config.caching import Cache as Settings
from gateway.core.errors import ApiError
from gateway.pipeline.attempt import deadline
from gateway.pipeline.call import Call, Deliver
from gateway.pipeline.flight import Flight, Reader
from gateway.pipeline.giving import enter, give, join, lead, let_in, suits, take_part, write
from gateway.pipeline.keeping import answer_of
from gateway.pipeline.looking import Answers, Looked
from gateway.pipeline.planning import KIBIBYTE, Plan, Planner
from gateway.pipeline.replay import Entry, may_answer
from gateway.pipeline.services import Services
from gateway.policy.caching import COALESCED, HIT, STALE
from gateway.store.answers import Answer
from gateway.store.cache import ANOTHERS

logger = logging.getLogger("sluice.cache")

MOST_TRIES = 8  # of one who is told to ask anew
GRACE_SECONDS = 2.0
MAX_DRAINING = 100  # calls that are read to their end though nobody waits

Serve = Callable[[Services, Call], Awaitable[None]]
T = TypeVar("T")


class Cache:
    """A worker's answers: those in its memory, those on their way, and the way to Redis's.

    `serve` asks a provider, accounts for it and answers its call's client.
    """

    def __init__(
        self,
        settings: Settings,
        answers: Answers,
        serve: Serve,
    ) -> None:
        self.planner = Planner(settings)
        self.answers, self._serve = answers, serve
        self._loop = asyncio.get_running_loop()
        self._most_bytes = settings.max_value_kb * KIBIBYTE
        self._flights: dict[str, Flight] = {}
        self._tasks: dict[asyncio.Task[None], Flight] = {}

    @property
    def in_flight(self) -> int:
        """Return how many answers are on their way."""
        return len(self._tasks)

    async def aclose(self) -> None:
        """End every call that is on its way. Idempotent."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.answers.aclose()

    async def answer(self, services: Services, call: Call, plan: Plan) -> Deliver | None:
        """Answer a request; None where it is to go its usual way. Raises ApiError."""
        entry = self.answers.recall(call, plan)
        if entry is not None:
            return await give(services, call, plan, entry, HIT, self.answers.grown)
        until = deadline(services, call)
        for _ in range(MOST_TRIES):
            flight = self._flight_of(plan)
            if flight is None:
                looking = self.answers.look(services, plan)
                try:
                    looked = await looking
                except asyncio.CancelledError:
                    self.answers.looked_in_vain(plan, looking)
                    raise
                try:
                    entry = self.answers.recall(call, plan, looked.entry)
                    if entry is None:
                        entry = await self.answers.alike(services, call, plan, until)
                    flight = self._flight_of(plan) if entry is None else None
                except BaseException:
                    self.answers.leave(plan.place, looked.token)
                    raise
                if looked.token and (entry is not None or flight is not None):
                    self.answers.leave(plan.place, looked.token)
                if entry is not None:
                    return await give(services, call, plan, entry, HIT, self.answers.grown)
                if flight is None:
                    flight = self._take_off(services, plan, looked)
            reader = flight.join(call, until)
            try:
                deliver = await self._await(services, flight, reader, plan, until)
            finally:
                flight.leave(reader)
            if deliver is not None:
                return deliver
            call.flight = None
        return None

    def _flight_of(self, plan: Plan) -> Flight | None:
        """Return the flight that brings an answer, if it can be joined."""
        flight = self._flights.get(plan.place.name) if plan.shared else None
        return flight if flight is not None and flight.joinable else None

    async def _await(
        self, services: Services, flight: Flight, reader: Reader, plan: Plan, until: float
    ) -> Deliver | None:
        """Wait for what a flight brings to one of its readers; None: nothing, ask anew."""
        call = reader.call
        await self._news(services, flight, reader, until)
        if reader.refusal is not None:
            return partial(call.client.reply, *reader.refusal)
        if call.delegated and (flight.begun or flight.whole is not None or flight.how == STALE):
            return await lead(services, call, flight, reader, plan, self.answers.grown)
        call.delegated = False
        if flight.void:
            return None
        if flight.pieces and suits(flight, call):
            deliver = await _waited(call, take_part(services, call, flight, reader))
            if deliver is not None:
                return deliver
        stale = flight.how == STALE and flight.entry is not None
        if stale and not plan.may_be_stale(flight.age, flight.fresh_s):
            stale = False
        if flight.error is not None and not stale:
            if flight.call is not None:  # one was made, and failed for all who wait
                await let_in(services, call, "", "")
            raise flight.error
        if flight.call is None or stale:
            assert flight.entry is not None
            if not may_answer(flight.entry.answer, call):
                return None
            return await give(services, call, plan, flight.entry, flight.how, self.answers.grown)
        if flight.whole is not None and suits(flight, call):
            return await _waited(call, take_part(services, call, flight, reader))
        if flight.entry is None or not may_answer(flight.entry.answer, call):
            return None  # of a kind that is read by nobody else
        await join(services, call, flight)
        call.status, call.finished = 200, True
        return await write(call, plan, flight.entry, 0.0, self.answers.grown)

    async def _news(self, services: Services, flight: Flight, reader: Reader, until: float) -> None:
        """Wait until there is anything for a reader.

        Raises ApiError where it takes too long, or a limit refuses one who is to pay a part.
        """
        while not (
            flight.over
            or reader.refusal is not None
            or (flight.pieces and suits(flight, reader.call))
        ):
            if flight.may_enter(reader) and suits(flight, reader.call):
                await enter(services, flight, reader)
                continue
            # The call itself ends in time; who waits for its own must not be first.
            grace = GRACE_SECONDS if flight.leader is reader.call else 0
            try:
                async with asyncio.timeout(until - monotonic() + grace):
                    await reader.news()
            except TimeoutError:
                if flight.leader is reader.call and not grace:
                    continue  # it has become its own meanwhile
                message = "The answer that another request waits for did not come in time."
                raise ApiError("deadline_exceeded", message) from None

    def _take_off(self, services: Services, plan: Plan, looked: Looked) -> Flight:
        """Begin to get an answer."""
        name = plan.place.name

        def ended(flight: Flight) -> None:
            if self._flights.get(name) is flight:
                del self._flights[name]

        flight = Flight(plan.rules.bill, ended, self._may_drain)
        if plan.shared:
            self._flights[name] = flight
        task = self._loop.create_task(self._get(services, flight, plan, looked), name="answer")
        flight.task = task
        self._tasks[task] = flight
        task.add_done_callback(self._tasks.pop)
        return flight

    def _may_drain(self) -> bool:
        return sum([not flight.readers for flight in self._tasks.values()]) <= MAX_DRAINING

    async def _get(self, services: Services, flight: Flight, plan: Plan, looked: Looked) -> None:
        """Get an answer: from another worker that is getting it, or from a provider."""
        try:
            if plan.wishes.only_cached:
                message = "There is no kept answer that is fresh enough."
                flight.fail(ApiError("not_cached", message, retryable=False))
                return
            if looked.lead == ANOTHERS:
                looked, fresh = await self.answers.wait(services, plan)
                if fresh and looked.entry is not None:
                    flight.answer(looked.entry, COALESCED)
            if not flight.over:
                await self._fly(services, flight, plan, looked)
        except Exception:
            logger.exception("an answer could not be got")
            if not flight.over:
                flight.fail(ApiError("internal_error", "The gateway failed. See its log."))
        finally:
            # What was kept has ended this before; where nobody could ask, another may.
            in_vain = flight.over and not flight.void
            self.answers.leave(plan.place, looked.token, in_vain=in_vain)
            if not flight.over:  # cancelled
                message = "The gateway is shutting down."
                flight.fail(ApiError("overloaded", message, retry_after=1))

    async def _fly(self, services: Services, flight: Flight, plan: Plan, looked: Looked) -> None:
        """Ask a provider, for all who wait.

        Who is refused for its own sake (a limit, a budget) is told so, and the next one asks.
        """
        purges = self.answers.purges
        keeping = None
        if looked.token:
            keeping = self._loop.create_task(
                self.answers.extend(plan.place, looked.token), name="lead"
            )
        try:
            while (leader := flight.next_leader()) is not None:
                call = self._fork(flight, leader, plan, looked)
                await self._serve(services, call)
                await flight.delivered.wait()
                if flight.stands_in or not _is_own(call):
                    break
                if flight.whole is None:  # it spent its own budget: others have seen the beginning
                    return flight.fail(None)
                flight.refuse(leader)
            else:
                return flight.fail(None)
            if flight.stands_in:
                assert flight.stale is not None
                flight.verdict, flight.error = call.verdict, call.refused
                flight.answer(flight.stale, STALE)
            elif call.error:
                flight.fail(call.refused)
            else:
                try:
                    await self._land(services, flight, plan, looked.token, purges)
                except Exception:
                    logger.exception("an answer could not be kept")
                flight.end()
                await self.answers.learn(services, call, plan, flight.kept_s)
        finally:
            if keeping is not None:
                keeping.cancel()

    def _fork(self, flight: Flight, leader: Call, plan: Plan, looked: Looked) -> Call:
        """Return the call that asks for a request, and accounts for it."""
        call = flight.lead(leader)
        flight.stale, flight.purges = self.answers.old(plan, looked), self.answers.purges
        if flight.stale is not None:
            old, flight.age = flight.stale.answer, flight.stale.age(self._loop.time())
            allowed = plan.wishes.reads and plan.may_be_stale(flight.age, old.ttl_ms / 1000)
            call.stale = old if allowed and may_answer(old, leader) else None
        return call

    def stand_in(self, call: Call) -> Answer | None:
        """Let an old answer stand in for that of a call, all targets of which have failed.

        Whom it suits has it, unless it was purged since; it is returned where that is the first.
        """
        flight = call.flight
        if flight is None or flight.stale is None or flight.purges != self.answers.purges:
            return None
        flight.stands_in = True
        return call.stale

    async def _land(
        self, services: Services, flight: Flight, plan: Plan, token: str, purges: int
    ) -> None:
        """Keep an answer, if it may be kept, and nothing was purged since it was asked for."""
        answer, whole = await answer_of(services, flight, plan, self._most_bytes)
        if answer is None:
            return
        entry = Entry(plan.place.name, answer, 0.0, self._loop.time())
        flight.entry, flight.how = entry, COALESCED
        assert flight.call is not None
        current = purges == self.answers.purges
        may = whole and current and plan.wishes.keeps and not flight.call.continued
        if may and await self.answers.keep(plan, entry, token, purges):
            flight.kept_s = answer.ttl_ms / 1000


async def _waited(call: Call, waiting: Awaitable[T]) -> T:
    """Wait for another's call: the time is its provider's, but for that in a queue."""
    began, queued_s = monotonic(), call.queued_s
    try:
        return await waiting
    finally:
        if not call.delegated:  # else the call that asks for it has it in its own record
            call.asked_s += monotonic() - began - (call.queued_s - queued_s)


def _is_own(call: Call) -> bool:
    """Tell whether what refused a call is about its own request alone: a limit, a budget.

    Also where nobody knows what its limits say, and where no target takes it: that depends on its
    key's labels, and on whether it streams.
    """
    if call.spent is not None or call.unsure:
        return True
    if call.refused is None or call.refused.status >= 500:
        return False
    # Of one that was admitted it was the targets that refused.
    return not call.leased or (not call.attempts and call.refused.status == 400)
