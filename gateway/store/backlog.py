"""Hot path: what Redis has yet to be told: leases that nobody waited for, and settlements.

Bounded. What waits because Redis is away is on disk as well, where there is a journal: so it
outlives the worker, and what memory cannot hold is not lost.
"""

from collections import Counter, deque
from collections.abc import Callable, Container, Iterable
from itertools import chain
from math import inf
from time import monotonic, time

import msgspec

from gateway.policy.limits import RATE, SLOTS, Grant
from gateway.store.journal import Grown, Journal, Opened, Settled
from gateway.store.lease import ELSE, Applied, Ask, Due, Holding, Settlement, ended, is_felt

# Settlements kept in memory while Redis is away: some 50 MB. Beyond it the oldest are on disk only.
MAX_UNSETTLED = 20_000
MAX_FORGOTTEN = 100_000  # more than the lines that a spool has in its queue

_LONG_AGO = ("", -inf)

_to_json = msgspec.json.Encoder().encode


class Backlog:
    """A worker's own. `lost` counts the settlements that neither memory nor disk could hold.

    `now` gives Unix seconds as they are to be written down.
    """

    def __init__(self, journal: Journal | None, now: Callable[[], float] = time) -> None:
        self._journal, self._now = journal, now
        # Leases that Redis has not confirmed: until it does, their settlements are held.
        self._opening: set[str] = set()
        self._unopened: dict[str, tuple[str, Ask]] = {}
        # What was admitted without Redis, which has not confirmed it: the tenant, and when.
        self._owed: dict[str, tuple[str, float]] = {}
        self._owing: Counter[str] = Counter()
        self._held: dict[str, Due] = {}
        self._given_up: set[str] = set()  # evicted ones that Redis has been asked for
        self._unsettled: deque[Due] = deque()
        # Leases that Redis may be asked for twice, so that it is to remember how they ended; and
        # when their settlement is in the journal, as `Spool.written` counts.
        self._doubtful: dict[str, int | None] = {}
        self._noted: set[str] = set()  # whose opening is in the journal, or is to be in none
        self._evicted = self._ending = False
        self._missed: set[str] = set()  # of the doubtful ones, those that the disk did not take
        self._forgotten: dict[str, None] = {}  # evicted ones that are on their way to the disk
        self._lost = 0

    @property
    def unsettled(self) -> int:
        """Return how many settlements wait."""
        return len(self._unsettled) + len(self._held)

    @property
    def lost(self) -> int:
        """Return how many settlements were lost."""
        self._learn()
        return self._lost

    def __bool__(self) -> bool:
        return bool(self._unsettled or self._unopened)

    def expect(self, lease: str, *, given_up: bool = False) -> None:
        """Know that Redis has been asked for a lease that nobody waits for, or does any more.

        One that was given up is not asked for again: its settlement waits for no `note`.
        """
        self._opening.add(lease)
        if given_up:
            self._noted.add(lease)

    def postpone(self, tenant: str, ask: Ask) -> None:
        """Keep a lease that Redis is to have later."""
        lease = ask.lease
        if lease in self._given_up:
            self._given_up.discard(lease)
            return
        self._opening.add(lease)
        self._unopened[lease] = (tenant, ask)
        if ask.forced and lease not in self._owed:
            self._owed[lease] = (tenant, monotonic())
            self._owing[tenant] += 1
        self.note(tenant, ask)

    def note(self, tenant: str, ask: Ask) -> None:
        """Write down that Redis is to have a lease, as it may be lost with this worker."""
        lease = ask.lease
        if lease in self._noted or lease not in self._opening:
            return
        self._noted.add(lease)
        self.doubt(lease)
        if self._journal is not None:
            took = tuple([(g.key, g.spec, g.amount) for g in ask.grants if g.spec[0] != SLOTS])
            held = msgspec.Raw(_bare(ask.holding, {key for key, _, _ in took}))
            self._journal.enter(Opened(tenant, lease, held, took, self._began(lease)))
        self._write_held(lease)

    def grew(self, tenant: str, lease: str, holding: Holding, budgets: tuple[Grant, ...]) -> None:
        """Write down that a lease holds more than Redis knows: a killed worker tells nobody."""
        self.doubt(lease)
        if self._journal is not None:
            named = tuple([(grant.key, grant.spec) for grant in budgets])
            self._journal.enter(Grown(tenant, lease, holding, named))

    def abandon(self, lease: str) -> None:
        """Know that Redis, which is late, may yet open a lease that nobody waits for any more."""
        self.doubt(lease)
        self._write_held(lease)

    def only_here(self, on_way: Iterable[Due]) -> set[str]:
        """Return the leases that have ended, as nobody may know if this worker is killed.

        They are those that are on their way to Redis, or wait for their opening, and are not on
        disk; without a journal, only those that Redis may answer any moment.
        """
        journal, found = self._journal, set[str]()
        for settlement, _ in chain(on_way, self._held.values()):
            lease = settlement.lease
            written = self._doubtful.get(lease)
            if written is None or journal is None or written > journal.written:
                found.add(lease)
        return found if journal is not None else found - (self._noted & self._held.keys())

    def waiting(self) -> set[str]:
        """Return the tenants that Redis is to be told something of that is not on its way."""
        found = {tenant for tenant, _ in self._unopened.values()}
        return found.union([settlement.tenant for settlement, _ in self._unsettled])

    def is_opening(self, lease: str) -> bool:
        """Tell whether Redis has not confirmed yet that it has a lease."""
        return lease in self._opening

    def postponed(self, lease: str) -> bool:
        """Tell whether Redis is to be asked for a lease, again perhaps, or is being asked."""
        return lease in self._unopened or lease in self._owed

    def owes(self, tenant: str | None) -> bool:
        """Tell whether Redis lacks something admitted without it, of a tenant or at all."""
        return bool(self._owed) if tenant is None else tenant in self._owing

    def leases(self) -> set[str]:
        """Return the leases of which Redis has yet to be told something."""
        waiting = {settlement.lease for settlement, _ in self._unsettled}
        return waiting.union(self._held, self._unopened)

    def doubt(self, lease: str) -> None:
        """Know that a lease was given up, though Redis may yet open it."""
        self._doubtful.setdefault(lease)

    def hold(self, settlement: Settlement, applied: Applied | None) -> Due | None:
        """Keep a settlement whose lease Redis has not confirmed; where it has, return it."""
        lease = settlement.lease
        doubtful = bool(self._doubtful) and lease in self._doubtful
        if doubtful:
            settlement = msgspec.structs.replace(settlement, marked=True)
            if lease not in self._opening or lease in self._noted:
                self._write(settlement)  # else behind its lease's opening, if that is written
        due = (settlement, applied)
        if lease not in self._opening:
            return due
        self._held[lease] = due
        self._evict()
        return None

    def opened(self, lease: str) -> Due | None:
        """Know that Redis has a lease; return its settlement, if it was asked for meanwhile."""
        self._opening.discard(lease)
        self._given_up.discard(lease)
        if self._noted and lease not in self._doubtful:
            self._noted.discard(lease)
        held = self._held.pop(lease, None)
        if held is None:
            self._pay(lease)
        elif self._doubtful and lease in self._doubtful:
            held = (msgspec.structs.replace(held[0], marked=True), held[1])
        return held

    def keep(self, due: list[Due]) -> None:
        """Keep what Redis did not take; settling again is safe, a lease counts once."""
        for settlement, applied in due:
            self._write(settlement)
            if self._ending:
                _wait_no_more(applied)
            self._unsettled.append((settlement, None if self._ending else applied))
        self._evict()

    def save(self, due: list[Due]) -> None:
        """Write down what is on its way to Redis, and may be lost there and with this worker."""
        for settlement, _ in due:
            self.doubt(settlement.lease)
            self._write(settlement)

    def settled(self, due: list[Due]) -> None:
        """Know that Redis has these settlements."""
        if self._owed:
            for settlement, _ in due:
                self._pay(settlement.lease)
        if not self._doubtful:
            return
        for settlement, _ in due:
            self._doubtful.pop(settlement.lease, None)
            self._noted.discard(settlement.lease)
            self._missed.discard(settlement.lease)
        if not self._doubtful and self._journal is not None:
            if self._evicted:
                self._journal.leave()  # whoever finds it replays it
            else:
                self._journal.clear()
            self._evicted = False

    def take(
        self, wanted: Callable[[str], bool], most: float = inf
    ) -> tuple[list[tuple[str, Ask]], list[Due]]:
        """Take out what Redis is to be told now of some tenants: the leases first.

        All of it, or so much of either, of each.
        """
        asks: list[tuple[str, Ask]] = []
        taken: Counter[str] = Counter()
        now = monotonic()
        unopened, self._unopened = self._unopened, {}
        for lease, (tenant, ask) in unopened.items():
            if taken[tenant] >= most or not wanted(tenant):
                self._unopened[lease] = (tenant, ask)
                continue
            taken[tenant] += 1
            held = self._held.get(lease)
            if held is not None:  # it has ended: of its limits only rates are to know of it
                age = now - self._owed.get(lease, _LONG_AGO)[1]
                self._held[lease] = (ended(held[0], age), held[1])
                rates = tuple([g for g in ask.grants if is_felt(g.spec, age)])
                ask = msgspec.structs.replace(ask, grants=rates, holding=_bare(ask.holding))
            asks.append((tenant, ask))
        unsettled, self._unsettled = self._unsettled, deque()
        due: list[Due] = []
        taken.clear()
        for one in unsettled:
            tenant = one[0].tenant
            goes = taken[tenant] < most and wanted(tenant)
            taken[tenant] += goes
            (due if goes else self._unsettled).append(one)
        return asks, due

    def leave_evicted(self) -> bool:
        """Let what memory could not hold be read from the disk; tell whether there is any."""
        if not self._evicted or self._journal is None:
            return False
        self._evicted = False
        self._journal.leave()
        return True

    def give_up(self) -> None:
        """Wait no more for Redis, as this worker ends: what is in the journal others will tell."""
        self._ending = True
        for _, applied in (*self._unsettled, *self._held.values()):
            _wait_no_more(applied)
        self._unsettled = deque([(settlement, None) for settlement, _ in self._unsettled])
        self._held = {lease: (settlement, None) for lease, (settlement, _) in self._held.items()}

    def _pay(self, lease: str) -> None:
        """Owe a lease no more."""
        found = self._owed.pop(lease, None)
        if found is not None:
            tenant = found[0]
            self._owing[tenant] -= 1
            if not self._owing[tenant]:
                del self._owing[tenant]

    def _write_held(self, lease: str) -> None:
        if lease in self._held:
            settlement, applied = self._held[lease]
            settlement = msgspec.structs.replace(settlement, marked=True)
            self._held[lease] = (settlement, applied)
            self._write(settlement)

    def _write(self, settlement: Settlement) -> None:
        if self._journal is None or self._doubtful.get(settlement.lease) is not None:
            return
        entry = Settled(settlement, self._began(settlement.lease))
        self._doubtful[settlement.lease] = self._journal.enter(entry)

    def _began(self, lease: str) -> float:
        """Return when a request was admitted without Redis, 0 if it was not (Unix seconds)."""
        owed = self._owed.get(lease)
        return self._now() - (monotonic() - owed[1]) if owed is not None else 0.0

    def _learn(self) -> None:
        """Hear what the journal's disk did not take."""
        if self._journal is None:
            return
        writing = self._journal.writing  # asked first: what is written by now is known by then
        for lease in self._journal.missed():
            if lease in self._doubtful:
                self._missed.add(lease)
            elif lease in self._forgotten:
                del self._forgotten[lease]
                self._lost += 1
        if not writing:
            self._forgotten.clear()

    def _evict(self) -> None:
        """Forget the oldest beyond the bound: they are on disk, or lost."""
        if self.unsettled > MAX_UNSETTLED:
            self._learn()
        while self.unsettled > MAX_UNSETTLED:
            if self._unsettled:
                settlement, applied = self._unsettled.popleft()
                lease = settlement.lease
                self._pay(lease)
            else:
                lease = next(iter(self._held))
                _, applied = self._held.pop(lease)
                self._opening.discard(lease)
                self._pay(lease)
                if self._unopened.pop(lease, None) is None:
                    self._given_up.add(lease)
            _wait_no_more(applied)
            self._noted.discard(lease)
            if self._doubtful.pop(lease, None) is None or lease in self._missed:
                self._missed.discard(lease)
                self._lost += 1
                continue
            self._evicted = True
            self._forgotten[lease] = None
            if len(self._forgotten) > MAX_FORGOTTEN:
                del self._forgotten[next(iter(self._forgotten))]


def _wait_no_more(applied: Applied | None) -> None:
    """Say that nobody will learn whether another worker has settled it: most probably none has."""
    if applied is not None:
        applied(ELSE)


def _bare(holding: bytes, asked: Container[str] = ()) -> bytes:
    """What a lease is to hold that Redis has not heard of: no slot, and money of what is asked."""
    held = msgspec.json.decode(holding, type=Holding)
    money = [
        (key, spec, amount if key in asked else 0)
        for key, spec, amount in held.holds
        if spec[0] not in (RATE, SLOTS)
    ]
    return _to_json(msgspec.structs.replace(held, holds=tuple(money)))
