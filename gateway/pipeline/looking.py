"""Hot path: where answers are looked for: this worker's memory, Redis, and what is meant."""

import asyncio
import contextlib
import itertools
import secrets
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from gateway.core.errors import StoreError
from gateway.pipeline.call import Call
from gateway.pipeline.planning import Plan
from gateway.pipeline.replay import Entry, may_answer
from gateway.pipeline.services import Services
from gateway.store.answers import Place
from gateway.store.cache import ANOTHERS, LEAD_SECONDS, MINE, NOBODY, Found, RedisTier, purge_count
from gateway.store.client import Client
from gateway.store.renewals import Renewals

if TYPE_CHECKING:
    from gateway.pipeline.semantic import Semantic

LOOK_SECONDS = 1.0
FIRST_WAIT_SECONDS, LAST_WAIT_SECONDS = 0.01, 0.1  # between looks for another worker's answer


class Looked(msgspec.Struct, frozen=True, gc=False):
    """What Redis has, and the token of this worker where it is to get an answer for all.

    `purges` is how often answers had been purged then, as far as was known.
    """

    entry: Entry | None
    lead: int
    token: str
    purges: int = 0


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

    def drop(self, name: str) -> bool:
        """Forget an entry; tell whether there was one."""
        ...

    def empty(self) -> None:
        """Forget everything."""
        ...


