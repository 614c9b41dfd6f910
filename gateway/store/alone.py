"""What a worker decides by itself, by its share of the limits, while Redis is away or late."""

from collections.abc import Callable
from math import inf
from time import monotonic

import msgspec

from gateway.policy.limits import Grant, Limit, taken_of
from gateway.store.backlog import Backlog
from gateway.store.lease import Ask, Holding, Verdict
from gateway.store.part import Part, Parts
from gateway.store.roster import Roster

_ADMITTED = Verdict()

_to_json = msgspec.json.Encoder().encode


class Alone:
    """Admits and reserves without Redis, which is told of it afterwards by way of the backlog.

    `began` is called when a part has none of it yet.
    """

    def __init__(
        self,
        parts: Parts,
        backlog: Backlog,
        roster: Roster,
        began: Callable[[], None],
        *,
        degrade: bool,
    ) -> None:
        self._parts, self._backlog, self._roster = parts, backlog, roster
        self._began, self.degrade = began, degrade

    def goes_on(self, granted: tuple[Grant, ...]) -> bool:
        """Tell whether this worker may decide by itself: what only watches refuses nobody."""
        return self.degrade or all(grant.limit.shadow for grant in granted)

    def admit(
        self, tenant: str, lease: str, holding: Holding, granted: tuple[Grant, ...]
    ) -> Verdict:
        """Take a lease that Redis is to have when it is back, unless it is refused."""
        verdict = self._decide(tenant, lease, granted)
        if verdict.refused_by is None:
            taken = taken_of(granted, verdict.overdrawn) if verdict.overdrawn else granted
            self.postpone(tenant, Ask(lease, _to_json(holding), taken, None, forced=True))
        return verdict

    def answer(self, tenant: str, ask: Ask) -> bool:
        """Decide over an ask that Redis has not answered, though it may have taken the lease.

        Returns whether it is admitted.
        """
        assert ask.future is not None
        verdict = self._decide(tenant, ask.lease, ask.grants)
        if verdict.refused_by is not None:
            ask.future.set_result(msgspec.structs.replace(verdict, unsure=True))
            return False
        ask.future.set_result(verdict)
        taken = taken_of(ask.grants, verdict.overdrawn) if verdict.overdrawn else ask.grants
        again = msgspec.structs.replace(ask, grants=taken, future=None, forced=True)
        self.postpone(tenant, again)
        return True

    def grow(
        self, tenant: str, lease: str, budgets: tuple[Grant, ...], amount: int
    ) -> Limit | None:
        """Reserve so many more micro-dollars of this worker's share; return what refuses."""
        part = self._begin(tenant)
        return part.share.grow(lease, budgets, amount, self._roster.live, monotonic())

    def postpone(self, tenant: str, ask: Ask) -> None:
        """Keep a lease that Redis is to have later."""
        self._parts.of(tenant).untold = True
        self._backlog.postpone(tenant, ask)

    def note(self, tenant: str, asks: list[Ask]) -> None:
        """Keep what Redis is asked without anybody waiting: it may be lost with this worker."""
        for ask in asks:
            if ask.future is None:
                self._backlog.note(tenant, ask)

    def _decide(self, tenant: str, lease: str, granted: tuple[Grant, ...]) -> Verdict:
        """Decide by this worker's share of the limits."""
        part = self._begin(tenant)
        found = part.share.take(lease, granted, self._roster.live, monotonic())
        if found.refused_by is None:
            return Verdict(overdrawn=found.overdrawn) if found.overdrawn else _ADMITTED
        return Verdict((), [], found.refused_by, None if found.wait == inf else found.wait)

    def _begin(self, tenant: str) -> Part:
        """Know that Redis will lack something, for as long as it takes to tell it."""
        part = self._parts.of(tenant)
        if not part.alone:
            part.alone = True
            self._began()
        return part
