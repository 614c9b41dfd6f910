"""Which targets are left alone, as the workers of all machines tell it: `sluice:targets`."""

from gateway.store import names
from gateway.store.client import Client

KEPT_SECONDS = 3600


class TargetBoard:
    """A hash: provider/model -> until when it is left alone (Unix milliseconds)."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def tell(self, target: str, until: float) -> None:
        """Tell that a target is left alone until then (Unix seconds)."""
        self._client.post("HSET", names.TARGETS, target, int(until * 1000))
        self._client.post("EXPIRE", names.TARGETS, KEPT_SECONDS)

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

    async def read(self, now: float) -> dict[str, float]:
        """Return the targets that are left alone now, each until when. Raises StoreError."""
        flat = await self._client.call("HGETALL", names.TARGETS)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        told = {name.decode(): int(until) / 1000 for name, until in pairs}
        old = [name for name, until in told.items() if until < now - KEPT_SECONDS]
        if old:
            self._client.post("HDEL", names.TARGETS, *old)
        return {name: until for name, until in told.items() if until > now}
