"""Hot path: in which order a model's targets are asked. Pure; chance and time are given."""

from collections import deque
from collections.abc import Callable
from functools import partial
from math import exp, inf
from typing import Protocol, TypeVar

from gateway.policy.breaker import Breaker
from gateway.policy.selection import draw

# How fast an old latency is forgotten; a higher one counts at once (peak EWMA).
DECAY_SECONDS = 10.0
RECENT, FEWEST = 100, 20  # answers that a percentile is taken from
Chance = Callable[[], float]  # returns 0 to 1


class TargetState:
    """What a worker knows of one target: how it does, and how busy it keeps it.

    `where` stands for its address and credentials: with others it is another target.
    """

    __slots__ = ("_latency", "_measured_at", "_recent", "breaker", "in_flight", "where")

    def __init__(self, breaker: Breaker, where: str = "-") -> None:
        self.breaker, self.where = breaker, where
        self.in_flight = 0
        self._latency = self._measured_at = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)

    def took(self, seconds: float, now: float) -> None:
        """Learn how long it took to begin an answer."""
        if seconds >= self._latency:
            self._latency = seconds
        else:
            weight = exp(-(now - self._measured_at) / DECAY_SECONDS)
            self._latency = self._latency * weight + seconds * (1 - weight)
        self._measured_at = now
        self._recent.append(seconds)

    def measured(self, since: float) -> float | None:
        """Return the latency, if anything was learned of it since then."""
        return self._latency if self._measured_at > since else None

    def heard(self, seconds: float, now: float) -> None:
        """Learn a latency from another worker, where this one has none of its own."""
        self._latency, self._measured_at = seconds, now

    def p95(self) -> float | None:
        """Return what 19 of 20 answers have begun within; None while there were too few."""
        if len(self._recent) < FEWEST:
            return None
        return sorted(self._recent)[len(self._recent) * 95 // 100]

    @property
    def load(self) -> float:
        """Return the latency to expect, times what waits already."""
        return self._latency * (self.in_flight + 1)


class Candidate(Protocol):
    """Anything that can be asked: 1 is the first priority; `unit_price` is what a token costs."""

    @property
    def priority(self) -> int:
        """Return the rank."""
        ...

    @property
    def weight(self) -> int:
        """Return the share, relative to the others'."""
        ...

    @property
    def unit_price(self) -> float:
        """Return what it costs, in any unit that all share."""
        ...

    @property
    def state(self) -> TargetState:
        """Return what is known of it."""
        ...

    @property
    def name(self) -> str:
        """Return what it is called."""
        ...


_C = TypeVar("_C", bound=Candidate)


def plan(
    targets: tuple[_C, ...],
    strategy: str,
    now: float,
    chance: Chance,
    panic: float = 0.5,
    pin: bytes = b"",
) -> tuple[_C, ...]:
    """Return the targets in the order to try: by priority, and within one by the strategy.

    With a `pin`, who asks decides instead: the same target each time, as long as it is well. Those
    that are ejected come last, unless more than a share `panic` of all is: then it is not
    them, and none is treated so.
    """
    if len(targets) == 1:
        return targets
    ejected = [target for target in targets if not target.state.breaker.allows(now)]
    if len(ejected) > panic * len(targets):
        ejected = []
    order = partial(_pinned, pin) if pin else _ORDERS[strategy]
    found: list[_C] = []
    for rank in sorted({target.priority for target in targets}):
        group = [one for one in targets if one.priority == rank and one not in ejected]
        found += order(group, chance) if len(group) > 1 else group
    ejected.sort(key=lambda target: target.state.breaker.open_until)
    return (*found, *ejected)


def _as_written(group: list[_C], chance: Chance) -> list[_C]:
    return group


def _weighted(group: list[_C], chance: Chance) -> list[_C]:
    """Draw without putting back (Efraimidis and Spirakis: the largest of u to the 1/w)."""
    keys = {id(one): chance() ** (1 / one.weight) for one in group}
    return sorted(group, key=lambda one: keys[id(one)], reverse=True)


def _pinned(pin: bytes, group: list[_C], chance: Chance) -> list[_C]:
    """Draw as by weight, but the same for the same pin."""
    return sorted(group, key=lambda one: draw(pin, one.name) ** (1 / one.weight), reverse=True)


def _by_latency(group: list[_C], chance: Chance) -> list[_C]:
    """Take the better of two drawn at random: all would otherwise run to the same one."""
    first = min(int(chance() * len(group)), len(group) - 1)
    second = min(int(chance() * (len(group) - 1)), len(group) - 2)
    second += second >= first
    best = min(group[first], group[second], key=lambda one: one.state.load)
    return [best, *sorted((o for o in group if o is not best), key=lambda one: one.state.load)]


def _least_busy(group: list[_C], chance: Chance) -> list[_C]:
    shift = int(chance() * len(group))
    turned = group[shift:] + group[:shift]  # or the first of equals would get everything
    return sorted(turned, key=lambda one: one.state.in_flight / one.weight)


def _cheapest(group: list[_C], chance: Chance) -> list[_C]:
    return sorted(group, key=lambda one: one.unit_price)


_ORDERS: dict[str, Callable[[list[_C], Chance], list[_C]]] = {
    "priority": _as_written,
    "weighted": _weighted,
    "latency": _by_latency,
    "least-busy": _least_busy,
    "cost": _cheapest,
}
UNKNOWN_PRICE = inf
