"""What a worker knows of a part of Redis: whether it does without, and its share of the limits.

One server is one part. In a cluster each tenant's keys are one, as its master may be away alone.
"""

from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Protocol

import hiredis

from gateway.policy.limits import MONEY, Limit
from gateway.policy.share import MAX_KNOWN, Level, LocalShare
from gateway.store.levels import Levels

MAX_PARTS = 10_000
# What refuses what it is told may refuse it for long: it is told all of it again now and then.
REST_SECONDS = 1.0
# Of what is known of limits, so much is looked at, and told to the others, in one go.
MAX_LOOKED, MAX_TOLD = 2000, 500
# What Redis answers where it takes nothing of anybody for now.
_CLOSED = frozenset(
    {
        *("OOM", "READONLY", "NOREPLICAS", "MISCONF", "LOADING", "BUSY"),
        *("MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"),
    }
)


class Part:
    """`late`: this worker decides, and asks nothing of Redis that somebody waits for; `alone`: it
    has decided by itself, and Redis does not have all of that. Why it is late:

    - `hung`: what was asked is not answered in time; `closed`: Redis answers, and takes nothing
    - `untold`: some of what was decided here is not even on its way; not where it is `stuck`, as
      Redis does not take just that
    - `behind`: Redis is back, and has yet to hear of workers that are gone; `told`: it has, of
      those before this one
    - `returning`: since the moment `since`, not all workers here agree yet that Redis has heard all
    """

    __slots__ = (
        *("alone", "behind", "closed", "degrades", "hung", "late", "ready_at", "refused_at"),
        *("returning", "share", "since", "steady_since", "stuck", "told", "untold"),
    )

    def __init__(
        self, levels: Levels | None = None, whose: str = "", *, degrades: bool = False
    ) -> None:
        self.degrades = degrades
        self.late = self.alone = self.behind = self.untold = False
        self.hung = self.closed = self.returning = self.stuck = False
        self.told = levels is None
        self.refused_at = self.since = -inf
        self.ready_at: float | None = None  # since when only others are waited for
        self.share = LocalShare(levels, whose)
        self.steady_since = monotonic()

    def answers(self) -> None:
        """Know that Redis is not hung; what was taken of the share stays taken until it knows."""
        self.hung = False
        self.steady_since = monotonic()

    def goes_without(self) -> None:
        """Ask Redis nothing more until all who do without agree that it has heard everything."""
        self.late = self.returning = True
        self.stuck = False
        self.since = monotonic()
        self.ready_at = None

    @property
    def takes(self) -> bool:
        """Tell whether it is worth telling Redis what it does not have."""
        return self.untold and self.rested

    @property
    def rested(self) -> bool:
        """Tell whether it has not been tried for a while whether Redis takes anything."""
        return monotonic() - self.refused_at >= REST_SECONDS

    @property
    def ready(self) -> bool:
        """Tell whether Redis has, or is about to have, what it is to hear from this worker."""
        untold = self.untold and not self.stuck
        return not (self.hung or self.closed or self.behind or untold)

    def refuses(self, answer: object = None) -> bool:
        """Know that Redis has not taken what it was told; tell whether it takes nothing at all.

        Others may not be able to tell it either: leases that have expired may be of workers that
        live.
        """
        self.refused_at = monotonic()
        if isinstance(answer, hiredis.ReplyError):
            self.hung = False
            takes_nothing = str(answer).partition(" ")[0] in _CLOSED
            self.closed, self.stuck = self.degrades and takes_nothing, not takes_nothing
        if not self.stuck:
            self.steady_since = self.refused_at
        return self.closed

    def is_back(self, workers: int) -> None:
        """Let Redis alone decide: it has what was decided here."""
        self.answers()
        self.alone = self.late = self.returning = False
        self.share.reset(workers, monotonic())


class Heard(Protocol):
    """Called with the tenant of what a part has answered."""

    def __call__(self, tenant: str, part: Part, *, took: bool = False) -> None:
        """`took`: it has kept something."""


class Parts:
    """The parts of Redis, by tenant; `whole` is the one there is without a cluster."""

    def __init__(self, levels: Levels | None, *, clustered: bool, degrades: bool = False) -> None:
        self._levels, self._degrades = levels, degrades
        # Told of one that takes nothing: this worker does without it then.
        self.closed: Callable[[Part], None] = Part.goes_without
        self.debts = levels.debts if levels is not None else None
        self.whole = None if clustered else Part(levels, degrades=degrades)
        self._told: dict[str, Level] = {}
        self._to_tell: list[tuple[dict[str, Level], str]] = []
        self._by_tenant: dict[str, Part] = {}
        self._without = False

    def begin_without(self) -> None:
        """Know that Redis may lack what others have decided in this worker's slot."""
        self._without = True
        for _, part in self.all():
            part.alone = True

    def of(self, tenant: str) -> Part:
        """Return the part that has a tenant's keys."""
        if self.whole is not None:
            return self.whole
        part = self._by_tenant.get(tenant)
        if part is None:
            if len(self._by_tenant) >= MAX_PARTS:
                well = [name for name, one in self._by_tenant.items() if not one.alone]
                for name in well:
                    del self._by_tenant[name]
            part = Part(self._levels, tenant, degrades=self._degrades)
            self._by_tenant[tenant] = part
            part.alone = self._without
        return part

    def tell(self) -> None:
        """Let the other workers know some of what Redis has said since they were last told of it.

        It goes round, as nobody else is served meanwhile. Money is told at once.
        """
        if self._levels is None:
            return
        told = self._told
        if len(told) > 2 * MAX_KNOWN:
            told.clear()
        if not self._to_tell:
            self._to_tell = [
                (part.share.known, key) for _, part in self.all() for key in part.share.known
            ]
        looked = count = 0
        while self._to_tell and looked < MAX_LOOKED and count < MAX_TOLD:
            known, key = self._to_tell.pop()
            heard = known.get(key)
            looked += 1
            if heard is not None and told.get(key) is not heard:
                told[key] = heard
                self._levels.tell(key, *heard)
                count += 1

    def tell_money(self, tenant: str, keys: list[str], limits: list[Limit]) -> None:
        """Let the other workers know at once what has just been heard of budgets."""
        if self._levels is not None:
            known = self.of(tenant).share.known
            for key, limit in zip(keys, limits, strict=True):
                if limit.unit == MONEY and key in known:
                    self._levels.tell(key, *known[key])

    def told(self, reaches: Callable[[str], bool], *, whole: bool) -> None:
        """Know that what workers that are gone have left has been told where Redis is there.

        `whole`: all of it is.
        """
        now = monotonic()
        self._without = self._without and not whole
        for whose, part in self.all():
            if not reaches(whose):
                continue
            part.behind = False
            if part.told or self._levels is None:
                continue
            if not (part.alone or part.late):
                if self._levels.debts.others():  # maybe of who had this slot before
                    continue
                self._levels.told(whose, now)
            part.told = True

    def all(self) -> list[tuple[str, Part]]:
        """Return the parts that are known, each with its tenant; one server has none."""
        return list(self._by_tenant.items()) if self.whole is None else [("", self.whole)]
