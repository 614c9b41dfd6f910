"""What one worker may admit by itself while the store that limits are in is away. Pure.

A worker enforces its share: a limit divided by the workers there are, and of what was left when
last heard no more than that part. It stands until the store has taken what was admitted by it.
"""

from math import inf
from typing import NamedTuple, Protocol

import msgspec

from gateway.policy.limits import (
    CONCURRENCY,
    MONEY,
    PERIOD,
    RATE,
    SLOTS,
    WINDOW,
    WINDOW_SLOTS,
    Grant,
    Limit,
    Spec,
)

MAX_KNOWN = 20_000
MOMENT = 2e-6  # what is shared is of whole microseconds
GUESS_SECONDS = 1.0  # nobody knows when a slot becomes free

# What is left of a limit, since when it is so, and the limit's capacity then.
Level = tuple[float, float, int]


class Shared(Protocol):
    """What the workers of a machine share: see `gateway.store.levels`.

    `place`: this worker's among all that there are everywhere. `has_none`: limits were divided
    among others before this one came.
    """

    @property
    def has_none(self) -> bool:
        """Tell whether it is so."""
        ...

    @property
    def place(self) -> int:
        """Return it, from 0 on."""
        ...

    def tell(self, key: str, level: float, at: float, capacity: int) -> None:
        """Let the others know what is left of a limit."""
        ...

    def heard(self, key: str) -> Level | None:
        """Return what any worker has heard last of a limit."""
        ...

    def keep(self, key: str, left: float, at: float, capacity: int) -> None:
        """Note what is left of this worker's share of a limit."""
        ...

    def left(self, key: str, whose: str) -> Level | None:
        """Return what is left of it, whoever in this worker's slot has taken of it."""
        ...

    def told(self, whose: str, at: float) -> None:
        """Know that the store decides alone over a part: it has heard all of before."""
        ...


class Decision(NamedTuple):
    """What refuses, and the seconds until it would not (inf: never); what in shadow would have."""

    refused_by: Limit | None = None
    wait: float = 0.0
    overdrawn: tuple[Limit, ...] = ()


class Rest(msgspec.Struct, gc=False):
    """What is left here of a limit, and since when it is so; what comes back a second, to all.

    `gone` is what a window has lost, by the part of it that it was lost in.
    """

    left: float
    at: float
    refill: float
    spec: Spec
    gone: dict[int, float] = {}

    def becomes(self, left: float, at: float) -> None:
        """Know that more or less is left, by what others did."""
        lost = self.left - left
        if lost > 0:
            self.lose(lost, at)
        while lost < 0 and self.gone:  # what was lost last came back
            slot = max(self.gone)
            self.gone[slot] += lost
            lost = min(self.gone[slot], 0.0)
            if self.gone[slot] <= 0:
                del self.gone[slot]
        self.left, self.at = left, at

    def lose(self, amount: float, at: float) -> None:
        """Know that so much of what is not left is spent: a window gets it back some time."""
        if self.spec[0] == WINDOW:
            slot = self._slot(at)
            self.gone[slot] = self.gone.get(slot, 0.0) + amount

    def roll(self, now: float) -> bool:
        """Let come back what a window has lost long enough ago; tell whether there was any."""
        oldest = self._slot(now) - WINDOW_SLOTS if self.gone else 0
        past = [slot for slot in self.gone if slot < oldest]
        self.left += sum([self.gone.pop(slot) for slot in past])
        return bool(past)

    def _slot(self, moment: float) -> int:
        return int(moment * 1e6 / self.spec[2])


