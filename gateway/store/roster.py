"""The workers that share a Redis, and its clock, which all of them go by."""

import asyncio
import time

from gateway.store import names
from gateway.store.client import Client


class Roster:
    """`live`: how many workers of all machines there are, as far as this one knows."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._clock_offset = 0.0
        self.live = 1

    def now(self) -> float:
        """Return Unix seconds by Redis's clock, as far as this worker knows it."""
        return time.time() + self._clock_offset

    def heard(self, now_us: int) -> None:
        """Know what the time is at Redis, in Unix microseconds."""
        self._clock_offset = now_us / 1e6 - time.time()

    async def count(self, name: str, every_seconds: float) -> None:
        """Be counted among the live workers, and count them. Raises StoreError."""
        call = self._client.call
        seconds, microseconds = await call("TIME")  # one that was asked for nothing has heard none
        self.heard(int(seconds) * 1_000_000 + int(microseconds))
        now = self.now()
        _, _, _, live = await asyncio.gather(
            call("ZADD", names.WORKERS, int(now), name),
            call("ZREMRANGEBYSCORE", names.WORKERS, "-inf", int(now - 3 * every_seconds - 1)),
            call("EXPIRE", names.WORKERS, 3600),
            call("ZCARD", names.WORKERS),
        )
        self.live = max(1, live)
