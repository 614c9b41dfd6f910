"""Hot path: leases. A request is admitted by taking one and settled by turning it into usage.

What is asked in one turn of the event loop goes to Redis as one call a tenant. Replies to clients
wait for `after_settled`: they leave when the settlement that pays for them has left this process.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from itertools import chain
from math import inf
from time import monotonic

import msgspec

from gateway.core.errors import StoreError
from gateway.policy.limits import RATE, Grant, Limit
from gateway.store import names
from gateway.store.alone import Alone
from gateway.store.asking import NO_LEASE, Asking
from gateway.store.backlog import Backlog
from gateway.store.client import Client
from gateway.store.growth import Growth
from gateway.store.journal import Journal
from gateway.store.lease import (
    MAX_BATCH,
    Applied,
    Ask,
    Due,
    Holding,
    Settlement,
    Verdict,
    batches,
)
from gateway.store.levels import Levels
from gateway.store.open_leases import OpenLeases
from gateway.store.orphans import Orphans
from gateway.store.part import Part, Parts
from gateway.store.returning import Returning
from gateway.store.roster import Roster
from gateway.store.settling import Settling

_ADMITTED = Verdict()

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
        levels: Levels | None = None,
    ) -> None:
        self._client, self._lease_seconds = client, lease_seconds
        self._degrade = degrade
        self._parts = Parts(levels, clustered=client.clustered, degrades=degrade)
        self._whole = self._parts.whole
        self.roster = Roster(client, self._clock_was_set, levels)
        self._loop = asyncio.get_running_loop()
        self._asks: dict[str, list[Ask]] = {}
        self._settlements: dict[str, list[Due]] = {}
        self._after: list[Callable[[], None]] = []
        # What the newest lease holds, as JSON: the next one often holds the same.
        self._holding: Holding | None = None
        self._held = b""
        self._backlog = Backlog(journal, self.now)
        self.returning = Returning(
            client, self._parts, self._backlog, self.roster, self._resend, degrade=degrade
        )
        heard, began = self.returning.heard, self.returning.watch
        self.alone = Alone(self._parts, self._backlog, self.roster, began, degrade=degrade)
        self._settling = Settling(client, self._parts, self._backlog, self.now, heard)
        self._leases = OpenLeases(client, lease_seconds, self.unsteady)
        self._open = self._leases.by_id
        lease_ms = int(lease_seconds * 1000)
        self._growth = self.returning.growth = Growth(
            client,
            self._parts,
            lease_ms,
            heard=heard,
            doubts=self._backlog.doubt,
            lost=self._leases.missing.add,
        )
        self._asking = Asking(
            client,
            self._parts,
            self._backlog,
            self.alone,
            self.roster,
            lease_ms,
            self._open,
            heard=heard,
            opened=self._opened,
            late=self._lose,
        )
        self._unheard = self._asking.unheard
        self._tenants: set[str] = set()
        self._scheduled = False
        self.orphans = Orphans(client, lease_ms, self.now)
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

    def tell_levels(self) -> None:
        """Let this machine's other workers know what Redis has said of limits, and look at them."""
        self._parts.tell()
        self.returning.notice()

    def begin(self, *, left: bool) -> None:
        """Know that this worker begins where others have served, while Redis is there.

        `left`: those that are gone have left something to tell it. The others say so themselves.
        """
        self.returning.begin(left=left)

    def begin_without(self) -> None:
        """Know that this worker begins while Redis is away."""
        self._parts.begin_without()

    def own_leases(self) -> frozenset[str]:
        """Return the leases that this worker holds, or has yet to tell Redis something of."""
        return frozenset(self._open).union(self._backlog.leases())

    def ended_here_only(self) -> set[str]:
        """Return the leases that have ended, of which Redis and the disk may not know that yet.

        If this worker is killed, another one finds them, and records their requests.
        """
        due = chain(self._settling.on_way(), *self._settlements.values())
        return self._backlog.only_here(due)

    def may_be_gone(self, lease: str) -> bool:
        """Tell whether a lease may have been taken for a dead worker's, or be so before it ends.

        Where Redis is away others may look after it that are not.
        """
        if self._leases.may_be_gone(lease):
            return True
        opened = self._open.get(lease)
        if opened is None:
            return False
        tenant = opened[0]
        part = self._whole or self._parts.of(tenant)
        away = part.late or not self._client.reaches(tenant)
        return away and not self._backlog.is_opening(lease)

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
            if part.late:
                self.returning.weigh(tenant, part)
            without = part.late or not self._client.reaches(tenant)
            if without and self.alone.goes_on(granted) and not self._should_look(part, granted):
                verdict = self.alone.admit(tenant, lease, holding, granted)
                if verdict.refused_by is None:
                    self._open[lease] = (tenant, monotonic())
                    if part.returning and part.ready_at is not None:  # others wait for that
                        self._resend(None if part is self._whole else frozenset((tenant,)))
                return _at_once(verdict)
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
        self._growth.ended(lease)
        self._leases.missing.discard(lease)
        part = self._whole or self._parts.of(settlement.tenant)
        share = part.share
        if part.alone and share.has(lease):
            share.give_back(lease, {r.key: r.used for r in settlement.returns}, monotonic())
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

        `holding` is what the lease holds then; Redis takes what it has not yet. Raises StoreError,
        LeaseGone where the lease is to have no more.
        """
        if self.does_without(tenant):
            raise StoreError("Redis is away")
        return await self._growth.ask(
            tenant, lease, holding, budgets, amount, impatient=self._degrade
        )

    def grow_alone(
        self, tenant: str, lease: str, holding: Holding, budgets: tuple[Grant, ...], amount: int
    ) -> Limit | None:
        """Reserve so much more for a lease without Redis, as far as the share goes.

        Returns what refuses. Redis is told when it is back. Raises LeaseGone.
        """
        self._growth.check(lease)
        refusing = self.alone.grow(tenant, lease, budgets, amount)
        if refusing is None:
            self._growth.note(tenant, lease, holding, budgets)
            self._backlog.grew(tenant, lease, holding, budgets)
        return refusing

    def retry_unsettled(self) -> None:
        """Send again what Redis refused while it was reachable, and what it may have forgotten."""
        self._tenants.clear()  # what Redis knew of them may have been deleted
        if self._backlog and (self._client.clustered or self._client.connected):
            self._resend(None, probe=any(part.closed for _, part in self._parts.all()))

    async def aclose(self, seconds: float) -> None:
        """Send what is left and wait for Redis's answer, so long at most. Idempotent."""
        self._asking.close()
        self.returning.close()
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
                    self._asking.send(tenant, part)
                except Exception as error:
                    _give_up(tenant, part, error)
        self._growth.flush()
        settlements, self._settlements = self._settlements, {}
        for tenant, due in settlements.items():
            for batch in batches(due):
                try:
                    self._settling.send(tenant, batch)
                except Exception as error:
                    _give_up(tenant, [], error)
        self._client.flush()
        after, self._after = self._after, []
        for deliver in after:
            try:
                deliver()
            except Exception:  # one client's trouble is its own
                logger.exception("a reply could not be delivered")

    def _should_look(self, part: Part, granted: tuple[Grant, ...]) -> bool:
        """Tell whether Redis, which takes nothing, is to say what is left of limits."""
        return part.closed and self._client.connected and not self._asking.knows(part, granted)

    def _lose(self, part: Part) -> None:
        """Wait for a part no more until it answers."""
        self._settling.save(part)
        self.returning.without(part)

    def _opened(self, tenant: str, lease: str) -> None:
        """Redis has a lease that nobody waited for: settle it if that was asked meanwhile."""
        held = self._backlog.opened(lease)
        if held is not None:
            self._settlements.setdefault(tenant, []).append(held)
            self._schedule()

    def _reconnected(self) -> None:
        """Redis is back, or a part of it: it decides again, once it has what it has missed."""
        self._leases.extend()  # before anybody else may think that nobody does
        self._resend(None, probe=any(part.closed for _, part in self._parts.all()))
        self.returning.reconnected(self._serves)

    def _resend(self, tenants: frozenset[str] | None = None, probe: bool = False) -> None:
        """Send what can be sent now of what Redis has missed, of all tenants or of some.

        A probe is some of it, to see whether it is taken.
        """

        def wanted(whose: str) -> bool:
            return (tenants is None or whose in tenants) and self._serves(whose)

        asks, due = self._backlog.take(wanted, MAX_BATCH if probe else inf)
        left = self._backlog.waiting() if probe else frozenset[str]()
        for whose, part in self._parts.all():
            if part is self._whole or wanted(whose):
                part.untold = bool(left) if part is self._whole else whose in left
                if probe:
                    part.refused_at = monotonic()
        for whose, ask in asks:
            self._asks.setdefault(whose, []).append(ask)
        if not left:
            self._growth.resend(wanted)
        for whose, part in self._parts.all() if left else ():
            part.untold = part.untold or self._growth.owes(None if part is self._whole else whose)
        for settlement, applied in due:
            self._settlements.setdefault(settlement.tenant, []).append((settlement, applied))
        self._tenants.clear()
        self._schedule()
        if not probe and self._backlog.leave_evicted():
            self.returning.left_a_file()


def _give_up(tenant: str, asks: list[Ask], error: Exception) -> None:
    """Let a tenant's trouble be its own: what others ask in the same turn is sent all the same."""
    logger.error("what tenant %s asks cannot be put to Redis", tenant, exc_info=error)
    for ask in asks:
        if ask.future is not None and not ask.future.done():
            ask.future.set_exception(StoreError(f"it cannot be put to Redis: {error}"))


async def _at_once(verdict: Verdict) -> Verdict:
    return verdict
