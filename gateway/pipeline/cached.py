"""Hot path: requests that others have asked before, or ask at the same time.

Memory, then Redis, then one call for all who ask the same. A request whose answer is neither taken
from the cache nor kept for others goes its usual way.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import Any, Protocol

import msgspec

from gateway.config.caching import Cache as Settings
from gateway.core.errors import ApiError, StoreError
from gateway.core.operations import CONVERSATIONS
from gateway.pipeline.call import Call, Deliver
from gateway.pipeline.flight import Flight, Reader
from gateway.pipeline.giving import give, join, lead, suits, take_part, write
from gateway.pipeline.planning import KIBIBYTE, Plan, Planner
from gateway.pipeline.replay import Entry, dialect_of, may_answer, may_be_kept, readable
from gateway.pipeline.services import Services
from gateway.policy.caching import COALESCED, HIT, STALE
from gateway.store.answers import Answer, Place, split
from gateway.store.cache import ANOTHERS, LEAD_SECONDS, MINE, RedisTier

logger = logging.getLogger("sluice.cache")

LOOK_SECONDS = 1.0
FIRST_WAIT_SECONDS, LAST_WAIT_SECONDS = 0.01, 0.1  # between looks for another worker's answer
MOST_TRIES = 8  # of one who is told to ask anew
THREAD_BYTES = 128 * KIBIBYTE  # of an answer whose reading would hold up other requests
STREAM_FACTOR = 8  # how much longer a stream is than what it says
MAX_DRAINING = 100  # calls that are read to their end though nobody waits

Serve = Callable[[Services, Call], Awaitable[None]]


class Memory(Protocol):
    """A worker's own answers: `store.memory`."""

    @property
    def bytes(self) -> int:
        """Return how many bytes they take."""
        ...

    def __len__(self) -> int: ...

    def peek(self, name: str) -> Any:
        """Return an entry, or None."""
        ...

    def put(self, name: str, value: Entry) -> bool:
        """Keep an entry, if there is room."""
        ...

    def grown(self, name: str, value: Entry, more: int) -> None:
        """Know that an entry takes more room."""
        ...

    def empty(self) -> None:
        """Forget everything."""
        ...


