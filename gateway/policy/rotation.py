"""Whose turn it is among a provider's keys, and which of them rest. Pure; times are given."""

# A key that was refused rests so long, unless its provider says how long.
REFUSED_SECONDS = 60.0
LIMITED_SECONDS = 10.0
LONGEST_SECONDS = 3600.0
REFUSED = frozenset({401, 402, 403})  # not valid, out of credit, not allowed


class Rotation:
    """Smooth weighted round robin, as nginx does it: turns by weight, spread evenly."""

    def __init__(self, weights: list[int]) -> None:
        self._weights = weights
        self._current = [0] * len(weights)
        self._resting = [0.0] * len(weights)

    def order(self, now: float, *, resting_too: bool = True) -> list[int]:
        """Return the keys in the order to try: the one whose turn it is, then the others.

        Those that rest come last, the one that is to be back first before the others; or not at
        all, where there is something better to try.
        """
        ready = [i for i, until in enumerate(self._resting) if until <= now]
        resting = sorted(set(range(len(self._weights))) - set(ready), key=self._resting.__getitem__)
        if not resting_too:
            resting = []
        if not ready:
            return resting
        total = 0
        for i in ready:
            self._current[i] += self._weights[i]
            total += self._weights[i]
        first = max(ready, key=self._current.__getitem__)
        self._current[first] -= total
        others = sorted((i for i in ready if i != first), key=self._current.__getitem__)
        return [first, *reversed(others), *resting]

    def rest(self, index: int, now: float, seconds: float) -> None:
        """Let a key rest."""
        self._resting[index] = max(self._resting[index], now + min(seconds, LONGEST_SECONDS))


def resting_seconds(status: int, retry_after: float | None) -> float | None:
    """Return how long a key rests after a reply; None where it was not the key's fault."""
    if status in REFUSED:
        return REFUSED_SECONDS
    if status == 429:
        return LIMITED_SECONDS if retry_after is None else retry_after
    return None
