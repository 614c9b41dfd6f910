"""Which targets are left alone, as the workers of all machines tell it: `sluice:targets`."""

from typing import NamedTuple

from gateway.store import names, scripts
from gateway.store.client import Client

KEPT_SECONDS = 3600


class Told(NamedTuple):
    """That a target is left alone: until when, and when that was told (Unix seconds).

    `where` is what stands for its address and credentials.
    """

    until: float
    at: float
    where: str

    def packed(self) -> bytes:
        """Return what Redis has of it, times in milliseconds."""
        return f"{round(self.until * 1000)} {round(self.at * 1000)} {self.where}".encode()

    @classmethod
    def of(cls, packed: bytes) -> "Told":
        """Return what was packed. Raises ValueError."""
        until, at, where = packed.decode().split()
        return cls(int(until) / 1000, int(at) / 1000, where)


class TargetBoard:
    """A hash: provider/model -> until when it is left alone, since when, and where it is."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def tell(self, target: str, told: Told) -> None:
        """Tell that a target is left alone."""
        self._client.post("HSET", names.TARGETS, target, told.packed())
        self._client.post("EXPIRE", names.TARGETS, KEPT_SECONDS)

    def take_back(self, target: str, told: Told) -> None:
        """Tell that a target is well again, unless something else was told of it meanwhile."""
        args = target.encode(), told.packed()
        self._client.run(scripts.TARGET_WELL, [names.TARGETS], args, lambda _: None)

    def tell_latencies(self, found: dict[str, float], now: float) -> None:
        """Tell how long targets take to begin an answer (seconds)."""
        for target, seconds in found.items():
            value = f"{int(seconds * 1_000_000)} {int(now * 1000)}"
            self._client.post("HSET", names.LATENCIES, target, value)
        self._client.post("EXPIRE", names.LATENCIES, KEPT_SECONDS)

    async def latencies(self, now: float, newest: float) -> dict[str, float]:
        """Return what was told within so many seconds. Raises StoreError."""
        flat = await self._client.call("HGETALL", names.LATENCIES)
        found = {}
        for name, value in zip(flat[::2], flat[1::2], strict=True):
            microseconds, told_ms = value.split()
            if int(told_ms) / 1000 > now - newest:
                found[name.decode()] = int(microseconds) / 1_000_000
        return found

    async def read(self, now: float) -> dict[str, Told]:
        """Return what is told of the targets that are left alone now. Raises StoreError."""
        flat = await self._client.call("HGETALL", names.TARGETS)
        found, old = {}, []
        for name, packed in zip(flat[::2], flat[1::2], strict=True):
            try:
                told = Told.of(packed)
            except ValueError:  # of another version
                old.append(name)
                continue
            if told.until > now:
                found[name.decode()] = told
            elif told.until < now - KEPT_SECONDS:
                old.append(name)
        if old:
            self._client.post("HDEL", names.TARGETS, *old)
        return found