class Cache:
    """A worker's answers: those in its memory, those on their way, and the way to Redis's.

    `serve` asks a provider, accounts for it and answers its call's client.
    """

    def __init__(
        self, settings: Settings, memory: Memory, redis: RedisTier | None, serve: Serve
    ) -> None:
        self.plan = Planner(settings).plan
        self._memory, self._redis, self._serve = memory, redis, serve
        self._loop = asyncio.get_running_loop()
        self._most_bytes = settings.max_value_kb * KIBIBYTE
        self._flights: dict[str, Flight] = {}
        self._tasks: dict[asyncio.Task[None], Flight] = {}
        self._purges = 0

    @property
    def entries(self) -> int:
        """Return how many answers are in this worker's memory."""
        return len(self._memory)

    @property
    def bytes(self) -> int:
        """Return how many bytes they take."""
        return self._memory.bytes

    @property
    def corrupted(self) -> int:
        """Return how many answers in Redis were damaged."""
        return self._redis.corrupted if self._redis is not None else 0

    @property
    def in_flight(self) -> int:
        """Return how many answers are on their way."""
        return len(self._tasks)

    async def watch(self, services: Services) -> None:
        """Learn of purges, and of how much room Redis has."""
        while self._redis is not None:
            with contextlib.suppress(StoreError):
                purges = await self._redis.look(services.admission.live_workers)
                if purges != self._purges:
                    self._purges = purges
                    self._memory.empty()
            await asyncio.sleep(LOOK_SECONDS)

    async def aclose(self) -> None:
        """End every call that is on its way. Idempotent."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def answer(
        self, services: Services, call: Call, plan: Plan, until: float
    ) -> Deliver | None:
        """Answer a request; None where it is to go its usual way. Raises ApiError.

        `until` is when it must be answered, by the monotonic clock.
        """
        for _ in range(MOST_TRIES):
            now = self._loop.time()
            entry: Entry | None = self._memory.peek(plan.place.name) if plan.wishes.reads else None
            if entry is not None and not may_answer(entry.answer, call):
                entry = None
            if entry is not None and entry.is_fresh(now, plan.wishes.max_age):
                return await give(services, call, plan, entry, HIT, self._grown)
            flight = self._flights.get(plan.place.name) if plan.shared else None
            if flight is None or not flight.joinable:
                flight = self._take_off(services, call, plan, entry)
            reader = flight.join(call)
            try:
                deliver = await self._await(services, flight, reader, plan, until)
            finally:
                flight.leave(reader)
            if deliver is not None:
                return deliver
        return None

    def _grown(self, entry: Entry, more: int) -> None:
        self._memory.grown(entry.name, entry, more)

    async def _await(
        self, services: Services, flight: Flight, reader: Reader, plan: Plan, until: float
    ) -> Deliver | None:
        """Wait for what a flight brings to one of its readers; None: nothing, ask anew."""
        call = reader.call
        try:
            async with asyncio.timeout_at(self._loop.time() + until - monotonic()):
                while not (flight.over or (flight.pieces and suits(flight, call))):
                    await flight.news()
        except TimeoutError:
            message = "The answer that another request waits for did not come in time."
            raise ApiError("deadline_exceeded", message) from None
        if call.delegated and (flight.begun or flight.whole is not None or flight.how == STALE):
            return await lead(call, flight, reader, plan, self._grown)
        call.delegated = False
        if flight.void:
            return None
        if flight.pieces and suits(flight, call):
            return await take_part(services, call, flight, reader)
        if flight.error is not None:
            raise flight.error
        if flight.call is None or flight.how == STALE:
            assert flight.entry is not None
            return await give(services, call, plan, flight.entry, flight.how, self._grown)
        if flight.whole is not None and suits(flight, call):
            return await take_part(services, call, flight, reader)
        if flight.entry is None or not may_answer(flight.entry.answer, call):
            return None  # of a kind that is read by nobody else
        await join(services, call, flight)
        call.status, call.finished = 200, True
        return await write(call, plan, flight.entry, 0.0, self._grown)

    def _take_off(self, services: Services, call: Call, plan: Plan, stale: Entry | None) -> Flight:
        """Begin to get an answer."""
        name = plan.place.name

        def ended(flight: Flight) -> None:
            if self._flights.get(name) is flight:
                del self._flights[name]

        flight = Flight(plan.rules.bill, ended, self._may_drain)
        if plan.shared:
            self._flights[name] = flight
        flight.leader = call
        task = self._loop.create_task(self._get(services, flight, plan, stale), name="answer")
        flight.task = task
        self._tasks[task] = flight
        task.add_done_callback(self._tasks.pop)
        return flight

    def _may_drain(self) -> bool:
        return sum([not flight.readers for flight in self._tasks.values()]) <= MAX_DRAINING

    async def _get(
        self, services: Services, flight: Flight, plan: Plan, stale: Entry | None
    ) -> None:
        """Get an answer: from Redis, from another worker that is getting it, or from a provider."""
        token = ""
        try:
            token, stale = await self._find(services, flight, plan, stale)
            if flight.over:
                return
            if plan.wishes.only_cached:
                message = "There is no kept answer that is fresh enough."
                flight.fail(ApiError("not_cached", message, retryable=False))
                return
            await self._fly(services, flight, plan, token, stale)
        except Exception:
            logger.exception("an answer could not be got")
            flight.fail(ApiError("internal_error", "The gateway failed. See its log."))
        finally:
            self._leave(plan.place, token)
            if not flight.over:  # cancelled
                message = "The gateway is shutting down."
                flight.fail(ApiError("overloaded", message, retry_after=1))

    async def _find(
        self, services: Services, flight: Flight, plan: Plan, stale: Entry | None
    ) -> tuple[str, Entry | None]:
        """Look in Redis until there is an answer, or nobody else gets it.

        Returns the token by which this worker gets it for all, and what is kept past its time.
        """
        redis, leader = self._redis, flight.leader
        assert leader is not None
        if redis is None or not plan.wishes.reads or services.admission.degraded:
            return "", stale
        token = leader.id if plan.shared else ""
        wait, waited = FIRST_WAIT_SECONDS, False
        while True:
            found = await redis.find(plan.place, token, plan.least_ms)
            answer, now = found.answer, self._loop.time()
            if answer is not None and may_answer(answer, leader):
                entry = Entry(plan.place.name, answer, found.age_ms / 1000, now)
                if entry.is_fresh(now, plan.wishes.max_age):
                    self._memory.put(entry.name, entry)
                    flight.answer(entry, COALESCED if waited else HIT)
                    return (token if found.lead == MINE else ""), None
                stale = entry
            if found.lead != ANOTHERS:
                return (token if found.lead == MINE else ""), stale
            waited = True
            await asyncio.sleep(wait)
            wait = min(wait * 2, LAST_WAIT_SECONDS)

    async def _fly(
        self, services: Services, flight: Flight, plan: Plan, token: str, stale: Entry | None
    ) -> None:
        """Ask a provider, for all who wait."""
        callers = [reader.call for reader in flight.readers]
        if not callers:
            return
        leader = flight.leader = flight.leader if flight.leader in callers else callers[0]
        assert leader is not None
        leader.delegated = True
        flight.call = call = leader.fork(flight, 0)
        call.gated = call.delegated = False
        call.flight = flight
        if stale is not None:
            age, ttl = stale.age(self._loop.time()), stale.answer.ttl_ms / 1000
            if plan.may_be_stale(age, ttl):
                call.stale, flight.age = stale.answer, age
        purges = self._purges
        keeping = None
        if token:
            keeping = self._loop.create_task(self._extend(plan.place, token), name="lead")
        try:
            await self._serve(services, call)
            await flight.delivered.wait()
            if call.cache == STALE:
                assert stale is not None
                flight.verdict = call.verdict
                flight.answer(stale, STALE)
            elif call.error:
                flight.fail(None if _is_own(call) else call.refused)
            else:
                await self._land(services, flight, plan, token, keep=purges == self._purges)
                flight.end()
        finally:
            if keeping is not None:
                keeping.cancel()

    async def _extend(self, where: Place, token: str) -> None:
        assert self._redis is not None
        while True:
            await asyncio.sleep(LEAD_SECONDS / 3)
            self._redis.extend(where, token)

    async def _land(
        self, services: Services, flight: Flight, plan: Plan, token: str, *, keep: bool
    ) -> None:
        """Keep an answer, if it may be kept."""
        answer = await self._answer_of(services, flight, plan)
        if answer is None:
            return
        entry = Entry(plan.place.name, answer, 0.0, self._loop.time())
        flight.entry, flight.how = entry, COALESCED
        assert flight.call is not None
        whole = answer.reply is None or may_be_kept(answer.reply)
        if whole and keep and plan.wishes.keeps and not flight.call.continued:
            self._memory.put(entry.name, entry)
            if self._redis is not None:
                await self._redis.keep(plan.place, answer, token)

    def _leave(self, where: Place, token: str) -> None:
        if token and self._redis is not None:
            self._redis.leave(where, token)

    async def _answer_of(self, services: Services, flight: Flight, plan: Plan) -> Answer | None:
        """Make of what the first client has what is kept; None where that cannot be."""
        whole, call = flight.whole, flight.call
        assert call is not None
        data = flight.stream if whole is None else whole[3]
        if data is None or (whole is not None and whole[0] != 200) or call.route is None:
            return None
        if len(data) > self._most_bytes * STREAM_FACTOR:
            return None
        reply = None
        if call.operation in CONVERSATIONS:
            read = partial(readable, call.operation, streamed=whole is None, data=data)
            reply = await asyncio.to_thread(read) if len(data) > THREAD_BYTES else read()
            if reply is None:
                return None
            if flight.usage_source == "provider":  # which a stream need not have shown
                reply = msgspec.structs.replace(reply, usage=flight.usage)
        kept, logprobs = split(reply) if reply is not None else (None, ())
        target, ttl = call.route.target, plan.ttl
        return Answer(
            dialect=dialect_of(call),
            body=whole[3] if whole is not None else b"",
            content_type=whole[1] if whole is not None else "",
            reply=kept,
            logprobs=logprobs,
            provider=target.provider,
            model=target.model,
            usage=flight.usage,
            cost=flight.cost,
            cost_microusd=flight.microusd,
            price=call.price_version,
            dropped=call.dropped,
            created=int(services.admission.now()),
            ttl_ms=int(ttl * 1000),
            kept_ms=int((ttl + plan.rules.stale) * 1000),
        )


def _is_own(call: Call) -> bool:
    """Tell whether what refused a call is about its own request alone: a limit, a budget."""
    return not call.attempts and call.refused is not None and call.refused.status < 500
