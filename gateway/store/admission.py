"""Hot path: leases. A request is admitted by taking one and settled by turning it into usage.

What is asked in one turn of the event loop goes to Redis as one call a tenant. Replies to clients
wait for `after_settled`: they leave when the settlement that pays for them has left this process.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from time import monotonic

import msgspec

from gateway.core.errors import StoreError
from gateway.policy.limits import RATE, Grant, Limit, overdrawn_in_shadow
from gateway.store import names, scripts
from gateway.store.backlog import Backlog
from gateway.store.client import Client, ran
from gateway.store.connection import Reply
from gateway.store.journal import Journal
from gateway.store.lease import Applied, Ask, Due, Holding, Settlement, Verdict, batches
from gateway.store.open_leases import OpenLeases
from gateway.store.orphans import Orphans
from gateway.store.packing import pack_asks, pack_settlements, unpack_counted, unpack_verdicts
from gateway.store.part import Part, Parts
from gateway.store.patience import Patience
from gateway.store.roster import Roster

NO_LEASE = ""  # asks how the limits stand

_ADMITTED = Verdict()

_pack = msgspec.msgpack.Encoder().encode
_to_json = msgspec.json.Encoder().encode

logger = logging.getLogger("sluice.store")


class Admission:
    """The worker's side of the leases: asks, settles, extends.

    With `degrade`, a Redis that is away or late is not waited for: the worker decides by its share
    of the limits, and tells Redis afterwards.
    """

    def __init__(
        self,
        client: Client,
        lease_seconds: float,
        *,
        degrade: bool = False,
        journal: Journal | None = None,
    ) -> None:
        self._client, self._lease_seconds = client, lease_seconds
        self._degrade = degrade
        self._parts = Parts(clustered=client.clustered)
        self._whole = self._parts.whole
        self.roster = Roster(client, self._clock_was_set)
        self._lease_ms = int(lease_seconds * 1000)
        self._loop = asyncio.get_running_loop()
        self._asks: dict[str, list[Ask]] = {}
        self._settlements: dict[str, list[Due]] = {}
        self._after: list[Callable[[], None]] = []
        # What the newest lease holds, as JSON: the next one often holds the same.
        self._holding: Holding | None = None
        self._held = b""
        self._backlog = Backlog(journal)
        self._leases = OpenLeases(client, lease_seconds, self.unsteady)
        self._open = self._leases.by_id
        self._unheard: set[str] = set()  # leases that Redis may have given, and has not said so
        self._on_way: dict[int, tuple[str, list[Due]]] = {}  # settlements without an answer
        self._tenants: set[str] = set()
        self._scheduled = False
        self._sent = 0
        self._patience = Patience()
        self.orphans = Orphans(client, self._lease_ms, self.now)
        client.on_connect = self._reconnected

    @property
    def open_leases(self) -> int:
        """Return how many leases this worker holds."""
        return len(self._open)

    @property
    def unsettled(self) -> int:
        """Return how many settlements wait for Redis to come back."""
        return self._backlog.unsettled

    @property
    def lost_settlements(self) -> int:
        """Return how many settlements could not be kept until Redis came back."""
        return self._backlog.lost

    @property
    def degraded(self) -> bool:
        """Tell whether this worker decides by itself at the moment, for any tenant."""
        late = any(part.late for _, part in self._parts.all())
        return self._degrade and (late or not self._client.connected)

    def does_without(self, tenant: str) -> bool:
        """Tell whether this worker decides by itself at the moment over a tenant's requests."""
        return self._degrade and (self._parts.of(tenant).late or not self._client.reaches(tenant))

    def may_reap(self, tenant: str) -> bool:
        """Tell whether leases that have expired can only be a dead worker's.

        For a lease's time after Redis was away, they may be of workers that are about to settle.
        """
        part = self._parts.of(tenant)
        steady = monotonic() - part.steady_since >= self._lease_seconds
        return steady and not part.late and self._client.reaches(tenant)

    def unsteady(self, tenant: str) -> None:
        """Know that leases that have expired may be of workers that could not extend them."""
        self._parts.of(tenant).refuses()

    def _clock_was_set(self) -> None:
        """Redis's clock has jumped: deadlines of leases that are being served may have passed."""
        for _, part in self._parts.all():
            part.refuses()

    def own_leases(self) -> frozenset[str]:
        """Return the leases that this worker holds, or has yet to tell Redis something of."""
        return frozenset(self._open).union(self._backlog.leases())

    def may_be_gone(self, lease: str) -> bool:
        """Tell whether a lease may have been taken for a dead worker's."""
        return self._leases.may_be_gone(lease)

    def tenants_seen(self) -> set[str]:
        """Return the tenants of a cluster that this worker has had to do with."""
        return {tenant for tenant, _ in self._parts.all() if tenant}

    def admit(
        self, tenant: str, lease: str, holding: Holding, granted: tuple[Grant, ...]
    ) -> Awaitable[Verdict]:
        """Take a lease and what it is granted if every limit allows it. Raises StoreError.

        Without limits there is nothing to wait for. Whoever calls this settles the lease, whatever
        happens, also when it raises or is cancelled: the lease may have been taken.
        """
        future = None
        if granted:
            part = self._whole or self._parts.of(tenant)
            if self._degrade and (part.late or not self._client.reaches(tenant)):
                return _at_once(self._admit_alone(tenant, lease, holding, granted))
            future = self._loop.create_future()
        if holding is not self._holding:
            self._holding, self._held = holding, _to_json(holding)
        ask = Ask(lease, self._held, granted, future)
        self._asks.setdefault(tenant, []).append(ask)
        if future is not None:
            self._unheard.add(lease)
        self._open[lease] = (tenant, monotonic())
        if not self._scheduled:
            self._schedule()
        if future is None:
            self._backlog.expect(lease)
            return _at_once(_ADMITTED)
        return future

    async def peek(self, tenant: str, nothing: tuple[Grant, ...]) -> Verdict:
        """Return where limits stand, taking nothing of them. Raises StoreError."""
        future: asyncio.Future[Verdict] = self._loop.create_future()
        asks = self._asks.setdefault(tenant, [])
        asks.append(Ask(NO_LEASE, b"", nothing, future))
        self._schedule()
        return await future

    def settle(self, settlement: Settlement, applied: Applied | None = None) -> None:
        """Turn a lease into usage; `applied` learns which settlement of it has counted."""
        lease = settlement.lease
        opened = self._open.pop(lease, None)
        self._leases.missing.discard(lease)
        part = self._whole or self._parts.of(settlement.tenant)
        share = part.share
        if part.alone and share.has(lease):
            share.give_back(lease, {r.key: r.used for r in settlement.returns})
        elif opened is not None and lease not in self._unheard:
            for back in settlement.returns:
                if back.spec[0] != RATE:
                    share.came_back(back.key, back.reserved - back.used, back.spec[1])
        if lease in self._unheard:  # or its lease could be opened after it was settled
            self._backlog.expect(lease, given_up=True)
        if part.late:  # what is on its way may be lost with this worker
            self._backlog.doubt(lease)
        held = self._backlog.hold(settlement, applied)
        if held is not None:
            self._settlements.setdefault(settlement.tenant, []).append(held)
            if not self._scheduled:
                self._schedule()

    def after_settled(self, deliver: Callable[[], None]) -> None:
        """Run `deliver` once every settlement so far is out of this process."""
        self._after.append(deliver)
        if not self._scheduled:
            self._schedule()

    def extend_open(self) -> None:
        """Move the deadlines of this worker's leases that are not brand new."""
        for _, part in self._parts.all():
            if not (part.late or part.alone):
                part.share.forget_some()
        self._leases.extend()

    async def grow(
        self, tenant: str, lease: str, holding: Holding, budgets: tuple[Grant, ...], amount: int
    ) -> Verdict:
        """Reserve so many more micro-dollars for a lease, of all budgets or of none.

        `holding` is what the lease holds then; Redis takes what it has not yet. Raises StoreError.
        """
        if self.does_without(tenant):
            raise StoreError("Redis is away")
        specs = [(*grant.spec, grant.limit.shadow) for grant in budgets]
        data = _pack((lease, _to_json(holding).decode(), specs))
        keys = [*names.leases(tenant), *(grant.key for grant in budgets)]
        refusing, *short = await ran(self._client, scripts.GROW, keys, data)
        if refusing < 0:
            raise StoreError("the lease is gone")
        if refusing:
            return Verdict(refused_by=budgets[refusing - 1].limit)
        for grant in budgets:
            self._parts.of(tenant).share.came_back(grant.key, -amount, grant.spec[1])
        return Verdict(overdrawn=tuple([budgets[number - 1].limit for number in short]))

    def grow_alone(
        self, tenant: str, lease: str, budgets: tuple[Grant, ...], amount: int
    ) -> Limit | None:
        """Reserve more of this worker's share, while Redis is away; return what refuses."""
        part = self._parts.of(tenant)
        part.alone = True
        return part.share.grow(lease, budgets, amount, self.roster.live, monotonic())

    def retry_unsettled(self) -> None:
        """Send again what Redis refused while it was reachable, and what it may have forgotten."""
        self._tenants.clear()  # what Redis knew of them may have been deleted
        if self._backlog and (self._client.clustered or self._client.connected):
            self._resend()

    async def aclose(self, seconds: float) -> None:
        """Send what is left and wait for Redis's answer, so long at most. Idempotent."""
        self._patience.close()
        self.retry_unsettled()
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(seconds):
                for _ in range(2):  # leases, then the settlements that were held for them
                    self._flush()
                    await self._client.call("PING")
        if self.unsettled:
            logger.warning("%d settlements have not reached Redis", self.unsettled)
        self._backlog.give_up()

    def now(self) -> float:
        """Return Unix seconds by Redis's clock, as far as this worker knows it."""
        return self.roster.now()

    def _serves(self, tenant: str) -> bool:
        """Tell whether the part of a cluster that has a tenant is there; one server is one part."""
        return not self._client.clustered or self._client.reaches(tenant)

    def _schedule(self) -> None:
        if not self._scheduled:  # those on the hot path have looked
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
                try:
                    self._send_asks(tenant, part)
                except Exception as error:
                    _give_up(tenant, part, error)
        settlements, self._settlements = self._settlements, {}
        for tenant, due in settlements.items():
            for batch in batches(due):
                try:
                    self._send_settlements(tenant, batch)
                except Exception as error:
                    _give_up(tenant, [], error)
        self._client.flush()
        after, self._after = self._after, []
        for deliver in after:
            try:
                deliver()
            except Exception:  # one client's trouble is its own
                logger.exception("a reply could not be delivered")

    def _send_asks(self, tenant: str, asks: list[Ask]) -> None:
        keys, data, limits = pack_asks(tenant, asks, self._lease_ms)
        number = 0
        if self._parts.of(tenant).late:
            self._note(tenant, asks)
        elif self._degrade:
            number = self._patience.begin(partial(self._lose_patience, tenant, asks))

        def done(reply: Reply | Exception) -> None:
            self._patience.end(number)
            self._answer(tenant, asks, limits, reply)

        self._client.run(scripts.ADMIT, keys, (data,), done)

    def _answer(
        self, tenant: str, asks: list[Ask], limits: list[Limit], reply: Reply | Exception
    ) -> None:
        for ask in asks:
            self._unheard.discard(ask.lease)
        if not isinstance(reply, bytes):
            error = reply if isinstance(reply, StoreError) else StoreError(f"Redis: {reply}")
            self._parts.of(tenant).refuses()
            for ask in asks:
                if ask.future is None:
                    self._postpone(tenant, ask)
                elif ask.future.done():
                    if ask.lease != NO_LEASE:  # it may be read after its settlement
                        self._backlog.doubt(ask.lease)
                    self._release(tenant, ask)
                elif self._degrade and ask.lease != NO_LEASE:
                    self._answer_alone(tenant, ask)
                else:
                    if ask.lease != NO_LEASE:
                        self._backlog.doubt(ask.lease)
                    ask.future.set_exception(error)
            return
        part = self._parts.of(tenant)
        try:
            now_us, verdicts = unpack_verdicts(reply)
        except msgspec.DecodeError as error:
            self._answer(tenant, asks, limits, StoreError(f"Redis answered nonsense: {error}"))
            return
        known, heard_at = part.share.known, monotonic()
        self.roster.heard(now_us)
        shadows = any(limit.shadow for limit in limits)
        for ask, (refusing, wait_us, *levels) in zip(asks, verdicts, strict=True):
            granted = ask.grants
            for grant, level in zip(granted, levels, strict=True):
                known[grant.key] = level, heard_at
            if ask.future is None:
                self._opened(tenant, ask)
                continue
            if ask.future.done():
                self._release(tenant, ask)
                continue
            if part.alone and not refusing:
                part.share.took(granted)
            if refusing:
                self._open.pop(ask.lease, None)
                wait = None if wait_us < 0 else wait_us / 1e6
                ask.future.set_result(Verdict(granted, levels, limits[refusing - 1], wait))
            elif shadows:
                overdrawn = overdrawn_in_shadow(granted, levels)
                ask.future.set_result(Verdict(granted, levels, overdrawn=overdrawn))
            else:
                ask.future.set_result(Verdict(granted, levels))
        if part.alone or part.late:
            self._heard(tenant, part)

    def _heard(self, tenant: str, part: Part) -> None:
        """Know that a part answers; once it has what was decided without it, it alone decides."""
        part.answers()
        one = None if part is self._whole else tenant
        if part.takes:
            self._resend(one)
        if part.alone and not self._backlog.owes(one):
            part.is_back(self.roster.live)

    def _postpone(self, tenant: str, ask: Ask) -> None:
        """Keep a lease that Redis is to have later."""
        self._parts.of(tenant).untold = True
        self._backlog.postpone(tenant, ask)

    def _stream(self, tenant: str) -> str:
        return names.requests(tenant, clustered=self._client.clustered)

    def _admit_alone(
        self, tenant: str, lease: str, holding: Holding, granted: tuple[Grant, ...]
    ) -> Verdict:
        """Decide without Redis, which is to have the lease when it is back."""
        refused = self._decide_alone(tenant, lease, granted)
        if refused is not None:
            return refused
        self._open[lease] = (tenant, monotonic())
        self._postpone(tenant, Ask(lease, _to_json(holding), granted, None, forced=True))
        return Verdict()

    def _decide_alone(self, tenant: str, lease: str, granted: tuple[Grant, ...]) -> Verdict | None:
        """Return the refusal of this worker's share of the limits, if it refuses."""
        part = self._parts.of(tenant)
        part.alone = True
        found = part.share.take(lease, granted, self.roster.live, monotonic())
        if found is None:
            return None
        limit, wait = found
        return Verdict((), [], limit, None if wait == inf else wait)

    def _answer_alone(self, tenant: str, ask: Ask) -> None:
        """Decide over an ask that Redis has not answered, though it may have taken the lease."""
        assert ask.future is not None
        refused = self._decide_alone(tenant, ask.lease, ask.grants)
        if refused is not None:
            self._open.pop(ask.lease, None)
            ask.future.set_result(msgspec.structs.replace(refused, unsure=True))
            return
        ask.future.set_result(Verdict())
        self._postpone(tenant, msgspec.structs.replace(ask, future=None, forced=True))

    def _note(self, tenant: str, asks: list[Ask]) -> None:
        """Keep what Redis is asked without anybody waiting: it may be lost with this worker."""
        for ask in asks:
            if ask.future is None:
                self._backlog.note(tenant, ask)

    def _save(self, part: Part) -> None:
        """Write down settlements that are on their way: Redis and this worker may both end."""
        for whose, due in self._on_way.values():
            if self._parts.of(whose) is part:
                self._backlog.save(due)

    def _lose_patience(self, tenant: str, asks: list[Ask]) -> None:
        """Redis is late: decide over what waits, and wait no more until it answers."""
        part = self._parts.of(tenant)
        if not part.late:
            part.late = True
            self._save(part)
        self._note(tenant, asks)
        for ask in asks:
            if ask.future is None or ask.future.done():
                continue
            if ask.lease == NO_LEASE:
                ask.future.set_exception(StoreError("Redis is late"))
            else:
                self._answer_alone(tenant, ask)

    def _release(self, tenant: str, ask: Ask) -> None:
        """Nobody waits any more for what Redis was asked; its settlement may have waited too."""
        if not self._backlog.postponed(ask.lease):
            self._opened(tenant, ask)

    def _opened(self, tenant: str, ask: Ask) -> None:
        """Redis has a lease that nobody waited for: settle it if that was asked meanwhile."""
        held = self._backlog.opened(ask.lease)
        if held is not None:
            self._settlements.setdefault(tenant, []).append(held)
            self._schedule()

    def _send_settlements(self, tenant: str, due: list[Due]) -> None:
        keys, data = pack_settlements(tenant, self._stream(tenant), due, self.now())
        number = self._sent = self._sent + 1
        self._on_way[number] = tenant, due

        def done(reply: Reply | Exception) -> None:
            del self._on_way[number]
            if isinstance(reply, bytes):
                self._backlog.settled(due)
                for (_, applied), counted in zip(due, unpack_counted(reply), strict=True):
                    if applied is not None:
                        applied(counted)
                part = self._parts.of(tenant)
                if part.alone or part.late:
                    self._heard(tenant, part)
            else:
                self._parts.of(tenant).refuses()
                self._backlog.keep(due)

        self._client.run(scripts.SETTLE, keys, (data,), done)

    def _reconnected(self) -> None:
        """Redis is back, or a part of it: it decides again, and gets what it has missed."""
        for tenant, part in self._parts.all():
            if self._serves(tenant):
                self._heard(tenant, part)
        self._resend()

    def _resend(self, tenant: str | None = None) -> None:
        """Send what can be sent now of what Redis has missed, of all tenants or of one."""
        asks, due = self._backlog.take(
            lambda one: (tenant is None or one == tenant) and self._serves(one)
        )
        for whose, part in self._parts.all():
            if part is self._whole or (tenant in (None, whose) and self._serves(whose)):
                part.untold = False
        for whose, ask in asks:
            self._asks.setdefault(whose, []).append(ask)
        for settlement, applied in due:
            self._settlements.setdefault(settlement.tenant, []).append((settlement, applied))
        self._tenants.clear()
        self._schedule()


def _give_up(tenant: str, asks: list[Ask], error: Exception) -> None:
    """Let a tenant's trouble be its own: what others ask in the same turn is sent all the same."""
    logger.error("what tenant %s asks cannot be put to Redis", tenant, exc_info=error)
    for ask in asks:
        if ask.future is not None and not ask.future.done():
            ask.future.set_exception(StoreError(f"it cannot be put to Redis: {error}"))


async def _at_once(verdict: Verdict) -> Verdict:
    return verdict
