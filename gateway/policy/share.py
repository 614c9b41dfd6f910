"""What one worker may admit by itself while the store that limits are in is away. Pure.

A worker enforces its share: a limit divided by the workers there are, and of what was left when
last heard no more than that part. It stands until the store has taken what was admitted by it.
"""

from math import inf

import msgspec

from gateway.policy.limits import CONCURRENCY, MONEY, RATE, Grant, Limit

MAX_KNOWN = 20_000
GUESS_SECONDS = 1.0  # nobody knows when a slot becomes free


class LocalShare:
    """Local stand-ins for the limits in the store. Times are monotonic seconds."""

    def __init__(self) -> None:
        # What was left when the store last said so, and when; what its leases here gave back since.
        self.known: dict[str, tuple[int, float]] = {}
        # What is left here, and since when it is; what comes back of a rate a second, to all.
        self._left: dict[str, tuple[float, float, float]] = {}
        self._taken: dict[str, tuple[Grant, ...]] = {}

    def forget_some(self) -> None:
        """Bound what is known: what was heard longest ago goes."""
        if len(self.known) >= MAX_KNOWN:
            newest = sorted(self.known.items(), key=lambda one: one[1][1])[MAX_KNOWN // 2 :]
            self.known.clear()
            self.known.update(newest)

    def take(
        self, lease: str, granted: tuple[Grant, ...], workers: int, now: float
    ) -> tuple[Limit, float] | None:
        """Take a request's amounts of every limit, or of none.

        Returns the limit that refuses and the seconds until it would not (inf: never).
        """
        refused: tuple[Limit, float] | None = None
        found = []
        for grant in granted:
            left = self._current(grant, workers, now)
            found.append(left)
            if grant.amount > left and not grant.limit.shadow:
                wait = _wait(grant, left, workers)
                if refused is None or wait > refused[1]:
                    refused = grant.limit, wait
        if refused is not None:
            return refused
        taken = []
        for grant, left in zip(granted, found, strict=True):
            if grant.amount <= left or not grant.limit.shadow or grant.spec[0] != RATE:
                self._left[grant.key] = left - grant.amount, now, _refill(grant)
                taken.append(grant)
        self._taken[lease] = tuple(taken)
        return None

    def grow(
        self, lease: str, granted: tuple[Grant, ...], amount: int, workers: int, now: float
    ) -> Limit | None:
        """Take so much more of every limit for a lease, or of none; return what refuses."""
        found = [self._current(grant, workers, now) for grant in granted]
        for grant, left in zip(granted, found, strict=True):
            if amount > left and not grant.limit.shadow:
                return grant.limit
        for grant, left in zip(granted, found, strict=True):
            self._left[grant.key] = left - amount, now, _refill(grant)
        if lease in self._taken:
            more = {grant.key for grant in granted}
            self._taken[lease] = tuple(
                [
                    msgspec.structs.replace(one, amount=one.amount + amount)
                    if one.key in more
                    else one
                    for one in self._taken[lease]
                ]
            )
        return None

    def came_back(self, key: str, amount: int, capacity: int) -> None:
        """Know that so much of a limit came back of a lease that the store has given."""
        if key in self._left:
            left, at, refill = self._left[key]
            self._left[key] = min(capacity, left + amount), at, refill
        elif key in self.known:
            level, at = self.known[key]
            self.known[key] = min(capacity, level + amount), at

    def took(self, granted: tuple[Grant, ...]) -> None:
        """Know what the store has given meanwhile of what is also taken here."""
        for grant in granted:
            if grant.key in self._left:
                left, at, refill = self._left[grant.key]
                self._left[grant.key] = left - grant.amount, at, refill

    def has(self, lease: str) -> bool:
        """Tell whether a lease was taken here."""
        return lease in self._taken

    def give_back(self, lease: str, used: dict[str, int]) -> None:
        """Return what a lease that was taken here did not use; `used` is by limit key."""
        for grant in self._taken.pop(lease, ()):
            if grant.key in self._left and grant.key in used:
                left, at, refill = self._left[grant.key]
                self._left[grant.key] = left + grant.amount - used[grant.key], at, refill

    def reset(self, workers: int) -> None:
        """Go by what the store says next: it is back, and is told of what was taken here.

        What it has said before may be of before that, so no more is left than is left here.
        """
        for key, (left, at, refill) in self._left.items():
            heard, heard_at = self.known.get(key, (None, at))
            if heard_at > at:
                left, at = left + (heard_at - at) * refill / workers, heard_at
            level = int(left * workers)
            self.known[key] = level if heard is None else min(level, heard), at
        self._left.clear()
        self._taken.clear()

    def _current(self, grant: Grant, workers: int, now: float) -> float:
        limit = grant.limit
        share = _share(limit, workers)
        known = self.known.get(grant.key)
        if grant.key in self._left:
            left, at, refill = self._left[grant.key]
            if known is not None and known[1] > at:  # others have taken of it too
                left += (known[1] - at) * refill / workers
                left, at = min(left, max(known[0], 0) / workers), known[1]
        elif known is not None:
            level, at = known
            left = max(level, 0) / workers
        else:
            return share
        return min(share, left + (now - at) * _refill(grant) / workers)


def _refill(grant: Grant) -> float:
    """Return how much of a limit comes back a second."""
    return grant.limit.per_minute / 60 if grant.spec[0] == RATE else 0.0


def _share(limit: Limit, workers: int) -> float:
    share = limit.capacity / workers
    return share if limit.unit == MONEY else max(1.0, float(int(share)))


def _wait(grant: Grant, left: float, workers: int) -> float:
    limit = grant.limit
    if limit.unit == CONCURRENCY:
        return GUESS_SECONDS
    if limit.unit == MONEY or grant.amount > _share(limit, workers):
        return inf
    return (grant.amount - left) * 60 * workers / limit.per_minute
