"""Hot path: leases. A request is admitted by taking one and settled by turning it into usage.

What is asked in one turn of the event loop goes to Redis as one call a tenant. Replies to clients
wait for `after_settled`: they leave when the settlement that pays for them has left this process.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic

import msgspec

from gateway.core.errors import StoreError
from gateway.policy.limits import RATE, Grant, Limit, Standing
from gateway.policy.share import LocalShare
from gateway.store import names, requests, scripts
from gateway.store.client import Client
from gateway.store.connection import Reply
from gateway.store.lease import Holding, Settlement, Verdict, batches

# A Redis that takes longer than this to decide is not waited for, where `degrade` says so.
PATIENCE_SECONDS = 0.1
# Settlements kept while Redis is away; beyond this the oldest are lost, and counted as such.
MAX_UNSETTLED = 100_000


class _Ask(msgspec.Struct, frozen=True, gc=False):
    lease: str
    holding: bytes
    grants: tuple[Grant, ...]
    future: asyncio.Future[Verdict] | None
    forced: bool = False


_KEPT = (names.DAY_TTL_SECONDS, names.MONTH_TTL_SECONDS, names.REQUESTS_KEPT)
NO_LEASE = ""  # asks how the limits stand

_pack = msgspec.msgpack.Encoder().encode
_to_json = msgspec.json.Encoder().encode
_unpack_verdicts = msgspec.msgpack.Decoder(tuple[int, list[list[int]]]).decode
_unpack_counted = msgspec.msgpack.Decoder(list[int]).decode

logger = logging.getLogger("sluice.store")

Applied = Callable[[bool], None]


class Admission:
    """The worker's side of the leases: asks, settles, extends.

    With `degrade`, a Redis that is away or late is not waited for: the worker decides by its share
    of the limits, and tells Redis afterwards.
    """

    def __init__(self, client: Client, lease_seconds: float, *, degrade: bool = False) -> None:
        self._client, self._lease_seconds = client, lease_seconds
        self._degrade = degrade
        self._late = self._alone = False
        self._share = LocalShare()
        self._steady_since = asyncio.get_running_loop().time()
        self.live_workers = 1
        self._lease_ms = int(lease_seconds * 1000)
        self._loop = asyncio.get_running_loop()
        self._asks: dict[str, list[_Ask]] = {}
        self._settlements: dict[str, list[tuple[Settlement, Applied | None]]] = {}
        self._after: list[Callable[[], None]] = []
        self._unsettled: deque[tuple[Settlement, Applied | None]] = deque()
        # Leases that nobody waited for: until Redis has them, their settlements are held.
        self._unopened: deque[tuple[str, _Ask]] = deque()
        self._opening: set[str] = set()
        self._held: dict[str, tuple[Settlement, Applied | None]] = {}
        self._open: dict[str, tuple[str, float]] = {}
        self._tenants: set[str] = set()
        self._scheduled = False
        # Batches that Redis has not answered, oldest first: until when, whose, what.
        self._waiting: dict[int, tuple[float, str, list[_Ask]]] = {}
        self._batches = 0
        self._patience: asyncio.TimerHandle | None = None
        self._clock_offset = 0.0
        self.lost_settlements = 0
        client.on_connect = self._replay

    @property
    def open_leases(self) -> int:
        """Return how many leases this worker holds."""
        return len(self._open)

    @property
    def unsettled(self) -> int:
        """Return how many settlements wait for Redis to come back."""
        return len(self._unsettled) + len(self._held)

    @property
    def degraded(self) -> bool:
        """Tell whether this worker decides by itself at the moment."""
        return self._degrade and (self._late or not self._client.connected)

    @property
    def may_reap(self) -> bool:
        """Tell whether leases that have expired can only be a dead worker's.

        For a lease's time after Redis was away, they may be of workers that are about to settle.
        """
        steady = self._loop.time() - self._steady_since >= self._lease_seconds
        return steady and not self._late and self._client.connected

    async def admit(
        self, tenant: str, lease: str, holding: Holding, granted: tuple[Grant, ...]
    ) -> Verdict:
        """Take a lease and what it is granted if every limit allows it. Raises StoreError.

        Without limits there is nothing to wait for. Whoever calls this settles the lease, whatever
        happens, also when it raises or is cancelled: the lease may have been taken.
        """
        future = None
        if granted:
            if self._degrade and (self._late or not self._client.reaches(tenant)):
                return self._admit_alone(tenant, lease, holding, granted)
            future = self._loop.create_future()
        ask = _Ask(lease, _to_json(holding), granted, future)
        self._asks.setdefault(tenant, []).append(ask)
        self._open[lease] = (tenant, self._loop.time())
        self._schedule()
        if future is None:
            self._opening.add(lease)
            return Verdict()
        verdict: Verdict = await future
        if verdict.refused_by is not None:
            self._open.pop(lease, None)
        return verdict

    async def peek(self, tenant: str, nothing: tuple[Grant, ...]) -> Verdict:
        """Return where limits stand, taking nothing of them. Raises StoreError."""
        future: asyncio.Future[Verdict] = self._loop.create_future()
        asks = self._asks.setdefault(tenant, [])
        asks.append(_Ask(NO_LEASE, b"", nothing, future))
        self._schedule()
        return await future

    def settle(self, settlement: Settlement, applied: Applied | None = None) -> None:
        """Turn a lease into usage; `applied` learns whether it was this call that counted."""
        lease = settlement.lease
        self._open.pop(lease, None)
        if self._alone:
            self._share.give_back(lease, {r.key: r.used for r in settlement.returns})
        if lease in self._opening:
            self._held[lease] = (settlement, applied)
            return
        self._settlements.setdefault(settlement.tenant, []).append((settlement, applied))
        self._schedule()

    def after_settled(self, deliver: Callable[[], None]) -> None:
        """Run `deliver` once every settlement so far is out of this process."""
        self._after.append(deliver)
        self._schedule()

    async def expired(self, tenant: str, most: int = 100) -> list[tuple[str, Holding | None]]:
        """Return a tenant's leases that nobody extends any more. Raises StoreError."""
        future: asyncio.Future[Reply] = self._loop.create_future()
        keys = list(names.leases(tenant))
        self._client.run(scripts.EXPIRED, keys, (b"%d" % most,), _resolver(future))
        flat = await future
        return [(flat[i].decode(), _holding(flat[i + 1])) for i in range(0, len(flat), 2)]

    def extend_open(self) -> None:
        """Move the deadlines of this worker's leases that are not brand new."""
        self._share.forget_some()
        old = self._loop.time() - self._lease_seconds / 3
        by_tenant: dict[str, list[bytes]] = {}
        for lease, (tenant, since) in self._open.items():
            if since < old:
                by_tenant.setdefault(tenant, []).append(lease.encode())
        for tenant, leases in by_tenant.items():
            for part in batches(leases):
                args = (b"%d" % self._lease_ms, *part)
                self._client.run(scripts.EXTEND, [names.leases(tenant)[0]], args, lambda _: None)

    async def grow(
        self, tenant: str, lease: str, holding: Holding, budgets: tuple[Grant, ...], amount: int
    ) -> Limit | None:
        """Reserve more micro-dollars for a lease; return the budget that refuses, if any.

        `holding` is what the lease holds then. Raises StoreError.
        """
        if self.degraded:
            raise StoreError("Redis is away")
        future: asyncio.Future[Reply] = self._loop.create_future()
        specs = [(*grant.spec, grant.limit.shadow) for grant in budgets]
        data = _pack((lease, _to_json(holding).decode(), specs, amount))
        keys = [*names.leases(tenant), *(grant.key for grant in budgets)]
        self._client.run(scripts.GROW, keys, (data,), _resolver(future))
        refusing = await future
        if refusing < 0:
            raise StoreError("the lease is gone")
        return budgets[refusing - 1].limit if refusing else None

    async def count_workers(self, name: str, every_seconds: float) -> None:
        """Be counted among the live workers of all machines, and count them. Raises StoreError."""
        now = self.now()
        call = self._client.call
        _, _, _, count = await asyncio.gather(
            call("ZADD", names.WORKERS, int(now), name),
            call("ZREMRANGEBYSCORE", names.WORKERS, "-inf", int(now - 3 * every_seconds - 1)),
            call("EXPIRE", names.WORKERS, 3600),
            call("ZCARD", names.WORKERS),
        )
        self.live_workers = max(1, count)

    async def tenants(self) -> set[str]:
        """Return every tenant that ever used this store. Raises StoreError."""
        return {name.decode() for name in await self._client.call("SMEMBERS", names.TENANTS)}

    def retry_unsettled(self) -> None:
        """Send again what Redis refused while it was reachable."""
        if (self._unsettled or self._unopened) and self._client.connected:
            self._resend()

    async def aclose(self, seconds: float) -> None:
        """Send what is left and wait for Redis's answer, so long at most. Idempotent."""
        if self._patience is not None:
            self._patience.cancel()
        self.retry_unsettled()
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(seconds):
                for _ in range(2):  # leases, then the settlements that were held for them
                    self._flush()
                    await self._client.call("PING")
        if self.unsettled:
            logger.warning("%d settlements never reached Redis", self.unsettled)

    def now(self) -> float:
        """Return Unix seconds by Redis's clock, as far as this worker knows it."""
        return time.time() + self._clock_offset

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        asks, self._asks = self._asks, {}
        for tenant, waiting in asks.items():
            if tenant not in self._tenants:
                self._tenants.add(tenant)
                self._client.post("SADD", names.TENANTS, tenant)
            for part in batches(waiting):
                self._send_asks(tenant, part)
        settlements, self._settlements = self._settlements, {}
        for tenant, due in settlements.items():
            for batch in batches(due):
                self._send_settlements(tenant, batch)
        self._client.flush()
        after, self._after = self._after, []
        for deliver in after:
            deliver()

    def _send_asks(self, tenant: str, asks: list[_Ask]) -> None:
        keys, specs = [*names.leases(tenant)], []
        numbers: dict[str, int] = {}
        limits: list[Limit] = []
        entries = []
        for ask in asks:
            wants = []
            for grant in ask.grants:
                number = numbers.get(grant.key)
                if number is None:
                    keys.append(grant.key)
                    limits.append(grant.limit)
                    specs.append((*grant.spec, grant.limit.shadow))
                    number = numbers[grant.key] = len(specs)
                wants.append((number, grant.amount))
            entries.append((ask.lease, ask.holding.decode(), wants, ask.forced))
        number = self._batches = self._batches + 1
        if self._degrade and not self._late:
            self._waiting[number] = (monotonic() + PATIENCE_SECONDS, tenant, asks)
            if self._patience is None:
                self._patience = self._loop.call_later(PATIENCE_SECONDS, self._check_patience)

        def done(reply: Reply | Exception) -> None:
            self._waiting.pop(number, None)
            self._answer(tenant, asks, limits, reply)

        data = _pack((self._lease_ms, specs, entries))
        self._client.run(scripts.ADMIT, keys, (data,), done)

    def _answer(
        self, tenant: str, asks: list[_Ask], limits: list[Limit], reply: Reply | Exception
    ) -> None:
        if not isinstance(reply, bytes):
            error = reply if isinstance(reply, StoreError) else StoreError(f"Redis: {reply}")
            for ask in asks:
                if ask.future is None:
                    self._postpone(tenant, ask)
                elif ask.future.done():
                    continue
                elif self._degrade and ask.lease != NO_LEASE:
                    self._answer_alone(tenant, ask)
                else:
                    ask.future.set_exception(error)
            return
        if self._alone:
            self._replay()
        try:
            now_us, verdicts = _unpack_verdicts(reply)
        except msgspec.DecodeError as error:
            self._answer(tenant, asks, limits, StoreError(f"Redis answered nonsense: {error}"))
            return
        known = self._share.known
        self._clock_offset = now_us / 1e6 - time.time()
        for ask, (refusing, wait_us, *levels) in zip(asks, verdicts, strict=True):
            if ask.future is None:
                self._opened(tenant, ask)
                continue
            if ask.future.done():
                continue
            standings, overdrawn = [], []
            for grant, level in zip(ask.grants, levels, strict=True):
                limit, known[grant.key] = grant.limit, level
                standings.append(Standing(limit, level))
                if limit.shadow and level < 0:
                    overdrawn.append(limit)
            if refusing:
                wait = None if wait_us < 0 else wait_us / 1e6
                refused_by = limits[refusing - 1]
                ask.future.set_result(Verdict(tuple(standings), refused_by, wait))
            else:
                ask.future.set_result(
                    Verdict(tuple(standings), overdrawn=tuple(overdrawn) if overdrawn else ())
                )

    def _stream(self, tenant: str) -> str:
        return names.requests(tenant, clustered=self._client.clustered)

    def _admit_alone(
        self, tenant: str, lease: str, holding: Holding, granted: tuple[Grant, ...]
    ) -> Verdict:
        """Decide without Redis, which is to have the lease when it is back."""
        refused = self._decide_alone(lease, granted)
        if refused is not None:
            return refused
        self._open[lease] = (tenant, self._loop.time())
        self._opening.add(lease)
        self._postpone(tenant, _Ask(lease, _to_json(holding), granted, None, forced=True))
        return Verdict()

    def _decide_alone(self, lease: str, granted: tuple[Grant, ...]) -> Verdict | None:
        """Return the refusal of this worker's share of the limits, if it refuses."""
        self._alone = True
        found = self._share.take(lease, granted, self.live_workers, monotonic())
        if found is None:
            return None
        limit, wait = found
        return Verdict((), limit, None if wait == inf else wait)

    def _answer_alone(self, tenant: str, ask: _Ask) -> None:
        """Decide over an ask that Redis has not answered, though it may have taken the lease."""
        assert ask.future is not None
        refused = self._decide_alone(ask.lease, ask.grants)
        if refused is not None:
            ask.future.set_result(msgspec.structs.replace(refused, unsure=True))
            return
        ask.future.set_result(Verdict())
        self._opening.add(ask.lease)
        self._postpone(tenant, msgspec.structs.replace(ask, future=None, forced=True))

    def _check_patience(self) -> None:
        """Look whether any batch waits for too long; one timer serves them all."""
        self._patience = None
        now = monotonic()
        while self._waiting:
            number = next(iter(self._waiting))
            until, tenant, asks = self._waiting[number]
            if until > now:
                self._patience = self._loop.call_later(until - now, self._check_patience)
                return
            del self._waiting[number]
            self._lose_patience(tenant, asks)

    def _lose_patience(self, tenant: str, asks: list[_Ask]) -> None:
        """Redis is late: decide over what waits, and wait no more until it answers."""
        self._late = True
        for ask in asks:
            if ask.future is None or ask.future.done():
                continue
            if ask.lease == NO_LEASE:
                ask.future.set_exception(StoreError("Redis is late"))
            else:
                self._answer_alone(tenant, ask)

    def _postpone(self, tenant: str, ask: _Ask) -> None:
        """Keep a lease that Redis is to have later; beyond a bound the oldest are lost."""
        self._unopened.append((tenant, ask))
        while len(self._unopened) > MAX_UNSETTLED:
            _, lost = self._unopened.popleft()
            self._opening.discard(lost.lease)
            self.lost_settlements += self._held.pop(lost.lease, None) is not None

    def _opened(self, tenant: str, ask: _Ask) -> None:
        """Redis has a lease that nobody waited for: settle it if that was asked meanwhile."""
        self._opening.discard(ask.lease)
        held = self._held.pop(ask.lease, None)
        if held is not None:
            self._settlements.setdefault(tenant, []).append(held)
            self._schedule()

    def _send_settlements(self, tenant: str, due: list[tuple[Settlement, Applied | None]]) -> None:
        limit_numbers: dict[str, int] = {}
        limit_keys, specs = [], []
        usage_numbers: dict[str, int] = {}
        entries = []
        for settlement, _ in due:
            gives = []
            for given in settlement.returns:
                number = limit_numbers.get(given.key)
                if number is None:
                    limit_keys.append(given.key)
                    specs.append(given.spec)
                    number = limit_numbers[given.key] = len(specs)
                gives.append((number, given.reserved, given.used))
            hashes = [usage_numbers.setdefault(p, len(usage_numbers)) for p in settlement.parts]
            entries.append((settlement.lease, gives, hashes, settlement.counts, settlement.entry))
        day, month = names.periods(self.now())
        keys = [*names.leases(tenant), self._stream(tenant), *limit_keys]
        for part in usage_numbers:
            keys += (names.usage(tenant, day, part), names.usage(tenant, month, part))

        def done(reply: Reply | Exception) -> None:
            if isinstance(reply, bytes):
                for (_, applied), counted in zip(due, _unpack_counted(reply), strict=True):
                    if applied is not None:
                        applied(bool(counted))
            else:
                self._keep(due)

        data = _pack((specs, *_KEPT, requests.FIELDS, entries))
        self._client.run(scripts.SETTLE, keys, (data,), done)

    def _keep(self, due: list[tuple[Settlement, Applied | None]]) -> None:
        """Keep what Redis did not take; settling again is safe, a lease counts once."""
        self._unsettled.extend(due)
        while len(self._unsettled) > MAX_UNSETTLED:
            self._unsettled.popleft()
            self.lost_settlements += 1

    def _replay(self) -> None:
        """Redis is back: it decides again, and gets what it has missed."""
        self._late = self._alone = False
        self._steady_since = self._loop.time()
        self._share.reset()
        self._resend()

    def _finished(self, ask: _Ask) -> _Ask:
        """Let a request that has ended meanwhile count as usage, and in budgets, alone.

        Its slot is free again, and what it took of a rate has long been refilled.
        """
        settlement, applied = self._held[ask.lease]
        spent = tuple([one for one in settlement.returns if one.spec[0] != RATE])
        self._held[ask.lease] = (msgspec.structs.replace(settlement, returns=spent), applied)
        held = msgspec.json.decode(ask.holding, type=Holding)
        bare = _to_json(msgspec.structs.replace(held, holds=()))
        return msgspec.structs.replace(ask, grants=(), holding=bare)

    def _resend(self) -> None:
        while self._unopened:
            tenant, ask = self._unopened.popleft()
            if ask.lease in self._held:
                ask = self._finished(ask)
            self._asks.setdefault(tenant, []).append(ask)
        while self._unsettled:
            settlement, applied = self._unsettled.popleft()
            self._settlements.setdefault(settlement.tenant, []).append((settlement, applied))
        self._tenants.clear()
        self._schedule()


def _resolver(future: asyncio.Future[Reply]) -> Callable[[Reply | Exception], None]:
    def done(reply: Reply | Exception) -> None:
        if future.done():
            return
        if isinstance(reply, Exception):
            future.set_exception(
                reply if isinstance(reply, StoreError) else StoreError(f"Redis: {reply}")
            )
        else:
            future.set_result(reply)

    return done


def _holding(data: bytes) -> Holding | None:
    try:
        return msgspec.json.decode(data, type=Holding)
    except msgspec.DecodeError:
        return None
