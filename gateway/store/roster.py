"""The workers that share a Redis, and its clock, which all of them go by."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from gateway.store import names
from gateway.store.client import Client

# A worker is counted for three turns after it was last seen. So after so many counts in a row all
# are there again, however long Redis was away or whatever it has forgotten.
COUNTS = 4
JUMP_SECONDS = 1.0  # by more than this a clock has been set


class Roster:
    """How many workers of all machines there are; `jumped` hears that Redis's clock was set."""

    def __init__(self, client: Client, jumped: Callable[[], None]) -> None:
        self._client, self._jumped = client, jumped
        self._clock_offset: float | None = None
        self._least = 1
        self._counts = deque([1], maxlen=COUNTS)

    @property
    def live(self) -> int:
        """Return how many workers there are: too many rather than too few, or shares add up."""
        return max(self._least, *self._counts)

    def expect(self, workers: int) -> None:
        """Know how many there are of this gateway alone."""
        self._least = workers

    def now(self) -> float:
        """Return Unix seconds by Redis's clock, as far as this worker knows it."""
        return time.time() + (self._clock_offset or 0.0)

    def heard(self, now_us: int) -> None:
        """Know what the time is at Redis, in Unix microseconds."""
        before, self._clock_offset = self._clock_offset, now_us / 1e6 - time.time()
        if before is not None and abs(self._clock_offset - before) > JUMP_SECONDS:
            self._jumped()

    async def ask_time(self) -> None:
        """Hear what the time is at Redis. Raises StoreError."""
        seconds, microseconds = await self._client.call("TIME")
        self.heard(int(seconds) * 1_000_000 + int(microseconds))

    async def count(self, name: str, every_seconds: float) -> None:
        """Be counted among the live workers, and count them. Raises StoreError."""
        call = self._client.call
        await self.ask_time()  # one that was asked for nothing has heard none
        now = self.now()
        _, _, _, live = await asyncio.gather(
            call("ZADD", names.WORKERS, int(now), name),
            call("ZREMRANGEBYSCORE", names.WORKERS, "-inf", int(now - 3 * every_seconds - 1)),
            call("EXPIRE", names.WORKERS, 3600),
            call("ZCARD", names.WORKERS),
        )
        self._counts.append(live)
