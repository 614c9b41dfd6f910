"""What a worker knows of a part of Redis: whether it does without, and its share of the limits.

One server is one part. In a cluster each tenant's keys are one, as its master may be away alone.
"""

from math import inf
from time import monotonic

from gateway.policy.share import LocalShare

MAX_PARTS = 10_000
# What refuses what it is told may refuse it for long: it is told all of it again now and then.
REST_SECONDS = 1.0


class Part:
    """`late`: what is asked is not waited for; `alone`: the worker has decided by itself, and Redis
    does not have all of that; `untold`: some of it is not even on its way.
    """

    __slots__ = ("alone", "late", "refused_at", "share", "steady_since", "untold")

    def __init__(self) -> None:
        self.late = self.alone = self.untold = False
        self.refused_at = -inf
        self.share = LocalShare()
        self.steady_since = monotonic()

    def answers(self) -> None:
        """Ask Redis again; what was taken of the share stays taken until Redis knows of it."""
        self.late = False
        self.steady_since = monotonic()

    @property
    def takes(self) -> bool:
        """Tell whether it is worth telling Redis what it does not have."""
        return self.untold and monotonic() - self.refused_at >= REST_SECONDS

    def refuses(self) -> None:
        """Know that Redis has not taken what it was told: others may not be able to tell it either.

        So leases that have expired may be of workers that live.
        """
        self.refused_at = self.steady_since = monotonic()

    def is_back(self, workers: int) -> None:
        """Let Redis alone decide: it has what was decided here."""
        self.answers()
        self.alone = False
        self.share.reset(workers)


class Parts:
    """The parts of Redis, by tenant; `whole` is the one there is without a cluster."""

    def __init__(self, *, clustered: bool) -> None:
        self.whole = None if clustered else Part()
        self._by_tenant: dict[str, Part] = {}

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
            part = self._by_tenant[tenant] = Part()
        return part

    def all(self) -> list[tuple[str, Part]]:
        """Return the parts that are known, each with its tenant; one server has none."""
        return list(self._by_tenant.items()) if self.whole is None else [("", self.whole)]