class Answers:
    """The answers that are kept, wherever that is. Nothing here raises StoreError."""

    def __init__(self, memory: Memory, redis: RedisTier | None, client: Client) -> None:
        self._memory, self.redis, self._client = memory, redis, client
        self.semantic: Semantic | None = None
        self.purges = 0  # how often answers were purged, as far as is known
        self._loop = asyncio.get_running_loop()
        self._looking: dict[tuple[str, bool], list[asyncio.Future[Looked]]] = {}
        self._tokens = itertools.count()
        self._own = secrets.token_hex(8)
        self._renewals = Renewals(client, self._own)

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
        return self.redis.corrupted if self.redis is not None else 0

    async def aclose(self) -> None:
        """Wait for no answer any more. Idempotent."""
        if self.redis is not None:
            self.redis.close()
        if self.semantic is not None:
            await self.semantic.aclose()

    async def watch(self, services: Services) -> None:
        """Learn of purges, of what others renew, and of how much room Redis has."""
        while True:
            with contextlib.suppress(StoreError):
                self._purged(await purge_count(self._client))
                if self.redis is not None:
                    self._renewed(*await self._renewals.hear())
                    await self.redis.look(services.admission.roster.live)
            await asyncio.sleep(LOOK_SECONDS)

    def _renewed(self, names: list[str], missed: bool) -> None:
        """Forget what Redis has newer answers to."""
        if missed:
            self._memory.empty()
        for name in names:
            self._memory.drop(name)

    def _purged(self, times: int) -> None:
        """Forget everything if answers were purged since that was last asked."""
        if times != self.purges:
            self.purges = times
            self._memory.empty()
            if self.semantic is not None:
                self.semantic.empty()

    def recall(self, call: Call, plan: Plan, entry: Entry | None = None) -> Entry | None:
        """Return an answer that is fresh, the one given or of this worker's memory."""
        if not plan.wishes.reads:
            return None
        entry = entry or self._memory.peek(plan.place.name)
        if entry is None or not may_answer(entry.answer, call):
            return None
        return entry if entry.is_fresh(self._loop.time(), plan.wishes.max_age) else None

    def look(self, services: Services, plan: Plan) -> "asyncio.Future[Looked]":
        """Look into Redis, once for all who look for the same.

        Who shares nothing looks by itself: it gets its own answer, whoever gets one for all.
        """
        redis, name = self.redis, plan.place.name
        future: asyncio.Future[Looked] = self._loop.create_future()
        if (
            redis is None
            or not plan.wishes.reads
            or services.admission.does_without(plan.place.tenant)
        ):
            future.set_result(UNSEEN)
            return future
        looking = name, plan.shared
        waiting = self._looking.get(looking)
        if waiting is not None:
            waiting.append(future)
            return future
        token = self.token() if plan.shared else ""
        waiting = self._looking[looking] = [future]

        def done(found: Found) -> None:
            del self._looking[looking]
            entry, mine = self._entry_of(name, found), token if found.lead == MINE else ""
            for one in waiting:
                if not one.done():
                    one.set_result(Looked(entry, found.lead, mine, self.purges))
                    mine = ""
            if mine:  # nobody is left to get it
                self.leave(plan.place, mine)

        redis.find(plan.place, token, plan.least_ms, done)
        return future

    def looked_in_vain(self, plan: Plan, looking: "asyncio.Future[Looked]") -> None:
        """Know that whoever looked is gone: what came went to nobody."""
        if looking.done() and not looking.cancelled():
            self.leave(plan.place, looking.result().token)

    async def alike(self, services: Services, call: Call, plan: Plan, until: float) -> Entry | None:
        """Return the answer to a question that means nearly the same, well before a deadline."""
        semantic = self.semantic
        if semantic is None or not plan.wishes.reads:
            return None
        near = await semantic.find(services, call, plan, until)
        if near is None:
            return None
        entry: Entry | None = self._memory.peek(near.place.name)
        if entry is None and self.redis is not None:
            found = await self.redis.find_soon(near.place, "", plan.least_ms)
            entry = self._entry_of(near.place.name, found)
        fresh = self.recall(call, plan, entry) if entry is not None else None
        if fresh is not None:
            call.likeness = near.likeness
        elif entry is None:
            semantic.drop(plan, near.place)
        return fresh

    async def wait(self, services: Services, plan: Plan) -> tuple[Looked, bool]:
        """Look into Redis until another worker's answer is there, or nobody gets it any more.

        Tells whether there is one that is fresh.
        """
        redis, seconds, token = self.redis, FIRST_WAIT_SECONDS, self.token()
        assert redis is not None
        while not services.admission.does_without(plan.place.tenant):
            await asyncio.sleep(seconds)
            seconds = min(seconds * 2, LAST_WAIT_SECONDS)
            try:
                found = await redis.find_soon(plan.place, token, plan.least_ms)
            except asyncio.CancelledError:
                self.leave(plan.place, token)  # it may be there already
                raise
            entry = self._entry_of(plan.place.name, found)
            mine = token if found.lead == MINE else ""
            looked = Looked(entry, found.lead, mine, self.purges)
            if entry is not None and entry.is_fresh(self._loop.time(), plan.wishes.max_age):
                return looked, True
            if found.lead != ANOTHERS:
                return looked, False
        return UNSEEN, False

    async def extend(self, where: Place, token: str) -> None:
        """Go on getting an answer, until this is cancelled."""
        assert self.redis is not None
        while True:
            await asyncio.sleep(LEAD_SECONDS / 3)
            self.redis.extend(where, token)

    def old(self, plan: Plan, looked: Looked) -> Entry | None:
        """Return whatever is kept: what was found, or is in this worker's memory."""
        if looked.entry is not None and looked.purges == self.purges:
            return looked.entry
        entry: Entry | None = self._memory.peek(plan.place.name)
        return entry

    async def keep(self, plan: Plan, entry: Entry, token: str, purges: int) -> bool:
        """Keep an answer, here and for the other workers, where there is room.

        `purges` are those known as it was asked for.
        """
        renews = plan.wishes.renews
        kept = self._later(entry) is None and self._memory.put(entry.name, entry)
        if self.redis is not None:
            told = partial(self._told, entry, renews)
            kept |= await self.redis.keep(
                plan.place, entry.answer, token, purges, told, renews=renews
            )
        return kept

    def _told(self, entry: Entry, renews: bool, taken: bool) -> None:
        """Know whether Redis has taken an answer: this worker's memory is to have no other."""
        if taken is not (self._memory.peek(entry.name) is entry):
            self._memory.drop(entry.name)
        if taken and renews:
            self._renewals.tell(entry.name)

    def _later(self, entry: Entry) -> Entry | None:
        """Return what this worker's memory has that was asked for later than an answer."""
        there: Entry | None = self._memory.peek(entry.name)
        if there is not None and there.answer.asked_us > entry.answer.asked_us:
            return there
        return None

    async def learn(self, services: Services, call: Call, plan: Plan, seconds: float) -> None:
        """Let a call's question be found by its meaning, whose answer is kept for so long."""
        if self.semantic is not None and seconds:
            await self.semantic.add(services, call, plan, plan.place, seconds)

    def leave(self, where: Place, token: str, *, in_vain: bool = False) -> None:
        """Leave it to others to get an answer; `in_vain`: each by itself, as none can be kept."""
        if token and self.redis is not None:
            self.redis.leave(where, token, in_vain=in_vain)

    def grown(self, entry: Entry, more: int) -> None:
        """Know that an answer takes more room than before."""
        self._memory.grown(entry.name, entry, more)

    def token(self) -> str:
        """Return a name for one time that this worker gets an answer."""
        return f"{self._own}-{next(self._tokens)}"

    def _entry_of(self, name: str, found: Found) -> Entry | None:
        if found.answer is None:
            return None
        entry = Entry(name, found.answer, found.age_ms / 1000, self._loop.time())
        later = self._later(entry)
        if later is None:
            self._memory.put(name, entry)
        return later or entry
