"""What a worker knows of a part of Redis: whether it does without, and its share of the limits.

One server is one part. In a cluster each tenant's keys are one, as its master may be away alone.
"""

from time import monotonic

from gateway.policy.share import LocalShare

MAX_PARTS = 10_000


class Part:
    """`late`: what is asked is not waited for; `alone`: the worker has decided by itself since."""

    __slots__ = ("alone", "late", "share", "steady_since")

    def __init__(self) -> None:
        self.late = self.alone = False
        self.share = LocalShare()
        self.steady_since = monotonic()

    def is_back(self) -> None:
        """Let Redis decide again."""
        self.late = self.alone = False
        self.steady_since = monotonic()
        self.share.reset()


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
