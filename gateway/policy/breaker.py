"""Hot path: when a target is left alone because it fails, and when it is tried again. Pure.

closed -> open after so many failures in a row, or at a ratio of failures in a window; open -> one
probe once its time is over; the probe decides. Each ejection is longer than the one before.
"""

from collections.abc import Callable
from math import inf

import msgspec

BUCKETS = 10  # a window is forgotten in steps of a tenth


class Rules(msgspec.Struct, frozen=True):
    """Seconds and counts. `ratio` of failures counts once there are `minimum` in the window."""

    failures: int = 5
    ratio: float = 0.5
    minimum: int = 20
    window: float = 10.0
    ejection: float = 5.0
    longest: float = 300.0


class Breaker:
    """One target's. Times are monotonic seconds; `jitter` returns 0 to 1.

    `well_at` is when the newest success was begun, `closed_at` the one that closed it last.
    """

    __slots__ = (
        "_ejected_at",
        "_ejections",
        "_failed",
        "_in_row",
        "_jitter",
        "_probing_until",
        "_rules",
        "_seen",
        "_slot",
        "closed_at",
        "open_until",
        "well_at",
    )

    def __init__(self, rules: Rules, jitter: Callable[[], float]) -> None:
        self._rules, self._jitter = rules, jitter
        self._in_row = self._ejections = 0
        self._slot = 0
        self._seen = [0] * BUCKETS
        self._failed = [0] * BUCKETS
        self._probing_until = 0.0
        self._ejected_at = self.well_at = self.closed_at = -inf
        self.open_until = 0.0

    def closed(self, now: float) -> bool:
        """Tell whether the target is as good as any."""
        return self.open_until == 0.0

    def allows(self, now: float) -> bool:
        """Tell whether the target may be asked now: it is closed, or due for a probe."""
        if self.open_until == 0.0:
            return True
        return now >= self.open_until and now >= self._probing_until

    def probe(self, now: float, seconds: float) -> None:
        """Know that an open target is being tried; nobody else tries it meanwhile."""
        if self.open_until:
            self._probing_until = now + seconds

    def let_go(self) -> None:
        """Know that a probe has ended, whatever it has told: the next one may try."""
        self._probing_until = 0.0

    def succeeded(self, now: float, began: float = inf) -> None:
        """Count a success; it closes an open breaker, unless it was begun before the ejection."""
        if began < self._ejected_at:
            return
        self._in_row = 0
        began = began if began < now else now
        if began > self.well_at:
            self.well_at = began
        if self.open_until:
            self.closed_at = began
            self.open_until = self._probing_until = 0.0
            self._forget()
        self._count(now, failed=False)
        if self._ejections and not any(self._failed):
            self._ejections = 0

    def failed(self, now: float, began: float = inf) -> bool:
        """Count a failure; tell whether the target is ejected by it.

        One that was begun before the last ejection has nothing new to tell.
        """
        if self.open_until and began < self._ejected_at:
            return False
        self._in_row += 1
        self._count(now, failed=True)
        if self.open_until:
            if now >= self.open_until:  # the probe failed
                self.eject(now)
                return True
            return False
        seen, failed = sum(self._seen), sum(self._failed)
        often = seen >= self._rules.minimum and failed >= self._rules.ratio * seen
        if self._in_row >= self._rules.failures or often:
            self.eject(now)
            return True
        return False

    def eject(self, now: float, seconds: float | None = None) -> None:
        """Open for so long, or for as long as the rules say: twice as long each time, jittered."""
        if seconds is None:
            growing = self._rules.ejection * 2 ** min(self._ejections, 16)
            seconds = min(growing, self._rules.longest) * (0.75 + 0.5 * self._jitter())
            self._ejections += 1
        self.open_until = max(self.open_until, now + min(seconds, self._rules.longest))
        self._probing_until = 0.0
        self._ejected_at = now

    def _count(self, now: float, *, failed: bool) -> None:
        slot = int(now * BUCKETS / self._rules.window)
        passed = slot - self._slot
        if passed:
            self._slot = slot
            for i in range(min(passed, BUCKETS)):
                at = (slot - i) % BUCKETS
                self._seen[at] = self._failed[at] = 0
        at = slot % BUCKETS
        self._seen[at] += 1
        self._failed[at] += failed

    def _forget(self) -> None:
        self._seen = [0] * BUCKETS
        self._failed = [0] * BUCKETS
