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
from gateway.core.messages import Reply
from gateway.core.operations import CONVERSATIONS, Operation
from gateway.pipeline.call import Call, Deliver
from gateway.pipeline.flight import Flight, Reader
from gateway.pipeline.giving import give, join, lead, suits, take_part, write
from gateway.pipeline.planning import KIBIBYTE, Plan, Planner
from gateway.pipeline.replay import Entry, form_of, may_answer, may_be_kept, readable
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
LEARN_SECONDS = 0.5
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
            flight = self._flight_of(plan)
            if flight is None:
                looked = await self._look(services, plan)
                try:
                    entry = self.recall(call, plan, looked.entry)
                    if entry is None and self._semantic is not None and plan.wishes.reads:
                        entry = await self._alike(services, self._semantic, call, plan)
                    flight = self._flight_of(plan)
                except BaseException:
                    self._leave(plan.place, looked.token)
                    raise
                if entry is not None or flight is not None:
                    self._leave(plan.place, looked.token)
                if entry is not None:
                    return await give(services, call, plan, entry, HIT, self.grown)
                if flight is None:
                    flight = self._take_off(services, plan, looked)
            reader = flight.join(call)
            try:
                deliver = await self._await(services, flight, reader, plan, until)
            finally:
                flight.leave(reader)
            if deliver is not None:
                return deliver
        return None

    def _flight_of(self, plan: Plan) -> Flight | None:
        """Return the flight that brings an answer, if it can be joined."""
        flight = self._flights.get(plan.place.name) if plan.shared else None
        return flight if flight is not None and flight.joinable else None

    async def _look(self, services: Services, plan: Plan) -> Looked:
        """Look into Redis, once for all who look for the same."""
        redis, name = self._redis, plan.place.name
        if redis is None or not plan.wishes.reads or services.admission.degraded:
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
        try:
            return await future
        except asyncio.CancelledError:
            self._leave(plan.place, token)  # it may be there already
            raise

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
        await self._news(flight, reader, until)
        if reader.refusal is not None:
            return partial(call.client.reply, *reader.refusal)
        if call.delegated and (flight.begun or flight.whole is not None or flight.how == STALE):
            return await lead(call, flight, reader, plan, self.grown)
        call.delegated = False
        if flight.void:
            return None
        if flight.pieces and suits(flight, call):
            return await take_part(services, call, flight, reader)
        stale = flight.how == STALE and flight.entry is not None
        if stale and not plan.may_be_stale(flight.age, flight.fresh_s):
            stale = False
        if flight.error is not None and not stale:
            raise flight.error
        if flight.call is None or stale:
            assert flight.entry is not None
            if not may_answer(flight.entry.answer, call):
                return None
            return await give(services, call, plan, flight.entry, flight.how, self.grown)
        if flight.whole is not None and suits(flight, call):
            return await take_part(services, call, flight, reader)
        if flight.entry is None or not may_answer(flight.entry.answer, call):
            return None  # of a kind that is read by nobody else
        await join(services, call, flight)
        call.status, call.finished = 200, True
        return await write(call, plan, flight.entry, 0.0, self.grown)

    async def _news(self, flight: Flight, reader: Reader, until: float) -> None:
        """Wait until there is anything for a reader. Raises ApiError where it takes too long."""
        while not (
            flight.over
            or reader.refusal is not None
            or (flight.pieces and suits(flight, reader.call))
        ):
            # The call itself ends in time; who waits for its own must not be first.
            grace = GRACE_SECONDS if flight.leader is reader.call else 0
            try:
                async with asyncio.timeout(until - monotonic() + grace):
                    await flight.news()
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
            try:
                found = await redis.find_soon(plan.place, token, plan.least_ms)
            except asyncio.CancelledError:
                self._leave(plan.place, token)  # it may be there already
                raise
            entry = self._entry_of(plan.place.name, found)
            if entry is not None and entry.is_fresh(self._loop.time(), plan.wishes.max_age):
                flight.answer(entry, COALESCED)
                return Looked(entry, found.lead, token if found.lead == MINE else "")
            if found.lead != ANOTHERS:
                return Looked(entry, found.lead, token if found.lead == MINE else "")
        return UNSEEN

    async def _fly(self, services: Services, flight: Flight, plan: Plan, looked: Looked) -> None:
        """Ask a provider, for all who wait.

        Who is refused for its own sake (a limit, a budget) is told so, and the next one asks.
        """
        purges = self._purges
        keeping = None
        if looked.token:
            keeping = self._loop.create_task(self._extend(plan.place, looked.token), name="lead")
        try:
            while (leader := flight.next_leader()) is not None:
                call = self._fork(flight, leader, plan, looked)
                await self._serve(services, call)
                await flight.delivered.wait()
                if not _is_own(call):
                    break
                if flight.begun:  # it spent its own budget: others have seen the beginning
                    return flight.fail(None)
                flight.refuse(leader)
            else:
                return flight.fail(None)
            if call.cache == STALE:
                assert flight.stale is not None
                flight.verdict, flight.error = call.verdict, call.refused
                flight.answer(flight.stale, STALE)
            elif call.error:
                flight.fail(call.refused)
            else:
                try:
                    kept = purges == self._purges
                    await self._land(services, flight, plan, looked.token, keep=kept)
                except Exception:
                    logger.exception("an answer could not be kept")
                flight.end()
                await self._learn(flight, plan)
        finally:
            if keeping is not None:
                keeping.cancel()

    def _fork(self, flight: Flight, leader: Call, plan: Plan, looked: Looked) -> Call:
        """Return the call that asks for a request, and accounts for it."""
        leader.delegated = True
        flight.leader = leader
        flight.call = call = leader.fork(flight, 0)
        call.gated = call.delegated = False
        call.flight = flight
        stale: Entry | None = looked.entry or self._memory.peek(plan.place.name)
        if stale is not None and plan.wishes.reads and may_answer(stale.answer, leader):
            age = stale.age(self._loop.time())
            if plan.may_be_stale(age, stale.answer.ttl_ms / 1000):
                call.stale, flight.stale, flight.age = stale.answer, stale, age
        return call

    async def _extend(self, where: Place, token: str) -> None:
        assert self._redis is not None
        while True:
            await asyncio.sleep(LEAD_SECONDS / 3)
            self._redis.extend(where, token)

    async def _land(
        self, services: Services, flight: Flight, plan: Plan, token: str, *, keep: bool
    ) -> None:
        """Keep an answer, if it may be kept."""
        answer, whole = await self._answer_of(services, flight, plan)
        if answer is None:
            return
        entry = Entry(plan.place.name, answer, 0.0, self._loop.time())
        flight.entry, flight.how = entry, COALESCED
        assert flight.call is not None
        if whole and keep and plan.wishes.keeps and not flight.call.continued:
            self._memory.put(entry.name, entry)
            flight.kept_s = answer.ttl_ms / 1000
            if self._redis is not None:
                await self._redis.keep(plan.place, answer, token)

    async def _learn(self, flight: Flight, plan: Plan) -> None:
        """Let the question be found by its meaning, once its answer is kept and given."""
        if self._semantic is not None and flight.kept_s:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEARN_SECONDS):
                    await self._semantic.add(plan, plan.place, flight.kept_s)

    def _leave(self, where: Place, token: str) -> None:
        if token and self._redis is not None:
            self._redis.leave(where, token)

    async def _answer_of(
        self, services: Services, flight: Flight, plan: Plan
    ) -> tuple[Answer | None, bool]:
        """Make of what the first client has what is kept, and tell whether it may be."""
        sent, call = flight.whole, flight.call
        assert call is not None
        streamed = sent is None
        data = flight.stream if sent is None else sent[3]
        if data is None or (sent is not None and sent[0] != 200) or call.route is None:
            return None, False
        if len(data) > self._most_bytes * STREAM_FACTOR:
            return None, False
        reply, whole = None, True
        if call.operation in CONVERSATIONS:
            read = partial(_read, call.operation, data, streamed=streamed)
            reply, whole = await asyncio.to_thread(read) if len(data) > THREAD_BYTES else read()
            if reply is None:
                return None, False
            if not plan.plain:
                reply = None  # the hub knows not all of what was asked, nor of the answer
            elif flight.usage_source == "provider":  # which a stream need not have shown
                reply = msgspec.structs.replace(reply, usage=flight.usage)
        kept, logprobs = split(reply) if reply is not None else (None, ())
        target, ttl = call.route.target, plan.ttl
        answer = Answer(
            form=form_of(call),
            body=data if not streamed or reply is None else b"",
            content_type=sent[1] if sent is not None else "",
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
        return answer, whole


def _read(operation: Operation, data: bytes, *, streamed: bool) -> tuple[Reply | None, bool]:
    """Read what a client had, and tell whether it may be kept."""
    reply = readable(operation, streamed=streamed, data=data)
    if reply is None:
        return None, False
    return reply, may_be_kept(operation, reply, data, streamed=streamed)


def _is_own(call: Call) -> bool:
    """Tell whether what refused a call is about its own request alone: a limit, a budget."""
    if call.allowance is not None and call.allowance.spent is not None:
        return True
    return not call.attempts and call.refused is not None and call.refused.status < 500
