"""Hot path: when a worker takes no more, and from whom. Pure; times are given.

A worker's bound on requests at once falls while its event loop is late, and rises again. Where it
is reached each tenant may still have its fair share: one that floods harms itself alone.
"""

import msgspec


class Rules(msgspec.Struct, frozen=True):
    """Requests at once, and how late the loop may be (seconds) before the bound falls."""

    most: int = 10_000
    least: int = 32
    lag: float = 0.25


# What a late loop takes off the bound, and what one in time adds.
BACKOFF, RISE = 0.7, 1.5
LATE_IN_ROW = 3  # looks; a single one may be the machine's own hiccup


class Gate:
    """Counts requests in flight by tenant."""

    __slots__ = ("_bound", "_by_tenant", "_in_flight", "_late", "_rules", "entered", "refused")

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._bound = float(rules.most)
        self._in_flight = self._late = 0
        self._by_tenant: dict[str, int] = {}
        self.entered = self.refused = 0

    @property
    def bound(self) -> int:
        """Return how many requests are taken at the moment."""
        return int(self._bound)

    @property
    def in_flight(self) -> int:
        """Return how many are being served."""
        return self._in_flight

    def enter(self, tenant: str) -> bool:
        """Take a request, or say that it is too much; whoever is taken leaves once."""
        mine = self._by_tenant.get(tenant, 0)
        if self._in_flight >= self._bound:
            others = len(self._by_tenant) + (mine == 0)
            # Its share is a part of the bound, but what others have taken is not taken from them.
            if others == 1 or mine >= self._bound / others:
                self.refused += 1
                return False
        self._in_flight += 1
        self.entered += 1
        self._by_tenant[tenant] = mine + 1
        return True

    def leave(self, tenant: str) -> None:
        """Know that a request is over."""
        self._in_flight -= 1
        left = self._by_tenant[tenant] - 1
        if left:
            self._by_tenant[tenant] = left
        else:
            del self._by_tenant[tenant]

    def late(self, seconds: float) -> None:
        """Learn how late the event loop was when it was looked at last."""
        if seconds <= self._rules.lag:
            self._late = 0
            self._bound = min(float(self._rules.most), self._bound * RISE)
            return
        self._late += 1
        if self._late >= LATE_IN_ROW:
            self._late = 0
            lower = min(self._bound, float(self._in_flight)) * BACKOFF
            self._bound = max(float(min(self._rules.least, self._rules.most)), lower)
