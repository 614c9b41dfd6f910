"""The workers that share a Redis, and its clock, which all of them go by."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from gateway.store import names
from gateway.store.client import Client
from gateway.store.levels import Levels
from gateway.store.part import MAX_PARTS

# A worker is counted for three turns after it was last seen. So after so many counts in a row all
# are there again, however long Redis was away or whatever it has forgotten.
COUNTS = 4
ALL = ""  # the one part that there is without a cluster; in one, the part that tells the time
JUMP_SECONDS = 1.0  # by more than this a clock has been set


class Roster:
    """How many workers of all machines there are; `jumped` hears that Redis's clock was set."""

    def __init__(
        self, client: Client, jumped: Callable[[], None], levels: Levels | None = None
    ) -> None:
        self._client, self._jumped, self._levels = client, jumped, levels
        self._clock_offsets: dict[str, float] = {}  # by tenant in a cluster, whose clocks differ
        self._least = 1
        # One that begins while Redis is away goes by what others here have counted.
        self._gone = False
        self._counts = deque([1 if levels is None else levels.live], maxlen=COUNTS)

    @property
    def live(self) -> int:
        """Return how many workers there are: too many rather than too few, or shares add up."""
        return max(self._least, *self._counts)

    def expect(self, workers: int) -> None:
        """Know how many there are of this gateway alone."""
        self._least = workers

    def now(self) -> float:
        """Return Unix seconds by Redis's clock, as far as this worker knows it."""
        return time.time() + self._clock_offsets.get(ALL, 0.0)

    def heard(self, now_us: int, whose: str = ALL, asked: float | None = None) -> bool:
        """Know what the time was at a part of Redis, in Unix microseconds; tell whether it jumped.

        A part is known by a tenant in a cluster. How far its clock is ahead lies between what it
        said less when that arrived and less when it was `asked` (by this machine's clock): what
        was known stays where it may still be so, as workers whose clocks agree are to agree.
        """
        offsets = self._clock_offsets
        before, said = offsets.get(whose), now_us / 1e6
        if before is None and len(offsets) >= MAX_PARTS:
            offsets.clear()
        known, least = before or 0.0, said - time.time()
        offset = max(known, least)
        if asked is not None:
            offset = min(offset, said - asked)
        elif least < known - JUMP_SECONDS:
            offset = least
        offsets[whose] = offset
        return before is not None and abs(offset - before) > JUMP_SECONDS

    async def ask_time(self) -> None:
        """Hear what the time is at Redis. Raises StoreError."""
        asked = time.time()
        seconds, microseconds = await self._client.call("TIME")
        if self.heard(int(seconds) * 1_000_000 + int(microseconds), asked=asked):
            self._jumped()

    def leave(self, name: str) -> None:
        """Be counted no more: this worker is about to end, and others may have its place."""
        self._gone = True
        self._client.post("ZREM", names.WORKERS, name)

    async def count(self, name: str, every_seconds: float, *, young: bool = False) -> None:
        """Be counted among the live workers, and count them. Raises StoreError.

        One that is `young` counts more often than others are counted, so they become no fewer.
        """
        call = self._client.call
        await self.ask_time()  # one that was asked for nothing has heard none
        if self._gone:
            return
        now = self.now()
        _, _, _, found = await asyncio.gather(
            call("ZADD", names.WORKERS, int(now), name),
            call("ZREMRANGEBYSCORE", names.WORKERS, "-inf", int(now - 3 * every_seconds - 1)),
            call("EXPIRE", names.WORKERS, 3600),
            call("ZRANGE", names.WORKERS, 0, -1),
        )
        live = sorted(found)
        self._counts.append(max(len(live), self.live) if young else len(live))
        if self._levels is not None and name.encode() in live:
            self._levels.counted(live.index(name.encode()), self.live)
