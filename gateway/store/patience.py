"""Hot path: how long an answer of Redis is waited for, where a worker may decide by itself."""

import asyncio
from collections.abc import Callable
from time import monotonic

from gateway.store.lease import Ask

# A Redis that takes longer than this to decide is not waited for, where `degrade` says so.
PATIENCE_SECONDS = 0.1


class Patience:
    """The batches that Redis has not answered, oldest first; one timer serves them all.

    `lost` gets a batch, its tenant and its asks, whose time is up.
    """

    def __init__(self, lost: Callable[[str, list[Ask]], None]) -> None:
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, tuple[float, str, list[Ask]]] = {}
        self._batches = 0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, tenant: str, asks: list[Ask]) -> int:
        """Wait for a batch; return its number."""
        number = self._batches = self._batches + 1
        self._waiting[number] = (monotonic() + PATIENCE_SECONDS, tenant, asks)
        if self._timer is None:
            self._timer = self._loop.call_later(PATIENCE_SECONDS, self._check)
        return number

    def end(self, number: int) -> None:
        """Wait for a batch no more."""
        self._waiting.pop(number, None)

    def close(self) -> None:
        """Wait for none. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        self._timer = None
        now = monotonic()
        while self._waiting:
            number = next(iter(self._waiting))
            until, tenant, asks = self._waiting[number]
            if until > now:
                self._timer = self._loop.call_later(until - now, self._check)
                return
            del self._waiting[number]
            self._lost(tenant, asks)
