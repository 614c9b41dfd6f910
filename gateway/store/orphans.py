"""Leases of workers that are gone: which there are, and what those workers had left to say."""

from collections.abc import Callable, Iterable

import msgspec

from gateway.store import names, scripts
from gateway.store.client import Client, ran
from gateway.store.journal import Grown
from gateway.store.lease import Ask, Due, Holding, Settlement, batches
from gateway.store.packing import pack_asks, pack_growth, pack_settlements


class Orphans:
    """What a worker does for others that are gone; `now` gives Unix seconds by Redis's clock."""

    def __init__(self, client: Client, lease_ms: int, now: Callable[[], float]) -> None:
        self._client, self._lease_ms, self.now = client, lease_ms, now

    async def tenants(self) -> set[str]:
        """Return every tenant that ever used this store. Raises StoreError."""
        return {name.decode() for name in await self._client.call("SMEMBERS", names.TENANTS)}

    def reaches(self, tenant: str) -> bool:
        """Tell whether a tenant's part of Redis is there now."""
        return self._client.reaches(tenant)

    async def expired(self, tenant: str, most: int = 100) -> list[tuple[str, Holding | None]]:
        """Return a tenant's leases that nobody extends any more. Raises StoreError."""
        keys = list(names.leases(tenant))
        flat = await ran(self._client, scripts.EXPIRED, keys, b"%d" % most)
        return [(flat[i].decode(), _holding(flat[i + 1])) for i in range(0, len(flat), 2)]

    async def reopen(self, tenant: str, asks: list[Ask]) -> None:
        """Let Redis have leases of a worker that is gone. Raises StoreError."""
        for part in batches(asks):
            keys, data, _ = pack_asks(tenant, part, self._lease_ms)
            await ran(self._client, scripts.ADMIT, keys, data)

    async def grow(self, tenant: str, grown: Iterable[Grown]) -> None:
        """Let Redis know what leases that it has hold besides. Raises StoreError."""
        for one in grown:
            budgets = tuple([(key, spec, False) for key, spec in one.budgets])
            keys, data = pack_growth(tenant, one.lease, one.holding, budgets, forced=True)
            await ran(self._client, scripts.GROW, keys, data)

    async def enlist(self, tenant: str) -> None:
        """Let every worker look after a tenant's leases. Raises StoreError."""
        await self._client.call("SADD", names.TENANTS, tenant)

    async def deliver(self, tenant: str, settlements: list[Settlement]) -> None:
        """Let Redis have settlements of a worker that is gone. Raises StoreError."""
        stream = names.requests(tenant, clustered=self._client.clustered)
        for part in batches(settlements):
            due: list[Due] = [(settlement, None) for settlement in part]
            keys, data = pack_settlements(tenant, stream, due, self.now())
            await ran(self._client, scripts.SETTLE, keys, data)


def _holding(data: bytes) -> Holding | None:
    try:
        return msgspec.json.decode(data, type=Holding)
    except msgspec.DecodeError:
        return None
