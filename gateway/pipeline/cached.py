"""Hot path: requests that others have asked before, or ask at the same time.

Memory, then Redis, then one call for all who ask the same. A request whose answer is neither taken
from the cache nor kept for others goes its usual way.
"""

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

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
from gateway.store.cache import ANOTHERS, LEAD_SECONDS, MINE, NOBODY, Found, RedisTier

if TYPE_CHECKING:
    from gateway.pipeline.semantic import Semantic

logger = logging.getLogger("sluice.cache")

LOOK_SECONDS = 1.0
FIRST_WAIT_SECONDS, LAST_WAIT_SECONDS = 0.01, 0.1  # between looks for another worker's answer
MOST_TRIES = 8  # of one who is told to ask anew
THREAD_BYTES = 128 * KIBIBYTE  # of an answer whose reading would hold up other requests
STREAM_FACTOR = 8  # how much longer a stream is than what it says
GRACE_SECONDS = 2.0
MAX_DRAINING = 100  # calls that are read to their end though nobody waits

Serve = Callable[[Services, Call], Awaitable[None]]


class Looked(NamedTuple):
    """What Redis has, and the token of this worker where it is to get an answer for all."""

    entry: Entry | None
    lead: int
    token: str


UNSEEN = Looked(None, NOBODY, "")


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
        self,
        settings: Settings,
        memory: Memory,
        redis: RedisTier | None,
        serve: Serve,
    ) -> None:
        self.planner = Planner(settings)
        self._memory, self._redis, self._serve = memory, redis, serve
        self._semantic: Semantic | None = None
        self._loop = asyncio.get_running_loop()
        self._most_bytes = settings.max_value_kb * KIBIBYTE
        self._flights: dict[str, Flight] = {}
        self._looking: dict[str, list[asyncio.Future[Looked]]] = {}
        self._tokens = itertools.count()
        self._own = secrets.token_hex(8)
        self._tasks: dict[asyncio.Task[None], Flight] = {}
        self._purges = 0

    def understand(self, semantic: "Semantic") -> None:
        """Find answers by what is meant, too."""
        self._semantic = semantic

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
                    if self._semantic is not None:
                        self._semantic.empty()
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
            flight = self._flights.get(plan.place.name) if plan.shared else None
            if flight is None or not flight.joinable:
                looked = UNSEEN
                if self._redis is not None and plan.wishes.reads:
                    looked = await self._look(services, plan)
                entry = self.recall(call, plan, looked.entry)
                if entry is not None:
                    self._leave(plan.place, looked.token)
                    return await give(services, call, plan, entry, HIT, self.grown)
                if self._semantic is not None and plan.wishes.reads:
                    alike = await self._alike(services, self._semantic, call, plan)
                    if alike is not None:
                        self._leave(plan.place, looked.token)
                        return await give(services, call, plan, alike, HIT, self.grown)
                flight = self._flights.get(plan.place.name) if plan.shared else None
                if flight is None or not flight.joinable:
                    flight = self._take_off(services, call, plan, looked)
            reader = flight.join(call)
            try:
                deliver = await self._await(services, flight, reader, plan, until)
            finally:
                flight.leave(reader)
            if deliver is not None:
                return deliver
        return None

    async def _look(self, services: Services, plan: Plan) -> Looked:
        """Look into Redis, once for all who look for the same."""
        redis, name = self._redis, plan.place.name
        if redis is None or services.admission.degraded:
            return UNSEEN
        future: asyncio.Future[Looked] = self._loop.create_future()
        waiting = self._looking.get(name)
        if waiting is not None:
            waiting.append(future)
            return await future
        token = self._token() if plan.shared else ""
        waiting = self._looking[name] = [future]

        def done(found: Found) -> None:
            del self._looking[name]
            entry, mine = self._entry_of(name, found), token if found.lead == MINE else ""
            for one in waiting:
                if not one.done():
                    one.set_result(Looked(entry, found.lead, mine))
                    mine = ""
            self._leave(plan.place, mine)  # nobody is left to get it

        redis.find(plan.place, token, plan.least_ms, done)
        return await future

    async def _alike(
        self, services: Services, semantic: "Semantic", call: Call, plan: Plan
    ) -> Entry | None:
        """Return the answer to a question that means nearly the same."""
        near = await semantic.find(services, plan)
        if near is None:
            return None
        entry: Entry | None = self._memory.peek(near.place.name)
        if entry is None and self._redis is not None:
            found = await self._redis.find_soon(near.place, "", plan.least_ms)
            entry = self._entry_of(near.place.name, found)
        fresh = self.recall(call, plan, entry) if entry is not None else None
        if fresh is not None:
            call.likeness = near.likeness
        elif entry is None:
            semantic.drop(plan, near.place)
        return fresh

    def _token(self) -> str:
        return f"{self._own}-{next(self._tokens)}"

    def _entry_of(self, name: str, found: Found) -> Entry | None:
        if found.answer is None:
            return None
        entry = Entry(name, found.answer, found.age_ms / 1000, self._loop.time())
        self._memory.put(name, entry)
        return entry

    def recall(self, call: Call, plan: Plan, entry: Entry | None = None) -> Entry | None:
        """Return an answer that is fresh, the one given or of this worker's memory."""
        if not plan.wishes.reads:
            return None
        entry = entry or self._memory.peek(plan.place.name)
        if entry is None or not may_answer(entry.answer, call):
            return None
        return entry if entry.is_fresh(self._loop.time(), plan.wishes.max_age) else None

    def grown(self, entry: Entry, more: int) -> None:
        """Know that an answer takes more room than before."""
        self._memory.grown(entry.name, entry, more)

    async def _await(
        self, services: Services, flight: Flight, reader: Reader, plan: Plan, until: float
    ) -> Deliver | None:
        """Wait for what a flight brings to one of its readers; None: nothing, ask anew."""
        call = reader.call
        # The call itself ends in time; who waits for its own must not be first.
        seconds = until - monotonic() + (GRACE_SECONDS if flight.leader is call else 0)
        try:
            async with asyncio.timeout(seconds):
                while not (flight.over or (flight.pieces and suits(flight, call))):
                    await flight.news()
        except TimeoutError:
            message = "The answer that another request waits for did not come in time."
            raise ApiError("deadline_exceeded", message) from None
        if call.delegated and (flight.begun or flight.whole is not None or flight.how == STALE):
            return await lead(call, flight, reader, plan, self.grown)
        call.delegated = False
        if flight.void:
            return None
        if flight.pieces and suits(flight, call):
            return await take_part(services, call, flight, reader)
        if flight.error is not None:
            raise flight.error
        if flight.call is None or flight.how == STALE:
            assert flight.entry is not None
            return await give(services, call, plan, flight.entry, flight.how, self.grown)
        if flight.whole is not None and suits(flight, call):
            return await take_part(services, call, flight, reader)
        if flight.entry is None or not may_answer(flight.entry.answer, call):
            return None  # of a kind that is read by nobody else
        await join(services, call, flight)
        call.status, call.finished = 200, True
        return await write(call, plan, flight.entry, 0.0, self.grown)

    def _take_off(self, services: Services, call: Call, plan: Plan, looked: Looked) -> Flight:
        """Begin to get an answer."""
        name = plan.place.name

        def ended(flight: Flight) -> None:
            if self._flights.get(name) is flight:
                del self._flights[name]

        flight = Flight(plan.rules.bill, ended, self._may_drain)
        if plan.shared:
            self._flights[name] = flight
        flight.leader = call
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
                looked = await self._wait(services, flight, plan)
            if not flight.over:
                await self._fly(services, flight, plan, looked)
        except Exception:
            logger.exception("an answer could not be got")
            flight.fail(ApiError("internal_error", "The gateway failed. See its log."))
        finally:
            self._leave(plan.place, looked.token)
            if not flight.over:  # cancelled
                message = "The gateway is shutting down."
                flight.fail(ApiError("overloaded", message, retry_after=1))

    async def _wait(self, services: Services, flight: Flight, plan: Plan) -> Looked:
        """Look into Redis until another worker's answer is there, or nobody gets it any more."""
        redis, seconds, token = self._redis, FIRST_WAIT_SECONDS, self._token()
        assert redis is not None
        while not services.admission.degraded:
            await asyncio.sleep(seconds)
            seconds = min(seconds * 2, LAST_WAIT_SECONDS)
            found = await redis.find_soon(plan.place, token, plan.least_ms)
            entry = self._entry_of(plan.place.name, found)
            if entry is not None and entry.is_fresh(self._loop.time(), plan.wishes.max_age):
                flight.answer(entry, COALESCED)
                return Looked(entry, found.lead, token if found.lead == MINE else "")
            if found.lead != ANOTHERS:
                return Looked(entry, found.lead, token if found.lead == MINE else "")
        return UNSEEN

    async def _fly(self, services: Services, flight: Flight, plan: Plan, looked: Looked) -> None:
        """Ask a provider, for all who wait."""
        token = looked.token
        stale: Entry | None = looked.entry or self._memory.peek(plan.place.name)
        callers = [reader.call for reader in flight.readers]
        if not callers:
            return
        leader = flight.leader = flight.leader if flight.leader in callers else callers[0]
        assert leader is not None
        leader.delegated = True
        flight.call = call = leader.fork(flight, 0)
        call.gated = call.delegated = False
        call.flight = flight
        if stale is not None and plan.wishes.reads and may_answer(stale.answer, leader):
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
            if self._semantic is not None:
                await self._semantic.add(plan, plan.place, answer.ttl_ms / 1000)

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
