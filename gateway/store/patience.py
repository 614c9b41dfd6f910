"""Hot path: how long an answer of Redis is waited for, where a worker can do without."""

import asyncio
from collections.abc import Callable
from time import monotonic

from gateway.timer import READ_SECONDS

# A Redis that takes longer than this is not waited for.
PATIENCE_SECONDS = 0.1


class Patience:
    """What Redis has not answered, oldest first; one timer serves all of it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, tuple[float, Callable[[], None]]] = {}
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, lost: Callable[[], None]) -> int:
        """Wait for an answer; return its number. `lost` is called when its time is up."""
        number = self._count = self._count + 1
        self._waiting[number] = (monotonic() + PATIENCE_SECONDS, lost)
        if self._timer is None:
            self._timer = self._loop.call_later(PATIENCE_SECONDS, self._check)
        return number

    def end(self, number: int) -> bool:
        """Wait for an answer no more; tell whether its time was not up yet."""
        return self._waiting.pop(number, None) is not None

    def close(self) -> None:
        """Wait for none. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        """Look again as soon as what has come by now is read, or when something is due."""
        self._timer = None
        if self._waiting:
            now = monotonic()
            until = next(iter(self._waiting.values()))[0]
            if until > now:
                self._timer = self._loop.call_later(until - now, self._check)
            else:
                self._timer = self._loop.call_later(READ_SECONDS, self._lose, now)

    def _lose(self, due: float) -> None:
        """Give up what was due at a moment."""
        while self._waiting:
            number, (until, lost) = next(iter(self._waiting.items()))
            if until > due:
                break
            del self._waiting[number]
            lost()
        self._check()
