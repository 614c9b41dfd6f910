"""How long to wait before what has ended is started again."""

# What lived this long was well: its successor starts as if nothing had been.
HEALTHY_SECONDS = 5.0
LEAST_SECONDS, MOST_SECONDS = 0.1, 3.0


class Backoff:
    """Waits `first` seconds, then twice as long from time to time, up to MOST_SECONDS."""

    def __init__(self, first: float = 0.0) -> None:
        self._first = self._next = first

    def after(self, lived_seconds: float) -> float:
        """Return how many seconds to wait, after one that lived so long."""
        if lived_seconds >= HEALTHY_SECONDS:
            self._next = self._first
        wait = self._next
        self._next = min(max(wait * 2, LEAST_SECONDS), MOST_SECONDS)
        return wait