class LocalShare:
    """Local stand-ins for the limits of a part of the store. Times are monotonic seconds."""

    def __init__(self, shared: Shared | None = None, whose: str = "") -> None:
        self._shared, self._whose = shared, whose
        self._workers = 1  # as many as there were when this last decided
        # What was left when the store last said so, and when; what its leases here gave back since.
        self.known: dict[str, Level] = {}
        self._left: dict[str, Rest] = {}
        self._taken: dict[str, tuple[Grant, ...]] = {}
        # Rates that this worker has no whole unit of, and since when one comes back.
        self._empty: dict[str, float] = {}

    def forget_some(self) -> None:
        """Bound what is known: what was heard longest ago goes."""
        if len(self.known) >= MAX_KNOWN:
            newest = sorted(self.known.items(), key=lambda one: one[1][1])[MAX_KNOWN // 2 :]
            self.known.clear()
            self.known.update(newest)

    def take(self, lease: str, granted: tuple[Grant, ...], workers: int, now: float) -> Decision:
        """Take a request's amounts of every limit, or of none."""
        refused: tuple[Limit, float] | None = None
        found, short = [], []
        for grant in granted:
            left = self._current(grant, workers, now)
            found.append(left)
            if grant.amount <= left:
                continue
            if grant.limit.shadow:
                short.append(grant.limit)
                continue
            wait = self._wait(grant, left, workers)
            if refused is None or wait > refused[1]:
                refused = grant.limit, wait
        if refused is not None:
            return Decision(*refused)
        taken = []
        for grant, left in zip(granted, found, strict=True):
            if grant.amount <= left or grant.spec[0] != RATE:
                self._take(grant, left, grant.amount, now)
                taken.append(grant)
        self._taken[lease] = tuple(taken)
        return Decision(overdrawn=tuple(short))

    def grow(
        self, lease: str, granted: tuple[Grant, ...], amount: int, workers: int, now: float
    ) -> Limit | None:
        """Take so much more of every limit for a lease, or of none; return what refuses."""
        found = [self._current(grant, workers, now) for grant in granted]
        for grant, left in zip(granted, found, strict=True):
            if amount > left and not grant.limit.shadow:
                return grant.limit
        for grant, left in zip(granted, found, strict=True):
            self._take(grant, left, amount, now)
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
        rest = self._rest(key)
        if rest is not None:
            rest.becomes(min(capacity, rest.left + amount), rest.at)
            self._keep(key, rest)
        elif key in self.known:
            level, at, known_capacity = self.known[key]
            self.known[key] = min(capacity, level + amount), at, known_capacity

    def took(self, granted: tuple[Grant, ...]) -> None:
        """Know what the store has given meanwhile of what is also taken here."""
        for grant in granted:
            rest = self._rest(grant.key)
            if rest is not None:
                rest.becomes(rest.left - grant.amount, rest.at)
                self._keep(grant.key, rest)

    def knows(self, grant: Grant) -> bool:
        """Tell whether it is known what is left of a limit, here or for all."""
        key, shared = grant.key, self._shared
        if key in self._left or self._known(key, grant.spec) is not None:
            return True
        if shared is None or grant.spec[0] == SLOTS:
            return False
        return shared.has_none or shared.left(key, self._whose) is not None

    def has(self, lease: str) -> bool:
        """Tell whether a lease was taken here."""
        return lease in self._taken

    def give_back(self, lease: str, used: dict[str, int], now: float) -> None:
        """Return what a lease that was taken here did not use; `used` is by limit key."""
        for grant in self._taken.pop(lease, ()):
            rest = self._rest(grant.key) if grant.key in used else None
            if rest is not None:
                rest.left += grant.amount - used[grant.key]
                rest.lose(used[grant.key], now)
                self._keep(grant.key, rest)

    def reset(self, workers: int, now: float) -> None:
        """Go by what the store says next: it is back, and is told of what was taken here.

        What it has said before, also to others, may be of before that, so no more is left than is
        left here.
        """
        for key in self._left:
            rest = self._rest(key)
            assert rest is not None
            capacity = rest.spec[1]
            back = (now - rest.at) * rest.refill
            level = min(int(rest.left * workers + back), capacity)
            if key in self.known:
                heard, heard_at, _ = self.known[key]
                level = min(level, int(heard + (now - heard_at) * rest.refill))
            self.known[key] = level, now, capacity
            if self._shared is not None and rest.spec[0] != SLOTS:
                self._shared.tell(key, level, now, capacity)
        self._left.clear()
        self._taken.clear()
        self._empty.clear()
        if self._shared is not None:
            self._shared.told(self._whose, now)

    def _take(self, grant: Grant, left: float, amount: float, now: float) -> None:
        rest = self._left.get(grant.key)
        if rest is None:
            rest = self._whole(grant)
            rest.becomes(left, now)
        rest.left, rest.at = left - amount, now
        self._keep(grant.key, rest)

    def _whole(self, grant: Grant) -> Rest:
        """Return a share of which nothing is gone."""
        part = self._part(grant.spec, grant.spec[1], self._workers)
        return Rest(part, 0.0, _refill(grant), grant.spec, {})

    def _keep(self, key: str, rest: Rest) -> None:
        self._left[key] = rest
        if self._shared is not None and rest.spec[0] != SLOTS:
            self._shared.keep(key, rest.left, rest.at, rest.spec[1])

    def _rest(self, key: str) -> Rest | None:
        """Return what is left here, of which others in this slot may have taken as well."""
        rest = self._left.get(key)
        if rest is not None and self._shared is not None and rest.spec[0] != SLOTS:
            noted = self._shared.left(key, self._whose)
            if noted is not None:
                left, at, capacity = noted
                if capacity != rest.spec[1]:
                    left = _as_of(left, capacity, rest.spec, self._workers)
                rest.becomes(left, at)
        if rest is not None:
            known = self._known(key, rest.spec)
            if known is not None and known[1] > rest.at + MOMENT:  # others have taken of it too
                back = (known[1] - rest.at) * rest.refill / self._workers
                part = self._part(rest.spec, self._level(known, rest.spec), self._workers)
                rest.becomes(min(rest.left + back, part), known[1])
        return rest

    def _current(self, grant: Grant, workers: int, now: float) -> float:
        self._workers = workers
        share = self._part(grant.spec, grant.limit.capacity, workers)
        most = max(share, 1.0) if grant.spec[0] == RATE else share  # else it never comes to one
        rest = self._begun(grant, workers, now)
        if rest is not None:
            left, at = rest.left, rest.at
        elif grant.spec[0] != SLOTS and self._shared is not None and self._shared.has_none:
            left, at = 0.0, self._empty.setdefault(grant.key, now)
        elif (known := self._last_heard(grant, now)) is not None:
            left, at = self._part(grant.spec, known[0], workers), known[1]
        else:
            left, at = share, now
            if share < most:
                at = self._empty.setdefault(grant.key, now)
        return min(most, left + (now - at) * _refill(grant) / workers)

    def _begun(self, grant: Grant, workers: int, now: float) -> Rest | None:
        """Return what is left of a share that something was taken of, here or by a predecessor."""
        rest = self._rest(grant.key)
        if rest is None and self._shared is not None and grant.spec[0] != SLOTS:
            noted = self._shared.left(grant.key, self._whose)
            if noted is not None:
                left, at, capacity = noted
                rest = self._left[grant.key] = self._whole(grant)
                rest.left = self._part(grant.spec, capacity, workers)
                rest.spec = (grant.spec[0], capacity, grant.spec[2])
                rest.becomes(left, at)
                rest = self._rest(grant.key)
        if rest is not None and rest.roll(now):
            self._keep(grant.key, rest)
        if rest is not None and rest.spec[1] != grant.spec[1]:  # the limit has been changed
            rest.left = _as_of(rest.left, rest.spec[1], grant.spec, workers)
            rest.spec, rest.refill = grant.spec, _refill(grant)
            self._keep(grant.key, rest)
        return rest

    def _part(self, spec: Spec, level: float, workers: int) -> float:
        """Return this worker's part of what is left: of requests and slots a whole number.

        What remains where it cannot be divided is the first workers'.
        """
        level = max(level, 0)
        if spec[0] in (PERIOD, WINDOW) or self._shared is None:
            return level / workers
        whole, rest = divmod(int(level), workers)
        return float(whole + (self._shared.place < rest))

    def _wait(self, grant: Grant, left: float, workers: int) -> float:
        limit = grant.limit
        if limit.unit == CONCURRENCY:
            return GUESS_SECONDS
        most = max(1.0, self._part(grant.spec, limit.capacity, workers))
        if limit.unit == MONEY or grant.amount > most:
            return inf
        return (grant.amount - left) * 60 * workers / limit.per_minute

    def _last_heard(self, grant: Grant, now: float) -> tuple[float, float] | None:
        """Return what is left as the store has said last, to any worker, and when."""
        known = self._known(grant.key, grant.spec)
        if known is None or now - known[1] > _window_seconds(grant.spec):
            return None
        return self._level(known, grant.spec), known[1]

    def _known(self, key: str, spec: Spec) -> Level | None:
        """Return what the store has said last. Of slots others cannot say what has come back."""
        known = self.known.get(key)
        if self._shared is not None and spec[0] != SLOTS:
            told = self._shared.heard(key)
            if told is not None and (known is None or told[1] > known[1]):
                known = told
        return known

    def _level(self, known: Level, spec: Spec) -> float:
        return known[0] if known[2] == spec[1] else _as_of(known[0], known[2], spec, 1)


def _as_of(left: float, capacity: int, spec: Spec, workers: int) -> float:
    """Return what is left of a part of a limit now, which had another capacity before.

    Of slots and money what was taken stays taken; a bucket has no more in it for being larger.
    """
    return left if spec[0] == RATE else left + (spec[1] - capacity) / workers


def _window_seconds(spec: Spec) -> float:
    """Return after how long what was taken of a limit is forgotten, if that is to be seen here."""
    return spec[2] * WINDOW_SLOTS / 1e6 if spec[0] == WINDOW else inf


def _refill(grant: Grant) -> float:
    """Return how much of a limit comes back a second."""
    return grant.limit.per_minute / 60 if grant.spec[0] == RATE else 0.0
