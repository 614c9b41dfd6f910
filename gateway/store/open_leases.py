"""The leases that a worker holds: extended as long as it lives."""

from collections.abc import Callable
from time import monotonic

from gateway.store import names, scripts
from gateway.store.client import Client
from gateway.store.connection import Reply
from gateway.store.lease import batches


class OpenLeases:
    """`by_id` has each lease's tenant, and since when it is held (monotonic seconds).

    `refused` is told of a tenant's part of Redis that takes no signs of life.
    """

    def __init__(
        self, client: Client, lease_seconds: float, refused: Callable[[str], None]
    ) -> None:
        self._client, self._lease_seconds, self._refused = client, lease_seconds, refused
        self.by_id: dict[str, tuple[str, float]] = {}
        self.missing: set[str] = set()  # among them are some that Redis does not have any more
        self._extended_at = monotonic()

    def may_be_gone(self, lease: str) -> bool:
        """Tell whether a lease may have been taken for a dead worker's: it was not extended."""
        return lease in self.by_id and (
            lease in self.missing or monotonic() - self._extended_at > self._lease_seconds
        )

    def extend(self) -> None:
        """Move the deadlines of those that are not brand new."""
        now = monotonic()
        late = now - self._extended_at > self._lease_seconds
        old, self._extended_at = now - self._lease_seconds / 3, now
        by_tenant: dict[str, list[str]] = {}
        for lease, (tenant, since) in self.by_id.items():
            if since < old:
                by_tenant.setdefault(tenant, []).append(lease)
        for tenant, leases in by_tenant.items():
            if late:
                self.missing.update(leases)
            for some in batches(leases):
                self._send(tenant, some)

    def _send(self, tenant: str, leases: list[str]) -> None:
        def done(reply: Reply | Exception) -> None:
            if isinstance(reply, Exception):
                self._refused(tenant)
            elif reply < len(leases):
                self.missing.update(self.by_id.keys() & leases)

        args = (b"%d" % int(self._lease_seconds * 1000), *[one.encode() for one in leases])
        self._client.run(scripts.EXTEND, [names.leases(tenant)[0]], args, done)
